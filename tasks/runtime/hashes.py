"""File digests, remembered by (path, size, mtime_ns, inode): bytes are read again only when one of these differs."""

from __future__ import annotations

import hashlib
import os
import platform
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_RACY_NS = 50_000_000
"""A file younger than this may still change within the same mtime tick, so its digest is not remembered."""


class Hashes:
    """SHA-256 of files with a memory of one machine: a copied store is read once on its new machine.

    The memory only saves reading: where it is broken it begins anew, where it cannot be written there is none.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = print) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.place, self.say = folder / f"{platform.node() or 'machine'}.sqlite", say
        try:
            self._db = self._open()
        except sqlite3.OperationalError:  # no room for it
            self._db = self._open(":memory:")
        except sqlite3.DatabaseError:
            self._begin_anew()

    def _open(self, place: str = "") -> sqlite3.Connection:
        db = sqlite3.connect(place or self.place, timeout=60, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE IF NOT EXISTS seen (path TEXT PRIMARY KEY, stamp TEXT, sha256 TEXT)")
        return db

    def _begin_anew(self) -> None:
        self.say(f"{self.place} cannot be read: it is begun anew, and files are read again.")
        for part in ("", "-wal", "-shm"):
            self.place.with_name(self.place.name + part).unlink(missing_ok=True)
        try:
            self._db = self._open()
        except sqlite3.DatabaseError:  # a neighbour does the same at this moment
            self._db = self._open(":memory:")

    def _ask(self, question: str, *values: str) -> Any:
        try:
            return self._db.execute(question, values).fetchone()
        except sqlite3.OperationalError:  # a full disk, a neighbour that writes for a minute
            return None
        except sqlite3.DatabaseError:
            self._begin_anew()
            return None

    def of(self, path: Path, sealed: bool = False) -> str:
        """The SHA-256 of a file. `sealed`: nobody writes it any more, so it may be remembered at once."""
        place, stamp = str(path.resolve()), _stamp(path)
        row = self._ask("SELECT sha256 FROM seen WHERE path = ? AND stamp = ?", place, stamp)
        if row:
            return str(row[0])
        sha256 = file_sha256(path)
        if stamp == _stamp(path) and (sealed or time.time_ns() - path.stat().st_mtime_ns > _RACY_NS):
            self._ask("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", place, stamp, sha256)
        return sha256

    def forget(self, path: Path) -> None:
        """Read these bytes again the next time, whatever date they bear."""
        self._ask("DELETE FROM seen WHERE path = ?", str(path.resolve()))


def _stamp(path: Path) -> str:
    stat = os.stat(path)
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
