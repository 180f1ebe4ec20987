"""File operations that a power cut cannot halve: what has its final name is complete, and on the disk."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def made(folder: Path) -> Path:
    """A folder that is there, and stays there."""
    if not folder.is_dir():
        made(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)
    return folder


def move(folder: Path, to: Path) -> None:
    """Rename a whole tree into place; what stands there already is never overwritten. Its files are synced before."""
    made(to.parent)
    for below in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        sync(below)
    os.rename(folder, to)
    sync(to.parent)


def write(place: Path, text: str) -> None:
    """A small file, written whole or not at all."""
    draft = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}")
    try:
        draft.write_text(text)
        sync(draft)
        os.replace(draft, place)
    finally:
        draft.unlink(missing_ok=True)
    sync(place.parent)


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
