"""A store, a session and a second process, for tests of how a stage lives."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tasks.runtime import RuntimeConfig, keys, session
from tasks.runtime.session import Session
from tasks.runtime.store import Store
from tests.toys import Open

REPO = Path(__file__).resolve().parents[3]


@pytest.fixture
def said() -> list[str]:
    """What the store said aloud."""
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> Store:
    return Store(tmp_path / "data" / "store", say=said.append)


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """Opens a session on the store under tmp_path; keywords are fields of RuntimeConfig."""

    def opened(**fields: Any) -> AbstractContextManager[Session]:
        return session(keys.restore(RuntimeConfig, {"root": str(tmp_path / "data"), **fields}))

    return opened


@pytest.fixture
def tally(tmp_path: Path) -> Path:
    """Where toy bodies leave a line whenever they run."""
    place = tmp_path / "tally"
    place.touch()
    return place


@pytest.fixture
def python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Python processes that can import us; what still runs after the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def python(code: str, *words: object, **environment: str) -> subprocess.Popen[str]:
        known = {**os.environ, "PYTHONPATH": str(REPO), **environment}
        command = [sys.executable, "-c", code, *map(str, words)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen(command, cwd=REPO, env=known, text=True, **pipes))
        return started[-1]

    yield python
    for process in started:
        process.kill()
        process.wait()
