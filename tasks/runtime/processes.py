"""One body, two places to run it: this process, or children of its own that can be killed as a group.

A job is JSON: the stage, its config, its inputs as references, the folders it may write. The child, of
several ranks the first, appends events (metrics, progress, words) to a file that the parent follows, and leaves its
result as JSON (child.py).
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.runtime import devices, keys, ranks
from tasks.runtime.stopping import Stop
from tasks.runtime.store import Store

Report = Callable[[dict[str, Any]], None]
Job = dict[str, Any]


class ChildFailed(RuntimeError):
    """A stage's child process ended without a result."""


class ChildKilled(ChildFailed):
    """The kernel, or a person, ended it by signal 9: what it had saved is good to go on from."""


@dataclass
class Run:
    """What a stage's body is given of its surroundings: plain values only."""

    out: Path
    """An empty folder; what is written here is sealed as the artifact's content. No times, paths or run ids."""
    notes: Path
    """Reports, plots and logs: kept beside the artifact, not part of its digest."""
    work: Path
    """Kept across attempts until the stage is published: checkpoints live here."""
    log: Callable[[dict[str, float], int], None] = lambda metrics, step: None
    progress: Callable[[int, int, str], None] = lambda done, total, what: None
    say: Callable[[str], None] = lambda text: None
    """A line of its own for whoever watches: what is waited for, and until when."""
    stopping: Callable[[], bool] = lambda: False
    """Whether somebody asked for a stop: a body that asks between its steps may leave by itself, with any exception."""
    lineage: list[dict[str, Any]] = field(default_factory=list)
    """Every ancestor stage: `{"stage", "recipe", "digest", "config"}`, nearest last."""
    micro_batch: int = 0
    """Rows per forward pass, 0 for the stage's own choice; never part of a key."""
    rank: int = 0
    """Which of several processes that run this body together this one is. Only the first one's `out` is kept."""
    ranks: int = 1
    """How many run it together; never part of a key."""


def execute(job: Job, store: Store, report: Report, stop: Stop, rank: int = 0) -> dict[str, float]:
    """Run a stage's body here and return its metrics. Raises Stopped when it was asked to stop."""
    module = importlib.import_module(job["module"])
    body = getattr(module, job["name"]).body
    folders = {name: Path(job[name]) for name in ("out", "notes", "work")}
    run = Run(
        **folders,
        log=lambda metrics, step: report({"metrics": metrics, "step": step}),
        progress=lambda done, total, what: report({"done": done, "total": total, "what": what}),
        say=lambda text: report({"say": text}),
        stopping=stop.stopping,
        lineage=job["lineage"],
        micro_batch=job["micro_batch"],
        rank=rank,
        ranks=job.get("ranks", 1),
    )
    config = keys.restore(getattr(module, job["name"]).config, job["config"])
    with devices.memory_at_hand(), stop.body():
        metrics = body(run, config, *(_local(value, store) for value in job["inputs"])) or {}
    return {name: float(value) for name, value in metrics.items()}


def _local(value: Any, store: Store) -> Any:
    if isinstance(value, list):
        return [_local(item, store) for item in value]
    return store.localise(value) if value else None


def execute_in_child(
    job: Job,
    store: Store,
    report: Report,
    stop: Stop,
    count: int = 1,
    strategy: ranks.Strategy = ranks.Strategy.ddp,
    environment: dict[str, str] | None = None,
) -> dict[str, float]:
    """Run a stage's body in a process group of its own, or as `count` ranks with one each; they die with us, and one
    that fails takes the others along. Their logs stay in `work` when it fails."""
    folder = Path(job["work"]) / "job"
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / "events.jsonl", *folder.glob("result*.json")):
        old.unlink(missing_ok=True)
    ours: Job = {"root": str(store.root), "parent": os.getpid(), "attempt": uuid.uuid4().hex, "grace": stop.grace}
    (folder / "job.json").write_text(json.dumps({**job, **ours, "ranks": count}))
    (folder / "events.jsonl").touch()
    starting = ranks.started(folder, count, strategy, stop, environment or {})
    with open(folder / "events.jsonl") as events, stop.body(), starting as team:
        last = ranks.wait(team, lambda: _follow(events, report), stop)
    metrics = _result(last, ours["attempt"], job["name"])
    for rank in team:
        shutil.copyfile(rank.log, Path(job["notes"]) / rank.log.name)
    return metrics


def _follow(events: Any, report: Report) -> None:
    while True:
        place = events.tell()
        line = events.readline()
        if not line.endswith("\n"):
            events.seek(place)  # half a line: the rest is on its way
            return
        report(json.loads(line))


def _result(rank: ranks.Rank, attempt: str, stage: str) -> dict[str, float]:
    result = json.loads(rank.result.read_text()) if rank.result.exists() else {}
    code, several = rank.process.returncode, rank.of > 1
    if result.get("attempt") == attempt:  # not one that a child of a killed run left behind
        if "metrics" in result and (code == 0 or not several):
            return dict(result["metrics"])
        if result.get("transient"):
            raise ConnectionError(result["error"])
        if "error" in result:
            raise ChildFailed(f"{stage}: {rank.name + ': ' if several else ''}{result['error']} (log: {rank.log})")
    tail = "\n".join(rank.log.read_text(errors="replace").splitlines()[-15:])
    words = f"{stage}: {rank.name} ended with code {code} and left no result."
    if code == -signal.SIGKILL:
        hint = "Signal 9 usually means memory ran out: lower the batch size or the length."
        raise ChildKilled(f"{words} {hint}\n{tail}")
    raise ChildFailed(f"{words}\n{tail}")
