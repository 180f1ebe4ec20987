"""How near the predicted peak memory of a training is to a measured one.

    python -m tests.bench_memory [FOLDER]        FOLDER: a real model in the place of the random 134M

Each training is a few steps in a process of its own, on random rows; measured is the most that process ever held.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tasks.runtime import devices
from tests import hand, tiny

STEPS, BATCH, LONGEST = 2, 8, 480
ANSWERS = 80
"""Tokens that PPO draws."""
SIZES = {  # hidden, intermediate, layers, heads, heads of keys and values
    "31M": (384, 1024, 8, 6, 2),
    "134M": (576, 1536, 30, 9, 3),
    "362M": (960, 2560, 32, 15, 5),
}
VOCABULARY = 49152
COMBINATIONS = (
    ("sft", "lora"),
    ("sft", "full"),
    ("sft", "full-checkpointed"),
    ("sft", "lora-checkpointed"),
    ("dpo", "lora"),
    ("dpo", "full"),
    ("ppo", "lora"),
    ("ppo", "full"),
)


def build(folder: Path, size: str) -> Path:
    """A random Llama of this size, with the tiny model's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads, kv_heads = SIZES[size]
    tiny.build(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def rows(folder: Path) -> None:
    """Random rows and pairs of 200 to LONGEST tokens, the longest first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    chance = random.Random(0)
    lengths = [LONGEST, *(chance.randint(200, LONGEST) for _ in range(STEPS * BATCH - 1))]
    ids = [[chance.randrange(300) for _ in range(length)] for length in lengths]
    labels = [[-100] * (len(row) * 3 // 4) + row[len(row) * 3 // 4 :] for row in ids]
    answers = {"chosen_ids": [row[-80:] for row in ids], "rejected_ids": [row[-90:-10] for row in ids]}
    sums = dict.fromkeys(("ref_chosen_logps", "ref_rejected_logps"), [-50.0] * len(ids))
    for split, count in (("train", len(ids)), ("eval", BATCH)):
        for kind, table in (
            ("tokens", {"input_ids": ids, "labels": labels}),
            ("pairs", {"prompt_ids": [row[:-80] for row in ids], **answers, **sums}),
        ):
            (folder / kind).mkdir(exist_ok=True)
            pq.write_table(pa.table(table).slice(0, count), folder / kind / f"{split}.parquet")
    told = [{"done": "x" * (length - ANSWERS), "said": "x"} for length in lengths]
    hand.dataset(folder / "questions", hand.chats(told))


def train(model: Path, data: Path, stage: str, method: str, work: Path) -> None:
    """One training, here."""
    import importlib

    from tasks.llm.training import Method
    from tasks.runtime import Dataset, Model, Preferences, Tokens

    module = importlib.import_module(f"tasks.{stage}")
    if stage == "ppo":
        given: Any = hand.handle(Dataset, data / "questions")
        return module.ppo.body(hand.run(work), practice(method), hand.handle(Model, model), given)
    args: dict[str, Any] = {"max_steps": STEPS, "gradient_checkpointing": method.endswith("checkpointed")}
    config = getattr(module, f"{stage.upper()}Config")(
        method=Method(method.split("-")[0]), batch_size=BATCH // (2 if stage == "dpo" else 1), args=args
    )
    given = hand.handle(Preferences, data / "pairs") if stage == "dpo" else hand.handle(Tokens, data / "tokens")
    getattr(module, stage).body(hand.run(work), config, hand.handle(Model, model), given)


def practice(method: str) -> Any:
    """PPO of a few updates."""
    from tasks.llm.rewards import Reward
    from tasks.llm.rollouts import Sampling
    from tasks.llm.training import Method
    from tasks.llm.trouble import Then, Watch
    from tasks.ppo import PPOConfig
    from tasks.runtime import Precision

    how = {"updates": STEPS, "batch_size": BATCH, "minibatch_size": BATCH, "precision": Precision.bf16}
    short, calm = {"length": Reward(target=ANSWERS)}, Watch(then=Then.ignore)
    return PPOConfig(method=Method(method), sampling=Sampling(ANSWERS), rewards=short, watch=calm, **how)


def most_held() -> float:
    """The most memory this process ever had resident, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def predicted(model: Path, data: Path, stage: str, method: str) -> float:
    from types import SimpleNamespace

    from tasks.llm import foresight
    from tasks.llm.training import LoRA

    def seen(folder: Path) -> Any:
        return SimpleNamespace(stage="made", config={"cutoff": 0}, path=folder, inputs={})

    config: Any = SimpleNamespace(
        method=method.split("-")[0],
        lora=LoRA(),
        batch_size=BATCH // (2 if stage == "dpo" else 1),
        args={"gradient_checkpointing": method.endswith("checkpointed")},
    )
    config = practice(method) if stage == "ppo" else config
    inputs = {
        "questions": seen(data / "questions"),
        "base": seen(model),
        "policy": seen(model),
        "tokens": seen(data / "tokens"),
        "pairs": seen(data / "pairs"),
    }
    return getattr(foresight, f"of_{stage}")(config, inputs, precision="bf16")[0]


def compare(name: str, model: Path, data: Path, stage: str, method: str) -> None:
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "tests.bench_memory", "--train", *map(str, (model, data, stage, method, work))]
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode:
            raise SystemExit(said.stderr)
        measured = float(said.stdout.split()[-1])
    told = predicted(model, data, stage, method)
    about = f"{name:<6} {stage} {method:<18}"
    print(
        f"{about} measured {measured / 1e9:6.2f} GB   predicted {told / 1e9:6.2f} GB   {told / measured:.2f}",
        flush=True,
    )


def main(real: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        data = Path(place)
        rows(data)
        models = {size: Path(real) if real and size == "134M" else build(data / size, size) for size in SIZES}
        for stage, method in COMBINATIONS:
            for size, model in models.items():
                compare(size, model, data, stage, method)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        model, data, stage, method, work = sys.argv[2:]
        with devices.memory_at_hand():  # as every stage has it
            train(Path(model), Path(data), stage, method, Path(work))
        print(most_held())
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "")
