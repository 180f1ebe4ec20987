from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.runtime import Model, RuntimeConfig, fingerprint, session
from tasks.runtime.calls import Drifted
from tasks.runtime.fingerprint import Code
from tasks.runtime.session import Session
from tests import toys
from tests.patience import wait_for
from tests.toys import Open


def states(now: Session) -> list[str]:
    return [record.state for record in now.records]


def tuned(rate: float = 0.5, text: str = "a row", words: str = "a b c", tally: Path | str = "") -> Model:
    rows = toys.collect(toys.CollectConfig(text, tally=str(tally)))
    return toys.train(toys.TrainConfig(rate, words, tally=str(tally)), rows)


def fail() -> None:
    with pytest.raises(ValueError, match="The knob is wrong: turn it"):
        toys.trouble(toys.TroubleConfig())


# Never twice


def test_the_same_work_is_done_once(opened: Open, tally: Path) -> None:
    with opened() as now:
        first = tuned(tally=tally)
        assert tuned(tally=tally) == first
        assert states(now) == ["made", "made", "cached", "cached"]
    with opened():
        assert tuned(tally=tally) == first
    assert tally.read_text().split() == ["collect", "train"]


def test_another_knob_is_another_work_and_free_fields_are_not(opened: Open, tally: Path) -> None:
    with opened() as now:
        tuned(tally=tally)
        tuned(rate=0.1, tally=tally)
        tuned(rate=0.1, tally="")
    assert states(now) == ["made", "made", "cached", "made", "cached", "cached"]


def test_an_edited_data_file_is_a_miss(opened: Open, tmp_path: Path, tally: Path) -> None:
    data, cfg = tmp_path / "rows.jsonl", toys.CollectConfig(path=str(tmp_path / "rows.jsonl"), tally=str(tally))
    with opened() as now:
        for text in ("one row", "one row", "one cow"):
            data.write_text(text)
            toys.collect(cfg)
    assert states(now) == ["made", "cached", "made"] and tally.read_text().split() == ["collect"] * 2


def test_a_raised_version_is_a_miss(opened: Open) -> None:
    with opened() as now:
        toys.collect(toys.CollectConfig())
        dataclasses.replace(toys.collect, version="2")(toys.CollectConfig())
    assert states(now) == ["made", "made"]


