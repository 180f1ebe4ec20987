"""A stage that several ranks run together, without torch."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass

from tasks.runtime import Dataset, Run, RuntimeConfig, durable, free, session, stage
from tasks.runtime.stopping import Stopped
from tests.patience import wait_for
from tests.toys import count

TORCHES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")


@dataclass
class TeamConfig:
    how: str = "well"
    deaths: int = free(0)
    """How many attempts end by signal 9 of the last rank, after its checkpoint."""
    tally: str = free("")
    """Gets `rank pid step`, where step is that of the checkpoint it went on from."""


@stage(makes=Dataset, version="1", ranks=True)
def team(run: Run, cfg: TeamConfig) -> dict[str, float]:
    saved, last = run.work / f"saved{run.rank}", run.rank == run.ranks - 1
    step = int(saved.read_text()) if saved.exists() else 0
    count(cfg.tally, f"{run.rank} {os.getpid()} {step}")
    durable.write(saved, str(step + 1))
    wait_for(lambda: (run.work / "saved0").exists() and int((run.work / "saved0").read_text()) > step)
    if last and cfg.how == "wrong":
        raise ValueError("The knob is wrong: turn it.")
    if last and step < cfg.deaths:
        os.kill(os.getpid(), signal.SIGKILL)
    while cfg.how != "well" or step < cfg.deaths:  # as ranks do that wait for another one
        if run.stopping():
            raise InterruptedError
        time.sleep(0.02)
    run.log({"loss": run.rank + 1.0}, 1)
    run.progress(1, 1, f"rank {run.rank}")
    (run.out / "train.jsonl").write_text(f"by rank {run.rank}")
    (run.notes / f"by{run.rank}").touch()
    print(json.dumps({name: os.environ.get(name) for name in TORCHES}))
    return {"rank": run.rank, "ranks": run.ranks}


def work_for_ever(root: str, tally: str) -> None:
    """In a session of its own; leaves the process when it is stopped."""
    try:
        with session(RuntimeConfig(root=root, ranks=2, grace=2.0)):
            team(TeamConfig("forever", tally=tally))
    except Stopped as stopped:
        sys.exit(stopped.code)
