"""A process that runs one body that is not easily ended: `python -m tests.stoppable HOW ROOT TALLY ISOLATION`."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass

from tasks.runtime import Dataset, Run, RuntimeConfig, free, session, stage
from tasks.runtime.session import Isolation
from tasks.runtime.stopping import Stopped
from tests.toys import count


@dataclass
class StubbornConfig:
    how: str = "patient"
    tally: str = free("")


@stage(makes=Dataset, version="1")
def stubborn(run: Run, cfg: StubbornConfig) -> dict[str, float]:
    """Steps of a third of a second; the tally gets the process ids, then every step that was finished."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], **quiet)
    count(cfg.tally, f"{os.getpid()} {helper.pid}")
    if cfg.how == "deaf":
        hashlib.pbkdf2_hmac("sha256", b"one long", b"C call", 1_000_000_000)
    for step in range(1000):
        if cfg.how == "slow" and step == 1:
            run.stopping()
            time.sleep(600)
        if cfg.how != "rude" and run.stopping():
            (run.work / "checkpoint").write_text(str(step))
            raise InterruptedError("between two steps")
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            time.sleep(0.01)
        count(cfg.tally, f"step {step}")
    return {}


if __name__ == "__main__":
    from tests import stoppable  # under the name by which a child finds it

    how, root, tally, isolation = sys.argv[1:]
    try:
        with session(RuntimeConfig(root=root, isolation=Isolation(isolation), grace=2.0)):
            stoppable.stubborn(stoppable.StubbornConfig(how, tally))
    except Stopped as stopped:
        sys.exit(stopped.code)
