"""A full disk, told as one: where, how many bytes, and what to do. Those who meet it say little, or nothing."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = 1 << 20
"""Bytes of room below which any failure is put down to the disk: C++ writers and dead children do not say why."""
_CLEAN_UP = "python -m flows.store gc --root"
_SIGNS = ("No space left on device", "Disk quota exceeded", "database or disk is full")


class DiskFull(OSError):
    """There was no room for what was to be written."""


@contextmanager
def told(root: Path, *written: Path) -> Iterator[None]:
    """Raise DiskFull for what fails here for want of room. `root`: of all data; `written`: what grew for it."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        place = _full_place(error, root)
        if place is None:
            raise
        raise DiskFull(_sentence(place, root, sum(_size(folder) for folder in written), error)) from error


def _full_place(error: Exception, root: Path) -> Path | None:
    """The folder whose disk is full, where that is what went wrong."""
    if shutil.disk_usage(root).free < _FULL:
        return root
    if not _says_so(error):
        return None
    scratch = Path(os.environ.get("TMPDIR") or "/tmp")
    return scratch if scratch.is_dir() and shutil.disk_usage(scratch).free < _FULL else root


def _says_so(error: BaseException | None) -> bool:
    """Whether an error, or one below it, speaks of a full disk; a child's errors come as text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(sign in str(error) for sign in _SIGNS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _sentence(place: Path, root: Path, written: int, error: Exception) -> str:
    disk, entries = shutil.disk_usage(place), os.statvfs(place)
    left = f"{disk.free:,} of {disk.total:,} bytes are free"
    if entries.f_files and not entries.f_favail:
        left = f"it takes no more files, though {left}"
    need = f", and this work needs more than the {written:,} bytes it has written" if written else ""
    said = (str(error) or type(error).__name__).splitlines()[0]
    return (
        f"The disk of {place} is full: {left}{need}. Make room ({_CLEAN_UP} {shlex.quote(str(root))} shows what "
        f"can go) or choose another disk with runtime.root=/other; the same command then goes on. ({said})"
    )


def _size(folder: Path) -> int:
    return sum(place.stat().st_size for place in folder.rglob("*") if place.is_file())
