from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.runtime import Model, RuntimeConfig, session
from tasks.runtime.session import Session
from tasks.runtime.tracking import Attempt, Tracker
from tests import toys


@pytest.fixture(scope="module")
def mlflow_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with MLflow's database, which takes seconds to make."""
    root = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        Tracker(root, "first", {})
        yield root


@pytest.fixture
def tracker(mlflow_root: Path) -> Tracker:
    return Tracker(mlflow_root, "a run", {"flow": "toy"})


@pytest.fixture
def tracked(tracker: Tracker, tmp_path: Path) -> Iterator[Session]:
    with session(RuntimeConfig(root=str(tmp_path)), tracker) as now:
        yield now


def tuned() -> Model:
    return toys.train(toys.TrainConfig(rate=6.0), toys.collect(toys.CollectConfig()))


def attempts(tracker: Tracker) -> list[Any]:
    """The child runs of a tracker's parent, oldest first."""
    mine = f"tags.mlflow.parentRunId = '{tracker.parent}'"
    return list(tracker.client.search_runs([tracker.experiment], mine, order_by=["attributes.start_time ASC"]))


class Dead:
    """A server that no longer answers."""

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any, **__: Any) -> Any:
            raise ConnectionError("the server is gone")

        return call


# One parent, one child per attempt


def test_every_attempt_is_a_child_of_its_run(tracker: Tracker, tracked: Session) -> None:
    tuned()
    assert [run.info.run_name for run in attempts(tracker)] == ["collect", "train of collect"]
    assert {run.info.status for run in attempts(tracker)} == {"FINISHED"}
    assert [run.info.run_id for run in attempts(tracker)] == [r.manifest["mlflow_run"] for r in tracked.records]


def test_a_hit_is_no_attempt_and_names_the_run_it_came_from(tracker: Tracker, tracked: Session) -> None:
    made = tuned()
    tuned()
    train = attempts(tracker)[1]
    tags = tracker.client.get_run(tracker.parent).data.tags
    assert len(attempts(tracker)) == 2
    assert tags["hit.train of collect"] == f"{made.digest[:12]} from run {train.info.run_id}"


@pytest.mark.usefixtures("tracked")
def test_a_failed_attempt_keeps_its_error(tracker: Tracker) -> None:
    with pytest.raises(ValueError):
        toys.trouble(toys.TroubleConfig())
    (run,) = attempts(tracker)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "ValueError: The knob is wrong: turn it."


def test_the_same_road_continues_its_last_run(mlflow_root: Path) -> None:
    runs = [Tracker(mlflow_root, "a run", {}) for _ in range(3)]
    for tracker, road in zip(runs, ("road-1", "road-2", "road-1"), strict=True):
        tracker.continues(road)
    tags = [tracker.client.get_run(tracker.parent).data.tags for tracker in runs]
    assert [tag.get("continues") for tag in tags] == [None, None, runs[0].parent]


# What a child knows


@pytest.mark.usefixtures("tracked")
def test_metrics_arrive_with_their_steps_and_the_result_once(tracker: Tracker) -> None:
    tuned()
    train = attempts(tracker)[1]
    history = tracker.client.get_metric_history(train.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 6.0), (2, 3.0), (3, 2.0)]
    assert train.data.metrics["result.loss"] == 2.0


@pytest.mark.usefixtures("tracked")
def test_params_are_the_keyed_fields_and_nothing_else(tracker: Tracker) -> None:
    made = tuned()
    collect, train = attempts(tracker)
    assert train.data.params == {"rate": "6.0", "words": "a b c"}
    assert collect.data.params == {"text": "a row", "path": ""}
    assert (train.data.tags["key"], train.data.tags["digest"]) == (made.key, made.digest)


@pytest.mark.usefixtures("tracked")
def test_inputs_are_data_sets_with_their_digest(tracker: Tracker) -> None:
    rows = toys.collect(toys.CollectConfig())
    toys.train(toys.TrainConfig(), rows)
    (found,) = attempts(tracker)[1].inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("collect", rows.digest[:36])
    tags = {tag.key: tag.value for tag in found.tags}
    assert tags == {"mlflow.data.context": "Dataset", "digest": rows.digest}


