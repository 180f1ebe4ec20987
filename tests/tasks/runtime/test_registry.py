"""What MLflow has registered is asked of the MLflow that knows this store, or not believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.runtime.registry import Unheard, registered, run_name
from tasks.runtime.tracking import Tracker


def test_registered_digests_are_found_with_their_versions(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, "a run", {})
    for digest in ("d1", "d2"):
        tracker.register("posttrain", {"digest": digest, "key": "k"}, tmp_path, tracker.parent)
    assert registered(tmp_path, tracker.parent) == {"d1": ["posttrain 1"], "d2": ["posttrain 2"]}
    assert run_name(tmp_path, tracker.parent) == "a run"
    with pytest.raises(Unheard, match="Runs of this store are tracked elsewhere"):
        registered(tmp_path, "0" * 32)


def test_without_any_mlflow_nothing_is_known(tmp_path: Path) -> None:
    assert registered(tmp_path) == {} and run_name(tmp_path, "0" * 32) == ""
    with pytest.raises(Unheard, match="Set MLFLOW_TRACKING_URI"):
        registered(tmp_path, "0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_an_mlflow_that_does_not_answer_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unheard, match=r"127\.0\.0\.1:9 does not say what is registered"):
        registered(tmp_path)
