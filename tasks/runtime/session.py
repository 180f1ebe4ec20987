"""Where we are: the store, the tracker and the screen that the stages of one flow run share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from tasks.runtime import keys, prefects, ranks
from tasks.runtime.progress import Screen
from tasks.runtime.ranks import Strategy
from tasks.runtime.stopping import Stop
from tasks.runtime.store import Manifest, Store
from tasks.runtime.tracking import Tracker
from tasks.runtime.uses import Uses

_LEAST_ROOM = 3e9
"""Bytes of free disk under which a run is not begun: the bundled road leaves 1.3 GB and takes 1 GB more for scratch."""


class Isolation(StrEnum):
    """Where a stage's body runs. `auto`: in this process on a CPU, in a child on a GPU or for llama.cpp's C calls."""

    auto = "auto"
    process = "process"
    none = "none"


class Drift(StrEnum):
    """What to do on a hit that other code or library versions made: use it and say so, make it again, or stop."""

    warn = "warn"
    rerun = "rerun"
    refuse = "refuse"


@dataclass
class RuntimeConfig:
    """Where we are, never part of a key."""

    root: str = "data"
    """The folder under which everything generated lies: store, runs, MLflow's and Prefect's databases."""
    isolation: Isolation = Isolation.auto
    """Whether stages run in this process or in a child of their own: auto, process, none."""
    drift: Drift = Drift.warn
    """On a hit made by other code or library versions: warn, rerun, refuse."""
    refresh: bool = False
    """Ask again what moving names mean (the branch `main` on a hub) instead of reusing the recorded answer."""
    micro_batch: int = 0
    """Rows per forward pass (0: the stage's choice). Lower it when memory runs out; results keep their recipe."""
    ranks: int = 1
    """Processes that train one model together, where a stage can; results keep their recipe. More: runtime=ranks."""
    strategy: Strategy = Strategy.ddp
    """How they do: ddp (each holds the whole optimizer) or zero2 (DeepSpeed shares it and the gradients out)."""
    grace: float = 5.0
    """Seconds a training may take to reach its next step and save when it is asked to stop: SIGTERM, Ctrl-C, Cancel."""
    retries: int = 3
    """How often a stage is tried again after trouble that can pass by itself: network, a hub's 5xx."""
    register: str = "posttrain"
    """Name in MLflow's model registry under which a model is registered after a passed verdict; empty for none."""

    def problems(self) -> Iterator[str]:
        if self.micro_batch < 0:
            yield f"micro_batch is {self.micro_batch}; give 0 (the stage's choice) or a positive number."
        yield from ranks.problems(self.ranks, self.strategy)
        if self.ranks > 1 and self.isolation is Isolation.none:
            yield "isolation=none keeps every stage in this process, and several ranks are several: leave it out."
        place = next(p for p in (Path(self.root).resolve(), *Path(self.root).resolve().parents) if p.exists())
        room = shutil.disk_usage(place).free
        if not place.is_dir() or not _takes_files(place):
            yield f"root={self.root} is no folder that can be written to ({place}): choose another."
        elif room < _LEAST_ROOM:
            least = f"{_LEAST_ROOM / 1e9:.0f} GB"
            yield f"root={self.root} has {room / 1e9:.1f} GB of free disk; make room for {least}, or choose another."
        if not 0 <= self.grace <= 600:
            yield f"grace is {self.grace} seconds; give 0 to 600, usually 5."
        if not 0 <= self.retries <= 20:
            yield f"retries is {self.retries}; give a number from 0 to 20."


def _takes_files(folder: Path) -> bool:
    """By trying: rights, read-only disks and frozen folders each have a way of their own to say no."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@dataclass
class Record:
    """What one stage call of this run came to."""

    stage: str
    seat: str
    inputs: list[str]
    state: str
    seconds: float
    manifest: Manifest
    note: str = ""


class Planner(Protocol):
    """Notes the calls of a drawing instead of making them; a call's answer is the reference of its result."""

    def add(self, call: Any) -> dict[str, Any]: ...


@dataclass
class Session:
    config: RuntimeConfig
    store: Store
    screen: Screen
    tracker: Tracker | None = None
    seats: dict[int, str] = field(default_factory=dict)
    """Config object -> its name in the drawing, so that two preprocess calls can be told apart."""
    records: list[Record] = field(default_factory=list)
    stop: Stop = field(default_factory=Stop)
    uses: Uses | None = None
    """The list of what this run found and made: a clean-up leaves it alone."""
    plan: Planner | None = None
    """Where a plan is drawn, a stage call is noted instead of made."""
    meant: dict[str, str] = field(default_factory=dict)
    """Moving names of this session: the key and the body must hear the same answer, also when it is asked again."""

    def hash_file(self, path: Path) -> str:
        return self.store.hash_file(path)

    def resolve(self, moving: keys.Moving) -> str:
        if moving.name not in self.meant:
            self.meant[moving.name] = self.store.resolve(moving, refresh=self.config.refresh)
        return self.meant[moving.name]

    def using(self, state: str, call: str, look: Callable[[], Manifest | None]) -> Manifest | None:
        """What `look` finds or seals in the store, safe from a clean-up from then on."""
        return self.uses.noted(state, call, look) if self.uses else look()


_current: ContextVar[Session | None] = ContextVar("session", default=None)


def current() -> Session:
    session = _current.get()
    if session is None:
        raise RuntimeError("A stage was called outside of a session: call it inside `with session(RuntimeConfig()):`.")
    return session


@contextmanager
def session(
    config: RuntimeConfig, tracker: Tracker | None = None, seats: Any = None, name: str = ""
) -> Iterator[Session]:
    """Open the store under `config.root` for the stages called within, as the run of this name."""
    screen = Screen(prefects.note)
    store = Store(Path(config.root) / "store", say=screen.say)
    opened = Session(config, store, screen, tracker, seats or {}, stop=Stop(config.grace, screen.say))
    token = _current.set(opened)
    try:
        with screen, opened.stop.listening(), Uses(store.root, name).kept() as opened.uses:
            yield opened
    finally:
        _current.reset(token)
