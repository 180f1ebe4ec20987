"""`reproduce`: the same code really runs again, elsewhere, and is compared; other code is only talked about."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import types
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flows import launch
from flows import reproduce as module
from flows import store as command
from tasks.runtime import Model, RuntimeConfig, session
from tasks.runtime.stopping import Stopped
from tests import toys
from tests.flows import roads

CLEAN = {"commit": "c0ffee" * 6 + "abcd", "dirty": "no"}


@dataclass
class Toys(launch.Road):
    collect: toys.CollectConfig = field(default_factory=toys.CollectConfig)
    train: toys.TrainConfig = field(default_factory=toys.TrainConfig)
    spare: toys.CollectConfig = field(default_factory=toys.CollectConfig)
    """Left out by this road, as pairs are without a reward model."""


def toy_road(cfg: Toys) -> Model:
    return toys.train(cfg.train, toys.collect(cfg.collect))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run of a road of toys, made by clean code, has left its data, rows and tally. Shared: copy it."""
    place = tmp_path_factory.mktemp("finished")
    for name in ("rows.txt", "spare.txt"):
        (place / name).write_text("a row")
    config = Toys(
        RuntimeConfig(root=str(place / "data")),
        collect=toys.CollectConfig(path=str(place / "rows.txt"), tally=str(place / "tally")),
        train=toys.TrainConfig(tally=str(place / "tally")),
        spare=toys.CollectConfig(path=str(place / "spare.txt"), tally=str(place / "tally")),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "git_state", lambda: CLEAN)
        launch.travel(toy_road, config, ["train.rate=0.5", f"runtime.root={place / 'data'}"])
    return place


