"""SIGTERM and Ctrl-C against real processes: who asks may finish a step, nobody stays, nobody takes long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import alive, wait_for

PLACES = ["none", "process"]


class Started:
    """One running stubborn body."""

    def __init__(self, how: str, isolation: str, folder: Path) -> None:
        self.tally, self.root = folder / "tally", folder / "root"
        self.tally.touch()
        command = [sys.executable, "-m", "tests.stoppable", how, str(self.root), str(self.tally), isolation]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        wait_for(lambda: "step 0" in self.lines() or (how == "deaf" and self.lines()), seconds=60)
        self.pids = [self.process.pid, *(int(pid) for pid in self.lines()[0].split())]

    def lines(self) -> list[str]:
        return self.tally.read_text().splitlines()

    def end(self, *signs: signal.Signals) -> tuple[int, float]:
        """Exit code and seconds after these signals, half a second apart."""
        began = time.monotonic()
        for sign in signs:
            os.kill(self.process.pid, sign)
            time.sleep(0.5)
        return self.process.wait(30), time.monotonic() - began

    def checkpoint(self) -> str:
        return next((self.root / "store" / "work").rglob("checkpoint")).read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    left = [int(pid) for pid in (tmp_path / "tally").read_text().splitlines()[0].split()]
    for pid in left:  # a failed test must not leave anybody behind either
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("isolation", PLACES)
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_body_that_asks_finishes_its_step_and_saves(sign: signal.Signals, isolation: str, folder: Path) -> None:
    started = Started("patient", isolation, folder)
    code, seconds = started.end(sign)
    assert code == 128 + sign and seconds < 10
    assert started.lines()[-1] == f"step {int(started.checkpoint()) - 1}"
    assert "Stopping after this step" in started.process.communicate()[1]


def test_a_signal_that_comes_twice_at_once_is_one(folder: Path) -> None:
    started = Started("patient", "none", folder)
    for _ in range(2):
        os.kill(started.process.pid, signal.SIGINT)
        time.sleep(0.05)
    assert started.process.wait(30) == 130
    assert started.lines()[-1] == f"step {int(started.checkpoint()) - 1}"


@pytest.mark.parametrize("isolation", PLACES)
def test_a_body_that_never_asks_is_interrupted_at_once(isolation: str, folder: Path) -> None:
    code, seconds = Started("rude", isolation, folder).end(signal.SIGTERM)
    assert code == 143 and seconds < 5


@pytest.mark.parametrize("isolation", PLACES)
def test_a_step_longer_than_the_grace_is_cut_short(isolation: str, folder: Path) -> None:
    started = Started("slow", isolation, folder)
    code, seconds = started.end(signal.SIGTERM)
    assert code == 143 and 2 <= seconds < 10


@pytest.mark.parametrize("isolation", PLACES)
def test_a_c_call_that_hears_no_signal_is_ended_by_the_watchdog(isolation: str, folder: Path) -> None:
    started = Started("deaf", isolation, folder)
    code, seconds = started.end(signal.SIGTERM)
    assert code == 143 and seconds < 10
    if isolation == "process":
        wait_for(lambda: not any(alive(pid) for pid in started.pids))


def test_a_second_signal_does_not_wait(folder: Path) -> None:
    code, seconds = Started("slow", "none", folder).end(signal.SIGINT, signal.SIGINT)
    assert code == 130 and seconds < 2


@pytest.mark.parametrize("how", ["patient", "deaf"])
def test_a_stopped_child_leaves_none_of_its_helpers(how: str, folder: Path) -> None:
    started = Started(how, "process", folder)
    started.end(signal.SIGTERM)
    wait_for(lambda: not any(alive(pid) for pid in started.pids))


def test_the_child_of_a_killed_parent_saves_and_goes(folder: Path) -> None:
    started = Started("patient", "process", folder)
    started.process.kill()
    wait_for(lambda: not alive(started.pids[1]))
    assert started.lines()[-1] == f"step {int(started.checkpoint()) - 1}"
