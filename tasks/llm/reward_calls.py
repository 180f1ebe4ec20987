"""Scores of code that is not ours: called with plain lists, and what it returns is checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tasks.llm.reward_code import told
from tasks.llm.reward_server import ServerError, hidden

if TYPE_CHECKING:
    from tasks.llm.rewards import Asked, Scorer


class RewardError(RuntimeError):
    """A component gave no usable scores."""


def in_batches(score: Scorer, size: int, asked: Sequence[Asked]) -> list[float]:
    return [one for start in range(0, len(asked), size) for one in score(asked[start : start + size])]


def score_of(name: str, origin: str, function: Callable[..., Any], asked: Sequence[Asked]) -> list[float]:
    """Scores of code that is not ours, checked."""
    if not asked:
        return []
    prompts = [[dict(message) for message in one.prompt] for one in asked]  # not ours to change
    try:
        given = function(prompts, [one.answer for one in asked], [one.wanted for one in asked])
    except ServerError:
        raise
    except Exception as error:
        raise RewardError(f"rewards.{name}: {origin} stopped with {told(error, origin)}") from error
    return _checked(given, len(asked), f"rewards.{name}: {origin}")


def _checked(given: Any, count: int, who: str) -> list[float]:
    """Finite numbers, one for each answer. Lists, tuples, arrays and tensors will do."""
    try:
        if isinstance(given, str | bytes | dict):
            raise TypeError
        values = list(given)
        numbers = [_number(value) for value in values]
    except (TypeError, ValueError):
        raise RewardError(f"{who} must return a list of {count} numbers, and returned {_short(given)}.") from None
    if len(numbers) != count:
        raise RewardError(
            f"{who} must return {count} scores, one for each answer, and returned {len(numbers)}: {_short(given)}."
        )
    for place, number in enumerate(numbers):
        if not math.isfinite(number):
            raise RewardError(f"{who} returned {number} for answer {place} of {count}; a score must be finite.")
    return numbers


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError
    return float(value)


def _short(value: Any) -> str:
    text = hidden(repr(value))
    return text if len(text) <= 200 else text[:200] + "..."
