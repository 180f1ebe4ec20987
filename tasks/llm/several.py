"""Several processes that train one model: how they join, how they agree, and which rows each of them read.

A process is one of several where torch's RANK and WORLD_SIZE and, for DeepSpeed's ZeRO-2, accelerate's
ACCELERATE_USE_DEEPSPEED are in its environment: who starts them sets these, as torchrun and accelerate do. Their rows
are disjoint; where those of an epoch do not come out even, accelerate fills its last step with some from its beginning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T")

_TOLD = 10_000
"""Row numbers that are written down of each rank; the count goes on."""


def joined(cpu: bool, autocast: bool) -> dict[str, Any]:
    """The trainer's arguments in one of several processes. Waits until all of them are there.

    Without a GPU, ZeRO-2 is only reached past a door: `use_cpu` ignores DeepSpeed's config, and without it a process
    finds no device that others could join it on, unless its state was configured before.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true":
        return {"ddp_backend": "gloo"} if cpu else {}
    import deepspeed
    from accelerate import PartialState

    # Its shared-memory reduction is compiled on first use (20 s, a compiler), and spins for ever if a rank dies.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    PartialState(**({"backend": "gloo"} if cpu else {}))
    return {
        "use_cpu": False,
        "bf16": False,
        "accelerator_config": {"use_configured_state": True},
        "deepspeed": _zero2(autocast),
    }


def _zero2(autocast: bool) -> dict[str, Any]:
    """DeepSpeed's config. An empty list of safe modules keeps fp32 gradients fp32 on their way between the ranks."""
    split = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    half = {"torch_autocast": {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}}
    return {
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,  # torch's AdamW: DeepSpeed's own is compiled on first use
        **dict.fromkeys(split, "auto"),
        **(half if autocast else {}),
    }


def prepare(trainer: Any) -> None:
    """Have a trainer note the rows it draws, and measure in the arithmetic it trains in."""
    if trainer.args.world_size == 1:
        return
    trainer.train_dataset = Noted(trainer.train_dataset)
    if trainer.is_deepspeed_enabled and "torch_autocast" in trainer.args.deepspeed:
        import torch

        device = trainer.args.device.type  # DeepSpeed's engine sees to training, and is not asked to evaluate
        trainer.compute_loss_context_manager = lambda: torch.autocast(device, torch.bfloat16)


def split(trainer: Any) -> str:
    """How a batch is split, and who keeps what of the optimizer: a checkpoint is good for one such split."""
    rows = (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps, trainer.args.world_size)
    return "x".join(map(str, rows)) + (" zero2" if trainer.is_deepspeed_enabled else "")


def agreed(wishes: Sequence[bool]) -> list[bool]:
    """What one rank wishes, all do: who saved or stopped alone would wait for the others for ever."""
    return [votes > 0 for votes in _sums([float(wish) for wish in wishes])]


def mean(value: float) -> float:
    """Over the ranks."""
    total, ranks = _sums([value, 1.0])
    return total / ranks


def _sums(values: list[float]) -> list[float]:
    import torch

    if not torch.distributed.is_initialized():
        return values
    from accelerate import PartialState

    all_of_them = torch.tensor(values, dtype=torch.float64, device=PartialState().device)
    torch.distributed.all_reduce(all_of_them)
    return list(all_of_them.tolist())


def told(look: Callable[[], T]) -> T:
    """What the first rank finds, told to all."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    found = [look() if PartialState().is_main_process else None]
    return cast(T, broadcast_object_list(found)[0])


def report(trainer: Any, notes: Path) -> None:
    """`ranks.json`: what each rank was and which rows it drew since it last began or went on."""
    if trainer.args.world_size == 1:
        return
    from accelerate.utils import gather_object

    mine = {
        "rank": trainer.args.process_index,
        "world_size": trainer.args.world_size,
        "deepspeed": trainer.is_deepspeed_enabled,
        "drawn": trainer.train_dataset.count,
        "rows": trainer.train_dataset.drawn,
    }
    (notes / "ranks.json").write_text(json.dumps(gather_object([mine])))


class Noted:
    """A data set that remembers which of its rows were drawn, in order, the one batch ahead included."""

    def __init__(self, rows: Any) -> None:
        self.rows, self.count = rows, 0
        self.drawn: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        return self.rows[number]

    def __getitems__(self, numbers: list[int]) -> Any:
        self.count += len(numbers)
        self.drawn += numbers[: max(0, _TOLD - len(self.drawn))]
        return self.rows.__getitems__(numbers)
