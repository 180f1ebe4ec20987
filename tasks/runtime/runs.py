"""The runs of a data folder: what each found and made, by its own list and by its report."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.runtime.uses import is_held


@dataclass
class PastRun:
    """One run, finished, failed, killed or still going on."""

    name: str
    began: float
    alive: bool = False
    sweep: str = ""
    """The sweep it was a trial of."""
    used: list[dict[str, Any]] = field(default_factory=list)
    """`{"state", "call", "digest"}` of each stage call, with "stage" and "key" where the run kept a list of its own."""


def past_runs(root: Path) -> list[PastRun]:
    """The runs under a data folder that came to use something, oldest first."""
    found: dict[str, PastRun] = {}
    for folder in (root / "runs").glob("*/"):
        began = (folder / "config.json").stat().st_mtime if (folder / "config.json").exists() else 0.0
        stages = read_json(folder / "report.json").get("stages", [])
        used = [{name: row[name] for name in ("state", "call", "digest")} for row in stages]
        found[folder.name] = PastRun(folder.name, began, used=used)
    for place in (root / "store" / "runs").glob("*.jsonl"):
        with suppress(FileNotFoundError):  # a run that used nothing takes its list away when it ends
            run = found.setdefault(place.stem, PastRun(place.stem, place.stat().st_mtime))
            run.alive = is_held(place)
            run.used += [json.loads(line) for line in place.read_text().splitlines() if line.endswith("}")]
    for place in (root / "sweeps").glob("*/trial-*.json"):
        if (run_of := read_json(place).get("run", "")) in found:
            found[run_of].sweep = place.parent.name
    return sorted((run for run in found.values() if run.used or run.alive), key=lambda run: (run.began, run.name))


def read_json(place: Path) -> dict[str, Any]:
    """A JSON file, or nothing where there is none that can be read."""
    try:
        found = json.loads(place.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
