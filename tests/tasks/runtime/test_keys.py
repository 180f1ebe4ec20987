from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from tasks.runtime import Moving, canonical_as, external, free, keys
from tasks.runtime.hashes import file_sha256
from tasks.runtime.store import Store
from tests import toys


class Mode(StrEnum):
    fast = "fast"
    slow = "slow"


@dataclass
class Inner:
    rates: list[float] = field(default_factory=lambda: [1.0])
    workers: int = free(1)


@dataclass
class Config:
    rate: float = 1.0
    limit: float | None = None
    mode: Mode = Mode.fast
    path: str = external("path", default="")
    device: str = canonical_as(lambda cfg: "cpu" if cfg.device == "auto" else cfg.device, default="auto")
    workers: int = free(1)
    inner: Inner = field(default_factory=Inner)
    named: dict[str, Inner] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)


@dataclass
class Outer:
    pull: toys.PullConfig = field(default_factory=toys.PullConfig)


class Here:
    """The world as it is: files are read, names are asked."""

    def hash_file(self, path: Path) -> str:
        return file_sha256(path)

    def resolve(self, moving: Moving) -> str:
        return moving.ask()


def key(cfg: Any) -> str:
    return keys.key_of("recipe", "toy", "1", keys.keyed_fields(cfg, Here()), {})


# A value has one spelling


def test_three_and_three_point_zero_share_a_key() -> None:
    assert key(Config(rate=3)) == key(Config(rate=3.0))
    assert key(Config(limit=3)) == key(Config(limit=3.0))
    assert key(Config(inner=Inner(rates=[3]))) == key(Config(inner=Inner(rates=[3.0])))
    assert key(Config(rate=3)) != key(Config(rate=4))


def test_the_order_of_a_mapping_says_nothing_and_the_order_of_a_list_does() -> None:
    assert key(Config(args={"a": 1, "b": 2})) == key(Config(args={"b": 2, "a": 1}))
    assert key(Config(args={"a": [1, 2]})) != key(Config(args={"a": [2, 1]}))


def test_auto_enters_as_what_it_means_on_this_machine() -> None:
    assert key(Config(device="auto")) == key(Config(device="cpu")) != key(Config(device="gpu"))


def test_true_is_not_one() -> None:
    assert key(Config(args={"a": True})) != key(Config(args={"a": 1}))


# What changes only speed or place stays out


def test_a_free_field_stays_out_on_every_floor() -> None:
    assert key(Config(workers=8)) == key(Config())
    assert key(Config(inner=Inner(workers=8))) == key(Config())


def test_every_other_field_is_in() -> None:
    changed = [Config(limit=0.0), Config(mode=Mode.slow), Config(args={"a": 1}), Config(inner=Inner(rates=[]))]
    assert len({key(cfg) for cfg in [Config(), *changed]}) == 5


# The world enters by content


def test_a_renamed_file_keeps_its_key_and_an_edited_byte_changes_it(tmp_path: Path) -> None:
    before, after = tmp_path / "rows.jsonl", tmp_path / "elsewhere" / "other.jsonl"
    after.parent.mkdir()
    before.write_text("one")
    first = key(Config(path=str(before)))
    before.rename(after)
    assert key(Config(path=str(after))) == first
    after.write_text("onf")
    assert key(Config(path=str(after))) != first


def test_the_suffix_of_a_file_is_part_of_its_key(tmp_path: Path) -> None:
    for name in ("rows.csv", "rows.jsonl"):
        (tmp_path / name).write_text("same")
    assert key(Config(path=str(tmp_path / "rows.csv"))) != key(Config(path=str(tmp_path / "rows.jsonl")))


@pytest.mark.parametrize("pattern", ["", "*.jsonl", "**/*.jsonl"])
def test_a_folder_or_glob_may_move_but_not_change(tmp_path: Path, pattern: str) -> None:
    for name in ("a.jsonl", "deep/b.jsonl"):
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_text(name)
    first = key(Config(path=str(tmp_path / "one" / pattern)))
    moved = (tmp_path / "one").rename(tmp_path / "two")
    assert key(Config(path=str(moved / pattern))) == first
    (moved / "a.jsonl").write_text("A.jsonl")
    edited = key(Config(path=str(moved / pattern)))
    (moved / "c.jsonl").write_text("one more")
    assert len({first, edited, key(Config(path=str(moved / pattern)))}) == 3


