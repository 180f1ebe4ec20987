"""One trial as Hydra's launchers call it: in this process, or in a worker that got it by pickle."""

from __future__ import annotations

import functools
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from flows import trials
from flows.server import send_what_waits
from flows.trials import Seat, State, Trial
from tasks.runtime.child import die_with
from tasks.runtime.stopping import Stopped

_LEAVING = 8.0
"""Seconds a trial has to save its work once the leader was killed."""


@dataclass
class Job:
    """What a worker must know; everything in it is pickled by its importable name."""

    drawing: Callable[[Any], Any]
    schema: type
    search: list[str]
    folder: Path
    parent: str
    """MLflow run of the sweep."""
    leader: int
    """Process that leads the sweep."""
    total: int

    def __call__(self, _: Any) -> int:
        """Run the trial whose number is the job's name; returns its exit code."""
        from hydra.core.hydra_config import HydraConfig

        alone = os.getpid() == self.leader
        if not alone:
            _belong_to(self.leader)
        code = stopped(self.folder)
        if not code:
            trial = trials.load(self.folder, int(HydraConfig.get().job.name.removeprefix("trial-")))
            with _quiet() if alone else _marked(f"[{trial.number}/{self.total}] "):
                code = self._run(trial, "" if not alone else f"[{trial.number}/{self.total}] ")
            if not alone:
                send_what_waits()
        if code > 128:
            stop(self.folder, code)
            if alone:  # leave the launcher, too
                raise Stopped(code - 128)
        return code

    def _run(self, trial: Trial, mark: str) -> int:
        from flows.launch import run_once

        console = Console(stderr=True, highlight=False)
        turned = " ".join(f"{knob}={value}" for knob, value in trial.swept.items())
        console.print(f"{mark}{turned}", markup=False, soft_wrap=True)
        trial.begin(self.folder)
        seat = Seat(trial, self.parent)
        token = trials.seated.set(seat)
        try:
            code = run_once(self.drawing, self.schema, trial.overrides, self.search)
        except Exception as error:  # around the flow, not in it: Prefect cannot be reached, the disk is full
            trials.failed(error)
            console.print(f"{error}", markup=False, soft_wrap=True)
            code = 1
        finally:
            trials.seated.reset(token)
        trial.end(self.folder, code, seat.now)
        measured = "" if trial.score is None else f", {trial.metric} {trial.score:.4g}"
        console.print(f"{mark}{trial.state}{measured}, {trial.seconds:.0f} s", markup=False, soft_wrap=True)
        return code


def stop(folder: Path, code: int) -> None:
    """Say to every process of a sweep that no further trial begins; the first to say so knows why."""
    with suppress(FileExistsError), open(folder / "stop", "x") as file:
        file.write(str(code))


def stopped(folder: Path) -> int:
    """The exit code of a sweep that was stopped, else 0."""
    place = folder / "stop"
    return int(place.read_text() or 143) if place.exists() else 0


def running(folder: Path) -> set[int]:
    """The workers that are at a trial."""
    found = {trial.pid for trial in trials.load_all(folder) if trial.state is State.running}
    return found - {os.getpid()}


@functools.cache
def _belong_to(leader: int) -> None:
    """A worker ends with its leader, and hears of the terminal's Ctrl-C from it alone."""
    die_with(leader)
    with suppress(PermissionError):
        os.setpgid(0, 0)

    def watch() -> None:  # Prefect would go on for minutes to tell a server that died with the leader
        while os.getppid() == leader:
            time.sleep(0.5)
        time.sleep(_LEAVING)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _quiet() -> Iterator[None]:
    """A trial's report lies in its run's folder; the sweep shows the leaderboard."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


@contextmanager
def _marked(mark: str) -> Iterator[None]:
    """The lines of trials that run side by side say whose they are."""
    with _quiet(), redirect_stderr(_Marked(sys.stderr, mark)):
        yield


class _Marked(io.TextIOBase):
    """Whole lines only, each with a mark in front; no terminal, so nobody draws bars on it."""

    def __init__(self, to: TextIO, mark: str) -> None:
        self._to, self._mark, self._rest = to, mark, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                self._to.write(f"{self._mark}{line.strip()}\n")
        self._to.flush()
        return len(text)