@pytest.fixture
def root(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for place in (launch, module):
        monkeypatch.setattr(place, "git_state", lambda: CLEAN)
    monkeypatch.setattr(module, "prepare_environment", lambda runtime: None)  # it would outlive the test
    road = types.ModuleType("flows.toy_road")
    road.toy_road = toy_road  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, road.__name__, road)
    shutil.copytree(finished / "data", tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def one_mlflow(finished: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run is tracked where the first was: a new database for each test takes seconds."""
    monkeypatch.setattr(module, "_own_mlflow", nullcontext)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished / 'data' / 'mlflow.db'}")


@pytest.fixture
def tally(finished: Path) -> Path:
    """Where toy bodies leave a line whenever they run."""
    place = finished / "tally"
    place.write_text("")
    return place


def reproduced(root: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    (run,) = (root / "runs").iterdir()
    capsys.readouterr()
    code = command.main(["reproduce", run.name, "--root", str(root), "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def provenance(root: Path, **changed: Any) -> None:
    (place,) = (root / "runs").glob("*/provenance.json")
    place.write_text(json.dumps({**json.loads(place.read_text()), **changed}))


def test_the_same_code_gives_the_same_bytes_and_leaves_nothing_behind(
    root: Path, tally: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # it has an MLflow of its own
    before = roads.newest(root)["stages"]
    code, found = reproduced(root, capsys)
    assert (code, found["equal"], found["kept"]) == (0, True, "")
    assert [(s["call"], s["digest"], s["again"]) for s in found["stages"]] == [
        (row["call"], row["digest"], row["digest"]) for row in before
    ]
    assert found["stages"][1]["metrics"] == {"loss": [0.5 / 3, 0.5 / 3]}
    assert tally.read_text().split() == ["collect", "train"]  # past the cache
    assert list((root / "reproduce").iterdir()) == [] and len(list((root / "runs").iterdir())) == 1


@pytest.mark.usefixtures("one_mlflow")
def test_a_difference_ends_with_1_and_is_kept_to_look_at(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (report,) = (root / "runs").glob("*/report.json")
    rows = json.loads(report.read_text())
    rows["stages"][1] |= {"digest": "0" * 64, "loss": 9.0}
    report.write_text(json.dumps(rows))
    code, found = reproduced(root, capsys)
    assert code == 1 and [stage["equal"] for stage in found["stages"]] == [True, False]
    assert found["stages"][1]["metrics"] == {"loss": [9.0, 0.5 / 3]}
    assert set(roads.states(Path(found["kept"])).values()) == {"made"}
    command.inventory.show("reproduce", found)
    assert "DIFFERS" in capsys.readouterr().out


@pytest.mark.usefixtures("one_mlflow")
@pytest.mark.parametrize("done", [False, True], ids=["killed", "finished"])
def test_an_earlier_try_is_taken_up_if_it_was_killed_and_counts_for_nothing_if_it_was_finished(
    root: Path, finished: Path, tally: Path, capsys: pytest.CaptureFixture[str], done: bool
) -> None:
    (run,) = (root / "runs").iterdir()
    scratch = root / "reproduce" / run.name
    with session(RuntimeConfig(root=str(scratch))):
        toys.collect(toys.CollectConfig(path=str(finished / "rows.txt"), tally=str(tally)))
    if done:
        shutil.copytree(run, scratch / "runs" / "earlier")
    assert reproduced(root, capsys)[0] == 0
    assert tally.read_text().split() == ["collect", *(["collect"] if done else []), "train"]


@pytest.mark.parametrize(
    ("changed", "because"),
    [
        ({"git": {**CLEAN, "commit": "d" * 40}}, "the code of commit dddddddddddd, here is c0ffee"),
        ({"git": {**CLEAN, "dirty": "yes"}}, "had been edited after that commit"),
        ({"python": "3.9.1"}, "It had python 3.9.1, here is"),
    ],
)
def test_for_other_code_the_commands_are_told_and_nothing_runs(
    root: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], because: str
) -> None:
    provenance(root, **changed)
    code, found = reproduced(root, capsys)
    assert code == 2 and because in " ".join(found["because"]) and not (root / "reproduce").exists()
    worktree, go, setup, line = found["commands"]
    assert worktree.startswith("git worktree add ../posttrain-") and go.startswith("cd ") and setup == "make setup"
    assert line.startswith(".venv/bin/python -m flows.toy_road train.rate=0.5 ")
    assert f"runtime.root={root / 'reproduce'}" in line and line.count("runtime.root=") == 1


def test_an_artifact_of_other_libraries_is_other_code(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place,) = (root / "store" / "manifests" / "train").iterdir()
    manifest = json.loads(place.read_text())
    place.write_text(json.dumps({**manifest, "libraries": {**manifest["libraries"], "pytest": "0.1"}}))
    code, found = reproduced(root, capsys)
    assert code == 2 and any(line.startswith("It had pytest 0.1, here is") for line in found["because"])


def test_data_that_was_edited_is_refused_before_anything_runs(
    root: Path, finished: Path, tally: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "rows.txt").write_text("another row")
    try:
        code, found = reproduced(root, capsys)
    finally:
        (finished / "rows.txt").write_text("a row")
    assert code == 1 and found["error"].splitlines()[1:] == ["  collect.path"]
    assert tally.read_text() == ""


@pytest.mark.usefixtures("one_mlflow")
def test_data_that_the_run_did_not_read_may_be_edited(
    root: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "spare.txt").write_text("another row")
    assert reproduced(root, capsys)[0] == 0


def test_one_that_is_stopped_ends_as_a_run_does(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise Stopped(signal.SIGINT)

    monkeypatch.setattr(module, "travel", stopped)
    code, found = reproduced(root, capsys)
    assert code == 130 and found["error"] == "Stopped by SIGINT. The same command goes on from here."


def test_a_run_that_is_not_there_or_did_not_finish_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = (root / "runs").iterdir()
    assert command.main(["reproduce", f"{run.name}x", "--root", str(root)]) == 2
    assert run.name in capsys.readouterr().err
    (run / "report.json").unlink()
    assert "did not finish" in reproduced(root, capsys)[1]["error"]
