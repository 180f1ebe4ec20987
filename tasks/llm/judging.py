"""How often a judge prefers the right one of two answers, and how often one would who knows nothing of the matter.

A tie counts one half. Two judges know nothing: one that sees only how long an answer is, one that sees only whether it
is valid JSON. On *matched* pairs, two valid answers with equally many characters, both are at one half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.llm.scoring import interval, json_valid


@dataclass(frozen=True)
class Judged:
    """A pair of answers and their scores; the chosen one should score higher, by `margin` where that is asked for."""

    chosen: str
    rejected: str
    chosen_score: float = 0.0
    rejected_score: float = 0.0
    margin: float = 0.0

    @property
    def matched(self) -> bool:
        return len(self.chosen) == len(self.rejected) and bool(_valid(self.chosen) and _valid(self.rejected))


def loss(pairs: Sequence[Judged]) -> float:
    """Bradley and Terry (1952), in nats: the mean of -log sigmoid(r_chosen - r_rejected - margin)."""
    ahead = [pair.chosen_score - pair.rejected_score - pair.margin for pair in pairs]
    return sum(math.log1p(math.exp(-abs(x))) + max(0.0, -x) for x in ahead) / len(ahead)


def win(chosen: float, rejected: float) -> float:
    """1 where the chosen answer has more, 1/2 where both have the same."""
    return 0.5 + 0.5 * ((chosen > rejected) - (chosen < rejected))


def length_sign(pairs: Sequence[Judged]) -> int:
    """What length tells of these pairs: 1 where the longer answer is chosen more often, else -1."""
    longer = sum(win(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    return 1 if longer > len(pairs) / 2 else -1


def report(train: Sequence[Judged], held_out: Sequence[Judged]) -> dict[str, Any]:
    """Figures of the held-out pairs, whole and matched. Which way length points is read off the training pairs."""
    sign = length_sign(train)
    told = _figures(held_out, sign) | {"loss": loss(held_out), "length_says": "longer" if sign > 0 else "shorter"}
    matched = [pair for pair in held_out if pair.matched]
    return told | ({"matched": _figures(matched, sign)} if matched else {})


def _figures(pairs: Sequence[Judged], sign: int) -> dict[str, Any]:
    wins = [win(pair.chosen_score, pair.rejected_score) for pair in pairs]
    return {
        "pairs": len(pairs),
        "accuracy": _mean(wins),
        "interval": interval(wins),
        "length_alone": _mean([win(sign * len(pair.chosen), sign * len(pair.rejected)) for pair in pairs]),
        "validity_alone": _mean([win(_valid(pair.chosen), _valid(pair.rejected)) for pair in pairs]),
    }


def _valid(answer: str) -> float:
    return json_valid(answer, "")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
