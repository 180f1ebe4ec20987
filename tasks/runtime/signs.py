"""Signs of life: a file that a process holds while it lives. The kernel lets go of it at death, however that comes."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path

from tasks.runtime import uses


class Sign:
    """The sign of something that goes on in this process. Its name is nobody else's."""

    def __init__(self, folder: Path, kind: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = f"{kind}-{uuid.uuid4().hex}"
        draft = folder / f".{self.name}"
        draft.touch()
        self._handle = uses.hold(draft)
        self.place = draft.rename(folder / self.name)  # held before it has a name that others look at

    def down(self, words: str = "") -> None:
        """What went on has ended. Words stay, for who looks after those that are left."""
        if self._handle < 0:
            return
        with suppress(OSError):  # a full disk takes no words
            if words:
                self.place.write_text(words)
            else:
                self.place.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle = -1


def left(folder: Path, kind: str) -> list[Path]:
    """The signs that nobody holds any more: their process was killed, or left words."""
    return [place for place in sorted(folder.glob(f"{kind}-*")) if not uses.is_held(place)]
