"""Keys: when are two pieces of work the same work?

The *recipe key* is known before anything runs: stage, version, keyed fields, recipe keys of the inputs.
The *content key* decides hits: the same, with the content digests of the inputs instead of their recipes.
Both are SHA-256 over canonical JSON. A field of a Config takes part as it is, unless it is marked:

* `free(default)`: changes only speed or place, stays out.
* `external("path", default)`: names a file, folder or glob and enters by the SHA-256 of what is there.
* `external(identify, default)`: `identify(cfg)` says what the field stands for in the world: a plain value, or
  `Moving(name, ask)` for a name that moves (a branch on a hub), asked once, recorded and reused.
* `canonical_as(convert, default)`: enters as `convert(cfg)`, e.g. `auto` as what it resolves to on this machine.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Moving:
    """A name whose meaning changes outside of us: `ask()` says what it means today."""

    name: str
    ask: Callable[[], str]


class World(typing.Protocol):
    """What a key must ask of the world: the bytes behind a path, the meaning of a moving name."""

    def hash_file(self, path: Path) -> str: ...
    def resolve(self, moving: Moving) -> str: ...


def _marked(convert: Callable[[Any], Any] | str | None, default: Any) -> Any:
    make = {"default_factory": default} if callable(default) else {"default": default}
    return field(**make, metadata={"key": convert})


def free(default: Any) -> Any:
    """A field that changes speed or place, never the result."""
    return _marked(None, default)


def external(identify: Callable[[Any], Any] | str, default: Any) -> Any:
    """A field that names something outside the store. `identify` is "path" or a function of the config."""
    return _marked(identify, default)


def canonical_as(convert: Callable[[Any], Any], default: Any) -> Any:
    """A field that enters the key as `convert(cfg)`."""
    return _marked(convert, default)


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    """The types of a Config's fields; evaluating the annotations anew for each call is half the time of a key."""
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def keyed_fields(cfg: Any, world: World) -> dict[str, Any]:
    """What of a Config enters its key, as plain JSON values."""
    hints = _hints(type(cfg))
    fields: dict[str, Any] = {}
    for item in dataclasses.fields(cfg):
        value = getattr(cfg, item.name)
        mark = item.metadata.get("key", "value")
        if mark is None:
            continue
        if mark == "path":
            fields[item.name] = path_identity(value, world) if value else ""
        elif callable(mark):
            said = mark(cfg)
            fields[item.name] = world.resolve(said) if isinstance(said, Moving) else plain(said)
        elif dataclasses.is_dataclass(value):
            fields[item.name] = keyed_fields(value, world)
        else:
            fields[item.name] = plain(value, hints[item.name])
    return fields


def settled(cfg: Any, world: World) -> dict[str, Any]:
    """A Config as plain values for the body, moving names replaced by what they mean: the body and the key agree."""
    values: dict[str, Any] = plain(cfg)
    for item in dataclasses.fields(cfg):
        mark, value = item.metadata.get("key"), getattr(cfg, item.name)
        if callable(mark) and isinstance(said := mark(cfg), Moving):
            values[item.name] = world.resolve(said)
        elif dataclasses.is_dataclass(value):
            values[item.name] = settled(value, world)
    return values


def path_identity(path: str, world: World) -> dict[str, Any]:
    """What stands at a path, by content: moving or renaming a folder changes nothing, editing a byte does."""
    place = Path(path).expanduser()
    if place.is_file():
        return {"suffix": place.suffix, "sha256": world.hash_file(place)}
    if place.is_dir():
        root, found = place, sorted(p for p in place.rglob("*") if p.is_file())
    else:
        found = sorted(Path(p) for p in glob.glob(str(place), recursive=True) if Path(p).is_file())
        root = Path(*(part for part in place.parts[: _first_wildcard(place)]))
    if not found:
        raise FileNotFoundError(f"There is nothing at '{path}'. Give a file, a folder or a glob that exists.")
    return {"files": {p.relative_to(root).as_posix(): world.hash_file(p) for p in found}}


def _first_wildcard(path: Path) -> int:
    wild = (i for i, part in enumerate(path.parts) if any(c in part for c in "*?["))
    return next(wild, len(path.parts))


def plain(value: Any, hint: Any = Any) -> Any:
    """JSON values only, cast to the declared type (`3` under a float is `3.0`); sets, bytes and objects are refused."""
    hint = _without_none(hint)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, int):
        return float(value) if hint is float else int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be part of a key: give a finite number.")
        return value
    if isinstance(value, str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        return {f.name: plain(getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value)}
    inner = typing.get_args(hint)
    if isinstance(value, list | tuple):
        return [plain(item, inner[0] if inner else Any) for item in value]
    if isinstance(value, dict):
        return {str(k): plain(v, inner[1] if len(inner) == 2 else Any) for k, v in value.items()}
    raise TypeError(f"A {type(value).__name__} cannot be part of a key: use plain values, lists and mappings.")


def restore(hint: Any, value: Any) -> Any:
    """The inverse of `plain`: JSON values back into the dataclasses and enums that `hint` names."""
    hint = _without_none(hint)
    if value is None:
        return None
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = _hints(hint)
        return hint(**{name: restore(hints[name], item) for name, item in value.items()})
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    inner = typing.get_args(hint)
    if isinstance(value, list):
        return [restore(inner[0] if inner else Any, item) for item in value]
    if isinstance(value, dict):
        return {k: restore(inner[1] if len(inner) == 2 else Any, item) for k, item in value.items()}
    return value


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        some = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return some[0] if len(some) == 1 else Any
    return hint


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, shortest floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of a JSON value's canonical text, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def key_of(kind: str, stage: str, version: str, fields: dict[str, Any], inputs: dict[str, Any]) -> str:
    """The key of one piece of work; `kind` ("recipe" or "content") keeps the two families apart."""
    return digest({"kind": kind, "stage": stage, "version": version, "fields": fields, "inputs": inputs})
