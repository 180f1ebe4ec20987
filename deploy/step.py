"""The set-up's lines on the screen. Standard library only, and Python 3.6 must still load this file."""

import re
import sys
import threading
import time
from pathlib import Path
from typing import Any


class Step:
    """One line on the screen for one step: what is done and how long it takes; on a terminal it moves."""

    def __init__(self, log: Path, title: str) -> None:
        self.log, self.title, self.began, self.over = log, title, time.time(), threading.Event()
        self.first_byte = self.log.stat().st_size
        self.ticker = threading.Thread(target=self.tick, daemon=True)

    def __enter__(self) -> None:
        print(f"  {self.title:<44}", end="", flush=True)
        if sys.stdout.isatty():
            self.ticker.start()

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.over.set()
        if self.ticker.is_alive():
            self.ticker.join()
        self.show("failed" if kind else "", "\n")

    def tick(self) -> None:
        while not self.over.wait(1):
            self.show(self.news(), "")

    def show(self, news: str, end: str) -> None:
        start = f"\r\033[K  {self.title:<44}" if sys.stdout.isatty() else ""
        print(f"{start}{time.time() - self.began:>4.0f} s  {news}", end=end, flush=True)

    def news(self) -> str:
        """How far the compiler is, or the package that pip speaks of, from what this step wrote to the log."""
        with self.log.open("rb") as log:
            log.seek(max(self.first_byte, self.log.stat().st_size - 60000))
            text = log.read().decode(errors="replace")
        compiled = re.findall(r"\[(\d+)/(\d+)\] ", text)
        if compiled:
            done, total = (float(number) for number in compiled[-1])
            left = (time.time() - self.began) * (total - done) / done
            return f"{100 * done / total:.0f} %, about {left:.0f} s left"
        speaking = re.findall(r"(?:Collecting|Downloading|Building wheel for) [\w.-]{,30}", text)
        return speaking[-1] if speaking else ""
