"""Rewards that need no writing, every metric of the evaluation among them: an answer gets a score from 0 to 1.

A new one is a function and its line in READY.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tasks.llm.scoring import METRICS

if TYPE_CHECKING:
    from tasks.llm.rewards import Asked, Reward


def _by(metric: Callable[[str, str], float]) -> Callable[[Asked, Reward], float]:
    def score(asked: Asked, reward: Reward) -> float:
        try:
            return metric(asked.answer, asked.wanted)
        except RecursionError:  # a policy may well say a thousand times [
            return 0.0

    return score


def field_match(said: str, wanted: str) -> float:
    """Of all fields that either JSON object has, the share that both have with the same value.

    A field too many costs what a missing one costs. 0 when either text is no JSON object.
    """
    one, other = _object(said), _object(wanted)
    if one is None or other is None:
        return 0.0
    every = one.keys() | other.keys()
    same = [name for name in one.keys() & other.keys() if _same(one[name], other[name])]
    return len(same) / len(every) if every else 1.0


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 is 1.0, and neither is true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def regex(asked: Asked, reward: Reward) -> float:
    """1 when the whole answer matches, white space at the ends aside: a match anywhere would pay for any babble."""
    return float(re.fullmatch(reward.pattern, asked.answer.strip()) is not None)


def length(asked: Asked, reward: Reward) -> float:
    """min(t, T) / max(t, T) for t tokens and the target T: 1 at T, 1/2 at half and at twice of it, 0 for none.

    Nowhere flat, so that a policy far off still learns which way to go.
    """
    return min(asked.tokens, reward.target) / max(asked.tokens, reward.target)


READY: dict[str, Callable[[Asked, Reward], float]] = {
    **{name: _by(metric) for name, metric in METRICS.items()},
    "field_match": _by(field_match),
    "regex": regex,
    "length": length,
}

COMPARES: dict[str, tuple[Callable[[str], Any], str]] = {
    "exact_match": (str.strip, "a text"),
    "field_match": (lambda text: _object(text) is not None, "a JSON object"),
}
"""What compares with the wanted answer: whether it can, and what that answer must be."""
