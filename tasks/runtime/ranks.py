"""The processes of one job: a single child, or several ranks that train one model together and share one fate.

Each has a process group, a log and a result of its own. Ranks find one another by torch's names in the environment, as
torchrun sets them. When one fails the others are ended: they would wait for it for ever.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tasks.runtime import devices
from tasks.runtime.stopping import Stop


class Strategy(StrEnum):
    """How several ranks train one model. `ddp`: each holds all of it. `zero2`: DeepSpeed shares gradients and optimizer
    state out among them (ZeRO, Rajbhandari et al., 2020, stage 2)."""

    ddp = "ddp"
    zero2 = "zero2"


def problems(ranks: int, strategy: Strategy) -> Iterator[str]:
    gpus = len(devices.gpus())
    if ranks < 1:
        yield f"ranks is {ranks}; give 1, or as many processes as shall train together."
    if gpus and ranks > gpus:
        yield f"ranks is {ranks}, and this machine has {gpus} GPU(s): give at most {gpus}."
    if strategy is Strategy.zero2 and ranks == 1:
        yield "strategy=zero2 shares a training out among several ranks: give runtime.ranks=2 or more, or leave it out."
    if strategy is Strategy.zero2 and importlib.util.find_spec("deepspeed") is None:
        yield "strategy=zero2 needs DeepSpeed: pip install 'posttrain[distributed]', or use strategy=ddp."


def result_place(folder: Path, number: int) -> Path:
    """Where a rank leaves its result; the first one's is that of the job."""
    return folder / (f"result-{number}.json" if number else "result.json")


@dataclass
class Rank:
    """One of the processes of a job."""

    number: int
    of: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def name(self) -> str:
        return f"rank {self.number} of {self.of}" if self.of > 1 else "its process"

    @property
    def log(self) -> Path:
        return _log(self.folder, self.number, self.of)

    @property
    def result(self) -> Path:
        return result_place(self.folder, self.number)


def _log(folder: Path, number: int, of: int) -> Path:
    return folder / (f"rank{number}.log" if of > 1 else "child.log")


@contextmanager
def started(folder: Path, ranks: int, strategy: Strategy, stop: Stop, shared: dict[str, str]) -> Iterator[list[Rank]]:
    """Start the job in this folder; whoever still runs in the end is ended, by force where a stop was asked for."""
    command = [sys.executable, "-m", "tasks.runtime.child", str(folder / "job.json")]
    team: list[Rank] = []
    with ExitStack() as watched:
        try:
            for number, environment in enumerate(_environments(ranks, strategy)):
                with open(_log(folder, number, ranks), "wb") as output:
                    process = subprocess.Popen(
                        command,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        env={**os.environ, **shared, **environment},
                    )
                team.append(Rank(number, ranks, folder, process))
                watched.enter_context(stop.ending(process.pid))
            yield team
        finally:
            _end(team, grace=0.0 if stop.asked or any(rank.process.returncode for rank in team) else 5.0)


def wait(team: list[Rank], follow: Callable[[], None], stop: Stop) -> Rank:
    """Until all are done, or one has failed. Returns the rank to ask for the result, or for what went wrong."""
    told = False
    while True:
        codes = [rank.process.poll() for rank in team]
        if None not in codes or (any(codes) and not stop.asked):
            break
        follow()
        if stop.stopping() and not told:
            for rank in team:
                rank.process.terminate()
            told = True
        time.sleep(0.05)
    follow()
    if stop.asked:
        stop.now()
    failed = [rank for rank in team if rank.process.returncode]
    return min(failed, key=_fell, default=team[0])


def _fell(rank: Rank) -> float:
    """When a rank failed: one that left no word fell first, and tore down those that complain of a lost connection."""
    return rank.result.stat().st_mtime if rank.result.exists() and rank.process.returncode > 0 else 0.0


def _end(team: list[Rank], grace: float) -> None:
    """Also those that are dead already: what they started (data loader workers) may still be there."""
    for sign, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        if not seconds:
            continue
        for rank in team:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(rank.process.pid, sign)
        until = time.monotonic() + seconds
        for rank in team:
            with suppress(subprocess.TimeoutExpired):
                rank.process.wait(max(0.0, until - time.monotonic()))


def _environments(ranks: int, strategy: Strategy) -> list[dict[str, str]]:
    """What each rank finds in its environment beside ours: all on this machine, with equal shares of its cores."""
    if ranks == 1:
        return [{}]
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    unless_set = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)),
        "GLOO_SOCKET_IFNAME": loopback,  # a machine's own name is not always known to it
        **({} if devices.gpus() else {"DS_ACCELERATOR": "cpu"}),
    }
    shared = {
        **{name: value for name, value in unless_set.items() if name not in os.environ},
        "ACCELERATE_USE_DEEPSPEED": "true" if strategy is Strategy.zero2 else "false",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    return [{**shared, "RANK": str(number), "LOCAL_RANK": str(number)} for number in range(ranks)]


def _free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return int(door.getsockname()[1])
