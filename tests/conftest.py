"""Fixtures for the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny
from tests.hub_fixtures import get, hub, hub_server

__all__ = ["get", "hub", "hub_server"]


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
