"""How far each form of the model is from the one before it, in KL and same-top-1 on held-out answer tokens.

    adapter -> merged    what folding and rounding cost       (both computed in fp32)
    merged  -> f16       what the converter changed           (merged in fp32)
    f16     -> level     what quantization cost

It measures and does not judge: `compare` does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tasks.runtime import GGUF, Dataset, Metrics, Model, Run, stage


@dataclass
class FidelityConfig:
    rows: int = 64
    """Held-out rows to measure on, at most."""

    def problems(self) -> Iterator[str]:
        if self.rows < 1:
            yield f"rows is {self.rows}; give a positive number, 64 or more for figures to trust."


@stage(makes=Metrics, version="1", device=True)
def fidelity(
    run: Run, cfg: FidelityConfig, policy: Model, merged: Model, f16: GGUF, level: GGUF, prompts: Dataset
) -> dict[str, float]:
    from tasks.llm import chat, gguf, models, rows, scoring

    asked = list(rows.read_split(prompts.path, "eval"))[: cfg.rows]
    if not asked:
        raise ValueError("There are no held-out rows to measure on: give the prompts some rows.")
    tokenizer = models.load_tokenizer(merged.path)
    turns = list(chat.turns(tokenizer, [row["prompt"] for row in asked], [row["answer"] for row in asked]))
    lengths = [len(turn.answer) for turn in turns]

    ends = {
        "adapter": _transformer(policy),
        "merged": _transformer(merged),
        "f16": _llama(f16),
        "level": _llama(level),
    }
    pairs: dict[str, scoring.Divergence] = {}
    before = None
    for number, (name, open_model) in enumerate(ends.items()):
        now = None
        for index, logits in enumerate(open_model(turns)):
            if now is None:
                now = scoring.LogitsFile(run.work / f"{number % 2}.logits", lengths, logits.shape[-1])
            now[index] = logits
            if before is not None:
                pairs.setdefault(name, scoring.Divergence()).add(before[index], logits)
            run.progress(number * len(turns) + index + 1, len(ends) * len(turns), name)
        before = now

    found = {name: pair.result() for name, pair in pairs.items()}
    about = {"level": gguf.file_in(level.path).stem.removeprefix("model-"), "rows": len(turns), "tokens": sum(lengths)}
    (run.out / "metrics.json").write_text(json.dumps({**about, "pairs": found}, indent=1))
    flat = {f"{name}_{measure}": value for name, pair in found.items() for measure, value in pair.items()}
    return flat | {"tokens": sum(lengths), "rows": len(turns)}


Logits = Callable[[list[Any]], Iterator[Any]]


def _transformer(policy: Model) -> Logits:
    def logits(turns: list[Any]) -> Iterator[Any]:
        from tasks.llm import models, scoring

        model = models.load(policy.path, policy.base.path, "fp32").eval()
        yield from (scoring.answer_logits(model, turn) for turn in turns)

    return logits


def _llama(model: GGUF) -> Logits:
    def logits(turns: list[Any]) -> Iterator[Any]:
        from tasks.llm import gguf

        longest = max(len(turn.prompt) + len(turn.answer) for turn in turns)
        with gguf.Engine(gguf.file_in(model.path), context=longest) as engine:
            yield from (engine.answer_logits(turn.prompt, turn.answer) for turn in turns)

    return logits
