"""Everything a store holds, read from its manifests, and what a person may call it.

An artifact answers to the beginning of its digest or key, to the name of a pin, and the newest of a stage to the stage.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.runtime.runs import PastRun, past_runs, read_json
from tasks.runtime.store import STANDS_ON, Manifest

_SHORTEST = 4
"""Characters of a digest or key that are taken for a name."""
_HEX = f"[0-9a-fA-F]{{1,{_SHORTEST - 1}}}"


class Unnamed(LookupError):
    """A name that fits nothing or several things; `candidates` are what may have been meant."""

    def __init__(self, message: str, candidates: list[str]) -> None:
        super().__init__(message)
        self.candidates = candidates


@dataclass(frozen=True)
class Entry:
    """One seal. `standing`: it is the one its key has now, not one in the history."""

    manifest: Manifest
    place: Path
    standing: bool

    @property
    def stage(self) -> str:
        return str(self.manifest["stage"])

    @property
    def key(self) -> str:
        return str(self.manifest["key"])

    @property
    def digest(self) -> str:
        return str(self.manifest["digest"])

    @property
    def size(self) -> int:
        return sum(int(sealed["size"]) for sealed in self.manifest["files"].values())

    def __str__(self) -> str:
        return f"{self.stage} {self.digest[:12]} (key {self.key[:12]})"


def read_pins(store: Path) -> dict[str, dict[str, Any]]:
    """Name -> stage, key, digest. A file that cannot be read is an error: it must not look like no pins at all."""
    place = store / "pins.json"
    found = read_json(place)
    if not found and place.exists() and place.read_text().strip() != "{}":
        raise ValueError(f"{place} cannot be read: mend it, or remove it if nothing was pinned.")
    return found


class Catalogue:
    """The store under a data folder as it was when it was read."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.store = self.root / "store"
        self.broken: list[Path] = []
        """Manifests that cannot be read: no seals."""
        every = [*self._read("manifests", True), *self._read("history", False)]
        self.entries = sorted(every, key=lambda entry: (entry.manifest.get("started", 0.0), entry.key))
        self.by_digest: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.entries:
            self.by_digest[entry.digest].append(entry)
        self.pins = read_pins(self.store)

    def _read(self, room: str, standing: bool) -> Iterator[Entry]:
        for place in (self.store / room).glob("*/*.json"):
            manifest = read_json(place)
            if "digest" in manifest:
                yield Entry(manifest, place, standing)
            elif place.exists():
                self.broken.append(place)

    @property
    def standing(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.standing]

    @functools.cached_property
    def runs(self) -> list[PastRun]:
        return past_runs(self.root)

    def object(self, digest: str) -> Path:
        return self.store / "objects" / digest

    def stands_on(self, digest: str) -> list[str]:
        """The digests of what an artifact cannot be used without."""
        return [str(below) for below in read_json(self.object(digest) / STANDS_ON).values()]

    def pinned(self, entry: Entry) -> list[str]:
        return [name for name, pin in self.pins.items() if (pin["key"], pin["digest"]) == (entry.key, entry.digest)]

    @functools.cached_property
    def _calls(self) -> dict[tuple[str, str, str], tuple[str, str]]:
        """(stage, digest, key or nothing) -> the run that made it, or nothing, and what it was called there."""
        calls: dict[tuple[str, str, str], tuple[str, str]] = {}
        for run in self.runs:
            for row in run.used:
                what = (row["call"].split()[0], row["digest"], row.get("key", ""))
                if row["state"] == "made" or what not in calls:
                    calls[what] = (run.name if row["state"] == "made" else "", row["call"])
        return calls

    def made_by(self, entry: Entry) -> tuple[str, str]:
        """The run that made an artifact and what it called it, as far as a list or a report tells."""
        by_digest = self._calls.get((entry.stage, entry.digest, ""), ("", ""))
        return self._calls.get((entry.stage, entry.digest, entry.key), by_digest)

    def alive(self) -> dict[str, str]:
        """What runs that are going on use: digest -> run."""
        return {row["digest"]: run.name for run in self.runs if run.alive for row in run.used}

    def one(self, name: str) -> Entry:
        """The artifact somebody means. Raises Unnamed with what there is."""
        if name in self.pins:
            pin = self.pins[name]
            found = [e for e in self.by_digest[pin["digest"]] if e.key == pin["key"]]
            if not found:
                raise Unnamed(f"The pin {name} names {pin['stage']} {pin['digest'][:12]}, which is gone.", [])
            return found[-1]
        of_stage = [entry for entry in self.standing if entry.stage == name]
        return of_stage[-1] if of_stage else self._beginning_with(name)

    def _beginning_with(self, name: str) -> Entry:
        every = self.standing if len(name) >= _SHORTEST else []
        found = [e for e in every if e.digest.startswith(name.lower()) or e.key.startswith(name.lower())]
        if len(found) == 1:
            return found[0]
        if found:
            raise Unnamed(f"'{name}' may be any of these; write more of a digest or key:", [str(e) for e in found])
        known = [*self.pins, *{e.stage: "" for e in self.standing}]
        short = f" (of a digest or key, write {_SHORTEST} characters or more)" if re.fullmatch(_HEX, name) else ""
        raise Unnamed(f"Nothing here is called '{name}'{short}.", difflib.get_close_matches(name, known, 3) or known)
