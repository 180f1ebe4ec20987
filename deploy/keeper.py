"""Who keeps the services: starts them, waits until they are well, starts again what dies, and ends them in reverse."""

from __future__ import annotations

import ctypes  # noqa: F401 - before a child of another user needs it, who may not read our Python
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.settings import ROOT
from tasks.runtime.child import die_with

_PATIENCE = 180.0
"""Seconds a service may take until it is well: an empty database is migrated first, on a machine that may be busy."""
_GRACE = 60.0
"""Seconds a service may take to end: a run leaves a checkpoint first."""
_PAUSE = 5.0
"""Seconds before a service that died is started again."""


class Died(RuntimeError):
    """A service does not start; the text holds its last words."""


class Stopping(Exception):
    """We were told to stop while something was awaited."""


@dataclass(frozen=True)
class Service:
    name: str
    command: list[str]
    env: dict[str, str] = field(repr=False)
    """All of its environment: nothing else of ours reaches it."""
    well: Callable[[], bool]
    end: signal.Signals = signal.SIGTERM
    owner: dict[str, Any] = field(default_factory=dict)
    """Arguments of subprocess that name the user it runs as."""


class Keeper:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: dict[str, tuple[Service, subprocess.Popen[bytes]]] = {}
        self.stopping = threading.Event()
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, lambda *_: self.stopping.set())

    def start(self, services: list[Service]) -> None:
        """Start some side by side; comes back when all are well. Raises Died."""
        began = time.monotonic()
        for service in services:
            self._open(service, "wb")
        for service in services:
            self.wait(service.well, service.name, self.kept[service.name][1].poll)
            tell(f"  {service.name:<12} {time.monotonic() - began:>5.1f} s")

    def once(self, name: str, commands: list[list[str]], env: dict[str, str]) -> None:
        """Run some commands side by side to their ends. Raises Died if one fails."""
        began = time.monotonic()
        with open(log_of(self.folder, name), "wb") as log:
            running = [subprocess.Popen(c, cwd=ROOT, env=env, stdout=log, stderr=log) for c in commands]
        try:
            self.wait(lambda: all(one.poll() is not None for one in running), name, lambda: None)
        finally:
            for one in running:
                one.kill() if one.poll() is None else None
                one.wait()
        if any(one.returncode for one in running):
            raise Died(last_words(self.folder, name))
        tell(f"  {name:<12} {time.monotonic() - began:>5.1f} s")

    def watch(self) -> None:
        """Until we are told to stop: what dies is started again."""
        while not self.stopping.wait(1.0):
            for service, process in list(self.kept.values()):
                if process.poll() is not None:
                    tell(f"{time.ctime()}: {service.name} ended with code {process.returncode} and is started again.")
                    tell(last_words(self.folder, service.name))
                    _end_group(process)
                    self.stopping.wait(_PAUSE)
                    self._open(service, "ab")

    def stop(self) -> None:
        """End them, the last one first: a run that ends tells the servers so."""
        for service, process in reversed(list(self.kept.values())):
            if process.poll() is None:
                process.send_signal(service.end)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_GRACE)
            _end_group(process)
            process.wait()
        self.kept.clear()

    def wait(self, true: Callable[[], bool], name: str, ended: Callable[[], int | None]) -> None:
        until = time.monotonic() + _PATIENCE
        while not true():
            if self.stopping.wait(0.1):
                raise Stopping
            if ended() is not None or time.monotonic() > until:
                raise Died(last_words(self.folder, name))

    def _open(self, service: Service, mode: str) -> None:
        keeper = os.getpid()
        with open(log_of(self.folder, service.name), mode) as log:
            self.kept[service.name] = (
                service,
                subprocess.Popen(
                    service.command,
                    cwd=ROOT,
                    env=service.env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=lambda: die_with(keeper),
                    **service.owner,
                ),
            )


def tell(words: str) -> None:
    """To who waits for us, and later to our log; nobody has to listen."""
    with suppress(BrokenPipeError):
        print(words, flush=True)


def listen_no_more(folder: Path) -> None:
    """Whoever started us goes; from here on our words are in our log."""
    with open(log_of(folder, "keeper"), "ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())


def log_of(folder: Path, name: str) -> Path:
    return folder / f"{name.lower()}.log"


def last_words(folder: Path, name: str) -> str:
    log = log_of(folder, name)
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    said = "\n".join(f"    {line}" for line in [line for line in lines if line.strip()][-12:])
    return f"{name} is not well. The last lines of {log}:\n{said}"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
