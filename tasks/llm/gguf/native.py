"""llama.cpp's own log, kept instead of printed: what it said last is worth more in an error than on a screen."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable
from typing import Any

_said: deque[str] = deque(maxlen=5000)
_told: list[Callable[[str], None]] = []


def quiet(tell: Callable[[str], None] | None = None) -> None:
    """From now on llama.cpp's log goes to memory (and to `tell`), and what it said so far is forgotten."""
    _listen()
    _said.clear()
    _told[:] = [tell] if tell else []


def said() -> str:
    """What llama.cpp has logged since `quiet()`."""
    return "".join(_said)


def last_words(lines: int = 5) -> str:
    return "\n".join(said().splitlines()[-lines:])


def cores() -> int:
    """The cores this process may use: all, or as many as OMP_NUM_THREADS says, by which a sweep divides them."""
    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        return max(1, int(given))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _listen() -> Any:
    import llama_cpp

    @llama_cpp.llama_log_callback
    def hear(level: int, text: bytes, user_data: Any) -> None:
        said = text.decode("utf-8", errors="replace")
        _said.append(said)
        for tell in _told:
            tell(said)

    llama_cpp.llama_log_set(hear, None)
    return hear  # cached, so that it outlives the C library's use of it
