"""The front door: whatever goes wrong behind it is said on the screen, on disk and in MLflow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows import arrival, server, store, story, trials
from flows.compose import compose
from flows.launch import travel
from flows.pictures import road
from flows.sft_then_dpo import SFTThenDPO, sft_then_dpo
from tasks.runtime import RuntimeConfig, keys, session
from tests.flows import roads


def test_trouble_is_told_on_the_screen_in_the_folder_and_in_mlflow(
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
    (road,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert road.info.status == "FAILED"


def test_an_mlflow_that_does_not_answer_is_told(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    given = roads.overrides(tiny_model, tmp_path)
    with pytest.raises(Exception, match=r"127\.0\.0\.1"):
        travel(sft_then_dpo, compose("sft_then_dpo", SFTThenDPO, given), given)
    assert "127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("does", "became"), [("exit(3)", "ended with code 3"), ("input()", "did not answer within 0 s")]
)
def test_a_prefect_server_that_does_not_come_up_is_told_in_words(
    does: str, became: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_PATIENCE", 0.0)
    with subprocess.Popen([sys.executable, "-c", does], stdin=subprocess.PIPE) as process:
        if does == "exit(3)":
            process.wait(60)
        with pytest.raises(SystemExit) as told:
            server._wait(process, "http://127.0.0.1:9/api", tmp_path / "server.log")
        process.kill()
    assert f"of this run {became}. Run again when" in str(told.value) and "server.log" in str(told.value)


@pytest.fixture(scope="module")
def over(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is over."""
    root = tmp_path_factory.mktemp("over")
    roads.travelled(tiny_model, root, "compare.gates.f16_kl_max=0.5")
    (folder,) = (root / "runs").iterdir()
    return folder


def test_a_run_writes_down_what_was_asked(over: Path) -> None:
    provenance = json.loads((over / "provenance.json").read_text())
    assert "compare.gates.f16_kl_max=0.5" in provenance["command"]
    assert json.loads((over / "config.json").read_text())["compare"]["gates"]["f16_kl_max"] == 0.5
    assert "verdict: passed" in (over / "report.md").read_text()


def test_a_run_leaves_pictures_in_its_folder_in_its_report_and_in_mlflow(over: Path) -> None:
    names = {"scores.png", "training.png", "fidelity.png", "lengths.png"}
    assert {place.name for place in (over / "pictures").iterdir()} == names
    assert "![scores](pictures/scores.png)" in (over / "report.md").read_text()
    tracked = (over.parents[1] / "mlflow-files").rglob("artifacts/pictures/*.png")
    assert {place.name for place in tracked} == names


def test_a_run_leaves_a_card_and_a_modelfile_and_an_export_takes_them_along(over: Path, tmp_path: Path) -> None:
    root = over.parents[1]
    written = (over / "card" / "README.md").read_text()
    assert str(root) not in written and "ollama create" in written
    assert (over / "card" / "Modelfile").read_text().startswith("FROM ./model-q8_0.gguf")
    assert store.main(["export", "quantize", str(tmp_path / "small.gguf"), "--root", str(root)]) == 0
    assert (tmp_path / "small.Modelfile").read_text().startswith("FROM ./small.gguf")
    exported = (tmp_path / "small.README.md").read_text()
    assert over.name in exported and written.split("## Scores")[1][:200] in exported


def test_a_picture_that_cannot_be_drawn_fails_no_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no such font")

    monkeypatch.setattr(road, "scores", broken)
    with session(keys.restore(RuntimeConfig, {"root": str(tmp_path)}), name="a-run") as now:
        folder = tmp_path / "runs" / "a-run"
        folder.mkdir(parents=True)
        with pytest.warns(UserWarning, match="no such font"):
            left = arrival.leave(now, folder)
    assert left.pictures == [] and (folder / "report.md").exists()


def test_a_trial_of_a_sweep_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(road, "draw", lambda *given: drawn.append(given) or [])
    seat = trials.seated.set(trials.Seat(trials.Trial(1, [], {}), ""))
    try:
        with session(keys.restore(RuntimeConfig, {"root": str(tmp_path)}), name="a-run") as now:
            arrival.leave(now, tmp_path)
    finally:
        trials.seated.reset(seat)
    assert drawn == []


def test_the_runs_own_page_is_named_where_mlflow_is_a_server(tmp_path: Path) -> None:
    with session(keys.restore(RuntimeConfig, {"root": str(tmp_path)}), name="a-run") as now:
        now.tracker = cast(Any, SimpleNamespace(uri="http://127.0.0.1:5000/", experiment="1", parent="abc"))
        where = dict(arrival.where_to_look(now, tmp_path, arrival.Left(story.of_session(now), [])))
        now.tracker = None
    assert where["MLflow run"] == "http://127.0.0.1:5000/#/experiments/1/runs/abc"
