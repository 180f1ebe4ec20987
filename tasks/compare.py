"""Set the models of a road beside each other, prompt by prompt, and judge. Gates are config, the verdict is data.

Differences are paired: each model against the one before it on the same prompts, with a bootstrap interval. A gate
that is null is off, and one that fails says what it measured, what that means and what to try. The last model is the
candidate: the one the road is for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
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
    prompt_ids_same_min: float | None = 1.0
    """Share of held-out prompts that the GGUF's own template and tokenizer must turn into the merged model's tokens."""
    f16_first_tokens_min: float | None = 1.0
    """Share of answers that the f16 GGUF must begin (8 tokens) as the merged model does; near ties count as same."""
    retention_loss_max: float | None = 0.2
    """Nats per token that the loss of general answers may rise by from the base to the aligned model. The upper end of
    the paired 95 % interval must not be above it: a pass then says that no more was lost, not that too few rows were
    asked to see it."""
    objective_loss_max: float | None = None
    """How much worse on the objective the candidate may be than the model it was made from, by the worse end of the
    paired 95 % interval: where 6 answers of 64 change, that end lies about 0.08 beyond the mean."""


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


@stage(makes=Comparison, version="2")
def compare(
    run: Run, cfg: CompareConfig, scores: list[Metrics], trust: Metrics | None, retained: list[Metrics] | None = None
) -> dict[str, float]:
    from tasks.llm import scoring

    models, columns = _read(scores, cfg.objective)
    fidelity = json.loads((trust.path / "metrics.json").read_text()) if trust else {}
    differences = [_difference(cfg.objective, models, columns, i - 1, i) for i in range(1, len(models))]
    kept, losses = _read(retained or [], "loss")
    retention = _difference("loss", kept, losses, 0, -1) if kept else None

    found = [*_faithful(cfg.gates, fidelity), *_useful(cfg, models[-1], differences), *_general(cfg.gates, retention)]
    gates = [gate for gate in found if gate["limit"] is not None]
    verdict = {
        "passed": all(gate["passed"] for gate in gates),
        "gates": gates,
        "candidate": models[-1]["model"],
        "objective": cfg.objective,
        "scores": [
            {**model, "interval": scoring.interval(column)} for model, column in zip(models, columns, strict=True)
        ],
        "differences": differences,
        "fidelity": fidelity,
        "retention": retention and {**retention, "limit": cfg.gates.retention_loss_max},
    }
    (run.out / "verdict.json").write_text(json.dumps(verdict, indent=1))
    return {"passed": float(verdict["passed"]), "gates": len(gates), cfg.objective: models[-1][cfg.objective]}


def _read(scores: list[Metrics], metric: str) -> tuple[list[Any], list[list[float]]]:
    """What is known of each model, and its value of the metric for each prompt, in one order of the prompts."""
    predictions = []
    for score in scores:
        with open(score.path / "predictions.jsonl", encoding="utf-8") as file:
            predictions.append({line["id"]: line for line in map(json.loads, file)})
    if len({tuple(sorted(found)) for found in predictions}) > 1:
        raise ValueError("The models were measured on different prompts and cannot be paired: evaluate them again.")
    columns = [[line[metric] for _, line in sorted(found.items())] for found in predictions]
    return [json.loads((score.path / "metrics.json").read_text()) for score in scores], columns


def _difference(metric: str, models: list[Any], columns: list[list[float]], before: int, after: int) -> dict[str, Any]:
    """One model against another, paired by prompt."""
    from tasks.llm import scoring

    paired = [now - then for then, now in zip(columns[before], columns[after], strict=True)]
    return {
        "from": models[before]["model"]["stage"],
        "to": models[after]["model"]["stage"],
        "metric": metric,
        "prompts": len(paired),
        "mean": sum(paired) / len(paired),
        "interval": scoring.interval(paired),
    }


# Gates


def _faithful(gates: Gates, fidelity: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Whether each file is what it was made of."""
    pairs, chat, level = fidelity.get("pairs", {}), fidelity.get("chat", {}), fidelity.get("level", "")
    if pairs:
        yield _gate("merged_kl_max", pairs["merged"]["kl"], gates.merged_kl_max)
        yield _gate("f16_kl_max", pairs["f16"]["kl"], gates.f16_kl_max)
        yield _gate("f16_same_top1_min", pairs["f16"]["same_top1"], gates.f16_same_top1_min)
        yield _gate("fidelity_tokens_min", fidelity["tokens"], gates.fidelity_tokens_min)
    if chat:
        yield _gate("prompt_ids_same_min", chat["prompt_ids_same"], gates.prompt_ids_same_min)
        yield _gate("f16_first_tokens_min", chat["first_tokens_same"], gates.f16_first_tokens_min)
    if level in gates.levels:
        yield _gate(f"{level}.kl_max", pairs["level"]["kl"], gates.levels[level].kl_max)
        yield _gate(f"{level}.same_top1_min", pairs["level"]["same_top1"], gates.levels[level].same_top1_min)


