"""The updates of a PPO training one after the other: watched, kept by the clock, and gone on with after a kill."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.llm import checkpoints, trouble
from tasks.llm.ppo import Trainer
from tasks.llm.trouble import InTrouble, Then, Trouble, Watch

_KEPT = 2
"""Checkpoints: one may be cut short by the kill that makes the other needed."""
_SHARE = 20
"""A checkpoint may take a twentieth of the time."""
_AGAIN = 3
"""How often training goes back and tries more carefully."""


@dataclass
class Loop:
    trainer: Trainer
    watch: Watch
    work: Path
    log: Callable[[dict[str, float], int], None]
    progress: Callable[[int, int, str], None]
    stopping: Callable[[], bool] = lambda: False
    look: Callable[[int, int], None] = lambda update, updates: None
    """Told when so many of all updates are done and good."""
    history: list[dict[str, float]] = field(default_factory=list)
    troubles: list[dict[str, Any]] = field(default_factory=list)
    """`update`, `name`, `text` and `then` of each."""
    saved: float = 0.0
    cost: float = 0.0

    def run(self) -> None:
        """Raises InTrouble where something is wrong and the config says stop, InterruptedError when asked to stop."""
        self._go_on()
        updates = self.trainer.how.updates
        self.look(len(self.history), updates)
        while len(self.history) < updates:
            told = self.trainer.update(len(self.history))
            self.history.append(told)
            found = trouble.seen(self.history, self.watch)
            if any(self._dealt_with(one) for one in found):
                continue  # with what was good before
            self.log(told, len(self.history))
            self.progress(len(self.history), updates, f"reward {told['reward']:.3f}, kl {told['kl']:.2f}")
            self.look(len(self.history), updates)
            stopped = self.stopping()
            if stopped or len(self.history) == updates or time.monotonic() - self.saved > _SHARE * self.cost:
                self._keep()
            if stopped:
                raise InterruptedError(f"stopped after update {len(self.history)} of {updates}")

    def _dealt_with(self, found: Trouble) -> bool:
        """Whether training went back because of it. Raises InTrouble where it must not go on."""
        again = self.watch.then is Then.adapt and self.trainer.again < _AGAIN
        then = Then.stop if found.fatal and not again else self.watch.then
        then = Then.stop if then is Then.adapt and not again else then
        at = len(self.history)
        self.troubles.append({"update": at, "name": found.name, "text": found.text, "then": then.value})
        if then is Then.ignore:
            warnings.warn(f"Update {at}: {found.name}: {found.text}", stacklevel=2)
            return False
        if then is Then.stop:
            kept = len(self._restored()) if self._last() else 0
            where = f"The policy of update {kept} is kept in {self.work / 'checkpoints'}" if kept else "Nothing is kept"
            raise InTrouble(f"Update {at}: {found.name}: {found.text} {where}; watch.then=adapt would go back to it.")
        self._back()
        return True

    def _back(self) -> None:
        """To the last good checkpoint, with half the learning rates, twice the cost of a nat, and other answers."""
        troubles, again = self.troubles, self.trainer.again + 1
        self.history = self._restored()
        self.troubles, self.trainer.again = troubles, again
        self.trainer.careful(2**again)
        self._keep()

    # Checkpoints

    def _last(self) -> str | None:
        return checkpoints.last_complete(self.work / "checkpoints")

    def _go_on(self) -> None:
        if self._last():
            self.history = self._restored()
        else:
            self._keep()  # the policy as it came is good

    def _restored(self) -> list[dict[str, float]]:
        last = self._last()
        assert last is not None
        told = self.trainer.restore(Path(last))
        self.troubles = told["troubles"]
        return list(told["history"])

    def _keep(self) -> None:
        began = time.monotonic()
        folder = self.work / "checkpoints"
        place = folder / f"checkpoint-{len(self.history)}"
        shutil.rmtree(place, ignore_errors=True)
        self.trainer.save(place, {"history": self.history, "troubles": self.troubles})
        for old in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))[:-_KEPT]:
            shutil.rmtree(old)
        self.saved = time.monotonic()
        self.cost = self.saved - began
