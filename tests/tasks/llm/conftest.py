"""Fixtures for tests of what a stage knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import spoken, tiny


@pytest.fixture(scope="session")
def _code_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("code")


@pytest.fixture
def code_folder(_code_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where transformers copies the code that comes with models, instead of the home folder. One for the whole run,
    since Python remembers where a package lies."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(_code_folder))
    return _code_folder


@pytest.fixture(scope="session")
def spoken_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the control tokens of every named chat template. Shared: read it, never write into it."""
    return tiny.build(tmp_path_factory.mktemp("spoken") / "model", more=spoken.MARKERS)
