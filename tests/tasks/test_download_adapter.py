"""An adapter as a model to start from: folded into its base, wherever the two lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tasks.download import DownloadConfig, Source, download
from tasks.llm import models
from tasks.merge import MergeConfig, merge
from tasks.runtime import Model
from tests import hand


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Model:
    return hand.adapter(tmp_path / "made", hand.handle(Model, tiny_model, digest="ba5e"))


def exported(adapter: Model, to: Path) -> Path:
    """As `flows.store export` lays the two out."""
    shutil.copytree(adapter.path, to / "adapter")
    shutil.copytree(adapter.base.path, to / "base")
    return to


def stored(adapter: Model, to: Path) -> Path:
    """As they lie in a store."""
    shutil.copytree(adapter.base.path, to / "ba5e")
    return Path(shutil.copytree(adapter.path, to / "ada9"))


@pytest.mark.parametrize("lay_out", [exported, stored])
def test_an_adapter_with_its_base_is_the_model_that_merge_makes_of_them(
    lay_out: object, adapter: Model, tmp_path: Path
) -> None:
    assert callable(lay_out)
    given, run, merged = lay_out(adapter, tmp_path / "given"), hand.run(tmp_path / "a"), hand.run(tmp_path / "b")
    cfg = DownloadConfig(Source.local, path=str(given))
    assert list(cfg.problems()) == []
    download.body(run, cfg)
    merge.body(merged, MergeConfig(), adapter)
    assert hand.content(run.out).keys() - {models.ORIGIN} == hand.content(merged.out).keys()
    assert (run.out / "model.safetensors").read_bytes() == (merged.out / "model.safetensors").read_bytes()
    assert hand.turns(run.out) == hand.turns(adapter.base.path)


def test_an_adapter_whose_base_is_not_there_is_refused_before_anything_runs(adapter: Model) -> None:
    (problem,) = DownloadConfig(Source.local, path=str(adapter.path)).problems()
    assert "is an adapter, and the model it stands on is not beside it; give a folder that holds both" in problem


def test_pickled_adapters_are_refused(adapter: Model, tmp_path: Path) -> None:
    given = exported(adapter, tmp_path / "given")
    (given / "adapter" / "adapter_model.safetensors").rename(given / "adapter" / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter has no \*\.safetensors\. Pickled weights are not loaded"):
        download.body(hand.run(tmp_path / "run"), DownloadConfig(Source.local, path=str(given)))


def test_a_note_beside_the_base_lets_no_code_run_and_tells_the_licence(adapter: Model, tmp_path: Path) -> None:
    given, run = exported(adapter, tmp_path / "given"), hand.run(tmp_path / "run")
    for part in ("adapter", "base"):
        note = {"trust_remote_code": True, "license": "apache-2.0"}
        (given / part / models.ORIGIN).write_text(json.dumps(note))
    download.body(run, DownloadConfig(Source.local, path=str(given), license="unknown"))
    assert models.origin(run.out)["license"] == "apache-2.0"
    assert not models.trusts(run.out) and not models.trusts(run.work / "base")
    assert models.origin(given / "base") == note
