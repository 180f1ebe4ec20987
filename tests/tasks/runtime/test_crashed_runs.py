"""Runs of MLflow that a kill left open are closed at the next start, and nobody else's."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.runtime.tracking import Tracker
from tests.patience import wait_for

Python = Callable[..., "subprocess.Popen[str]"]

RUN = """
import sys, time
from pathlib import Path
from tasks.runtime import RuntimeConfig, session
from tasks.runtime.tracking import Tracker
from tests import toys
root, name, tally = sys.argv[1:]
tracker = Tracker(Path(root), name, {})
with session(RuntimeConfig(root=root), tracker):
    if name == "killed":
        toys.trouble(toys.TroubleConfig("wait", tally=tally, until="never"))
    toys.count(tally, "up")
    time.sleep(120)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder with MLflow's database below it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield tmp_path_factory.mktemp("mlflow")


def runs(tracker: Tracker) -> dict[str, tuple[str, bool]]:
    """Name -> status, and whether it is marked as crashed."""
    found = tracker.client.search_runs([tracker.experiment])
    return {str(run.info.run_name): (str(run.info.status), "crashed" in run.data.tags) for run in found}


def test_what_a_killed_process_left_open_is_closed_and_a_living_one_is_not(
    root: Path, tmp_path: Path, python: Python, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Tracker(root, "before", {})
    before.end("FINISHED")
    before.client.create_run(before.experiment, run_name="elsewhere", tags={"alive": "a sign under another root"})
    started = {name: python(RUN, root, name, tmp_path / f"{name}.tally") for name in ("killed", "living")}
    for name in started:
        wait_for((tmp_path / f"{name}.tally").exists, seconds=60)
    started["killed"].kill()
    started["killed"].wait()

    now = Tracker(root, "now", {})
    assert runs(now) == {
        "before": ("FINISHED", False),
        "elsewhere": ("RUNNING", False),
        "killed": ("KILLED", True),
        "trouble": ("KILLED", True),
        "living": ("RUNNING", False),
        "now": ("RUNNING", False),
    }
    told = "MLflow: killed was left open by a process that is gone; closed as crashed.\n"
    assert capsys.readouterr().err.count(told) == 1
    now.end("FINISHED")
    Tracker(root, "later", {}).end("FINISHED")
    assert told not in capsys.readouterr().err
    started["living"].kill()
    started["living"].wait()
    Tracker(root, "at last", {}).end("FINISHED")
    assert runs(now)["living"] == ("KILLED", True)


def test_an_end_that_mlflow_did_not_hear_is_told_at_the_next_start(root: Path) -> None:
    class Dead:
        def __getattr__(self, name: str) -> Any:
            def call(*_: Any, **__: Any) -> Any:
                raise ConnectionError("the server is gone")

            return call

    first = Tracker(root, "first", {})
    first.client, client = Dead(), first.client
    with pytest.warns(UserWarning, match="the server is gone"):
        first.end("FAILED")
    first.client = client
    assert runs(first)["first"] == ("RUNNING", False)
    second = Tracker(root, "second", {})
    assert runs(second)["first"] == ("FAILED", False)
    second.end("FINISHED")


def test_a_start_asks_nothing_where_nothing_was_left_open(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    Tracker(root, "third", {}).end("FINISHED")
    assert list((root / "alive").iterdir()) == []
    monkeypatch.setattr(MlflowClient, "search_runs", None)
    Tracker(root, "fourth", {}).end("FINISHED")


# The database under a root

DIE = """
import os, signal, sys
from pathlib import Path
import mlflow.store.db.utils as utils
from tasks.runtime.tracking import Tracker
upgrade = utils._upgrade_db
def die(engine):
    upgrade(engine)
    with engine.begin() as open_one:
        open_one.exec_driver_sql("DROP TABLE alembic_version")  # half of its migrations done, and nothing says which
    os.kill(os.getpid(), signal.SIGKILL)
utils._upgrade_db = die
Tracker(Path(sys.argv[1]), "killed", {})
"""
BEGIN = """
import sys
from pathlib import Path
from tasks.runtime.tracking import Tracker
Tracker(Path(sys.argv[1]), sys.argv[2], {}).end("FINISHED")
"""


def test_a_kill_while_the_database_is_made_and_two_starts_at_once_leave_a_good_one(
    tmp_path: Path, python: Python, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert python(DIE, tmp_path).wait() == -9
    assert not (tmp_path / "mlflow.db").exists()
    for process in [python(BEGIN, tmp_path, name) for name in ("one", "two")]:
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 0, said
    last = Tracker(tmp_path, "three", {})
    assert runs(last) == {"one": ("FINISHED", False), "two": ("FINISHED", False), "three": ("RUNNING", False)}
    last.end("FINISHED")
