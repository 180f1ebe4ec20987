"""Pins: what nobody wants to see go. A name, and the key and digest it stands for."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from tasks.runtime import durable
from tasks.runtime.catalogue import Catalogue, Entry, read_pins
from tasks.runtime.uses import door


def pin(catalogue: Catalogue, entry: Entry, name: str = "") -> str:
    """Keep an artifact under a name, its own or one made of stage and digest."""
    name = name or f"{entry.stage}-{entry.digest[:8]}"
    if problem := _unfit(catalogue, name):
        raise ValueError(f"The name '{name}' {problem}. Give another.")
    with door(catalogue.store), _edited(catalogue.store / "pins.json") as pins:
        if not entry.place.exists():
            raise ValueError(f"{entry} went while it was pinned.")
        known = pins.get(name)
        if known and (known["key"], known["digest"]) != (entry.key, entry.digest):
            raise ValueError(f"The pin '{name}' is taken by {known['stage']} {known['digest'][:12]}. Unpin it first.")
        pins[name] = {"stage": entry.stage, "key": entry.key, "digest": entry.digest, "when": time.time()}
    return name


def _unfit(catalogue: Catalogue, name: str) -> str:
    if any(entry.stage == name for entry in catalogue.entries):
        return "is a stage's, and stands for the newest of that stage"
    if re.fullmatch("[0-9a-f]{4,}", name):
        return "looks like the beginning of a digest"
    return "" if re.fullmatch(r"[\w.-]+", name) else "has other characters than letters, digits, '.', '-' and '_'"


def unpin(catalogue: Catalogue, names: list[str]) -> None:
    """Take pins off."""
    with _edited(catalogue.store / "pins.json") as pins:
        for name in names:
            pins.pop(name, None)


@contextmanager
def _edited(place: Path) -> Iterator[dict[str, Any]]:
    """The pins, to be changed by one process at a time and written in one rename."""
    with FileLock(f"{place}.lock"):
        pins = read_pins(place.parent)
        yield pins
        durable.write(place, json.dumps(pins, indent=1, sort_keys=True))
