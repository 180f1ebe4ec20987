"""The front door: whatever goes wrong behind it is said on the screen, on disk and in MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.compose import compose
from flows.launch import travel
from flows.sft_then_dpo import SFTThenDPO, sft_then_dpo
from tests.flows import roads


def test_trouble_before_the_first_stage_is_told_too(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    from tasks.llm.hub import HubError

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = roads.overrides(tiny_model, tmp_path, "download=hub", "download.path=", "download.repo=acme/tiny")
    config = compose("sft_then_dpo", SFTThenDPO, given)
    with pytest.raises(HubError):
        travel(sft_then_dpo, config, given)
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    (folder,) = (tmp_path / "runs").iterdir()
    assert "HF_HUB_OFFLINE is set" in (folder / "error.txt").read_text()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("posttrain").experiment_id])
    assert {run.info.status for run in runs} == {"FAILED"}


def test_an_mlflow_that_does_not_answer_is_told(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    given = roads.overrides(tiny_model, tmp_path)
    with pytest.raises(Exception, match=r"127\.0\.0\.1"):
        travel(sft_then_dpo, compose("sft_then_dpo", SFTThenDPO, given), given)
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_a_run_writes_down_what_was_asked(tiny_model: Path, tmp_path: Path) -> None:
    roads.travelled(tiny_model, tmp_path, "compare.gates.f16_kl_max=0.5")
    (folder,) = (tmp_path / "runs").iterdir()
    provenance = json.loads((folder / "provenance.json").read_text())
    assert "compare.gates.f16_kl_max=0.5" in provenance["command"]
    assert json.loads((folder / "config.json").read_text())["compare"]["gates"]["f16_kl_max"] == 0.5
    assert "verdict: passed" in (folder / "report.md").read_text()