def test_a_deleted_artifact_is_made_again_and_nothing_else_is(
    opened: Open, tally: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened() as now:
        made = tuned(tally=tally)
        shutil.rmtree(now.store.root / "objects" / made.digest)
        assert tuned(tally=tally) == made
    assert states(now) == ["made", "made", "cached", "made"]
    assert f"train: artifact {made.digest[:12]} is gone from the store; it is made again." in capsys.readouterr().err


def test_an_input_left_out_is_the_same_as_none(opened: Open) -> None:
    with opened() as now:
        model = tuned()
        toys.measure(toys.MeasureConfig(), [model])
        toys.measure(toys.MeasureConfig(), [model], None)
    assert states(now)[-1] == "cached"


# Inputs count by content


def test_equal_bytes_made_another_way_leave_what_is_below_a_hit(opened: Open, tally: Path) -> None:
    with opened() as now:
        one, two = tuned(text="a row"), tuned(text="  a row  ")
    assert states(now) == ["made", "made", "made", "cached"]
    assert one.digest == two.digest


def test_what_reads_the_tokenizer_does_not_mind_other_weights(opened: Open) -> None:
    with opened() as now:
        rows = toys.collect(toys.CollectConfig())
        for rate, words in ((0.5, "a b"), (0.1, "a b"), (0.1, "a b c")):
            toys.encode(toys.EncodeConfig(), tuned(rate=rate, words=words).tokenizer, rows)
    assert [r.state for r in now.records if r.stage == "encode"] == ["made", "cached", "made"]
    assert now.records[-1].manifest["metrics"] == {"files": 1.0}


def test_a_list_of_inputs_is_keyed_in_order(opened: Open) -> None:
    with opened() as now:
        one, two = tuned(rate=0.1), tuned(rate=0.2)
        for models in ([one, two], [two, one], [one, two]):
            toys.measure(toys.MeasureConfig(), models)
    assert states(now)[-3:] == ["made", "made", "cached"]


def test_a_recipe_key_says_how_it_was_made_whatever_the_store_holds(opened: Open, tmp_path: Path) -> None:
    with opened():
        one, two = tuned(text="a row"), tuned(text="  a row  ")
    with opened(root=str(tmp_path / "empty")):
        alone = tuned(text="  a row  ")
    assert one.key == two.key == alone.key
    assert one.recipe != two.recipe == alone.recipe


# Other code, other libraries


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Edits the code of every stage, and a library with it."""

    def edited() -> None:
        monkeypatch.setattr(fingerprint, "of_stage", lambda module: Code("other", {"trl": "9.9"}))

    return edited


def test_a_hit_of_other_code_is_used_and_said_aloud(opened: Open, edited: Callable[[], None]) -> None:
    with opened() as now:
        first = tuned()
        edited()
        assert tuned() == first
    assert states(now)[2:] == ["cached", "cached"]
    assert now.records[-1].note == " (code changed, trl None -> 9.9 since)"


def test_under_rerun_a_hit_of_other_code_is_made_again(opened: Open, edited: Callable[[], None]) -> None:
    with opened(drift="rerun") as now:
        first = tuned()
        edited()
        assert [tuned().digest, tuned().digest] == [first.digest] * 2
        assert states(now)[2:] == ["made", "made", "cached", "cached"]
        assert len(list((now.store.root / "history" / "train").iterdir())) == 1


def test_under_refuse_a_hit_of_other_code_stops_the_run(opened: Open, edited: Callable[[], None]) -> None:
    with opened(drift="refuse"):
        tuned()
        edited()
        with pytest.raises(Drifted, match=r"collect: code changed, trl None -> 9\.9 since it was made"):
            tuned()


@pytest.mark.parametrize(("drift", "kept"), [("warn", True), ("rerun", False)])
def test_work_that_other_code_began_is_ruled_like_a_hit(
    opened: Open, edited: Callable[[], None], drift: str, kept: bool
) -> None:
    with opened(drift=drift) as now:
        fail()
        (work,) = now.store.root.glob("work/trouble/*")
        (work / "from before").touch()
        edited()
        fail()
    assert (work / "from before").exists() == kept and (work / "checkpoint").exists()


def test_under_refuse_work_that_other_code_began_stops_the_run(opened: Open, edited: Callable[[], None]) -> None:
    with opened(drift="refuse"):
        fail()
        edited()
        with pytest.raises(Drifted, match=r"trouble: other code began the unfinished work in .* Remove that folder\."):
            toys.trouble(toys.TroubleConfig())


# Failure


def test_a_failed_body_publishes_nothing_and_keeps_its_work(opened: Open) -> None:
    with opened() as now:
        fail()
    root = now.store.root
    assert [p.name for p in root.glob("work/trouble/*/checkpoint")] == ["checkpoint"]
    assert [list((root / room).iterdir()) for room in ("objects", "manifests", "tmp")] == [[], [], []]
    assert now.records == []


def test_a_stage_outside_of_a_session_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"call it inside `with session\(RuntimeConfig\(\)\):`"):
        toys.collect(toys.CollectConfig())


# What is told


def test_a_record_says_what_a_stage_came_to(opened: Open) -> None:
    with opened() as now:
        made = tuned()
    record = now.records[-1]
    assert (record.stage, record.seat, record.inputs, record.state) == ("train", "train", ["collect"], "made")
    assert record.manifest["metrics"] == {"loss": 0.5 / 3} and record.manifest["digest"] == made.digest
    assert record.manifest["preimage"]["fields"] == {"rate": 0.5, "words": "a b c"}
    assert [parent["stage"] for parent in record.manifest["parents"]] == ["collect"]


def test_a_label_names_the_seat_in_the_drawing_and_the_work_above(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chats, cfg = toys.CollectConfig(), toys.TrainConfig()
    with session(RuntimeConfig(root=str(tmp_path)), seats={id(chats): "chats", id(cfg): "train"}) as now:
        toys.train(cfg, toys.collect(chats))
    assert [record.seat for record in now.records] == ["chats", "train"]
    lines = [line.split("made")[0].strip() for line in capsys.readouterr().err.splitlines()]
    assert lines == ["collect chats", "train of collect"]


def test_a_body_is_told_its_whole_lineage_and_finds_the_base_of_an_adapter(opened: Open) -> None:
    with opened() as now:
        adapter = toys.adapt(toys.AdaptConfig(), tuned())
        scores = toys.measure(toys.MeasureConfig(), [adapter])
        text = (now.store.fetch(scores.ref()) / "metrics.json").read_text()
    assert text == '{"read": ["0.5 a row"], "lineage": ["collect", "train", "adapt"]}'


def test_a_moving_name_reaches_the_body_as_what_it_means(opened: Open, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    hub.write_text("commit-1")
    with opened() as now:
        made = toys.pull(toys.PullConfig(hub=str(hub)))
        assert (now.store.fetch(made.ref()) / "model.safetensors").read_text() == "commit-1"
        hub.unlink()  # offline
        assert toys.pull(toys.PullConfig(hub=str(hub))) == made
    assert states(now) == ["made", "cached"]


def test_under_refresh_key_and_body_hear_one_answer(opened: Open, tmp_path: Path, tally: Path) -> None:
    hub = tmp_path / "hub"
    for commit in ("commit-1", "commit-2"):
        hub.write_text(commit)
        with opened(refresh=True) as now:
            made = toys.pull(toys.PullConfig(hub=str(hub), tally=str(tally)))
            assert (now.store.fetch(made.ref()) / "model.safetensors").read_text() == commit
    assert tally.read_text().split() == ["asked", "asked"]


# Two at once

RUN = """
import sys
from tasks.runtime import RuntimeConfig, session
from tests import toys
with session(RuntimeConfig(root=sys.argv[1], isolation=sys.argv[4])):
    print(toys.trouble(toys.TroubleConfig("wait", tally=sys.argv[2], until=sys.argv[3])).digest)
"""


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_two_processes_at_once_train_once(
    tmp_path: Path, tally: Path, python: Callable[..., subprocess.Popen[str]], isolation: str
) -> None:
    until = tmp_path / "go"
    first = python(RUN, tmp_path / "data", tally, until, isolation)
    wait_for(tally.read_text)
    second = python(RUN, tmp_path / "data", tally, until, isolation)
    assert second.stdout and f"process {first.pid} on " in second.stdout.readline()
    until.touch()
    digests = [process.communicate()[0].strip().splitlines()[-1] for process in (first, second)]
    assert digests[0] == digests[1] and len(digests[0]) == 64
    assert len(tally.read_text().split()) == 1
