"""Stages called by hand: a Run on plain folders and handles on them, for tests of a body without a store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from tasks.llm import chat, models
from tasks.runtime import Artifact, Dataset, Model, Run

A = TypeVar("A", bound=Artifact)
TOLD = [
    {"done": "bake bread", "said": "bake: 3 loaves"},
    {"done": "sort the mail by town", "said": "mail: by town"},
    {"done": "water the roses twice a day", "said": "roses: 2"},
    {"done": "tune it", "said": "piano: a"},
]
"""Four things to ask for and what to answer, of four lengths."""


def run(folder: Path, **more: Any) -> Run:
    """A Run whose three folders lie in `folder`. Called again, it goes on with the same work and an empty out."""
    for name in ("out", "notes", "work"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for path in (folder / "out").iterdir():
        path.unlink()
    return Run(folder / "out", folder / "notes", folder / "work", **more)


def handle(kind: type[A], path: Path, base: Model | None = None, stage: str = "made", digest: str = "") -> A:
    """A handle on a folder, as a body gets it."""
    ref: dict[str, Any] = {"stage": stage, "recipe": "", "key": "", "digest": digest or path.name, "whole": ""}
    return kind.of(ref | {"part_digests": {}}, path, {"base": base} if base else {})


def dataset(folder: Path, train: Sequence[dict[str, Any]] = (), held_out: Sequence[dict[str, Any]] = ()) -> Dataset:
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", train), ("eval", held_out)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return handle(Dataset, folder)


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def chats(told: Sequence[dict[str, str]] = TOLD) -> list[dict[str, Any]]:
    """Rows to learn from."""
    return [
        {"id": str(i), "messages": [*asked(row["done"]), {"role": "assistant", "content": row["said"]}]}
        for i, row in enumerate(told)
    ]


def pairs(told: Sequence[dict[str, str]] = TOLD) -> list[dict[str, Any]]:
    """Rows to prefer by: the answer over its mirror image."""
    return [
        {"id": str(i), "prompt": asked(row["done"]), "chosen": row["said"], "rejected": row["said"][::-1] + "!"}
        for i, row in enumerate(told)
    ]


def prompts(told: Sequence[dict[str, str]] = TOLD) -> list[dict[str, Any]]:
    """Rows to be measured on."""
    return [{"id": str(i), "prompt": asked(row["done"]), "answer": row["said"]} for i, row in enumerate(told)]


def turns(folder: Path, told: Sequence[dict[str, str]] = TOLD) -> list[chat.Turn]:
    """The same rows in the token ids of the model in `folder`."""
    tokenizer = models.load_tokenizer(folder)
    return list(chat.turns(tokenizer, [asked(row["done"]) for row in told], [row["said"] for row in told]))


def log_p(policy: Model, rows: Sequence[dict[str, Any]], which: str) -> list[float]:
    """log pi(answer | prompt) of each pair's "chosen" or "rejected" answer, one sequence at a time, in fp32."""
    import torch

    model = models.load(policy.path, policy.base.path, "fp32").eval()
    tokenizer = models.load_tokenizer(policy.path)
    found = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        answer = [*tokenizer(row[which], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
        steps = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        found.append(sum(steps[at, token].item() for at, token in enumerate(answer)))
    return found


def adapter(folder: Path, base: Model, scale: float = 0.05, seed: int = 1) -> Model:
    """A LoRA adapter that changes its base: B, zero in a fresh one, is filled with noise of this scale."""
    import torch

    from tasks.llm.training import LoRA, adapt

    folder.mkdir(parents=True, exist_ok=True)
    model = adapt(models.load(base.path, base.path, "fp32"), LoRA(rank=4, alpha=8), seed)
    noise = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=noise) * scale
    models.save(model, folder, base.path, base.digest)
    return handle(Model, folder, base)


def with_code(folder: Path, source: Path, trusted: bool) -> Path:
    """The tiny model as one whose code comes with it."""
    shutil.copytree(source, folder)
    (folder / "configuration_ours.py").write_text(
        "from transformers import LlamaConfig\nclass OursConfig(LlamaConfig):\n    model_type = 'ours'\n"
    )
    (folder / "modeling_ours.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_ours import OursConfig\n"
        "class OursForCausalLM(LlamaForCausalLM):\n    config_class = OursConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "configuration_ours.OursConfig", "AutoModelForCausalLM": "modeling_ours.OursForCausalLM"}
    config |= {"model_type": "ours", "auto_map": code, "architectures": ["OursForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / models.ORIGIN).write_text(json.dumps({"trust_remote_code": trusted}))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
