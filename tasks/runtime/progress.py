"""The screen: one live line with a bar and an ETA for what is running, one quiet line for what is done.

What a log file would show, a line now and then, is also told to whoever else listens: the run's page in Prefect.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PLAIN_EVERY = 30.0
"""A line of progress this often, in seconds: in Prefect, and where there is no terminal (a log file, CI)."""


class Screen:
    def __init__(self, tell: Callable[[str], None] = lambda text: None) -> None:
        self._tell = tell
        self.console = Console(stderr=True, highlight=False, markup=False)  # a path or a pattern may hold [brackets]
        columns = (
            TextColumn("  {task.description:<28}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[count]:>14}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self.console, transient=True)
        self._task: TaskID | None = None
        self._name = ""
        self._said = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.done()
        if self.console.is_terminal:  # rich ends what never began with an empty line
            self._progress.stop()

    def begin(self, name: str) -> None:
        self._name, self._said = name, time.monotonic()
        self._task = self._progress.add_task(name, total=None, count="")

    def advance(self, done: int, total: int, what: str) -> None:
        if self._task is None:
            return
        current = self._progress.tasks[-1]
        label = f"{self._name}: {what}" if what else self._name
        if current.description != label:  # a new movement of the stage has a clock of its own
            self._progress.reset(self._task, description=label, total=total)
        self._progress.update(self._task, completed=done, total=total or None, count=f"{done:,}/{total:,}")
        if time.monotonic() - self._said > _PLAIN_EVERY:
            self._said = time.monotonic()
            line = f"{label} {done:,}/{total:,}{_eta(current.time_remaining)}"
            self._tell(line)
            if not self.console.is_terminal:
                self.console.print(f"  {line}")

    def done(self, line: str = "") -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        if line:
            self._tell(" ".join(line.split()))
            self.console.print(line, soft_wrap=True)

    def say(self, text: Any) -> None:
        self.console.print(f"  {text}" if isinstance(text, str) else text, soft_wrap=True)


def _eta(seconds: float | None) -> str:
    return "" if seconds is None else f", about {seconds:.0f} s left"
