"""Death after each file operation: `python -m tests.dying SCENARIO FOLDER` (scenarios: tests/deaths.py).

A scenario is prepared, done in a process that is killed after its k-th file operation, and looked at in another
process; k grows until the process lives to the end. One line of JSON for each k: `[operations done, what is wrong]`.
An operation that writes counts twice: once cut in half, as a power cut would leave it, and once complete.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import stat
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHANGING = {"os.rename", "os.link", "os.chmod", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Death:
    """Counts the file operations of this process, and kills it when so many are done."""

    def __init__(self, after: int, log: int) -> None:
        self.after, self.log, self.count, self.busy = after, log, 0, False
        fsync, write_text = os.fsync, Path.write_text

        def synced(handle: int) -> None:
            path = Path(f"/proc/self/fd/{handle}").resolve()
            if stat.S_ISREG(os.fstat(handle).st_mode):
                self.counted("tear", str(path), lambda: os.truncate(path, path.stat().st_size // 2))
            fsync(handle)
            self.counted("fsync", str(path))

        def written(path: Path, text: str, **options: Any) -> int:
            self.counted("half", str(path), lambda: write_text(path, text[: len(text) // 2]))
            return write_text(path, text, **options)

        os.fsync, Path.write_text = synced, written  # type: ignore[assignment]
        sys.addaudithook(self._heard)

    def _heard(self, event: str, words: tuple[Any, ...]) -> None:
        """Called before the operation: to die here is to die after the one before it."""
        if event in _CHANGING or (event == "open" and isinstance(words[2], int) and words[2] & _WRITING):
            self.counted(event, " ".join(str(word) for word in words[:2]))

    def counted(self, event: str, words: str, last: Callable[[], object] = lambda: None) -> None:
        if self.busy:
            return
        self.count += 1
        if self.count == self.after:
            self.busy = True
            last()
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(self.log, f"{event} {words}\n".encode())


def in_a_process(act: Callable[[], object], after: int = 0) -> tuple[int, list[str]]:
    """The wait status of a forked process that does it, and the file operations it did."""
    hear, tell = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.close(hear)
            if after:
                Death(after, tell)
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(tell)
    with os.fdopen(hear) as log:
        operations = log.read().splitlines()
    return os.waitpid(process, 0)[1], operations


def main(name: str, base: Path) -> None:
    from tests import deaths

    for after in itertools.count(1):
        scenario = getattr(deaths, name)(base / str(after))
        scenario.prepare()
        status, operations = in_a_process(scenario.act, after)
        wrong = in_a_process(scenario.look)[0]
        print(json.dumps([operations, wrong]), flush=True)
        if not os.WIFSIGNALED(status):
            return print(json.dumps([operations, status]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
