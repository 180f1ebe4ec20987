"""What training stages share: LoRA, the trainer's arguments, live numbers, resuming from a complete checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from tasks.llm import batches, knobs, models, several
from tasks.llm.checkpoints import forget_other_split, last_complete

_SEQUENCES_AT_ONCE = 4
"""Per forward pass, where nobody said otherwise."""
_SAVE_EVERY = 60.0
"""Seconds of training that a killed run may lose."""


class Method(StrEnum):
    """`lora` trains low-rank adapters beside frozen weights, `full` trains every weight."""

    lora = "lora"
    full = "full"


@dataclass
class LoRA:
    """Low-rank adapters (Hu et al., 2021): W + (alpha / rank) B A, with only A and B trained."""

    rank: int = 16
    """Rank of A and B: more learns more and takes more memory."""
    alpha: int = 32
    """Scale of the adapter; alpha / rank multiplies B A."""
    dropout: float = 0.0
    """Share of the adapter's inputs dropped while training."""
    targets: list[str] = field(default_factory=lambda: ["all-linear"])
    """Module names that get an adapter; `all-linear` is every linear layer but the head."""

    def problems(self) -> Iterator[str]:
        if self.rank < 1:
            yield f"rank is {self.rank}; give a positive number such as 16."
        if not 0 <= self.dropout < 1:
            yield f"dropout is {self.dropout}; give a share from 0 up to, not including, 1."


def adapt(model: Any, lora: LoRA, seed: int, head: str = "") -> Any:
    """A fresh trainable adapter on a full model; its first weights follow from the seed. `head`: of a model that
    scores, the module that is trained as a whole."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(seed)
    targets: Any = "all-linear" if lora.targets == ["all-linear"] else list(lora.targets)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
        modules_to_save=[head] if head else None,
    )
    return get_peft_model(model, config)


def rows_at_once(batch_size: int, micro_batch: int, sequences_per_row: float = 1, ranks: int = 1) -> int:
    """How many rows one forward pass of one rank takes (a pair is a row of two sequences, and of less than one where it
    shares its prompt with others); ValueError names the nearest splits that come out even."""
    if batch_size % ranks:
        fewer = max(n for n in range(1, ranks) if batch_size % n == 0)
        near = f"runtime.ranks={fewer}, or batch_size={batch_size - batch_size % ranks + ranks} (another recipe)"
        raise ValueError(f"batch_size={batch_size} cannot be shared by runtime.ranks={ranks} evenly: use {near}.")
    share, each = batch_size // ranks, f", shared by {ranks} ranks" if ranks > 1 else ""
    divisors = [n for n in range(1, share + 1) if share % n == 0]
    if not micro_batch:
        return max(n for n in divisors if n == 1 or n * sequences_per_row <= _SEQUENCES_AT_ONCE)
    if micro_batch not in divisors:
        below = [n for n in divisors if n < micro_batch][-1:]
        above = [n for n in divisors if n > micro_batch][:1]
        near = " or ".join(str(n) for n in below + above)
        whole = f"batch_size={batch_size}{each}"
        raise ValueError(f"runtime.micro_batch={micro_batch} does not divide {whole}: use {near}.")
    return micro_batch


def arguments(
    config: type,
    args: dict[str, Any],
    work: Path,
    *,
    batch_size: int,
    at_once: int,
    autocast: bool,
    seed: int,
    ranks: int = 1,
) -> Any:
    """The trainer's own config: what the user set, under what is ours to set.

    `at_once`: rows per forward pass. `autocast`: the arithmetic is bf16 whatever the weights are.
    """
    cpu = models.best_device() == "cpu"
    ours = {
        "output_dir": str(work / "checkpoints"),
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": batch_size // at_once // ranks,
        "seed": seed,
        "bf16": autocast,
        "fp16": False,
        "use_cpu": cpu,
        "report_to": "none",
        "disable_tqdm": True,
        "max_length": None,
    }
    modest = {"save_total_limit": 2, "dataloader_pin_memory": False, "per_device_eval_batch_size": at_once}
    modest |= {"logging_nan_inf_filter": False}  # it would show the mean of the steps before instead
    if ranks > 1:
        modest |= {"ddp_find_unused_parameters": False}  # the search costs time, and every weight we train is used
        ours |= several.joined(cpu, autocast)
    known = knobs.of(config.__name__)
    return config(**{**modest, **{name: knobs.cast(known[name], value) for name, value in args.items()}, **ours})


def fit(
    trainer: Any,
    work: Path,
    log: Callable[[dict[str, float], int], None],
    progress: Callable[[int, int, str], None],
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Train, going on from the last complete checkpoint in the work folder; returns the summary metrics.

    Raises InterruptedError after a step and a checkpoint when `stopping()` says so, and Diverged rather than leave
    weights that are no numbers.
    """
    batches.group(trainer)
    several.prepare(trainer)
    trainer.remove_callback(_printer())
    trainer.add_callback(_watcher(log, progress))
    trainer.add_callback(keeper := _keeper(trainer, stopping))
    with head_on_labels_only(), _no_step_too_many(trainer):
        result = trainer.train(resume_from_checkpoint=_begin(trainer, work))
    if keeper.stopped or stopping():
        raise InterruptedError(f"stopped after step {trainer.state.global_step} of {trainer.state.max_steps}")
    if not trainer.state.global_step:
        raise ValueError("Not one optimizer step was taken: raise args.num_train_epochs or args.max_steps.")
    if not all(weight.isfinite().all() for weight in trainer.model.parameters() if weight.requires_grad):
        raise Diverged("the trained weights are not finite", trainer.args)
    loss = _mean_loss(trainer.state.log_history)
    return {"loss": several.mean(result.training_loss) if loss is None else loss, "steps": trainer.state.global_step}


