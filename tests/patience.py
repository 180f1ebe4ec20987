"""For tests with real processes: wait for what must come, and see what is still there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def wait_for(true: Callable[[], T], seconds: float = 30.0) -> T:
    """What `true` returns, as soon as it is something; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not yet asked for counts as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def below(pid: int) -> list[int]:
    """The processes under a process, however deep."""
    own = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in own.read_text().split()] if own.exists() else []
    return found + [deeper for child in found for deeper in below(child)]
