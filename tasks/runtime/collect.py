"""Cleaning up a store: what pins, registered models and the last runs reach stays, the rest goes.

A run that is going on never loses anything: what it found or made is on its list (uses.py), its drafts and unfinished
work are held by locks, and all looking and removing happens behind the shut door, where nobody begins to use something.
"""

from __future__ import annotations

import itertools
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.runtime.catalogue import Catalogue, Entry
from tasks.runtime.runs import PastRun
from tasks.runtime.uses import clearing, is_held

_DAY = 86_400
_FINISHED, _OLD, _LOCK = "rest of finished work", "old unfinished work", "lock"
_LOCKED = {_FINISHED, _OLD, _LOCK}


@dataclass(frozen=True)
class Rules:
    """What a clean-up keeps."""

    registered: Iterable[str] = ()
    """Digests that MLflow's model registry points at."""
    keep_runs: int = 10
    keep_work_days: float = 14


@dataclass(frozen=True)
class Clutter:
    """One thing that nothing needs: a file or a folder."""

    what: str
    path: Path
    size: int
    name: str


class Reach:
    """What must stay: the roots, all they were made from, what they stand on, and their parts."""

    def __init__(self, catalogue: Catalogue, rules: Rules) -> None:
        self.catalogue = catalogue
        self.objects: set[str] = set()
        self.seals: set[Path] = set()
        self.runs = self._kept_runs(rules.keep_runs)
        for pin in catalogue.pins.values():
            self._root(pin["digest"], pin["key"])
        for digest in rules.registered:
            self._root(digest)
        for run in self.runs:
            for row in run.used:
                self._root(row["digest"], row.get("key", ""))

    def _kept_runs(self, count: int) -> list[PastRun]:
        """The last ones and those that are going on; a sweep counts as one."""
        past = self.catalogue.runs
        names = list(dict.fromkeys(run.sweep or run.name for run in reversed(past)))
        kept = {*names[:count], *(run.sweep or run.name for run in past if run.alive)}
        return [run for run in past if (run.sweep or run.name) in kept]

    def _root(self, digest: str, key: str = "") -> None:
        """An artifact by content; of several seals of the same bytes the one of this key, or all."""
        self.objects.add(digest)
        seals = self.catalogue.by_digest.get(digest, [])
        for entry in [seal for seal in seals if seal.key == key] or seals:
            self._seal(entry)

    def _seal(self, entry: Entry) -> None:
        if entry.place in self.seals:
            return
        self.seals.add(entry.place)
        self.objects |= {entry.digest, *entry.manifest["parts"].values()}
        for below in self.catalogue.stands_on(entry.digest):
            self._root(below)
        for parent in entry.manifest["parents"]:
            self.objects.add(parent["digest"])  # of a part: its own folder
            self._root(parent["whole"] or parent["digest"], parent["key"])


def clutter(catalogue: Catalogue, rules: Rules) -> list[Clutter]:
    """What a clean-up would remove, seals before what they seal."""
    reach, store = Reach(catalogue, rules), catalogue.store
    return [
        *_seals(catalogue, reach),
        *_objects(catalogue, reach),
        *_notes(catalogue, reach),
        *_runs(store, reach),
        *_work(catalogue, rules.keep_work_days),
        *_drafts(store),
        *_locks(store),
    ]


def reached_runs(catalogue: Catalogue, rules: Rules) -> list[str]:
    """The runs whose artifacts a clean-up keeps."""
    return [run.name for run in Reach(catalogue, rules).runs]


def _found(what: str, path: Path, name: str = "") -> Clutter:
    return Clutter(what, path, _size(path), name or path.name[:12])


def _seals(catalogue: Catalogue, reach: Reach) -> Iterator[Clutter]:
    for entry in catalogue.entries:
        if entry.place not in reach.seals:
            yield _found("artifact" if entry.standing else "history", entry.place, str(entry))
    for place in catalogue.broken:
        yield _found("broken manifest", place, f"{place.parent.name} {place.name[:12]}")


