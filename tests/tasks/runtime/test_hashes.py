from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.runtime import hashes
from tasks.runtime.hashes import Hashes, file_sha256

OLD = 1_000_000_000


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose bytes were read."""
    names: list[str] = []

    def reading(path: Path) -> str:
        names.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(hashes, "file_sha256", reading)
    return names


def write(path: Path, text: str, time: int) -> Path:
    path.write_text(text)
    os.utime(path, (time, time))
    return path


def test_bytes_are_read_once_and_remembered_by_the_next_process(tmp_path: Path, read: list[str]) -> None:
    file = write(tmp_path / "file", "one", OLD)
    first = Hashes(tmp_path / "memory").of(file)
    assert Hashes(tmp_path / "memory").of(file) == first == file_sha256(file)
    assert read == ["file"]


def test_another_time_size_or_inode_is_read_again(tmp_path: Path, read: list[str]) -> None:
    memory, file = Hashes(tmp_path / "memory"), tmp_path / "file"
    known = [memory.of(write(file, "one", OLD)), memory.of(write(file, "two", OLD + 1))]
    known.append(memory.of(write(file, "four", OLD + 1)))
    write(tmp_path / "new", "five", OLD + 1).rename(file)
    assert len({*known, memory.of(file)}) == 4 == len(read)


def test_a_file_that_may_still_be_written_is_not_trusted(tmp_path: Path, read: list[str]) -> None:
    memory, file = Hashes(tmp_path / "memory"), tmp_path / "file"
    for text in ("one", "two"):
        file.write_text(text)
        os.utime(file, ns=(2**62, 2**62))  # younger than now, the same tick both times
        memory.of(file)
    assert read == ["file", "file"] and memory.of(file) == file_sha256(file)


def test_a_sealed_file_is_trusted_at_once(tmp_path: Path, read: list[str]) -> None:
    memory, file = Hashes(tmp_path / "memory"), tmp_path / "file"
    file.write_text("one")
    assert memory.of(file, sealed=True) == memory.of(file)
    assert read == ["file"]