@pytest.mark.usefixtures("tracked")
def test_one_input_given_twice_is_one_data_set(tracker: Tracker) -> None:
    model = tuned()
    toys.measure(toys.MeasureConfig(), [model, model])
    assert len(attempts(tracker)[-1].inputs.dataset_inputs) == 1


@pytest.mark.usefixtures("tracked")
def test_notes_are_seen_where_the_curves_are(tracker: Tracker) -> None:
    toys.collect(toys.CollectConfig())
    (run,) = attempts(tracker)
    assert [file.path for file in tracker.client.list_artifacts(run.info.run_id)] == ["report.md"]


def test_a_folder_of_many_oddly_named_files_is_one_param(tracker: Tracker) -> None:
    files = {f"part ({n})+é.jsonl": "sha" for n in range(150)}
    attempt = tracker.child("toy", {"path": {"files": files}, "odd (name)": 1, "args": {"lr": 0.1}}, {})
    params = tracker.client.get_run(attempt.run).data.params
    assert params.pop("path").startswith("150 files ")
    assert params == {"odd _name_": "1", "args.lr": "0.1"}


def test_an_odd_metric_name_does_not_lose_the_others(tracker: Tracker) -> None:
    attempt = tracker.child("toy", {}, {})
    attempt.log({"accuracy (%)": 1.0, "eval/loss": 2.0}, 0)
    attempt.end("FINISHED")
    assert tracker.client.get_run(attempt.run).data.metrics == {"accuracy ___": 1.0, "eval/loss": 2.0}


# Registered once


def test_a_digest_is_registered_once(tracker: Tracker, tmp_path: Path) -> None:
    one, two = ({"digest": digest, "stage": "quantize"} for digest in ("d1", "d2"))
    versions = [tracker.register("toy-model", about, tmp_path, tracker.parent) for about in (one, two, one)]
    assert versions == ["1", "2", "1"]
    found = tracker.client.get_model_version("toy-model", "1")
    assert (found.source, found.run_id) == ("posttrain://objects/d1", tracker.parent)
    assert found.tags == {**one, "path": str(tmp_path)}


# A server that is lost


def test_a_server_lost_mid_way_is_said_once_and_stops_nothing(tracker: Tracker, tracked: Session) -> None:
    toys.collect(toys.CollectConfig())
    tracker.client = Dead()
    with pytest.warns(UserWarning, match="the server is gone.*the work goes on") as said:
        made = tuned()
        tuned()
        tracker.register("toy-model", {"digest": "d3"}, tracked.store.root, "")
        tracker.continues("road")
        tracker.end("FINISHED")
    assert [record.state for record in tracked.records] == ["made", "cached", "made", "cached", "cached"]
    assert made.digest and len(said) == 1


def test_a_server_lost_while_training_does_not_lose_what_is_made(
    tracker: Tracker, tracked: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_child = tracker.child

    def child(*words: Any) -> Attempt:
        attempt = open_child(*words)
        attempt.client = Dead()
        return attempt

    monkeypatch.setattr(tracker, "child", child)
    with pytest.warns(UserWarning, match="the work goes on"):
        made = toys.collect(toys.CollectConfig())
    assert tracked.store.find("collect", made.key)


def test_what_a_lost_server_missed_is_told_when_it_is_back(tracker: Tracker) -> None:
    attempt, client = tracker.child("toy", {}, {}), tracker.client
    attempt.client = Dead()
    attempt.log({"loss": 1.0}, 1)
    with warnings.catch_warnings(action="ignore"):
        attempt.flush()
    attempt.client = client
    attempt.log({"loss": 0.5}, 2)
    attempt.end("FINISHED")
    assert [metric.step for metric in client.get_metric_history(attempt.run, "loss")] == [1, 2]
