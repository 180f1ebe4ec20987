"""The names that an override may have, and those nearest to one that it may not."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator


def nearest(name: str, known: list[str]) -> str:
    """The nearest siblings of a name; where none is near, the nearest of all names."""
    above, _, leaf = name.rpartition(".")
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == above]
    near = [f"{above}.{k}".lstrip(".") for k in difflib.get_close_matches(leaf, siblings, n=2)]
    near = near or difflib.get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def keys(schema: type, typed: str = "", prefix: str = "") -> Iterator[str]:
    """Every key of a config. A mapping of dataclasses has the entry that was `typed`: `ppo.rewards.mine.weight`."""
    hints = typing.get_type_hints(schema)
    for item in dataclasses.fields(schema):
        here, hint = prefix + item.name, hints[item.name]
        yield here
        parts = typing.get_args(hint)  # a seat that may be null is `Config | None`
        if typing.get_origin(hint) is dict and dataclasses.is_dataclass(parts[1]) and typed.startswith(f"{here}."):
            here, hint = f"{here}.{typed.removeprefix(f'{here}.').partition('.')[0]}", parts[1]
            yield here
        for part in parts if type(None) in parts else [hint]:
            if dataclasses.is_dataclass(part):
                yield from keys(typing.cast(type, part), typed, f"{here}.")
