"""One body, two places to run it: this process, or a child of its own that can be killed as a group.

A job is JSON: the stage, its config, its inputs as references, the folders it may write. The child appends events
(metrics, progress) to a file that the parent follows, and leaves its result as JSON (child.py).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.runtime import keys
from tasks.runtime.stopping import Stop
from tasks.runtime.store import Store

Report = Callable[[dict[str, Any]], None]
Job = dict[str, Any]


class ChildFailed(RuntimeError):
    """A stage's child process ended without a result."""


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
    stopping: Callable[[], bool] = lambda: False
    """Whether somebody asked for a stop: a body that asks between its steps may leave by itself, with any exception."""
    lineage: list[dict[str, Any]] = field(default_factory=list)
    """Every ancestor stage: `{"stage", "recipe", "digest", "config"}`, nearest last."""
    micro_batch: int = 0
    """Rows per forward pass, 0 for the stage's own choice; never part of a key."""


def execute(job: Job, store: Store, report: Report, stop: Stop) -> dict[str, float]:
    """Run a stage's body here and return its metrics. Raises Stopped when it was asked to stop."""
    module = importlib.import_module(job["module"])
    body = getattr(module, job["name"]).body
    folders = {name: Path(job[name]) for name in ("out", "notes", "work")}
    run = Run(
        **folders,
        log=lambda metrics, step: report({"metrics": metrics, "step": step}),
        progress=lambda done, total, what: report({"done": done, "total": total, "what": what}),
        stopping=stop.stopping,
        lineage=job["lineage"],
        micro_batch=job["micro_batch"],
    )
    config = keys.restore(getattr(module, job["name"]).config, job["config"])
    with stop.body():
        metrics = body(run, config, *(_local(value, store) for value in job["inputs"])) or {}
    gc.collect()  # models and trainers hold each other; the next stage wants their memory
    return {name: float(value) for name, value in metrics.items()}


def _local(value: Any, store: Store) -> Any:
    if isinstance(value, list):
        return [_local(item, store) for item in value]
    return store.localise(value) if value else None


def execute_in_child(job: Job, store: Store, report: Report, stop: Stop) -> dict[str, float]:
    """Run a stage's body in a process group of its own; it dies with us. Its log stays in `work` when it fails."""
    folder = Path(job["work"]) / "job"
    folder.mkdir(parents=True, exist_ok=True)
    for old in ("events.jsonl", "result.json"):
        (folder / old).unlink(missing_ok=True)
    ours: Job = {"root": str(store.root), "parent": os.getpid(), "attempt": uuid.uuid4().hex, "grace": stop.grace}
    (folder / "job.json").write_text(json.dumps({**job, **ours}))
    (folder / "events.jsonl").touch()
    command = [sys.executable, "-m", "tasks.runtime.child", str(folder / "job.json")]
    log = folder / "child.log"
    with open(log, "w") as output, open(folder / "events.jsonl") as events:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            with stop.body(), stop.ending(child.pid):
                _wait(child, lambda: _follow(events, report), stop)
        finally:
            _end_group(child, grace=0.0 if stop.asked else 5.0)
    metrics = _result(folder / "result.json", ours["attempt"], child.returncode, log, job["name"])
    shutil.copyfile(log, Path(job["notes"]) / log.name)
    return metrics


def _wait(child: subprocess.Popen[bytes], follow: Callable[[], None], stop: Stop) -> None:
    told = False
    while child.poll() is None:
        follow()
        if stop.stopping() and not told:
            child.terminate()
            told = True
        time.sleep(0.05)
    follow()
    if stop.asked:
        stop.now()


def _follow(events: Any, report: Report) -> None:
    while True:
        place = events.tell()
        line = events.readline()
        if not line.endswith("\n"):
            events.seek(place)  # half a line: the rest is on its way
            return
        report(json.loads(line))


def _end_group(child: subprocess.Popen[bytes], grace: float) -> None:
    """Also when the child is dead already: what it started (data loader workers) may still be there."""
    for sign in (signal.SIGTERM, signal.SIGKILL) if grace else (signal.SIGKILL,):
        try:
            os.killpg(child.pid, sign)
            child.wait(grace)
        except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
            continue


def _result(place: Path, attempt: str, code: int, log: Path, stage: str) -> dict[str, float]:
    result = json.loads(place.read_text()) if place.exists() else {}
    if result.get("attempt") == attempt:  # not one that a child of a killed run left behind
        if "metrics" in result:
            return dict(result["metrics"])
        if result["transient"]:
            raise ConnectionError(result["error"])
        raise ChildFailed(f"{stage}: {result['error']} (log: {log})")
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    killed = code == -signal.SIGKILL
    hint = " Signal 9 usually means memory ran out: lower the batch size or the length." if killed else ""
    raise ChildFailed(f"{stage}: its process ended with code {code} and left no result.{hint}\n{tail}")
