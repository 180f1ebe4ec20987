"""File digests, remembered by (path, size, mtime_ns, inode): bytes are read again only when one of these differs."""

from __future__ import annotations

import hashlib
import os
import platform
import sqlite3
import time
from pathlib import Path

_RACY_NS = 50_000_000
"""A file younger than this may still change within the same mtime tick, so its digest is not remembered."""


class Hashes:
    """SHA-256 of files with a memory of one machine: a copied store is read once on its new machine."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / f"{platform.node() or 'machine'}.sqlite"
        self._db = sqlite3.connect(place, timeout=60, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS seen (path TEXT PRIMARY KEY, stamp TEXT, sha256 TEXT)")

    def of(self, path: Path, sealed: bool = False) -> str:
        """The SHA-256 of a file. `sealed`: nobody writes it any more, so it may be remembered at once."""
        place, stamp = str(path.resolve()), _stamp(path)
        row = self._db.execute("SELECT sha256 FROM seen WHERE path = ? AND stamp = ?", (place, stamp)).fetchone()
        if row:
            return str(row[0])
        sha256 = file_sha256(path)
        if stamp == _stamp(path) and (sealed or time.time_ns() - path.stat().st_mtime_ns > _RACY_NS):
            self._db.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", (place, stamp, sha256))
        return sha256


def _stamp(path: Path) -> str:
    stat = os.stat(path)
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
