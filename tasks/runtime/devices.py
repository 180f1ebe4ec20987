"""What this machine can compute on, asked without importing a deep-learning library."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from filelock import FileLock, Timeout


class Precision(StrEnum):
    """Number format of weights and arithmetic. `auto`: bf16 where the processor or GPU multiplies it, else fp32."""

    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


@functools.cache
def gpus() -> tuple[float, ...]:
    """The compute capability of each NVIDIA GPU, e.g. (9.0,); empty without one."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return ()
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        text = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(float(line) for line in text.split())


@functools.cache
def memory() -> float:
    """Bytes that a computation may take: of the smallest GPU, or, without one, of this machine or container."""
    if gpus():
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        text = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout
        return min(float(line) for line in text.split()) * 2**20
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return float(min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text())))
    except (OSError, ValueError):  # no limit
        return float(machine)


@contextmanager
def leased(count: int, what: str, say: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """`count` GPUs of this machine for nobody else of ours meanwhile, as a child's environment; nothing without GPUs.

    All of them or none are held, so two that wait for each other's cannot be. The kernel frees them at death.
    """
    if not count or not gpus():
        yield {}
        return
    pool = Path(tempfile.gettempdir()) / "posttrain-gpus"
    pool.mkdir(exist_ok=True)
    waiting = False
    while len(held := _free(pool, _visible(), count)) < count:
        for lock in held.values():
            lock.release()
        if not waiting:
            holders = ", ".join(sorted(place.read_text() for place in pool.glob("*.holder")))
            say(f"{what}: waiting for {count} free GPU(s); at work: {holders or 'another process'}.")
        waiting = True
        time.sleep(0.2)
    try:
        for gpu in held:
            (pool / f"{gpu}.holder").write_text(f"{what} in process {os.getpid()} on GPU {gpu}")
        yield {"CUDA_VISIBLE_DEVICES": ",".join(held), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    finally:
        for gpu, lock in held.items():
            (pool / f"{gpu}.holder").unlink(missing_ok=True)
            lock.release()


def _free(pool: Path, among: list[str], count: int) -> dict[str, FileLock]:
    held: dict[str, FileLock] = {}
    for gpu in among:
        lock = FileLock(pool / f"{gpu}.lock", mode=0o666)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        held[gpu] = lock
        if len(held) == count:
            break
    return held


def _visible() -> list[str]:
    """The GPUs that this process may use, as nvidia-smi numbers them or as the user named them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in named.split(",")] if named else [str(n) for n in range(len(gpus()))]


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's names of what mallopt(3) sets."""


@contextmanager
def memory_at_hand() -> Iterator[None]:
    """Keep what a step frees for the next step, and return it in the end. glibc returns large tensors to the system at
    once and asks for new pages, all to be cleared, a few hundred times in each step: up to a third of its time.
    What malloc is told holds for the rest of the process."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    glibc = library if library and hasattr(library, "mallopt") else None
    if glibc:
        glibc.mallopt(_MMAP_THRESHOLD, 1 << 30)
        glibc.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        gc.collect()  # models and trainers hold each other
        if glibc:
            glibc.malloc_trim(0)


def resolved(precision: Precision) -> Precision:
    """`auto` as what it means on this machine."""
    if precision is not Precision.auto:
        return precision
    fast = gpus()[0] >= 8.0 if gpus() else bool(_cpu_flags() & {"avx512_bf16", "amx_bf16"})
    return Precision.bf16 if fast else Precision.fp32
