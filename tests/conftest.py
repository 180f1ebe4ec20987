"""Fixtures for the whole suite."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.hub_fixtures import get, hub, hub_server

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as flows/launch.py does, before torch is imported
os.environ["POSTTRAIN_SERVICES"] = os.devnull  # the servers of a `make up` are not for tests

__all__ = ["get", "hub", "hub_server"]


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Refuse every connection that would leave this machine, so that no test can come to need one."""
    connect = socket.socket.connect

    def only_here(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"no network in tests: {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", only_here)
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny chat model (see tests/tiny.py). Shared: read it, never write into it."""
    return tiny.build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as an f16 GGUF file, as llama.cpp's converter writes it. Shared: read it, never write to it."""
    from tasks.llm import gguf

    folder = tmp_path_factory.mktemp("gguf")
    gguf.convert(tiny_model, folder / "tiny.gguf", folder / "converter.log")
    return folder / "tiny.gguf"
