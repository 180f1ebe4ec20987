"""One trial of a sweep as a small file: what it was asked, what came of it.

`trial-<n>.json` in the sweep's folder is written by the process that runs the trial and read by the one that leads the
sweep, so that what is known survives both.
"""

from __future__ import annotations

import json
import os
import time
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from flows import story
from tasks.runtime.session import Session


class State(StrEnum):
    waiting = "not run"
    running = "running"
    passed = "passed"
    refused = "verdict failed"
    """It went through to its score, and a gate says that the model may not be used."""
    failed = "failed"
    stopped = "stopped"


_MEANS = {0: State.passed, 3: State.refused}
"""Exit code -> state; above 128 a signal stopped it, and everything else is a failure."""


@dataclass
class Trial:
    number: int
    """Counted from 1."""
    overrides: list[str]
    swept: dict[str, str]
    """Knob -> this trial's value, of the knobs that the sweep turns."""
    state: State = State.waiting
    pid: int = 0
    tries: int = 0
    began: float = 0.0
    seconds: float = 0.0
    run: str = ""
    """Name of its run: in Prefect, in MLflow, and of its folder under runs/."""
    metric: str = ""
    score: float | None = None
    """The objective of the verdict's candidate, with its 95 % interval."""
    interval: list[float] = field(default_factory=list)
    stages: list[dict[str, str]] = field(default_factory=list)
    """`{"stage", "state", "recipe", "key"}` of each stage call; "made" ran, "cached" was found."""
    error: str = ""

    def begin(self, folder: Path) -> None:
        self.state, self.pid, self.began = State.running, os.getpid(), time.time()
        self.tries += 1
        self.save(folder)

    def end(self, folder: Path, code: int, now: Session | None) -> None:
        """Judge it by its exit code, and take the score and the stages from the session it had."""
        self.state = _MEANS.get(code, State.stopped if code > 128 else State.failed)
        self.seconds = time.time() - self.began
        if now is not None:
            self.stages = [_stage(record) for record in now.records]
            if verdict := story.of_session(now).verdict:
                candidate = verdict["scores"][-1]
                self.metric = verdict["objective"]
                self.score, self.interval = candidate[self.metric], candidate["interval"]
        if self.state is State.failed and not self.error:
            self.error = f"it ended with code {code}"
        self.save(folder)

    def save(self, folder: Path) -> None:
        place = folder / f"trial-{self.number}.json"
        draft = place.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps(asdict(self), indent=1))
        os.replace(draft, place)


def _stage(record: Any) -> dict[str, str]:
    sealed = {name: record.manifest[name] for name in ("recipe", "key")}
    return {"stage": record.stage, "state": record.state, **sealed}


def load(folder: Path, number: int) -> Trial:
    found = json.loads((folder / f"trial-{number}.json").read_text())
    return Trial(**{**found, "state": State(found["state"])})


def load_all(folder: Path) -> list[Trial]:
    numbers = sorted(int(place.stem.removeprefix("trial-")) for place in folder.glob("trial-*.json"))
    return [load(folder, number) for number in numbers]


@dataclass
class Seat:
    """Where a trial sits while it runs: the front door tells it what it opened."""

    trial: Trial
    parent: str
    """MLflow run of the sweep."""
    now: Session | None = None


seated: ContextVar[Seat | None] = ContextVar("seated", default=None)
"""The trial that this process is at; none in a run of its own."""


def joined(run: str) -> dict[str, str]:
    """The MLflow tags that put a run under its sweep; the trial learns the run's name."""
    seat = seated.get()
    if seat is None:
        return {}
    seat.trial.run = run
    return {"mlflow.parentRunId": seat.parent, "trial": str(seat.trial.number)}


def opened(now: Session) -> None:
    if seat := seated.get():
        seat.now = now


def failed(error: BaseException | str) -> None:
    """What went wrong; the first to tell knows best."""
    if (seat := seated.get()) and not seat.trial.error:
        seat.trial.error = " ".join(str(error).split())[:500] or type(error).__name__