class Diverged(ValueError):
    """Training destroyed the weights it was given."""

    def __init__(self, what: str, args: Any) -> None:
        way = f"lower args.learning_rate, which is {args.learning_rate:g} (LoRA: 1e-5 to 5e-4, full: 1e-6 to 5e-5)"
        super().__init__(f"Training diverged: {what}. To try: {way}.")


def worse_than_chance(loss: float, trainer: Any) -> None:
    """Raises Diverged where the loss per token is half again that of guessing, ln(vocabulary), and of the beginning."""
    began = next((entry["loss"] for entry in trainer.state.log_history if "loss" in entry), math.inf)
    chance = math.log(trainer.model.config.get_text_config().vocab_size)
    if loss > 1.5 * max(began, chance):
        raise Diverged(
            f"it ended at a loss of {loss:.3g} (from {began:.3g}; guessing gives {chance:.3g})", trainer.args
        )


@contextmanager
def _no_step_too_many(trainer: Any) -> Iterator[None]:
    """transformers asks only after a step whether it was the last: resumed at the end, it would take another one."""
    epoch = trainer._run_epoch

    def unless_done(**how: Any) -> None:
        if trainer.state.global_step >= trainer.state.max_steps:
            trainer.control.should_training_stop = True
        else:
            epoch(**how)

    trainer._run_epoch = unless_done
    try:
        yield
    finally:
        del trainer._run_epoch


def _begin(trainer: Any, work: Path) -> str | None:
    """The checkpoint to go on from. The first rank looks, since what it clears away the others must not see."""

    def look() -> str | None:
        forget_other_split(work, several.split(trainer))
        return last_complete(work / "checkpoints", trainer.args.world_size)

    return several.told(look)


def _mean_loss(history: list[dict[str, float]]) -> float | None:
    """The mean over all logged steps; the trainer's own leaves out what was done before it was resumed."""
    logged = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    starts = [0, *(step for step, _ in logged)]
    total = sum(loss * (step - start) for start, (step, loss) in zip(starts, logged, strict=False))
    return total / starts[-1] if logged else None


@contextmanager
def head_on_labels_only() -> Iterator[None]:
    """Let TRL's fused head score only the positions that bear loss on a CPU too, as it does on a GPU.

    TRL scores every position elsewhere, for devices that compile per shape. A quarter of our tokens bear loss, and
    the head is a fifth of a small model: a LoRA step of SmolLM2-135M takes about three quarters of the time.
    """
    from trl.trainer import utils

    before = utils._use_triton
    utils._use_triton = lambda device: True if device.type == "cpu" else before(device)
    try:
        yield
    finally:
        utils._use_triton = before


def _printer() -> type:
    from transformers import PrinterCallback

    return PrinterCallback


def _watcher(log: Callable[[dict[str, float], int], None], progress: Callable[[int, int, str], None]) -> Any:
    """Live numbers out of the trainer: every logged metric, and a bar that knows the last loss."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        loss = ""  # as last shown

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            numbers = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, int | float)}
            if state.is_world_process_zero:
                log(numbers, state.global_step)
            for name in ("loss", "grad_norm"):
                if not math.isfinite(numbers.get(name, 0)):
                    raise Diverged(f"{name} is {numbers[name]} at step {state.global_step}", args)
            if "loss" in numbers:
                self.loss = f"loss {numbers['loss']:.3f}"

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress(state.global_step, state.max_steps, self.loss)

    return Watcher()


def _keeper(trainer: Any, stopping: Callable[[], bool]) -> Any:
    """Checkpoints by the clock, where the trainer only counts steps: about one a minute, for at most a twentieth of the
    time. Stops between two steps when asked, with a checkpoint. TRL's count of tokens goes on with a resumed run."""
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        stopped = False
        saved = began = time.monotonic()
        cost = 0.0  # seconds that the last checkpoint took

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer._total_train_tokens = state.num_input_tokens_seen
            self.saved = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            state.num_input_tokens_seen = trainer._total_train_tokens  # a field that every checkpoint keeps
            self.began = time.monotonic()
            late = self.began - self.saved > max(_SAVE_EVERY, 20 * self.cost)
            self.stopped, late = several.agreed([stopping(), late])
            control.should_training_stop |= self.stopped
            control.should_save |= self.stopped or late
            control.should_log |= control.should_save  # what was counted since the last line is in no checkpoint

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.saved = time.monotonic()
            self.cost = self.saved - self.began

    return Keeper()


def history(trainer: Any, notes: Path) -> None:
    """The numbers of every logged step, every knob's value in force and what each rank read, for whoever reads the
    notes. All ranks must come here."""
    several.report(trainer, notes)
    (notes / "history.json").write_text(json.dumps(trainer.state.log_history, indent=1))
    (notes / "arguments.json").write_text(json.dumps(trainer.args.to_sanitized_dict(), indent=1, default=str))
