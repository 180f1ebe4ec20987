"""What is wrong with a composed config: what its dataclasses say themselves, and numbers that no key can hold."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from tasks.llm import knobs


def problems(config: Any, path: str = "") -> Iterator[str]:
    """The problems of every dataclass in the tree, under the name a person would type."""
    names = {item.name for item in dataclasses.fields(config)}
    said = list(config.problems()) if hasattr(config, "problems") else []
    for problem in [*said, *_endless(config, said)]:
        # "path=x is ..." reads on from the stage's name, a sentence does not
        reads_on = re.match(r"\w*", problem)[0] in names  # type: ignore[index]
        yield f"{path}{'.' if reads_on else ': '}{problem}" if path else problem
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from problems(value, f"{path}.{item.name}" if path else item.name)


def _endless(config: Any, said: list[str]) -> Iterator[str]:
    """Each inf and nan among a dataclass's own values that its `problems` let pass: no key can hold one."""
    for item in dataclasses.fields(config):
        for place, value in _numbers(getattr(config, item.name), item.name):
            if not math.isfinite(value) and not any(
                problem.startswith((f"{place} is ", f"{place}=")) for problem in said
            ):
                likely = knobs.POSITIVE.get(place.removeprefix("args."), item.default)
                usual = isinstance(likely, float) and math.isfinite(likely)
                yield f"{place} is {value}; give a finite number{f' such as {likely:g}' if usual else ''}."


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    """Every float in lists and mappings, with the name a person would type."""
    if isinstance(value, float):
        yield place, value
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    for name, part in parts:
        yield from _numbers(part, f"{place}.{name}" if isinstance(value, dict) else f"{place}[{name}]")
