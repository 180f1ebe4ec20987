"""Measure one model on held-out prompts: greedy answers against the wanted ones, and the loss of the wanted ones.

A model is measured through its own chat template, a GGUF through llama.cpp and the file's own template. Predictions
are written as they are made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tasks.runtime import GGUF, Dataset, Metrics, Model, Precision, Run, canonical_as, free, resolved, stage


@dataclass
class EvaluateConfig:
    max_new_tokens: int = 96
    """Tokens an answer may have; one that is not over by then counts as not stopped."""
    precision: Precision = canonical_as(lambda cfg: resolved(cfg.precision).value, default=Precision.auto)
    """Number format for transformers models: auto is bf16 where this machine multiplies it, else fp32."""
    batch_size: int = free(32)
    """Prompts generated at once: only speed and memory."""

    def problems(self) -> Iterator[str]:
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                yield f"{name} is {getattr(self, name)}; give a positive number."


@stage(makes=Metrics, version="1", device=True)
def evaluate(run: Run, cfg: EvaluateConfig, model: Model | GGUF, prompts: Dataset) -> dict[str, float]:
    from tasks.llm import rows, scoring

    asked = list(rows.read_split(prompts.path, "eval"))
    if not asked:
        raise ValueError("There are no held-out prompts: give preprocess@prompts rows with kind=prompts.")
    answers = _from_gguf(cfg, model, asked, run) if isinstance(model, GGUF) else _from_model(cfg, model, asked, run)
    scored: list[dict[str, Any]] = []
    with open(run.out / "predictions.jsonl", "w", encoding="utf-8") as file:
        for row, said, finished, loss in answers:
            scores = {name: metric(said, row["answer"]) for name, metric in scoring.METRICS.items()}
            scores |= {"stopped": float(finished), "loss": loss}
            scored.append({"id": row["id"], "prediction": said, "answer": row["answer"], **scores})
            print(json.dumps(scored[-1], ensure_ascii=False, sort_keys=True), file=file, flush=True)

    names = [*scoring.METRICS, "loss", "stopped"]
    means = {name: sum(line[name] for line in scored) / len(scored) for name in names}
    about = {"stage": model.stage, "kind": model.kind, "digest": model.digest}
    (run.out / "metrics.json").write_text(json.dumps({"model": about, "prompts": len(scored), **means}, indent=1))
    return means


Scored = Iterator[tuple[dict[str, Any], str, bool, float]]
"""Row, what the model said, whether it stopped by itself, loss of the wanted answer."""


def _from_model(cfg: EvaluateConfig, model: Model, asked: list[dict[str, Any]], run: Run) -> Scored:
    from tasks.llm import chat, models, scoring

    tokenizer = models.load_tokenizer(model.path)
    loaded = models.load(model.path, model.base.path, resolved(cfg.precision).value).eval()
    turns = list(chat.turns(tokenizer, [row["prompt"] for row in asked], [row["answer"] for row in asked]))
    stops = models.stop_ids(loaded, tokenizer)
    answers = scoring.generate(
        loaded, tokenizer, [turn.prompt for turn in turns], stops, cfg.max_new_tokens, cfg.batch_size
    )
    for done, answer in enumerate(answers, 1):
        turn = turns[answer.index]
        loss = scoring.answer_loss(scoring.answer_logits(loaded, turn), turn.answer)
        yield asked[answer.index], answer.text, answer.finished, loss
        run.progress(done, len(asked), "answers")


def _from_gguf(cfg: EvaluateConfig, model: GGUF, asked: list[dict[str, Any]], run: Run) -> Scored:
    from tasks.llm import gguf, scoring

    written = max(sum(len(m["content"].encode()) for m in row["prompt"]) + len(row["answer"].encode()) for row in asked)
    room = written + cfg.max_new_tokens + _TEMPLATE_TOKENS  # no token is shorter than a byte
    with gguf.Engine(gguf.file_in(model.path), context=room) as engine:
        for done, row in enumerate(asked, 1):
            said, reason = engine.chat(row["prompt"], cfg.max_new_tokens)
            turn = engine.turn(row["prompt"], row["answer"])
            loss = scoring.answer_loss(engine.answer_logits(turn.prompt, turn.answer), turn.answer)
            yield row, said, reason == "stop", loss
            run.progress(done, len(asked), "answers")


_TEMPLATE_TOKENS = 256
"""Room for what a chat template writes around the messages."""
