"""Kills at random moments: `python -m tests.kill_many [N=200] [SEED]`.

Runs the toy road of tests/kill_road.py, kills it with signal 9, runs it again, and so on; a road that arrived is
compared with one that nobody disturbed, and another one is begun. Half of the kills are aimed at a publish, one in six
hits the stage's child process alone. Ends with one line that says what came of it; exit code 1 if anything was wrong.
"""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.runtime.store import Store
from tests.patience import alive, wait_for

REPO = Path(__file__).resolve().parents[1]


@dataclass
class Toll:
    """What so many kills came to."""

    seed: int
    kills: int = 0
    fell: collections.Counter[str] = field(default_factory=collections.Counter)
    roads: int = 0
    """Roads that arrived."""
    runs: int = 0
    redone: int = 0
    """Steps of training that were done more than once."""
    hits: int = 0
    """Stage calls that were found when a road was travelled once more."""
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        fell = ", ".join(f"{where} {count}" for where, count in self.fell.most_common())
        wrong = f"{len(self.wrong)} wrong" + "".join(f"\n  {line}" for line in self.wrong)
        return (
            f"{self.kills} kills (seed {self.seed}: {fell}) in {self.seconds:.0f} s, {self.runs} runs, "
            f"{self.roads} roads arrived, {self.redone} steps done again, {self.hits} hits afterwards, {wrong}"
        )


class Road:
    """One road under its own root, travelled until it arrives."""

    def __init__(self, root: Path, chance: random.Random) -> None:
        self.root, self.chance, self.kills = root, chance, 0

    def start(self, isolation: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.kill_road", str(self.root), isolation]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, cwd=REPO, env={**os.environ, "PYTHONPATH": str(REPO)}, text=True, **pipes)

    def where(self) -> str:
        place = self.root / "where"
        return place.read_text().strip() if place.exists() else ""

    def kill(self, aim: str) -> tuple[str, dict[str, Any] | None]:
        """One run, killed at a moment of the aim's choice: where it fell, or what it arrived with."""
        (self.root / "where").unlink(missing_ok=True)
        process = self.start("process" if aim == "child" else self.chance.choice(["none", "process"]))
        self._wait_for_the_moment(aim, process)
        victim = child_of(process.pid) if aim == "child" else process.pid
        fell = f"{self.where() or 'start-up'}{' (child alone)' if aim == 'child' else ''}"
        if process.poll() is None and victim:
            os.kill(victim, signal.SIGKILL)
            self.kills += 1
        else:
            fell = ""  # it was too quick for us
        said = process.communicate(timeout=120)[0]
        return fell, json.loads(said) if process.returncode == 0 else None

    def _wait_for_the_moment(self, aim: str, process: subprocess.Popen[str]) -> None:
        if aim == "any":
            time.sleep(self.chance.uniform(0, 2.5))
            return
        stage = self.chance.choice(["collect", "study", "study", "adapt", "encode"]) if aim == "publish" else "study"
        words = f"publish {stage}" if aim == "publish" else f"body {stage}"
        while process.poll() is None and not (self.where() == words and (aim == "publish" or child_of(process.pid))):
            time.sleep(0.001)
        time.sleep(self.chance.uniform(0, 0.03 if aim == "publish" else 0.8))

    def sealed(self) -> dict[str, int]:
        """The tally of each stage call that is finished, and how long it is: it must never grow again."""
        manifests = [json.loads(place.read_text()) for place in self.root.glob("store/manifests/*/*.json")]
        tallies = [m["config"]["tally"] for m in manifests if m["config"].get("tally")]
        return {tally: Path(tally).stat().st_size for tally in tallies if Path(tally).exists()}

    def wrong(self, before: dict[str, int]) -> list[str]:
        """What is wrong with the store now, where these calls were finished before."""
        store = Store(self.root / "store", say=lambda text: None)
        seals = [json.loads(place.read_text()) for place in self.root.glob("store/manifests/*/*.json")]
        broken = [damage for seal in seals if (damage := store.damage(seal))]
        now = self.sealed()
        return broken + [f"{tally} was finished and ran again" for tally in before if before[tally] != now[tally]]

    def redone(self) -> int:
        steps = [(self.root / "tally" / name).read_text().splitlines() for name in ("sft", "dpo")]
        return sum(len(lines) - len(set(lines)) for lines in steps)


def child_of(parent: int) -> int:
    """The stage's child process of a road, 0 without one."""
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        found = [int(pid) for pid in children if b"tasks.runtime.child" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return found[0] if found else 0


def left_behind(root: Path) -> list[int]:
    """The processes that still work under a root."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(root).encode() in place.read_bytes() and int(place.parent.name) != os.getpid():
                found.append(int(place.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [pid for pid in found if alive(pid)]


def kill_many(kills: int, seed: int, folder: Path, aims: list[str] | None = None) -> Toll:
    """So many kills, each with an aim of its own: "publish", "child", or any moment."""
    chance, toll, began = random.Random(seed), Toll(seed), time.monotonic()
    undisturbed = Road(folder / "undisturbed", chance)
    expected = json.loads(undisturbed.start("none").communicate(timeout=120)[0])["digests"]
    road = Road(folder / "0", chance)
    while toll.kills < kills:
        aim = aims[toll.kills] if aims else chance.choice(["publish"] * 3 + ["child"] + ["any"] * 2)
        before = road.sealed()
        fell, arrived = road.kill(aim)
        toll.runs += 1
        toll.kills += bool(fell)
        toll.fell.update([fell] if fell else [])
        toll.wrong += road.wrong(before)
        if arrived:
            _arrive(road, arrived, expected, toll)
            road = Road(folder / str(toll.roads), chance)
    last = json.loads(road.start("none").communicate(timeout=120)[0])
    _arrive(road, last, expected, toll)
    wait_for(lambda: not left_behind(folder), seconds=30)
    toll.seconds = time.monotonic() - began
    return toll


def _arrive(road: Road, arrived: dict[str, Any], expected: dict[str, str], toll: Toll) -> None:
    """Compare a road with the undisturbed one, and travel it once more: everything must be a hit."""
    again = json.loads(road.start("none").communicate(timeout=120)[0])
    toll.roads += 1
    toll.runs += 1
    toll.hits += again["states"].count("cached")
    toll.redone += road.redone()
    for run in (arrived, again):
        differ = [name for name, digest in run["digests"].items() if digest != expected[name]]
        toll.wrong += [f"{road.root}: {name} differs from an undisturbed one" for name in differ]
    if set(again["states"]) != {"cached"}:
        toll.wrong.append(f"{road.root}: not everything was found again")
    if road.redone() > 2 * road.kills:
        toll.wrong.append(f"{road.root}: {road.redone()} steps were done again after {road.kills} kills")


def main(words: list[str]) -> int:
    kills = int(words[0]) if words else 200
    seed = int(words[1]) if len(words) > 1 else time.time_ns() % 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        toll = kill_many(kills, seed, Path(folder))
    print(toll)
    return 1 if toll.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
