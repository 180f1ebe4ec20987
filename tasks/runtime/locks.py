"""One worker per key. The lock saves work; that no wrong result comes of two workers is the store's own doing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def alone(place: Path, what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a key, or wait for who does. The kernel frees it at death, so a killed worker blocks nobody."""
    holder = place.with_suffix(".holder")
    lock = FileLock(place)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = (holder.exists() and holder.read_text()) or "another process"
        say(f"{what}: {who} is at the same work; waiting for its result.")
        lock.acquire()
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()
