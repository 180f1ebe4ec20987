"""Real processes, really killed: the same command goes on, and what it makes is what nobody's death can be seen in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kill_many import REPO, child_of, kill_many, left_behind
from tests.patience import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


def test_five_kills_at_random_moments_cost_time_and_nothing_else(tmp_path: Path) -> None:
    seed = time.time_ns() % 1_000_000
    toll = kill_many(5, seed, tmp_path, aims=["any", "publish", "child", "publish", "any"])
    print(toll)  # says the seed
    assert toll.wrong == [] and toll.kills == 5 and toll.hits == 6 * toll.roads


# Two at the same work

STUDY = """
import json, sys
from tasks.runtime import RuntimeConfig, session
from tasks.runtime.session import Isolation
from tests import toys
from tests.long_toys import StudyConfig, study
root, tally, isolation = sys.argv[1:]
with session(RuntimeConfig(root=root, isolation=Isolation(isolation))) as now:
    made = study(StudyConfig(steps=25, nap=0.05, tally=tally), toys.collect(toys.CollectConfig()))
print(json.dumps({"digest": made.digest, "states": [record.state for record in now.records]}))
"""


class Pair:
    """Processes that do the same under one root; what still runs after the test is killed."""

    def __init__(self, root: Path, isolation: str) -> None:
        self.root, self.tally, self.isolation = root, root / "tally", isolation
        self.started: list[subprocess.Popen[str]] = []
        root.mkdir()

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", STUDY, self.root / "data", self.tally, self.isolation]
        environment = {**os.environ, "PYTHONPATH": str(REPO)}
        with open(self.root / f"said-{len(self.started)}", "w") as said:
            self.started.append(
                subprocess.Popen(
                    [str(word) for word in command], env=environment, stdout=subprocess.PIPE, stderr=said, text=True
                )
            )
        return self.started[-1]

    def said(self, number: int) -> str:
        return (self.root / f"said-{number}").read_text()

    def steps(self) -> list[str]:
        return self.tally.read_text().splitlines() if self.tally.exists() else []

    def two(self) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
        """One that trains, and one that waits and says for whom."""
        first = self.start()
        wait_for(lambda: len(self.steps()) > 2)
        second = self.start()
        wait_for(lambda: f"study: process {first.pid} on " in self.said(1))
        assert "is at the same work; waiting for its result." in self.said(1)
        return first, second


@pytest.fixture(params=["none", "process"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path / "pair", request.param)
    yield pair
    for process in pair.started:
        process.kill()
        process.wait()
    wait_for(lambda: not left_behind(tmp_path))


def came_to(process: subprocess.Popen[str]) -> dict[str, object]:
    found: dict[str, object] = json.loads(process.communicate(timeout=120)[0])
    return found


def test_of_two_at_once_one_trains_and_the_other_finds_it(pair: Pair) -> None:
    first, second = pair.two()
    made, found = came_to(first), came_to(second)
    assert (made["states"], found["states"]) == (["made", "made"], ["cached", "cached"])
    assert made["digest"] == found["digest"]
    assert pair.steps() == [f"step {number}" for number in range(1, 26)]


def test_a_waiter_takes_over_from_one_that_is_killed_and_goes_on_from_its_checkpoints(pair: Pair) -> None:
    first, second = pair.two()
    first.send_signal(signal.SIGKILL)
    taken = came_to(second)
    assert taken["states"] == ["cached", "made"]
    assert sorted(set(pair.steps()), key=lambda step: int(step.split()[1])) == [f"step {n}" for n in range(1, 26)]
    assert len(pair.steps()) <= 26  # the step during which it died, at most
    alone = Pair(pair.root / "alone", "none")
    assert came_to(alone.start())["digest"] == taken["digest"]


@pytest.mark.parametrize("pair", ["process"], indirect=True)
def test_a_training_child_that_is_killed_alone_is_tried_once_more_and_goes_on(pair: Pair) -> None:
    run = pair.start()
    wait_for(lambda: len(pair.steps()) > 2)
    os.kill(child_of(run.pid), signal.SIGKILL)
    assert came_to(run)["states"] == ["made", "made"]
    assert len(pair.steps()) <= 26
