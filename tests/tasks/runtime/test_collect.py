"""A clean-up: what is reached stays, the rest goes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from tasks.runtime.catalogue import Catalogue
from tasks.runtime.collect import Rules, clutter
from tasks.runtime.pins import pin
from tests import toys
from tests.tidying import NOTHING_KEPT, cleaned, left, measured, sealed, trained
from tests.toys import Open


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def tree(data: Path) -> dict[str, float]:
    return {str(path): path.lstat().st_mtime for path in data.rglob("*") if "hashes" not in str(path)}


# What stays, what goes


def test_what_the_last_runs_reach_stays_and_the_rest_goes(opened: Open, data: Path) -> None:
    for rate in (0.1, 0.2, 0.3):
        with opened():
            trained(rate)
    cleaned(data, Rules(keep_runs=2))
    catalogue = Catalogue(data)
    assert [(e.stage, e.manifest["fields"].get("rate")) for e in catalogue.entries] == [
        ("collect", None),
        ("train", 0.2),
        ("train", 0.3),
    ]
    assert sorted(left(data, "objects")) == sorted({entry.digest for entry in catalogue.entries})
    assert len(left(data, "notes/train")) == 2 and len(left(data, "runs")) == 2


def test_a_pin_keeps_all_that_it_was_made_from(opened: Open, data: Path) -> None:
    with opened():
        measured(0.1)
        kept = measured(0.2)
    pin(Catalogue(data), Catalogue(data).one(kept.digest[:12]))
    cleaned(data)
    assert sealed(data) == ["adapt", "collect", "measure", "train"]
    with opened() as now:
        assert measured(0.2) == kept
    assert [r.stage for r in now.records if r.state == "made"] == ["encode"]  # beside the road of what is pinned


def test_the_part_of_a_model_that_was_read_stays_with_it(opened: Open, data: Path) -> None:
    with opened():
        base = trained()
        tokens = toys.encode(toys.EncodeConfig(), base.tokenizer, toys.collect(toys.CollectConfig()))
    cleaned(data, Rules([tokens.digest], keep_runs=0))
    assert {base.digest, base.tokenizer.digest, tokens.digest} <= set(left(data, "objects"))


def test_a_registered_model_keeps_the_base_it_stands_on(opened: Open, data: Path) -> None:
    with opened():
        base = trained()
        adapter = toys.adapt(toys.AdaptConfig(), base)
        trained(0.9)
    for place in (data / "store" / "manifests" / "adapt").iterdir():  # no parent says so, only the content does
        place.write_text(json.dumps({**json.loads(place.read_text()), "parents": []}))
    cleaned(data, Rules([adapter.digest], keep_runs=0))
    assert set(left(data, "objects")) >= {base.digest, adapter.digest}
    assert sealed(data) == ["adapt", "collect", "train"]


def test_content_that_another_seal_names_stays(opened: Open, data: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a row")
    with opened():
        first = toys.collect(toys.CollectConfig("a row"))
    with opened():
        second = toys.collect(toys.CollectConfig(path=str(tmp_path / "rows.txt")))
    assert first.digest == second.digest and first.key != second.key
    cleaned(data, Rules(keep_runs=1))
    (entry,) = Catalogue(data).entries
    assert entry.key == second.key and left(data, "objects") == [first.digest]


def test_what_a_failed_run_made_counts_as_what_a_run_made(opened: Open, data: Path) -> None:
    with pytest.raises(ValueError, match="The knob is wrong"), opened():
        trained()
        toys.trouble(toys.TroubleConfig())
    cleaned(data, Rules(keep_runs=1))
    assert sealed(data) == ["collect", "train"]


def test_the_digests_of_a_report_are_kept_where_a_run_left_no_list(opened: Open, data: Path) -> None:
    with opened():
        model = trained()
    for place in (data / "store" / "runs").iterdir():
        place.unlink()
    (data / "runs" / "earlier").mkdir(parents=True)
    row = {"call": "train", "state": "made", "digest": model.digest}
    (data / "runs" / "earlier" / "report.json").write_text(json.dumps({"stages": [row]}))
    cleaned(data, Rules(keep_runs=1))
    assert sealed(data) == ["collect", "train"]
    assert Catalogue(data).made_by(Catalogue(data).one("train")) == ("earlier", "train")


def test_a_sweep_counts_as_one_run(opened: Open, data: Path) -> None:
    (data / "sweeps" / "one").mkdir(parents=True)
    for number, rate in enumerate((0.1, 0.2, 0.3)):
        with opened() as now:
            trained(rate)
        assert now.uses is not None
        trial = data / "sweeps" / "one" / f"trial-{number}.json"
        trial.write_text(json.dumps({"run": now.uses.place.stem}))
    with opened():
        trained(0.4)
    cleaned(data, Rules(keep_runs=2))
    assert sealed(data) == ["collect", "train", "train", "train", "train"]
    cleaned(data, Rules(keep_runs=1))
    assert sealed(data) == ["collect", "train"]


def test_a_replaced_seal_stays_only_as_long_as_a_run_that_used_it(opened: Open, data: Path) -> None:
    with opened() as now:
        model = trained()
        place = now.store.root / "manifests" / "train" / f"{model.key}.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), "code": "other"}))
    with opened(drift="rerun"):
        trained()
    cleaned(data, Rules(keep_runs=2))
    assert len(Catalogue(data).entries) == 3
    history = data / "store" / "history" / "train"
    (file,) = history.iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "digest": "0" * 64}))  # of other bytes, long ago
    cleaned(data, Rules(keep_runs=2))
    assert list(history.iterdir()) == [] and sealed(data) == ["collect", "train"]


def test_what_no_seal_names_goes(opened: Open, data: Path) -> None:
    with opened():
        trained()
    for stray in ("objects/" + "0" * 64, "notes/train/stray", "tmp/left"):
        (data / "store" / stray).mkdir(parents=True)
        (data / "store" / stray / "file").write_text("x" * 100)
    (data / "store" / "manifests" / "train" / "half.json").write_text('{"stage"')
    gone = cleaned(data, Rules(keep_runs=1))
    found = {item.what: item.size for item in gone if item.what != "lock"}
    assert found == {"content": 100, "notes": 100, "draft": 100, "broken manifest": 8}
    assert sealed(data) == ["collect", "train"]


def test_a_dry_run_removes_nothing(opened: Open, data: Path) -> None:
    with opened():
        measured()
    before = tree(data)
    assert {item.what for item in clutter(Catalogue(data), NOTHING_KEPT)} >= {"artifact", "content", "notes", "lock"}
    assert tree(data) == before


def test_after_a_clean_up_there_is_nothing_to_clean(opened: Open, data: Path) -> None:
    with opened():
        measured()
    assert cleaned(data) and cleaned(data) == [] and left(data, "tmp") == []
    assert sealed(data) == []


def test_what_went_is_made_again(opened: Open, data: Path, tally: Path) -> None:
    with opened():
        first = trained(tally=tally)
    cleaned(data)
    with opened():
        assert trained(tally=tally) == first
    assert tally.read_text().split() == ["collect", "train"] * 2


def test_pins_that_cannot_be_read_are_not_taken_for_no_pins(opened: Open, data: Path) -> None:
    with opened():
        trained()
    (data / "store" / "pins.json").write_text('{"good": ')
    with pytest.raises(ValueError, match=r"pins\.json cannot be read"):
        cleaned(data)
    assert len(left(data, "manifests/train")) == 1


# Unfinished work


def work(data: Path, key: str, days_ago: float = 0.0) -> Path:
    folder = data / "store" / "work" / "train" / key
    (folder / "checkpoint-3").mkdir(parents=True)
    for path in (folder / "checkpoint-3", folder):
        os.utime(path, (time.time() - days_ago * 86_400,) * 2)
    return folder


def test_unfinished_work_goes_when_it_is_old_and_nobody_is_at_it(opened: Open, data: Path) -> None:
    with opened():
        trained()
    young, old, busy = work(data, "1" * 64, 13), work(data, "2" * 64, 15), work(data, "3" * 64, 15)
    with FileLock(data / "store" / "locks" / busy.name):
        gone = cleaned(data, Rules(keep_runs=1))
        assert (data / "store" / "locks" / busy.name).exists()
    assert [item.path for item in gone if "work" in item.what] == [old]
    assert (young.exists(), old.exists(), busy.exists()) == (True, False, True)


def test_what_a_killed_run_left_of_finished_work_goes(opened: Open, data: Path) -> None:
    with opened():
        model = trained()
    rest, begun_again = work(data, model.key, 1), work(data, Catalogue(data).one("collect").key, -1)
    begun_again = begun_again.rename(data / "store" / "work" / "train" / "4")
    cleaned(data, Rules(keep_runs=1))
    assert (rest.exists(), begun_again.exists()) == (False, True)
