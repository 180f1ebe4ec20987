"""The child's side of a job: `python -m tasks.runtime.child job.json`. Launchers of several ranks start the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from filelock import FileLock

from tasks.runtime import ranks
from tasks.runtime.processes import Job, execute
from tasks.runtime.stopping import Stop, Stopped
from tasks.runtime.store import Store


def main(place: Path) -> int:
    """Run the job in this file; the result, or what went wrong, is left beside it. Returns the exit code."""
    job = json.loads(place.read_text())
    die_with(job.get("parent", os.getppid()))
    rank = int(os.environ["RANK"]) if job["ranks"] > 1 else 0
    store, stop = Store(Path(job["root"])), Stop(job["grace"])
    result: dict[str, Any]
    with stop.listening(), open(place.parent / "events.jsonl", "a", buffering=1) as events:
        try:
            tell = (lambda event: None) if rank else lambda event: print(json.dumps(event), file=events, flush=True)
            with FileLock(place.parent / f"lock{rank or ''}"):  # a child whose parent was killed may still be saving
                metrics = execute(_apart(job, rank), store, tell, stop, rank)
            result = {"metrics": metrics}
        except Stopped as stopped:
            return stopped.code
        except Exception as error:
            traceback.print_exc()
            transient = isinstance(error, ConnectionError | TimeoutError)
            name = type(error).__name__
            result = {"error": str(error) or name if transient else f"{name}: {error}", "transient": transient}
    draft = place.parent / f"result{rank or ''}.tmp"
    draft.write_text(json.dumps({**result, "attempt": job["attempt"]}))
    os.replace(draft, ranks.result_place(place.parent, rank))
    return 0 if "metrics" in result else 1


def _apart(job: Job, rank: int) -> Job:
    """The job as this rank sees it: what all but the first leave in `out` and `notes` is nobody's."""
    if rank == 0:
        return job
    folders = {name: Path(job["work"]) / "job" / f"rank{rank}" / name for name in ("out", "notes")}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    return {**job, **{name: str(folder) for name, folder in folders.items()}}


def die_with(parent: int) -> None:
    """Ask the kernel (Linux) to end this process when its parent ends, however the parent ends."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        raise SystemExit("The process that started this one is gone; there is nobody to work for.")


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)  # at once: the threads of native libraries now and then abort a process that winds down
