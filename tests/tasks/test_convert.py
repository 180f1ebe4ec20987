from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.convert import ConvertConfig, Outtype, convert
from tasks.llm import gguf
from tasks.runtime import Run

LINEAGE = [
    {"stage": "download", "recipe": "r1", "digest": "d1", "config": {"source": "wheel"}},
    {"stage": "preprocess", "recipe": "r2", "digest": "d2", "config": {"seed": 0}},
    {"stage": "merge", "recipe": "r3", "digest": "d3", "config": {}},
]


def _run(folder: Path) -> Run:
    for name in ("out", "notes", "work"):
        (folder / name).mkdir(parents=True)
    return Run(folder / "out", folder / "notes", folder / "work", lineage=LINEAGE)


def test_the_file_carries_its_lineage_and_nothing_of_where_it_was_made(
    tiny_model: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    run = _run(tmp_path)
    metrics = convert.body(run, ConvertConfig(), SimpleNamespace(path=tiny_model))
    assert [path.name for path in run.out.iterdir()] == ["model-f16.gguf"]
    made = gguf.file_in(run.out)
    said = gguf.metadata(made)
    assert json.loads(said["posttrain.lineage"]) == LINEAGE
    assert (said["posttrain.base"], said["posttrain.data"]) == ("d1", "d2")
    gguf.annotate(tiny_gguf, tmp_path / "elsewhere.gguf", gguf.lineage_keys(LINEAGE))
    assert made.read_bytes() == (tmp_path / "elsewhere.gguf").read_bytes()
    assert "successfully exported" in (run.notes / "converter.log").read_text()
    assert metrics["bits_per_weight"] == pytest.approx(16, abs=0.1)
    assert not list(run.work.iterdir())


def test_format_and_name_are_the_configs(tiny_model: Path, tmp_path: Path) -> None:
    run = _run(tmp_path)
    convert.body(run, ConvertConfig(outtype=Outtype.f32, name="Tiny"), SimpleNamespace(path=tiny_model))
    made = gguf.file_in(run.out)
    assert made.name == "model-f32.gguf"
    assert gguf.metadata(made)["general.name"] == "Tiny"
    assert gguf.measure(made)["bits_per_weight"] == pytest.approx(32, abs=0.1)


def test_the_config_finds_its_problems_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(ConvertConfig().problems()) == []
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    missing, nameless = ConvertConfig(name=" ").problems()
    assert "make setup" in missing
    assert "name is empty" in nameless


def test_a_checkout_is_keyed_by_its_converters_code_alone(tmp_path: Path) -> None:
    from tasks.convert import _converter

    (tmp_path / "conversion").mkdir()
    (tmp_path / "convert_hf_to_gguf.py").write_text("1")
    (tmp_path / "conversion" / "llama.py").write_text("2")
    cfg = ConvertConfig(llama_cpp=str(tmp_path))
    key = _converter(cfg)
    (tmp_path / "build.log").write_text("a build")
    assert _converter(cfg) == key != _converter(ConvertConfig())
    (tmp_path / "conversion" / "llama.py").write_text("3")
    assert _converter(cfg) != key
