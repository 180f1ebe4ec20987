"""`reproduce`: run a run again past the cache, in a store of its own under reproduce/, and compare digests.

Only the same code on the same libraries and the same data says anything; for other code the commands are told that
would run it. The scratch store goes when everything is equal, and is taken up again where an earlier try was killed.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import os
import platform
import shlex
import shutil
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.launch import stage_fields, travel
from flows.reasons import artifacts_of
from flows.surroundings import prepare_environment
from tasks.runtime import keys
from tasks.runtime.calls import git_state
from tasks.runtime.catalogue import Catalogue, Unnamed
from tasks.runtime.fingerprint import versions
from tasks.runtime.runs import read_json
from tasks.runtime.store import Manifest, Store
from tasks.runtime.upkeep import Refused


@dataclass
class Asked:
    """What a run was, as it wrote it down."""

    name: str
    flow: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    stages: list[dict[str, Any]]
    """The rows of its report."""
    manifests: list[Manifest]
    """Of its stages, as far as they are still on record."""


def reproduce(catalogue: Catalogue, name: str, keep: bool, say: Callable[[str], None]) -> tuple[dict[str, Any], int]:
    """Run again and compare: the comparison, or the commands for other code, and the exit code (1: it differs)."""
    asked = _read(catalogue, name)
    scratch = catalogue.root / "reproduce" / name
    if because := list(_other_code(asked)):
        return {"because": because, "commands": _commands(asked, scratch)}, 2
    again = _again(catalogue, asked, scratch, say)
    stages = _compared(asked.stages, again)
    equal = all(stage["equal"] for stage in stages)
    if equal and not keep:
        shutil.rmtree(scratch)
    return {"equal": equal, "stages": stages, "kept": "" if equal and not keep else str(scratch)}, int(not equal)


def _read(catalogue: Catalogue, name: str) -> Asked:
    folder = catalogue.root / "runs" / name
    if not (folder / "config.json").exists():
        every = [place.name for place in sorted((catalogue.root / "runs").glob("*/"))]
        raise Unnamed(f"There is no run '{name}'.", difflib.get_close_matches(name, every, 3) or every[-3:])
    provenance = read_json(folder / "provenance.json")
    stages = read_json(folder / "report.json").get("stages", [])
    if not stages:
        raise Refused([f"The run {name} did not finish, so there is nothing to compare with."])
    run = next(run for run in catalogue.runs if run.name == name)
    manifests = [entry.manifest for entry in artifacts_of(catalogue, run).values()]
    flow = shlex.split(provenance["command"])[2].removeprefix("flows.")
    return Asked(name, flow, read_json(folder / "config.json"), provenance, stages, manifests)


def _other_code(asked: Asked) -> Iterator[str]:
    """Why the code that is here is not the code of that run."""
    then, now = asked.provenance["git"], git_state()
    if not then["commit"] or then["commit"] != now["commit"]:
        yield f"That run had the code of commit {then['commit'][:12] or 'unknown'}, here is {now['commit'][:12]}."
    if then["dirty"] == "yes":
        yield "Its code had been edited after that commit: what is committed may give something else."
    if now["dirty"] == "yes":
        yield "The code here has been edited since its commit."
    before = sorted({known for m in asked.manifests for known in m["libraries"].items()})
    here = {"python": platform.python_version(), **versions({name for name, _ in before})}
    for name, version in [("python", asked.provenance["python"]), *before]:
        if here.get(name) != version:
            yield f"It had {name} {version}, here is {here.get(name, 'none')}."


def _commands(asked: Asked, scratch: Path) -> list[str]:
    commit = asked.provenance["git"]["commit"]
    words = [word for word in asked.provenance["overrides"] if not word.startswith("runtime.root=")]
    line = shlex.join([".venv/bin/python", "-m", f"flows.{asked.flow}", *words, f"runtime.root={scratch}"])
    place = f"../posttrain-{commit[:8]}"
    return [f"git worktree add {place} {commit}", f"cd {place}", "make setup", line]


def _again(catalogue: Catalogue, asked: Asked, scratch: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The report's rows of the second run."""
    drawing, config = _road(asked, scratch)
    if list(scratch.glob("runs/*/report.json")):  # an earlier comparison, finished
        shutil.rmtree(scratch)
    if scratch.exists():
        say(f"Goes on with what an earlier try left in {scratch}.")
    store = Store(scratch / "store")
    names = catalogue.store / "names.json"
    if names.exists():  # what a moving name meant then, not what it means today
        shutil.copyfile(names, scratch / "store" / "names.json")
    if changed := list(_changed(config, asked, store)):
        raise Refused(["What the run read has changed, so it cannot be run again:", *changed])
    prepare_environment(config.runtime)
    with _own_mlflow(), redirect_stdout(sys.stderr):
        travel(drawing, config, asked.provenance["overrides"])
    report = max(scratch.glob("runs/*/report.json"), key=lambda place: place.stat().st_mtime_ns)
    rows: list[dict[str, Any]] = json.loads(report.read_text())["stages"]
    return rows


def _road(asked: Asked, scratch: Path) -> tuple[Callable[[Any], Any], Any]:
    """The drawing, and its config as it was but for the place; nothing is registered."""
    drawing = getattr(importlib.import_module(f"flows.{asked.flow}"), asked.flow)
    schema = next(iter(typing.get_type_hints(drawing).values()))
    config = keys.restore(schema, asked.config)
    config.runtime = dataclasses.replace(config.runtime, root=str(scratch), register="", refresh=False)
    return drawing, config


def _changed(config: Any, asked: Asked, store: Store) -> Iterator[str]:
    """The fields whose meaning in the world (a file's bytes, a branch's commit) is another than in that run."""
    seats = {str(row["call"]).partition(" of ")[0].split()[-1] for row in asked.stages}  # the others read nothing
    for item in (item for item in stage_fields(config) if item.name in seats):
        stage = getattr(config, item.name)
        now = keys.keyed_fields(stage, store)
        known = [m["fields"] for m in asked.manifests if set(m["config"]) == set(keys.plain(stage))]
        differing = [[name for name in now if now[name] != fields.get(name)] for fields in known]
        if differing and (fewest := min(differing, key=len)):
            yield f"  {', '.join(f'{item.name}.{name}' for name in fewest)}"


@contextmanager
def _own_mlflow() -> Iterator[None]:
    """The second run is tracked in the scratch folder alone."""
    server = os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        yield
    finally:
        if server is not None:
            os.environ["MLFLOW_TRACKING_URI"] = server


def _compared(then: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stage by stage: digests, and every metric of both."""
    again = {row["call"]: row for row in now}
    facts = {"call", "state", "seconds", "digest"}
    found = []
    for row in then:
        other = again.get(row["call"], {"digest": ""})
        metrics = {name: [row[name], other[name]] for name in row if name not in facts and name in other}
        digests = {"equal": row["digest"] == other["digest"], "digest": row["digest"], "again": other["digest"]}
        found.append({"call": row["call"], **digests, "metrics": metrics})
    return found
