"""One way to stop: SIGTERM, Ctrl-C and Cancel in Prefect's UI (which sends a SIGTERM) all end here.

A body that asks `run.stopping()` gets `grace` seconds to end by itself; any other is interrupted at once. What hears
neither, because a C call holds the interpreter, is ended by a watchdog together with its children.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

_LEAVING = 3.0
"""Seconds beyond the grace for telling MLflow and Prefect, before the watchdog ends what is still there."""
_AT_ONCE = 0.3
"""Seconds in which the same is asked twice by nobody: a parent that dies tells by each of its threads, `timeout` by the
process and by its group."""
_SIGNS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """Somebody asked for a stop. No Exception: nobody tries it again, and it is nobody's failure."""

    def __init__(self, sign: int) -> None:
        self.sign = signal.Signals(sign)
        super().__init__(f"Stopped by {self.sign.name}")

    @property
    def code(self) -> int:
        """The exit code that says so, as a shell has it."""
        return 128 + self.sign


class Stop:
    """Whether this process was asked to stop, and what becomes of it then."""

    def __init__(self, grace: float = 5.0, say: Callable[[str], None] = lambda text: None) -> None:
        self.grace, self._say = grace, say
        self._sign, self._since = 0, 0.0
        self._patient = False
        self._over = threading.Event()
        self._groups: set[int] = set()

    @property
    def asked(self) -> bool:
        return bool(self._sign)

    def stopping(self) -> bool:
        """Asked by a body between two steps: true when it should end now. Who asks is given the grace to."""
        self._patient = True
        return self.asked

    def now(self) -> NoReturn:
        raise Stopped(self._sign)

    @contextmanager
    def body(self) -> Iterator[None]:
        """Around one stage's body: what fails while a stop is asked for fails because of it."""
        try:
            yield
        except Exception as error:
            if self.asked:
                raise Stopped(self._sign) from error
            raise
        finally:
            self._patient = False

    @contextmanager
    def ending(self, group: int) -> Iterator[None]:
        """While a process group works for us: the watchdog ends it, too."""
        self._groups.add(group)
        try:
            yield
        finally:
            self._groups.discard(group)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear the signals. Only a main thread can; elsewhere nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        hear, tell = os.pipe()
        os.set_blocking(tell, False)
        before = {sign: signal.signal(sign, self._heard) for sign in _SIGNS}
        woken = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        watch = threading.Thread(target=self._watch, args=(hear, threading.get_ident()), daemon=True)
        watch.start()
        try:
            yield
        finally:
            self._over.set()
            signal.set_wakeup_fd(woken)
            for sign, handler in before.items():
                signal.signal(sign, handler)
            os.close(tell)
            watch.join()
            os.close(hear)

    def _heard(self, sign: int, frame: Any) -> None:
        again, self._sign, heard = self.asked, self._sign or sign, time.monotonic()
        if again and heard - self._since < _AT_ONCE:
            return
        self._since = self._since or heard
        if again or not self._patient:
            self.now()
        self._say(f"Stopping after this step, or in {self.grace:.0f} s. Once more stops at once.")

    def _watch(self, hear: int, main: int) -> None:
        """A handler in Python waits for the interpreter to be free; the byte in this pipe does not."""
        while heard := os.read(hear, 1):
            if heard[0] in _SIGNS:
                break
        else:
            return
        if not self._over.wait(max(self.grace, 2 * _AT_ONCE)) and self._patient:
            signal.pthread_kill(main, heard[0])
        if not self._over.wait(_LEAVING):
            for group in self._groups:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            os._exit(128 + heard[0])