def test_a_renamed_file_inside_a_folder_is_another_folder(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("same")
    first = key(Config(path=str(tmp_path)))
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    assert key(Config(path=str(tmp_path))) != first


def test_a_path_with_nothing_behind_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is nothing at .* Give a file, a folder or a glob"):
        key(Config(path=str(tmp_path / "missing-*.jsonl")))


# A name that moves


def test_main_is_resolved_once_and_reruns_offline(tmp_path: Path, store: Store) -> None:
    hub, asked = tmp_path / "hub", tmp_path / "asked"
    hub.write_text("commit-1")
    cfg = toys.PullConfig(hub=str(hub), tally=str(asked))
    assert keys.keyed_fields(cfg, store)["revision"] == "commit-1"
    hub.unlink()  # offline
    assert keys.keyed_fields(cfg, Store(store.root))["revision"] == "commit-1"
    assert asked.read_text() == "asked\n"


def test_a_name_is_asked_again_on_refresh(tmp_path: Path, store: Store) -> None:
    hub = tmp_path / "hub"
    hub.write_text("commit-1")
    moving = Moving("toy@main", hub.read_text)
    assert store.resolve(moving) == "commit-1"
    hub.write_text("commit-2")
    assert store.resolve(moving) == "commit-1"
    assert store.resolve(moving, refresh=True) == store.resolve(moving) == "commit-2"
    assert json.loads((store.root / "names.json").read_text())["toy@main"]["asked"] > 1e9


def test_the_body_is_given_what_the_key_was_made_of(tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("commit-1")
    cfg = Outer(toys.PullConfig(hub=str(tmp_path / "hub")))
    keyed, given = keys.keyed_fields(cfg, Here()), keys.settled(cfg, Here())
    assert keyed["pull"]["revision"] == given["pull"]["revision"] == "commit-1"


# Only plain values


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({1, 2}, "A set cannot be part of a key: use plain values"),
        (b"bytes", "A bytes cannot be part of a key"),
        (Path("here"), "A PosixPath cannot be part of a key"),
        (object(), "A object cannot be part of a key"),
        (float("nan"), "nan cannot be part of a key: give a finite number"),
        (float("inf"), "inf cannot be part of a key"),
    ],
)
def test_what_has_no_one_spelling_is_refused(value: Any, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        key(Config(args={"deep": [value]}))


# There and back


def test_a_config_survives_the_journey_through_json() -> None:
    cfg = Config(limit=2.0, mode=Mode.slow, inner=Inner([0.1]), named={"a": Inner([2.0], 4)}, args={"x": [1, None]})
    back = keys.restore(Config, json.loads(json.dumps(keys.plain(cfg))))
    assert back == cfg
    assert isinstance(back.mode, Mode) and isinstance(back.named["a"], Inner)


def test_a_journey_needs_no_field_that_has_a_default() -> None:
    assert keys.restore(Config, {"mode": "slow"}) == dataclasses.replace(Config(), mode=Mode.slow)


# Stable


SCRIPT = """
from tests.tasks.runtime.test_keys import Config, Inner, key
print(hash("salt"), key(Config(args={w: 1 for w in "abcdefgh"}, named={"x": Inner()})))
"""


def test_a_key_is_the_same_under_every_hash_seed(python: Callable[..., subprocess.Popen[str]]) -> None:
    found = [python(SCRIPT, PYTHONHASHSEED=seed) for seed in ("1", "2")]
    (salt_1, key_1), (salt_2, key_2) = (process.communicate()[0].split() for process in found)
    assert salt_1 != salt_2 and key_1 == key_2 and len(key_1) == 64


def test_recipe_and_content_keys_never_meet() -> None:
    same: dict[str, Any] = {"stage": "sft", "version": "1", "fields": {}, "inputs": {"base": {"digest": "d"}}}
    assert keys.key_of("recipe", **same) != keys.key_of("content", **same)


FIELDS = {"rate": 0.0001, "limit": 1e22, "mode": "fast", "words": ["ä", "\u2028"], "none": None, "on": True}


def test_a_recipe_key_of_today_is_the_recipe_key_of_tomorrow() -> None:
    found = keys.key_of("recipe", "sft", "1", FIELDS, {"base": {"recipe": "r"}, "rows": [{"recipe": "s"}]})
    assert found == "019c2d6ed5ac38188e45b17fe744b3de6b6315390ab9f4be00faff368a201d1a"


def test_a_content_key_of_today_is_the_content_key_of_tomorrow() -> None:
    found = keys.key_of("content", "sft", "1", FIELDS, {"base": {"digest": "d"}, "rows": [{"digest": "e"}]})
    assert found == "753201e4f0d5ddc51a9cbb57b96c7c4656743f1d1f8213a467c7a469c417d723"
