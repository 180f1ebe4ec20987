"""Measure one model on held-out prompts: greedy answers against the wanted ones, and the loss of the wanted ones.

A model is measured through its own chat template, a GGUF through llama.cpp and the file's own template. Predictions
are written as they are made. With `max_new_tokens: 0` nothing is generated and only the loss is measured: seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.runtime import GGUF, Dataset, Metrics, Model, Precision, Run, canonical_as, free, resolved, stage

if TYPE_CHECKING:
    from tasks.llm import scoring


@dataclass
class EvaluateConfig:
    max_new_tokens: int = 96
    """Tokens an answer may have; one that is not over by then counts as not stopped. 0: no answers, only the loss."""
    precision: Precision = canonical_as(lambda cfg: resolved(cfg.precision).value, default=Precision.auto)
    """Number format for transformers models: auto is bf16 where this machine multiplies it, else fp32."""
    batch_size: int = free(32)
    """Prompts generated at once: only speed and memory."""

    def problems(self) -> Iterator[str]:
        for name, least in (("max_new_tokens", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                yield f"{name} is {getattr(self, name)}; give {least} or more."


@stage(makes=Metrics, version="1", device=True)
def evaluate(run: Run, cfg: EvaluateConfig, model: Model | GGUF, prompts: Dataset) -> dict[str, float]:
    from tasks.llm import rows, scoring

    asked = list(rows.read_split(prompts.path, "eval"))
    if not asked:
        raise ValueError("There are no held-out prompts: give preprocess@prompts rows with kind=prompts.")
    found = _from_gguf(cfg, model, asked) if isinstance(model, GGUF) else _from_model(cfg, model, asked)
    scored: list[dict[str, float]] = []
    with open(run.out / "predictions.jsonl", "w", encoding="utf-8") as file:
        for done, (row, said, loss) in enumerate(found, 1):
            scored.append({"loss": loss} | (_scores(said, row["answer"]) if said else {}))
            line = {"id": row["id"], "answer": row["answer"]} | ({"prediction": said.text} if said else {})
            print(json.dumps(line | scored[-1], ensure_ascii=False, sort_keys=True), file=file, flush=True)
            run.progress(done, len(asked), "answers")

    names = [name for name in (*scoring.METRICS, "loss", "stopped") if name in scored[0]]
    means = {name: sum(line[name] for line in scored) / len(scored) for name in names}
    about = {"stage": model.stage, "kind": model.kind, "digest": model.digest}
    (run.out / "metrics.json").write_text(json.dumps({"model": about, "prompts": len(scored), **means}, indent=1))
    return means


Found = Iterator[tuple[dict[str, Any], "scoring.Answer | None", float]]
"""Row, what the model said (None where nothing was to be generated), loss of the wanted answer."""


def _scores(said: scoring.Answer, wanted: str) -> dict[str, float]:
    from tasks.llm import scoring

    found = {name: metric(said.text, wanted) for name, metric in scoring.METRICS.items()}
    return {**found, "stopped": float(said.finished)}


def _from_model(cfg: EvaluateConfig, model: Model, asked: list[dict[str, Any]]) -> Found:
    from tasks.llm import chat, models, scoring

    tokenizer = models.load_tokenizer(model.path)
    loaded = models.load(model.path, model.base.path, resolved(cfg.precision).value).eval()
    turns = list(chat.turns(tokenizer, [row["prompt"] for row in asked], [row["answer"] for row in asked]))

    def answers() -> Iterator[tuple[int, scoring.Answer | None]]:
        if not cfg.max_new_tokens:
            yield from ((index, None) for index in range(len(turns)))
            return
        prompts, stops = [turn.prompt for turn in turns], models.stop_ids(loaded, tokenizer)
        for said in scoring.generate(loaded, tokenizer, prompts, stops, cfg.max_new_tokens, cfg.batch_size):
            yield said.index, said

    for index, said in answers():
        turn = turns[index]
        yield asked[index], said, scoring.answer_loss(scoring.answer_logits(loaded, turn), turn.answer)


def _from_gguf(cfg: EvaluateConfig, model: GGUF, asked: list[dict[str, Any]]) -> Found:
    from tasks.llm import gguf, scoring

    with gguf.Engine(gguf.file_in(model.path), context=scoring.room(asked) + cfg.max_new_tokens) as engine:
        for index, row in enumerate(asked):
            said = None
            if cfg.max_new_tokens:
                text, reason = engine.chat(row["prompt"], cfg.max_new_tokens)
                said = scoring.Answer(index, text, reason == "stop")
            turn = engine.turn(row["prompt"], row["answer"])
            yield row, said, scoring.answer_loss(engine.answer_logits(turn.prompt, turn.answer), turn.answer)
