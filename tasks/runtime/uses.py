"""What a run uses, written down as it happens, so that no clean-up takes it away from under the run.

door               runs pass it together, for the moment in which they look something up, seal it or begin a draft; a
                   clean-up shuts it, looks again, removes, and opens it
runs/<name>.jsonl  what one run found and made, a line each; locked by the run for as long as it lives

All three locks are the kernel's own (flock): it lets go when a process dies, however it dies.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

Manifest = dict[str, Any]


@contextmanager
def door(root: Path, shut: bool = False, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Pass through the door of a store, or shut it behind oneself."""
    with open(root / "door", "a") as file:
        if shut:
            _shut(file.fileno(), say)
        else:
            fcntl.flock(file, fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # not only closed: a forked child may hold a copy


def _shut(handle: int, say: Callable[[str], None]) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("A run is looking something up or sealing it; waiting until it is done.")
        fcntl.flock(handle, fcntl.LOCK_EX)


@contextmanager
def clearing(root: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """A folder for what is to go, filled behind the shut door and emptied with the door open: that may take long."""
    trash = root / "tmp" / uuid.uuid4().hex
    with ExitStack() as afterwards, door(root, shut=True, say=say):
        trash.mkdir(parents=True)
        afterwards.callback(os.close, hold(trash))  # held: or the next run would empty it before it begins
        afterwards.callback(shutil.rmtree, trash, ignore_errors=True)
        yield trash


def hold(place: Path) -> int:
    """Take a file or folder as one's own, until the handle is closed or the process ends."""
    handle = os.open(place, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def is_held(place: Path) -> bool:
    """Whether a living process holds this file or folder."""
    try:
        handle = os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


class Uses:
    """The list of one run."""

    def __init__(self, root: Path, name: str = "") -> None:
        self.root = root
        self.place = root / "runs" / f"{name or _nameless()}.jsonl"

    @contextmanager
    def kept(self) -> Iterator[Uses]:
        """The list held as ours; a run that used nothing leaves none."""
        self.place.parent.mkdir(parents=True, exist_ok=True)
        with door(self.root):
            self.place.touch()
            ours = hold(self.place)
        try:
            yield self
        finally:
            if not os.fstat(ours).st_size:
                self.place.unlink(missing_ok=True)
            os.close(ours)

    def noted(self, state: str, call: str, look: Callable[[], Manifest | None]) -> Manifest | None:
        """What `look` finds or seals, on the list before any clean-up can come between."""
        with door(self.root):
            manifest = look()
            if manifest is not None:
                line = {"state": state, "call": call, **{n: manifest[n] for n in ("stage", "key", "digest")}}
                with open(self.place, "a") as file:
                    file.write(json.dumps(line) + "\n")
        return manifest


def _nameless() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
