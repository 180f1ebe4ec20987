"""Single artifacts: whole or damaged, named, pinned, removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tasks.runtime.catalogue import Catalogue, Unnamed
from tasks.runtime.pins import pin, unpin
from tasks.runtime.store import Store
from tasks.runtime.upkeep import Refused, damages, forget, remove
from tests import toys
from tests.tidying import trained
from tests.toys import Open


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def removed(data: Path, *names: str, force: bool = False) -> list[str]:
    return [entry.stage for entry in remove(Catalogue(data), list(names), force, lambda text: None)]


def refusal(data: Path, *names: str) -> str:
    before = len(Catalogue(data).entries)
    with pytest.raises(Refused) as caught:
        removed(data, *names)
    assert len(Catalogue(data).entries) == before
    return str(caught.value)


# Whole?


def test_every_damage_is_named(opened: Open, data: Path) -> None:
    with opened():
        model = trained()
    catalogue = Catalogue(data)
    entry, folder = catalogue.one("train"), catalogue.object(model.digest)
    assert damages(catalogue, entry) == []
    for name, text in {"model.safetensors": "short", "tokenizer.json": "a b d", "more.txt": ""}.items():
        (folder / name).chmod(0o644) if (folder / name).exists() else None
        (folder / name).write_text(text)
    assert damages(catalogue, entry) == [
        "more.txt was added",
        "model.safetensors has 5 bytes, not 9",
        "tokenizer.json was altered",
    ]
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in damages(catalogue, entry)
    shutil.rmtree(folder)
    assert damages(catalogue, entry) == ["its content is gone"]


def test_damaged_notes_and_a_missing_base_are_damage(opened: Open, data: Path) -> None:
    with opened():
        base = trained()
        toys.adapt(toys.AdaptConfig(), base)
    catalogue = Catalogue(data)
    rows = catalogue.one("collect")
    (catalogue.store / rows.manifest["notes"] / "report.md").unlink()
    assert damages(catalogue, rows) == ["note report.md is missing"]
    shutil.rmtree(catalogue.object(base.digest))
    assert damages(catalogue, catalogue.one("adapt")) == [f"{base.digest[:12]}, which it stands on, is gone"]


def test_bytes_that_rot_under_an_unchanged_date_are_found_and_become_a_miss(opened: Open, data: Path) -> None:
    with opened() as now:
        model = trained()
    file = now.store.root / "objects" / model.digest / "tokenizer.json"
    stamp = file.stat()
    with open(file, "r+b") as content:
        content.write(b"A")
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    store = Store(data / "store", say=lambda text: None)
    assert store.find("train", model.key) is not None  # the memory of digests does not see it
    catalogue = Catalogue(data)
    assert damages(catalogue, catalogue.one("train")) == ["tokenizer.json was altered"]
    forget(catalogue, catalogue.one("train"))
    assert store.find("train", model.key) is None


# Names


def test_an_artifact_answers_to_digest_key_pin_and_stage(opened: Open, data: Path) -> None:
    with opened():
        first, second = trained(0.1), trained(0.2)
    catalogue = Catalogue(data)
    pin(catalogue, catalogue.one(first.digest), "good")
    catalogue = Catalogue(data)
    for name in (first.digest, first.digest[:8].upper(), first.key[:8], "good"):
        assert catalogue.one(name).key == first.key
    assert catalogue.one("train").key == second.key


def test_an_unclear_name_is_answered_with_what_may_be_meant(opened: Open, data: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a row")
    with opened():
        one = toys.collect(toys.CollectConfig("a row"))
        two = toys.collect(toys.CollectConfig(path=str(tmp_path / "rows.txt")))
    catalogue = Catalogue(data)
    with pytest.raises(Unnamed, match="write more of a digest or key") as caught:
        catalogue.one(one.digest)
    assert sorted(caught.value.candidates) == sorted(f"collect {a.digest[:12]} (key {a.key[:12]})" for a in (one, two))
    assert catalogue.one(two.key).key == two.key
    for name, near in {"colect": ["collect"], one.digest[:3]: ["collect"], "0000000000": ["collect"]}.items():
        with pytest.raises(Unnamed) as caught:
            catalogue.one(name)
        assert caught.value.candidates == near


def test_the_run_that_made_an_artifact_is_known(opened: Open, data: Path) -> None:
    with opened() as first:
        trained()
    with opened():
        trained()
    catalogue = Catalogue(data)
    assert first.uses is not None
    assert catalogue.made_by(catalogue.one("train")) == (first.uses.place.stem, "train of collect")


# Pins


@pytest.mark.parametrize("name", ["train", "abcd", "a b", "../x"])
def test_a_pin_has_a_name_that_means_nothing_else(opened: Open, data: Path, name: str) -> None:
    with opened():
        trained()
    with pytest.raises(ValueError, match="Give another"):
        pin(Catalogue(data), Catalogue(data).one("train"), name)


def test_a_pin_is_not_moved_by_accident(opened: Open, data: Path) -> None:
    with opened():
        first, second = trained(0.1), trained(0.2)
    catalogue = Catalogue(data)
    pin(catalogue, catalogue.one(first.digest), "good")
    pin(catalogue, catalogue.one(first.digest), "good")
    with pytest.raises(ValueError, match="is taken by train"):
        pin(catalogue, catalogue.one(second.digest), "good")
    unpin(catalogue, ["good"])
    pin(catalogue, catalogue.one(second.digest), "good")
    assert Catalogue(data).one("good").key == second.key


def test_a_pin_of_what_went_says_so(opened: Open, data: Path) -> None:
    with opened():
        trained()
    pin(Catalogue(data), Catalogue(data).one("train"), "good")
    assert removed(data, "good", force=True) == ["train"]
    with pytest.raises(Unnamed, match=r"The pin good names train .* which is gone"):
        Catalogue(data).one("good")


# Away


def test_what_was_removed_is_made_again_and_nothing_else_is(opened: Open, data: Path, tally: Path) -> None:
    with opened() as now:
        first = trained(tally=tally)
        adapter = toys.adapt(toys.AdaptConfig(), first)
    assert removed(data, "train", "adapt") == ["train", "adapt"]
    catalogue = Catalogue(data)
    assert [entry.stage for entry in catalogue.entries] == ["collect"]
    assert not catalogue.object(first.digest).exists() and not list((data / "store" / "notes" / "train").iterdir())
    with opened() as now:
        assert toys.adapt(toys.AdaptConfig(), trained(tally=tally)) == adapter
    assert [record.state for record in now.records] == ["cached", "made", "made"]
    assert tally.read_text().split() == ["collect", "train", "train"]


def test_a_pinned_artifact_stays(opened: Open, data: Path) -> None:
    with opened():
        trained()
    pin(Catalogue(data), Catalogue(data).one("train"), "good")
    assert "is pinned as good" in refusal(data, "train")
    assert removed(data, "train", force=True) == ["train"]


def test_the_base_of_an_adapter_stays_unless_the_adapter_goes_too(opened: Open, data: Path) -> None:
    with opened():
        toys.adapt(toys.AdaptConfig(), trained())
    assert "stands on train" in refusal(data, "train")
    assert removed(data, "train", "adapt") == ["train", "adapt"]


def test_what_a_run_uses_or_makes_right_now_stays(opened: Open, data: Path) -> None:
    with opened():
        model = trained()
        assert "is in use by the run" in refusal(data, "train")
    with FileLock(data / "store" / "locks" / model.key):
        assert "is being made right now" in refusal(data, "train")
    assert removed(data, "train") == ["train"]


def test_content_that_another_seal_names_stays(opened: Open, data: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a row")
    with opened():
        one = toys.collect(toys.CollectConfig("a row"))
        two = toys.collect(toys.CollectConfig(path=str(tmp_path / "rows.txt")))
    removed(data, one.key)
    store = Store(data / "store", say=print)
    assert store.find("collect", one.key) is None and store.find("collect", two.key) is not None
    removed(data, two.key)
    assert list((data / "store" / "objects").iterdir()) == []


def test_a_part_goes_with_the_last_whole_it_is_a_part_of(opened: Open, data: Path) -> None:
    with opened():
        one, two = trained(0.1), trained(0.2)
        toys.encode(toys.EncodeConfig(), one.tokenizer, toys.collect(toys.CollectConfig()))
    part = Catalogue(data).object(one.tokenizer.digest)
    assert one.tokenizer.digest == two.tokenizer.digest and part.is_dir()
    removed(data, one.key)
    assert part.is_dir()
    removed(data, two.key)
    assert not part.exists()