def _useful(cfg: CompareConfig, candidate: dict[str, Any], differences: list[Any]) -> Iterator[dict[str, Any]]:
    """Whether the candidate ends its answers, and did not lose what the model before it could do."""
    yield _gate("stopped_min", candidate["stopped"], cfg.gates.stopped_min)
    if differences:
        last = differences[-1]
        low, high = last["interval"]
        means = f"On the same {last['prompts']} prompts {_told(last)}: the last step may have made it worse."
        worst = -low if cfg.maximize else high
        yield _gate("objective_loss_max", worst, cfg.gates.objective_loss_max, means)


def _general(gates: Gates, retention: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Whether the aligned model kept what the base knew."""
    if retention:
        means = f"On {retention['prompts']} general rows {_told(retention)}: it may have forgotten what the base knew."
        yield _gate("retention_loss_max", retention["interval"][1], gates.retention_loss_max, means)


def _told(step: dict[str, Any]) -> str:
    low, high = step["interval"]
    by = f"{step['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"{step['metric']} changed by {by} from {step['from']} to {step['to']}"


def _gate(name: str, value: float, limit: float | None, means: str = "") -> dict[str, Any]:
    """`_max` bounds from above, `_min` from below; a level's gates share their words."""
    passed = limit is None or (value <= limit if name.endswith("_max") else value >= limit)
    level, _, measure = name.rpartition(".")
    known, advice = _WORDS[measure]
    advice = advice or f"{_gentler(level)}, or measure on more answer tokens: give more prompts."
    return {"name": name, "value": value, "limit": limit, "passed": passed, "means": means or known, "advice": advice}


def _gentler(level: str) -> str:
    above = _LEVELS[_LEVELS.index(level) + 1 :] if level in _LEVELS else _LEVELS[-2:]
    return f"Take a gentler level ({' or '.join(f'quantize.level={name}' for name in above[:2])})"


_CONVERTER = "The converter changed more than the number format: the file is another model than the one trained."
_CHECK = "Check that convert.llama_cpp is recent enough for the model's architecture."
_LEVEL = "At this level the file answers noticeably differently than the model it was made of."
_LEVELS = ("q4_0", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16")
"""From the smallest file to the largest."""
_TEMPLATE = (
    "Its template or tokenizer is another one there: choose one that both read alike (download.template=chatml), or "
    "convert with a newer llama.cpp (convert.llama_cpp)."
)
_FORGETS = (
    "Lower the learning rate, the epochs or sft.lora.rank, or mix general rows into chats; where the interval is wide, "
    "give more general rows (general.path)."
)
_WORDS = {
    "merged_kl_max": ("Folding the adapter into its base rounded away a part of it.", "Set merge.precision=fp32."),
    "f16_kl_max": (_CONVERTER, _CHECK),
    "f16_same_top1_min": (_CONVERTER, _CHECK),
    "fidelity_tokens_min": (
        "On so few tokens the figures of fidelity may be chance.",
        "Give more held-out prompts (at most fidelity.rows are read), or lower compare.gates.fidelity_tokens_min.",
    ),
    "prompt_ids_same_min": ("Chatting, the GGUF meets other tokens than the model was trained on.", _TEMPLATE),
    "f16_first_tokens_min": ("Asked the same, the GGUF begins another answer than the merged model.", _TEMPLATE),
    "kl_max": (_LEVEL, ""),
    "same_top1_min": (_LEVEL, ""),
    "stopped_min": (
        "Its answers do not end: a chat with it would run on.",
        "Raise evaluate.max_new_tokens, or train longer so that it learns to stop.",
    ),
    "objective_loss_max": ("", "Take a gentler level, or quantize=f16; where the interval is wide, give more prompts."),
    "retention_loss_max": ("", _FORGETS),
}
"""Of each gate: what a failure means, and what to try."""
