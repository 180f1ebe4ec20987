"""`why`: what an artifact or a run was made from, and what differs from another one."""

from __future__ import annotations

import difflib
import re
from typing import Any

from tasks.runtime.catalogue import Catalogue, Entry, Unnamed
from tasks.runtime.registry import run_name
from tasks.runtime.runs import PastRun
from tasks.runtime.store import Store
from tasks.runtime.why import closest, differences, story

Lines = dict[str, list[str]]
"""Title -> lines."""


def why(catalogue: Catalogue, one: str, other: str = "") -> Lines:
    """Of one artifact or run its story; of two what differs."""
    store, ours = Store(catalogue.store), _meant(catalogue, one)
    if not other:
        return _stories(store, catalogue, ours)
    theirs = _meant(catalogue, other)
    if isinstance(ours, Entry) and isinstance(theirs, Entry):
        return _between(store, ours, theirs)
    if isinstance(ours, PastRun) and isinstance(theirs, PastRun):
        return _between_runs(store, catalogue, ours, theirs)
    raise ValueError("One is a run and the other an artifact: compare two of a kind.")


def _meant(catalogue: Catalogue, name: str) -> Entry | PastRun:
    """A run by its name or by MLflow's id, or an artifact, that by the id of the attempt that made it too."""
    runs = {run.name: run for run in catalogue.runs}
    if name in runs:
        return runs[name]
    if re.fullmatch("[0-9a-f]{32}", name):
        if made := [entry for entry in catalogue.entries if entry.manifest.get("mlflow_run") == name]:
            return made[-1]
        if (run := runs.get(run_name(catalogue.root, name))) is not None:
            return run
    try:
        return catalogue.one(name)
    except Unnamed as error:
        near = difflib.get_close_matches(name, runs, 2)
        raise Unnamed(str(error), [*near, *error.candidates]) from None


def _stories(store: Store, catalogue: Catalogue, of: Entry | PastRun) -> Lines:
    if isinstance(of, Entry):
        told = {f"{of} was made so:": story(store, of.manifest)}
        if (near := closest(store, of.stage, of.manifest)) is not None:
            told[f"The {of.stage} before it that is nearest, {near['digest'][:12]}, differs in:"] = (
                differences(store, of.manifest, near) or _NOTHING
            )
        return told
    made = artifacts_of(catalogue, of)
    above = {parent["key"] for entry in made.values() for parent in entry.manifest["parents"]}
    ends = [entry for entry in made.values() if entry.key not in above]
    return {f"{end}, an end of the run {of.name}, was made so:": story(store, end.manifest) for end in ends}


_NOTHING = ["nothing that is recorded"]


def _between(store: Store, ours: Entry, theirs: Entry) -> Lines:
    if ours.stage != theirs.stage:
        raise ValueError(f"{ours} and {theirs} are of two stages: compare two of one stage.")
    same = ["nothing: the same bytes"] if ours.digest == theirs.digest else _NOTHING
    return {f"From {theirs} to {ours}:": differences(store, ours.manifest, theirs.manifest) or same}


def _between_runs(store: Store, catalogue: Catalogue, ours: PastRun, theirs: PastRun) -> Lines:
    now, before = artifacts_of(catalogue, ours), artifacts_of(catalogue, theirs)
    told: dict[str, Any] = {f"From {theirs.name} to {ours.name}:": []}
    for call in dict.fromkeys((*now, *before)):
        if call not in now or call not in before:
            told[f"{call} is only in {ours.name if call in now else theirs.name}"] = []
        elif now[call].key != before[call].key or now[call].digest != before[call].digest:
            told[f"{call}:"] = differences(store, now[call].manifest, before[call].manifest) or _NOTHING
    return told or {"Nothing differs: every stage gave the same bytes.": []}


def artifacts_of(catalogue: Catalogue, run: PastRun) -> dict[str, Entry]:
    """What a run used, by what it called it, as far as it is still on record."""
    found: dict[str, Entry] = {}
    for row in run.used:
        seals = catalogue.by_digest.get(row["digest"], [])
        exact = [e for e in seals if e.key == row.get("key")] or [e for e in seals if e.stage == row["call"].split()[0]]
        if exact and exact[-1] not in found.values():
            found[row["call"]] = exact[-1]
    return found
