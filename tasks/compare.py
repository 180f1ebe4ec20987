"""Set the models of a road beside each other, prompt by prompt, and judge. Gates are config, the verdict is data.

Differences are paired: each model against the one before it on the same prompts, with a bootstrap interval. A gate
that is null is off. The last model is the candidate: the one the road is for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from tasks.runtime import Comparison, Metrics, Run, free, stage


@dataclass
class LevelGate:
    """What a quantization level may cost, measured on held-out answers against the f16 GGUF."""

    kl_max: float = 0.1
    """Mean KL divergence in nats per token."""
    same_top1_min: float = 0.85
    """Share of tokens whose most likely continuation stays the same."""


@dataclass
class Gates:
    merged_kl_max: float | None = 0.005
    """Merged against adapter, both in fp32: what rounding the sum to the base's number format may cost."""
    f16_kl_max: float | None = 0.001
    """f16 GGUF against the merged model in fp32: the converter changes nothing but the number format."""
    f16_same_top1_min: float | None = 0.99
    """The same, as a share of unchanged most likely tokens."""
    levels: dict[str, LevelGate] = field(default_factory=dict)
    """Per quantization level; a level without an entry is measured and not judged."""
    fidelity_tokens_min: float | None = 2000
    """Held-out answer tokens that fidelity must have been measured on for its figures to mean something."""
    stopped_min: float | None = 0.9
    """Share of the candidate's answers that must end by the stop token, not by max_new_tokens."""


class Direction(StrEnum):
    """Whether higher or lower values of the objective are better; `auto`: loss lower, anything else higher."""

    auto = "auto"
    maximize = "maximize"
    minimize = "minimize"


@dataclass
class CompareConfig:
    objective: str = "exact_match"
    """The metric that counts: exact_match, json_valid (higher is better) or loss (lower is better)."""
    gates: Gates = field(default_factory=Gates)
    direction: Direction = free(Direction.auto)
    """Which way of the objective a sweep calls better: auto (as the metric means it), maximize or minimize."""

    def problems(self) -> Iterator[str]:
        if self.objective not in OBJECTIVES:
            yield f"objective is {self.objective!r}; choose one of {', '.join(OBJECTIVES)}."

    @property
    def maximize(self) -> bool:
        if self.direction is Direction.auto:
            return self.objective != "loss"
        return self.direction is Direction.maximize


OBJECTIVES = ("exact_match", "json_valid", "loss")


@stage(makes=Comparison, version="1")
def compare(run: Run, cfg: CompareConfig, scores: list[Metrics], trust: Metrics | None) -> dict[str, float]:
    from tasks.llm import scoring

    models = [json.loads((score.path / "metrics.json").read_text()) for score in scores]
    predictions = [_predictions(score.path) for score in scores]
    columns = [[line[cfg.objective] for _, line in sorted(found.items())] for found in predictions]
    if len({tuple(sorted(found)) for found in predictions}) != 1:
        raise ValueError("The models were measured on different prompts and cannot be paired: evaluate them again.")
    fidelity = json.loads((trust.path / "metrics.json").read_text()) if trust else {}

    gates = [gate for gate in _gates(cfg.gates, fidelity, models[-1]) if gate["limit"] is not None]
    verdict = {
        "passed": all(gate["passed"] for gate in gates),
        "gates": gates,
        "candidate": models[-1]["model"],
        "objective": cfg.objective,
        "scores": [
            {**model, "interval": scoring.interval(column)} for model, column in zip(models, columns, strict=True)
        ],
        "differences": [_difference(cfg.objective, models, columns, i) for i in range(1, len(models))],
        "fidelity": fidelity,
    }
    (run.out / "verdict.json").write_text(json.dumps(verdict, indent=1))
    return {"passed": float(verdict["passed"]), "gates": len(gates), cfg.objective: models[-1][cfg.objective]}


def _predictions(folder: Path) -> dict[str, dict[str, Any]]:
    with open(folder / "predictions.jsonl", encoding="utf-8") as file:
        return {line["id"]: line for line in map(json.loads, file)}


def _difference(objective: str, models: list[Any], columns: list[list[float]], i: int) -> dict[str, Any]:
    """Model i against the one before it, paired by prompt."""
    from tasks.llm import scoring

    paired = [after - before for before, after in zip(columns[i - 1], columns[i], strict=True)]
    return {
        "from": models[i - 1]["model"]["stage"],
        "to": models[i]["model"]["stage"],
        "objective": objective,
        "mean": sum(paired) / len(paired),
        "interval": scoring.interval(paired),
    }


def _gates(gates: Gates, fidelity: dict[str, Any], candidate: dict[str, Any]) -> Iterator[dict[str, Any]]:
    pairs, level = fidelity.get("pairs", {}), fidelity.get("level", "")
    if pairs:
        yield _gate("merged_kl_max", pairs["merged"]["kl"], gates.merged_kl_max, "Merge into an fp32 base.")
        broken = "The converter changed the model: check its version and the model's architecture."
        yield _gate("f16_kl_max", pairs["f16"]["kl"], gates.f16_kl_max, broken)
        yield _gate("f16_same_top1_min", pairs["f16"]["same_top1"], gates.f16_same_top1_min, broken)
        more = "Give more held-out prompts, raise fidelity.rows, or lower compare.gates.fidelity_tokens_min."
        yield _gate("fidelity_tokens_min", fidelity["tokens"], gates.fidelity_tokens_min, more)
    if level in gates.levels:
        limits, gentler = gates.levels[level], "Take a gentler level, such as q6_k or q8_0."
        yield _gate(f"{level}.kl_max", pairs["level"]["kl"], limits.kl_max, gentler)
        yield _gate(f"{level}.same_top1_min", pairs["level"]["same_top1"], limits.same_top1_min, gentler)
    endless = "Its answers do not end: raise evaluate.max_new_tokens, or train longer so that it learns to stop."
    yield _gate("stopped_min", candidate["stopped"], gates.stopped_min, endless)


def _gate(name: str, value: float, limit: float | None, advice: str) -> dict[str, Any]:
    """`_max` bounds from above, `_min` from below."""
    passed = limit is None or (value <= limit if name.endswith("_max") else value >= limit)
    return {"name": name, "value": value, "limit": limit, "passed": passed, "advice": advice}
