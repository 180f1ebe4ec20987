"""Fixtures for tests of what a stage does and knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_hub import FakeHub, Get, content


@pytest.fixture(scope="session")
def hub_server() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def hub(hub_server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """An empty model hub on loopback that this process's client talks to."""
    hub_server.reset()
    hub_server.use(monkeypatch)
    return hub_server


@pytest.fixture
def get(tmp_path: Path) -> Get:
    """Downloads into tmp_path / "out" (scratch: "work") and returns what lies there afterwards."""
    from tasks.llm.hub import download

    def get(repo: str, commit: str, **more: object) -> dict[str, bytes]:
        (tmp_path / "out").mkdir(exist_ok=True)
        arguments = {"progress": lambda *_: None, "work": tmp_path / "work"} | more
        download(repo, commit, tmp_path / "out", **arguments)  # type: ignore[arg-type]
        return content(tmp_path / "out")

    return get
