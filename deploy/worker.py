"""Prefect's process worker, whose runs may leave before it does: `python -m deploy.worker`.

Told to stop, Prefect's own worker goes at once and takes its runs with it. This one tells them first, as Ctrl-C would:
they end as Cancelled with a checkpoint, and the same run goes on from there. Needs PREFECT_API_URL; starts in the
folder in which runs are to start, the repository's root. WORKER_LIMIT: runs at a time (1).
`python -m deploy.worker heard` says with its exit code whether Prefect hears one.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from datetime import datetime

import psutil

from tasks.runtime.child import die_with

POOL = "posttrain"
_GRACE = 60.0
"""Seconds a run has to leave: twice what it takes by its own rules."""


def main() -> int:
    told = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: told.set())
    limit = os.environ.get("WORKER_LIMIT") or "1"
    start = ["prefect", "worker", "start", "--pool", POOL, "--type", "process", "--limit", limit]
    us = os.getpid()
    worker = subprocess.Popen(
        [sys.executable, "-m", *start, "--name", platform.node()], preexec_fn=lambda: die_with(us)
    )
    while worker.poll() is None and not told.wait(0.5):
        pass
    if worker.poll() is None:
        runs = psutil.Process(worker.pid).children()
        for run in runs:
            run.terminate()
        until = time.monotonic() + _GRACE
        while any(map(_lives, runs)) and time.monotonic() < until:
            time.sleep(0.1)
        worker.terminate()
    return worker.wait()


def _lives(run: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return run.is_running() and run.status() != psutil.STATUS_ZOMBIE
    return False


def heard(api: str, auth: str, since: float = 0.0) -> bool:
    """Whether Prefect hears a worker of the pool, and did so after a moment."""
    asked = urllib.request.Request(f"{api}/work_pools/{POOL}/workers/filter", b"{}")
    asked.add_header("Content-Type", "application/json")
    asked.add_header("Authorization", f"Basic {base64.b64encode(auth.encode()).decode()}")
    with suppress(OSError), urllib.request.urlopen(asked, timeout=2) as reply:
        moments = [w["last_heartbeat_time"] for w in json.load(reply) if w["status"] == "ONLINE"]
        return any(datetime.fromisoformat(moment).timestamp() > since for moment in moments)
    return False


if __name__ == "__main__":
    if sys.argv[1:] == ["heard"]:
        sys.exit(not heard(os.environ["PREFECT_API_URL"], os.environ.get("PREFECT_API_AUTH_STRING", "")))
    sys.exit(main())