def _objects(catalogue: Catalogue, reach: Reach) -> Iterator[Clutter]:
    names = {entry.digest: entry.stage for entry in catalogue.entries}
    for folder in (catalogue.store / "objects").glob("*"):
        if folder.name not in reach.objects:
            yield _found("content", folder, f"{names.get(folder.name, 'nothing sealed')} {folder.name[:12]}")


def _notes(catalogue: Catalogue, reach: Reach) -> Iterator[Clutter]:
    kept = {entry.manifest["notes"] for entry in catalogue.entries if entry.place in reach.seals}
    for folder in (catalogue.store / "notes").glob("*/*"):
        if str(folder.relative_to(catalogue.store)) not in kept:
            yield _found("notes", folder, f"{folder.parent.name} {folder.name[:12]}")


def _runs(store: Path, reach: Reach) -> Iterator[Clutter]:
    kept = {run.name for run in reach.runs}
    for place in (store / "runs").glob("*.jsonl"):
        if place.stem not in kept:
            yield _found("list of a run", place, place.stem)


def _work(catalogue: Catalogue, days: float) -> Iterator[Clutter]:
    """Unfinished work that is old, and what a killed run left of finished work."""
    sealed = {(entry.stage, entry.key): last_touched(entry.place) for entry in catalogue.standing}
    for folder in (catalogue.store / "work").glob("*/*"):
        touched = last_touched(folder)
        finished = sealed.get((folder.parent.name, folder.name), 0.0) > touched
        old = time.time() - touched > days * _DAY
        if (finished or old) and not is_held(catalogue.store / "locks" / folder.name):
            yield _found(_FINISHED if finished else _OLD, folder, f"{folder.parent.name} {folder.name[:12]}")


def _drafts(store: Path) -> Iterator[Clutter]:
    """What nobody holds is of a process that died."""
    for path in (store / "tmp").glob("*"):
        if not is_held(path):
            yield _found("draft", path)


def _locks(store: Path) -> Iterator[Clutter]:
    for place in (store / "locks").glob("*"):
        if place.suffix != ".holder" and not is_held(place):
            yield _found(_LOCK, place)


def collect(catalogue: Catalogue, rules: Rules, say: Callable[[str], None]) -> list[Clutter]:
    """Remove the clutter; what went. Looked for anew behind the shut door: since the dry run things may be in use."""
    with clearing(catalogue.store, say) as trash:
        gone = clutter(Catalogue(catalogue.root), rules)
        return [item for item in gone if _put_away(item, trash, catalogue.store / "locks")]


def _put_away(item: Clutter, trash: Path, locks: Path) -> bool:
    """Out of the way in one rename; work and locks only while their lock is ours, for somebody may take them up now."""
    try:
        with _only_us(locks / item.path.name if item.what in _LOCKED else None):
            if item.path.exists() and item.what != _LOCK:
                os.rename(item.path, trash / uuid.uuid4().hex)
    except Timeout:
        return False
    return True


@contextmanager
def _only_us(place: Path | None) -> Iterator[None]:
    """The lock of a key as ours, and gone afterwards: who waits for the file that went takes a new one."""
    if place is None:
        yield
        return
    with FileLock(place, timeout=0):
        yield
        place.with_suffix(".holder").unlink(missing_ok=True)
        place.unlink(missing_ok=True)


def last_touched(path: Path) -> float:
    """When a file, or anything in a folder, was last written; 0 when it is gone."""
    return max((found.st_mtime for found in _stats(path)), default=0.0)


def _size(path: Path) -> int:
    return sum(found.st_size for found in _stats(path) if stat.S_ISREG(found.st_mode))


def _stats(path: Path) -> Iterator[os.stat_result]:
    """Of a path and all below it, as far as they are still there: a run may be at work in it."""
    below = (os.path.join(top, name) for top, folders, files in os.walk(path) for name in (*folders, *files))
    for place in itertools.chain([str(path)], below):
        with suppress(FileNotFoundError):
            yield os.lstat(place)
