"""Why: what differs between two pieces of work of one stage, and what a result was made from.

All of it is read from manifests: the pre-image of the key, the parents, the code, the libraries. What a plan holds of a
call that was not made yet has the same shape, with an empty digest where an input is not there yet; nothing is said of
such an input here.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tasks.runtime import keys
from tasks.runtime.store import Manifest, Store

Ref = dict[str, Any]
Look = Callable[[Ref], Manifest | None]
"""The manifest behind a reference."""
_FILES_NAMED = 5
"""Edited files of one folder that are named; of more, the number is given."""
_VALUE_LENGTH = 60
"""Characters of a long value that are shown."""


def differences(store: Store, ours: Manifest, other: Manifest, look: Look | None = None) -> list[str]:
    """What differs, as `other -> ours`, one plain line each; below an input, the root cause further up."""
    look = look or (lambda ref: store.manifest(ref["stage"], ref["key"]))
    lines = [*_fields(ours, other), *_version(ours, other)]
    told: set[str] = set()
    for name, before, now in _other_inputs(ours, other):
        lines.append(f"{name}: {_short(before)} -> {_short(now, besides=before)}")
        if before and now:
            causes = [cause for cause in dict.fromkeys(_causes(now, before, look)) if cause not in told]
            told.update(causes)
            lines += [f"  because {cause}" for cause in causes]
    return [*lines, *_code(ours, other)]


def closest(store: Store, stage: str, ours: Manifest) -> Manifest | None:
    """The earlier run of a stage with the fewest differences, the newest of equals; None where there is none."""
    return next((manifest for _, manifest in Past(store).nearest(stage, ours)), None)


def story(store: Store, manifest: Manifest) -> list[str]:
    """What a result was made from, parents first, itself last: who made it and when, from which inputs, how set."""
    lines = []
    for made in [*store.lineage(manifest)[:-1], manifest]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(made["started"]))
        lines.append(
            f"{made['stage']} {made['digest'][:12]}  {when}, {made['seconds']:.1f} s, {made['machine']['node']}"
        )
        if above := [f"{name} {_short(ref)}" for name, ref in inputs_of(made).items()]:
            lines.append(f"  from {', '.join(above)}")
        settings = {name: _as_set(made, name, value) for name, value in flat(made["fields"]).items()}
        if said := [f"{name}={_said(value)}" for name, value in settings.items() if value not in ("", None)]:
            lines.append(f"  with {' '.join(said)}")
    return lines


@dataclass
class _Run:
    manifest: Manifest
    fields: dict[str, str]
    inputs: dict[str, Ref]


class Past:
    """The recorded runs of each stage, read once; those whose manifest was replaced are among them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._runs: dict[str, list[_Run]] = {}

    def nearest(self, stage: str, ours: Manifest) -> list[tuple[int, Manifest]]:
        """The earlier runs, each after the number of its differences: the fewest first, the newest of equals first."""
        mine, before = _run(ours), ours.get("started", float("inf"))
        found = [(_distance(mine, run), -run.manifest["started"], n) for n, run in enumerate(self._of(stage))]
        runs = [(far[0], self._of(stage)[n].manifest) for far, _, n in sorted(found)]
        return [(count, manifest) for count, manifest in runs if manifest["started"] < before]

    def _of(self, stage: str) -> list[_Run]:
        if stage not in self._runs:
            places = [p for room in ("manifests", "history") for p in (self.store.root / room / stage).glob("*.json")]
            self._runs[stage] = [_run(manifest) for place in places if (manifest := _read(place))]
        return self._runs[stage]


def _read(place: Any) -> Manifest | None:
    try:
        found: Manifest = json.loads(place.read_text())
    except (OSError, ValueError):  # a broken file is no seal, and a removed one none any more
        return None
    return found


def _run(manifest: Manifest) -> _Run:
    fields = {name: keys.canonical_json(value) for name, value in flat(manifest["fields"]).items()}
    return _Run(manifest, {**fields, " version": manifest["version"]}, inputs_of(manifest))


def _distance(ours: _Run, other: _Run) -> tuple[int, int]:
    """Settings and inputs first (an input that another stage made counts twice), code and libraries after them."""
    count = sum(ours.fields.get(name) != other.fields.get(name) for name in ours.fields.keys() | other.fields.keys())
    for name in ours.inputs.keys() | other.inputs.keys():
        now, before = ours.inputs.get(name), other.inputs.get(name)
        if now is None or before is None or now["stage"] != before["stage"]:
            count += 2
        else:
            count += not _same(now, before)
    return count, len(list(_code(ours.manifest, other.manifest)))


def inputs_of(manifest: Manifest) -> dict[str, Ref]:
    """The references of the inputs by the names of the body's parameters; those of a list as `models[0]`."""
    refs = iter(manifest["parents"])
    found = {}
    for name, value in manifest["preimage"]["inputs"].items():
        several = isinstance(value, list)
        for number, item in enumerate(value if several else [value]):
            if item is not None:
                found[f"{name}[{number}]" if several else name] = next(refs)
    return found


def flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name. What a path stands for stays in one piece."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict) and not _is_content(value):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _is_content(value: Any) -> bool:
    """Whether this is how a path enters a key (`keys.path_identity`)."""
    return isinstance(value, dict) and set(value) in ({"files"}, {"suffix", "sha256"})


# What differs


def _fields(ours: Manifest, other: Manifest, at: str = "") -> Iterator[str]:
    now, before = flat(ours["fields"]), flat(other["fields"])
    for name in dict.fromkeys((*now, *before)):
        if (a := now.get(name, _UNSET)) != (b := before.get(name, _UNSET)):
            paths = _as_set(ours, name, a), _as_set(other, name, b)
            if _is_content(a) and _is_content(b):
                yield from (f"{at}{name}{line}" for line in _contents(a, b, *paths))
                continue
            moved = f" ({_said(paths[0])})" if paths[0] == paths[1] else ""
            new = paths[0] if a is _UNSET or _is_content(a) else a
            old = paths[1] if b is _UNSET or _is_content(b) else b
            yield f"{at}{name} {_said(old)} -> {_said(new)}{moved}"


_UNSET = "unset"
"""Of a setting that is in one of two keys only: a library's default, or what another version had."""


def _as_set(manifest: Manifest, name: str, value: Any) -> Any:
    """What the config said, where the key holds what that meant."""
    found = manifest["config"]
    for step in name.split("."):
        if not isinstance(found, dict) or step not in found:
            return value
        found = found[step]
    return found


def _contents(ours: dict[str, Any], other: dict[str, Any], path: str, before: str) -> Iterator[str]:
    """Lines on what two paths held."""
    moved = "" if path == before else f" {before} -> {path}, with other content"
    if "files" not in ours or "files" not in other:
        yield moved or f": {path} was edited"
        return
    if moved:
        yield moved
    now, then = ours["files"], other["files"]
    names = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
    for name in names[:_FILES_NAMED]:
        became = "is new" if name not in then else "is gone" if name not in now else "was edited"
        yield f": {name} {became}"
    if len(names) > _FILES_NAMED:
        yield f": {len(names) - _FILES_NAMED} more files differ"


def _version(ours: Manifest, other: Manifest, at: str = "") -> Iterator[str]:
    if ours["version"] != other["version"]:
        yield f"{at}version {other['version']} -> {ours['version']} of the stage"


def _code(ours: Manifest, other: Manifest, at: str = "") -> Iterator[str]:
    """Code and libraries in one line: no part of a key, but of what a result may depend on."""
    found = ["code changed"] if ours["code"] != other["code"] else []
    for name in dict.fromkeys((*ours["libraries"], *other["libraries"])):
        now, before = ours["libraries"].get(name, "none"), other["libraries"].get(name, "none")
        if now != before:
            found.append(f"{name} {before} -> {now}")
    if found:
        yield at + ", ".join(found)


def _other_inputs(ours: Manifest, other: Manifest) -> Iterator[tuple[str, Ref | None, Ref | None]]:
    """Name, before, now of each input that is another one."""
    now, before = inputs_of(ours), inputs_of(other)
    for name in dict.fromkeys((*now, *before)):
        a, b = now.get(name), before.get(name)
        if a is None or b is None or (a["digest"] and not _same(a, b)):
            yield name, b, a


def _same(one: Ref, other: Ref) -> bool:
    """By content; what is not there yet by how it would be made."""
    if one["digest"] and other["digest"]:
        return bool(one["digest"] == other["digest"])
    return bool(one["recipe"] == other["recipe"])


def _causes(now: Ref, before: Ref, look: Look) -> Iterator[str]:
    """Where the difference between two inputs began: settings, code or libraries of the stages above."""
    if now["stage"] != before["stage"]:
        return
    ours, other = look(now), look(before)
    if ours is None or other is None:
        yield f"of {now['stage']}, whose record is gone"
        return
    name = ours["stage"]
    found = [*_fields(ours, other, f"{name}."), *_version(ours, other, f"{name} "), *_code(ours, other, f"{name} ")]
    for _, was, is_ in _other_inputs(ours, other):
        if was and is_:
            found += _causes(is_, was, look)
        else:
            found.append(f"{name} has other inputs")
    yield from found or [f"{name} came out otherwise, though nothing that is recorded differs"]


# Words


def _short(ref: Ref | None, besides: Ref | None = None) -> str:
    """`sft a1b2c3d4`; without the stage where the one it stands beside has the same."""
    if ref is None:
        return "none"
    return ref["digest"][:8] if besides and besides["stage"] == ref["stage"] else f"{ref['stage']} {ref['digest'][:8]}"


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return value[:8] if re.fullmatch("[0-9a-f]{40,64}", value) else value or "nothing"
    text = keys.canonical_json(value)
    return text if len(text) <= _VALUE_LENGTH else text[:_VALUE_LENGTH] + "..."
