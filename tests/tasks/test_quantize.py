from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks.llm import gguf
from tasks.quantize import QuantizeConfig, quantize
from tasks.runtime import Run

ABOVE = [{"stage": "download", "recipe": "r1", "digest": "d1", "config": {}}]
LINEAGE = [*ABOVE, {"stage": "convert", "recipe": "r2", "digest": "d2", "config": {"outtype": "f16"}}]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    for name in ("out", "notes", "work"):
        (tmp_path / name).mkdir()
    return Run(tmp_path / "out", tmp_path / "notes", tmp_path / "work", lineage=LINEAGE)


@pytest.fixture
def converted(tiny_gguf: Path, tmp_path: Path) -> SimpleNamespace:
    (tmp_path / "f16").mkdir()
    gguf.annotate(tiny_gguf, tmp_path / "f16" / "model-f16.gguf", gguf.lineage_keys(ABOVE))
    return SimpleNamespace(path=tmp_path / "f16")


@pytest.mark.parametrize("level", ["q8_0", "q4_k_m", "f16"])
def test_a_level_has_its_own_longer_lineage_and_still_chats(run: Run, converted: SimpleNamespace, level: str) -> None:
    metrics = quantize.body(run, QuantizeConfig(level=level), converted)
    made = gguf.file_in(run.out)
    assert made.name == f"model-{level}.gguf"
    assert json.loads(gguf.metadata(made)["posttrain.lineage"]) == LINEAGE
    assert metrics["times_smaller"] == pytest.approx({"q8_0": 1.8, "q4_k_m": 2.2, "f16": 1.0}[level], abs=0.2)
    with gguf.Engine(made, context=64) as engine:
        assert engine.chat([{"role": "user", "content": "Hi"}]) == ("Ok.", "stop")


def test_llama_cpps_log_is_kept_and_the_scratch_is_not(run: Run, converted: SimpleNamespace) -> None:
    quantize.body(run, QuantizeConfig(), converted)
    assert "quant size" in (run.notes / "quantize.log").read_text()
    assert not list(run.work.iterdir())


def test_a_wrong_level_is_found_before_anything_runs() -> None:
    assert list(QuantizeConfig().problems()) == []
    (problem,) = QuantizeConfig(level="q4_km").problems()
    assert "the nearest is 'q4_k_m'" in problem
