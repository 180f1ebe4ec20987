"""What differs between two runs of a stage, and what a result was made from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tasks.runtime import Model, fingerprint, keys
from tasks.runtime.fingerprint import Code
from tasks.runtime.session import Session
from tasks.runtime.store import Manifest, Store
from tasks.runtime.why import closest, differences, story
from tests import toys
from tests.toys import Open


def trained(rate: float = 0.5, text: str = "a row", path: Path | str = "") -> Model:
    return toys.train(toys.TrainConfig(rate), toys.collect(toys.CollectConfig(text, path=str(path))))


def manifest(now: Session, stage: str = "train") -> Manifest:
    """Of the newest call of a stage."""
    return next(record.manifest for record in reversed(now.records) if record.stage == stage)


def told(now: Session, other: Manifest, stage: str = "train") -> list[str]:
    return differences(now.store, manifest(now, stage), other)


def test_a_changed_knob_is_named_with_both_values(opened: Open) -> None:
    with opened() as now:
        trained()
        before = manifest(now)
        trained(rate=1e-5)
        assert told(now, before) == ["rate 0.5 -> 1e-05"]
        assert told(now, manifest(now)) == []


def test_an_edited_data_file_is_named(opened: Open, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    with opened() as now:
        for text in ("one", "two"):
            data.write_text(text)
            toys.collect(toys.CollectConfig(path=str(data)))
        assert told(now, now.records[0].manifest, "collect") == [f"path: {data} was edited"]


def test_of_a_folder_the_files_are_named(store: Store, tmp_path: Path) -> None:
    def seen(**files: str) -> Manifest:
        for old in tmp_path.glob("rows/*"):
            old.unlink()
        for name, text in files.items():
            (tmp_path / "rows").mkdir(exist_ok=True)
            (tmp_path / "rows" / name).write_text(text)
        path = str(tmp_path / "rows")
        return {"fields": {"path": keys.path_identity(path, store)}, "config": {"path": path}, **_NOTHING}

    before = seen(a="1", b="1", c="1")
    found = differences(store, seen(a="1", b="2", d="1"), before)
    assert found == ["path: b was edited", "path: c is gone", "path: d is new"]


_NOTHING: Manifest = {"version": "1", "parents": [], "code": "", "libraries": {}, "preimage": {"inputs": {}}}


def test_below_an_input_stands_where_the_difference_began(opened: Open) -> None:
    with opened() as now:
        toys.adapt(toys.AdaptConfig(), trained(text="a row"))
        before = manifest(now, "adapt")
        toys.adapt(toys.AdaptConfig(), trained(text="a cow"))
        line, cause = told(now, before, "adapt")
    assert line == f"base: train {before['parents'][0]['digest'][:8]} -> {manifest(now)['digest'][:8]}"
    assert cause == "  because collect.text a row -> a cow"


def test_a_cause_of_several_inputs_is_told_once(opened: Open) -> None:
    with opened() as now:
        for text in ("a row", "a cow"):
            toys.measure(toys.MeasureConfig(), [trained(0.1, text), trained(0.2, text)])
        found = told(now, now.records[4].manifest, "measure")
    assert [line.split(":")[0] for line in found] == ["models[0]", "  because collect.text a row -> a cow", "models[1]"]


def test_an_input_of_another_stage_is_named_by_both(opened: Open) -> None:
    with opened() as now:
        model = trained()
        toys.measure(toys.MeasureConfig(), [model])
        before = manifest(now, "measure")
        toys.measure(toys.MeasureConfig(), [toys.adapt(toys.AdaptConfig(), model)])
        (line,) = told(now, before, "measure")
    assert line == f"models[0]: train {model.digest[:8]} -> adapt {manifest(now, 'adapt')['digest'][:8]}"


def test_an_input_whose_record_is_gone_is_said_to_be(opened: Open) -> None:
    with opened() as now:
        trained(text="a row")
        before = manifest(now)
        (now.store.root / "manifests" / "collect" / f"{manifest(now, 'collect')['key']}.json").unlink()
        trained(text="a cow")
        assert told(now, before)[1] == "  because of collect, whose record is gone"


def test_version_code_and_libraries_count(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened() as now:
        monkeypatch.setattr(fingerprint, "of_stage", lambda module: Code("one", {"torch": "2.12"}))
        toys.collect(toys.CollectConfig())
        before = manifest(now, "collect")
        monkeypatch.setattr(fingerprint, "of_stage", lambda module: Code("two", {"torch": "2.13"}))
        dataclasses.replace(toys.collect, version="2")(toys.CollectConfig())
        found = told(now, before, "collect")
    assert found == ["version 1 -> 2 of the stage", "code changed, torch 2.12 -> 2.13"]


def test_a_knob_that_was_at_its_default_is_told_as_the_config_had_it(store: Store) -> None:
    one: Manifest = {**_NOTHING, "fields": {"args": {}}, "config": {"args": {"beta": 0.1}}}
    other = {**one, "fields": {"args": {"beta": 0.3}}, "config": {"args": {"beta": 0.3}}}
    plain = {**one, "config": {"args": {}}}
    assert differences(store, other, one) == ["args.beta 0.1 -> 0.3"]
    assert differences(store, plain, other) == ["args.beta 0.3 -> unset"]


def test_the_closest_run_differs_least_and_is_the_newest_of_equals(opened: Open) -> None:
    with opened() as now:
        for rate, text in ((0.1, "far"), (0.2, "a row"), (0.3, "a row")):
            trained(rate, text)
        trained(0.4, "a row")
        ours = manifest(now)
        found = closest(now.store, "train", ours)
        assert found and found["fields"]["rate"] == 0.3
        first = next(r.manifest for r in now.records if r.stage == "train")
        assert closest(now.store, "train", first) is None  # nothing came before it
        assert closest(now.store, "adapt", ours) is None


def test_a_replaced_run_is_among_the_earlier_ones(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened() as now:
        toys.collect(toys.CollectConfig())
    monkeypatch.setattr(fingerprint, "of_stage", lambda module: Code("edited", {}))
    with opened(drift="rerun") as now:
        toys.collect(toys.CollectConfig())
        ours = manifest(now, "collect")
        found = closest(now.store, "collect", ours)
        assert found and differences(now.store, ours, found) == ["code changed"]


def test_a_story_tells_parents_first(opened: Open) -> None:
    with opened() as now:
        made = toys.encode(toys.EncodeConfig(), trained().tokenizer, toys.collect(toys.CollectConfig()))
        lines = story(now.store, manifest(now, "encode"))
    heads = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert heads == ["collect", "train", "encode"]
    assert "  with text=a row" in lines and any(line.startswith("  from rows collect ") for line in lines)
    assert lines[-1].startswith("  from tokenizer train ") and made.digest[:12] in lines[-2]


def test_a_broken_manifest_is_no_earlier_run(opened: Open) -> None:
    with opened() as now:
        trained()
        (now.store.root / "manifests" / "train" / "half.json").write_text(json.dumps({})[:-1])
        trained(rate=0.1)
        found = closest(now.store, "train", manifest(now))
    assert found and found["fields"]["rate"] == 0.5
