"""The smoke road on the tiny model, for tests: the real drawing, a few steps, its own root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from flows.compose import compose
from flows.launch import travel
from flows.sft_then_dpo import SFTThenDPO, sft_then_dpo
from flows.trials import Trial

ROOT = Path(__file__).resolve().parents[2]
LONG = ["sft.args.max_steps=4000", "sft.args.save_steps=7"]
"""A training that is still under way when a test stops it."""


def overrides(model: Path, root: Path, *more: str) -> list[str]:
    """A choice of `more` that names the same key comes later and wins."""
    return ["debug=smoke", "download=local", f"download.path={model}", f"runtime.root={root}", *more]


def travelled(model: Path, root: Path, *more: str) -> dict[str, str]:
    """Run the road in this process, without Prefect; returns what became of each stage call."""
    given = overrides(model, root, *more)
    travel(sft_then_dpo, compose("sft_then_dpo", SFTThenDPO, given), given)
    return states(root)


def states(root: Path) -> dict[str, str]:
    """Stage call -> state, of the newest run under a root."""
    return {row["call"]: row["state"] for row in newest(root)["stages"]}


def newest(root: Path) -> dict[str, Any]:
    runs = sorted((root / "runs").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    found: dict[str, Any] = json.loads((runs[-1] / "report.json").read_text())
    return found


def command(model: Path, root: Path, *more: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the road as a person does, in a process of its own."""
    line = [sys.executable, "-m", "flows.sft_then_dpo", *overrides(model, root, *more)]
    return subprocess.run(
        line, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=280
    )


def distinct(trials: list[Trial]) -> dict[str, int]:
    """How many different recipes of each stage the trials of a sweep asked for."""
    return dict(Counter(stage for stage, _ in {(s["stage"], s["recipe"]) for t in trials for s in t.stages}))


def made(found: dict[str, str]) -> set[str]:
    return {call for call, state in found.items() if state == "made"}


def checkpoint(root: Path) -> int:
    """The step of the last complete checkpoint of SFT, 0 without one."""
    whole = (root / "store" / "work" / "sft").rglob("checkpoint-*/trainer_state.json")
    return max((int(place.parent.name.split("-")[1]) for place in whole), default=0)
