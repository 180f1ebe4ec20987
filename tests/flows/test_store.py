"""`python -m flows.store`: what each command says, to a person and to a program."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows import store as command
from tasks.runtime import RuntimeConfig, keys, session
from tasks.runtime.tracking import Tracker
from tests import toys
from tests.tidying import trained

COMMANDS = ["ls", "show", "why", "verify", "rm", "gc", "pin", "unpin", "export", "reproduce"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two runs, `first` and `second`, with an adapter at the end of the second."""
    root = tmp_path / "data"
    config = keys.restore(RuntimeConfig, {"root": str(root)})
    with session(config, name="first"):
        trained()
    with session(config, name="second"):
        toys.adapt(toys.AdaptConfig(), trained(0.7))
    return root


@pytest.fixture
def told(data: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """The exit code and the JSON of a command."""

    def told(*words: object) -> tuple[int, Any]:
        capsys.readouterr()
        code = command.main([*map(str, words), "--root", str(data), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return told


@pytest.fixture
def said(data: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """All that a command says to a person, in one line."""

    def said(*words: object) -> str:
        capsys.readouterr()
        command.main([*map(str, words), "--root", str(data)])
        heard = capsys.readouterr()
        return " ".join((heard.out + heard.err).split())

    return said


def test_ls_lists_what_was_made_and_by_which_run(told: Any, said: Any) -> None:
    code, found = told("ls")
    rows = [(row["stage"], row["call"], row["run"]) for row in found["artifacts"]]
    assert code == 0 and rows == [
        ("collect", "collect", "first"),
        ("train", "train of collect", "first"),
        ("train", "train of collect", "second"),
        ("adapt", "adapt of train", "second"),
    ]
    assert [row["stage"] for row in told("ls", "adapt")[1]["artifacts"]] == ["adapt"]
    assert "4 artifacts, 110 bytes of content" in said("ls")
    assert told("ls", "adopt") == (2, {"error": "There is no stage 'adopt' here.", "candidates": STAGES})


STAGES = ["adapt", "collect", "train"]


def test_ls_shows_unfinished_work_with_its_checkpoints(told: Any, said: Any, data: Path) -> None:
    work_folder = data / "store" / "work" / "train" / ("0" * 64)
    for step in (3, 12, 20):
        (work_folder / "trainer" / f"checkpoint-{step}").mkdir(parents=True)
        if step < 20:  # the last one was cut short
            (work_folder / "trainer" / f"checkpoint-{step}" / "trainer_state.json").touch()
    ((work,),) = [told("ls")[1]["unfinished"]]
    assert work["checkpoints"] == ["checkpoint-3", "checkpoint-12"] and not work["going_on"]
    assert "unfinished: train, key 000000000000" in said("ls") and "last checkpoint-12" in said("ls")


def test_show_tells_all_about_one(told: Any, said: Any) -> None:
    code, found = told("show", "adapt")
    assert code == 0 and found["config"] == {"rank": 8} and found["run"] == "second"
    assert [item["stage"] for item in found["inputs"]] == ["train"] and found["stands_on"]
    assert found["files"]["adapter.json"] == 1 and Path(found["content"]).is_dir()
    assert "config.rank 8" in said("show", "adapt") and "file adapter.json 1 bytes" in said("show", "adapt")


def test_why_tells_what_it_was_made_from_and_what_differs(told: Any, said: Any) -> None:
    _, found = told("ls", "train")
    first, second = (row["digest"][:12] for row in found["artifacts"])
    assert "collect" in said("why", "adapt") and "rate=0.7" in said("why", "adapt")
    assert "rate 0.5 -> 0.7" in said("why", second, first)
    assert "nearest" in said("why", "train") and "rate 0.5 -> 0.7" in said("why", "train")
    assert "rate 0.5 -> 0.7" in said("why", "second", "first") and "adapt of train is only in second" in said(
        "why", "second", "first"
    )
    assert told("why", "adapt", "train")[0] == 1 and told("why", "adapt", "first")[0] == 1
    code, wrong = told("why", "secnd")
    assert code == 2 and wrong["candidates"][0] == "second"


def test_why_knows_a_run_by_its_mlflow_id(told: Any, data: Path) -> None:
    tracker = Tracker(data, "second", {})
    assert list(told("why", tracker.parent)[1]) == list(told("why", "second")[1])


def test_verify_ends_with_1_when_something_is_damaged(told: Any, said: Any, data: Path) -> None:
    assert told("verify")[0] == 0 and "4 artifacts read, 0 damaged or missing" in said("verify")
    (row,) = told("ls", "adapt")[1]["artifacts"]
    shutil.rmtree(data / "store" / "objects" / row["digest"])
    code, found = told("verify")
    assert code == 1 and [r["problems"] for r in found["artifacts"] if r["problems"]] == [["its content is gone"]]
    assert told("verify", "collect")[0] == 0
    assert "content gone" in said("ls", "adapt")


def test_rm_says_what_will_be_made_again_and_what_it_will_not_remove(told: Any, said: Any) -> None:
    refused = said("rm", "train")
    assert "stands on train" in refused and "--force" in refused
    assert "Removed adapt of train" in said("rm", "adapt") and "makes it again" in said("rm", "train")
    assert [row["stage"] for row in told("ls")[1]["artifacts"]] == ["collect", "train"]


def test_gc_is_a_dry_run_unless_it_is_told_yes(told: Any, said: Any) -> None:
    code, found = told("gc", "--keep-runs", "1")
    assert code == 0 and not found["removed"] and found["kept"] == {"pins": 0, "registered": 0, "runs": ["second"]}
    assert [item["what"] for item in found["clutter"] if item["what"] != "lock"] == [
        *("artifact", "content", "notes", "list of a run")
    ]
    assert "would go. --yes removes it" in said("gc", "--keep-runs", "1")
    assert len(told("ls")[1]["artifacts"]) == 4
    assert told("gc", "--keep-runs", "1", "--yes")[1]["removed"]
    assert [row["stage"] for row in told("ls")[1]["artifacts"]] == ["collect", "train", "adapt"]
    assert "There is nothing to remove" in said("gc", "--keep-runs", "1")


def test_gc_keeps_what_is_registered_and_refuses_when_it_cannot_know(
    told: Any, said: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(data, "third", {})
    with session(keys.restore(RuntimeConfig, {"root": str(data)}), tracker, name="third"):
        model = trained(0.9)
    tracker.register("posttrain", {"digest": model.digest}, data, tracker.parent)
    assert told("gc", "--keep-runs", "0", "--yes")[1]["kept"] == {"pins": 0, "registered": 1, "runs": []}
    (row,) = told("ls", "train", "--registered")[1]["artifacts"]
    assert row["registered"] == ["posttrain 1"] and row["mlflow_run"]
    (data / "mlflow.db").rename(data / "elsewhere.db")
    code, found = told("gc", "--keep-runs", "0", "--yes")
    assert code == 1 and "tracked elsewhere" in found["error"] and "--without-registry" in found["error"]
    assert "--yes will refuse" in said("gc", "--keep-runs", "0")
    assert told("gc", "--keep-runs", "0", "--yes", "--without-registry")[0] == 0
    assert told("ls")[1]["artifacts"] == []


def test_a_pin_keeps_and_an_unpinned_one_goes(told: Any, said: Any) -> None:
    assert "stay: pinned as good" in said("pin", "adapt", "--name", "good")
    told("gc", "--keep-runs", "0", "--yes")
    assert [row["pinned"] for row in told("ls")[1]["artifacts"]] == [[], [], ["good"]]
    assert told("unpin", "adapt") == (0, {"unpinned": ["good"]})
    assert told("unpin", "adapt")[0] == 2
    told("gc", "--keep-runs", "0", "--yes")
    assert told("ls")[1]["artifacts"] == []


def test_export_says_where_it_went(told: Any, said: Any, tmp_path: Path) -> None:
    code, found = told("export", "adapt", tmp_path / "out")
    assert code == 0 and Path(found["exported"], "base", "model.safetensors").exists()
    assert "is there already" in said("export", "adapt", tmp_path / "out")
    assert told("export", "adapt", tmp_path / "out")[0] == 1


def test_a_folder_without_a_store_is_told_kindly_and_stays_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(tmp_path / "none")]
    assert command.main(["ls", "--json", *root]) == 0
    heard = capsys.readouterr()
    assert json.loads(heard.out) == {"artifacts": [], "unfinished": [], "bytes": 0}
    assert "There is nothing under" in heard.err
    for words, code in ((["ls"], 0), (["gc", "--yes"], 0), (["verify"], 0), (["show", "dpo"], 2), (["rm", "dpo"], 2)):
        assert command.main([*words, *root]) == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_own_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main([name, "--help"])
    text = capsys.readouterr().out
    assert "--root" in text and "--json" in text and "An artifact A is the beginning" in " ".join(text.split())


def test_looking_at_a_store_loads_nothing_heavy(data: Path) -> None:
    code = """
import sys
from flows.store import main
for words in (["ls"], ["show", "train"], ["why", "train"], ["verify"], ["pin", "train"]):
    main([*words, "--root", sys.argv[1]])
sys.exit(str([name for name in ("torch", "prefect", "mlflow", "hydra") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code, str(data)], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"
