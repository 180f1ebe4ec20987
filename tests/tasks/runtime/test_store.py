from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.runtime import Model
from tasks.runtime.artifacts import Artifact
from tasks.runtime.store import Manifest, Store
from tests.patience import wait_for

WEIGHTS, WORDS = {"model.safetensors": "weights"}, {"tokenizer.json": "words"}


def publish(store: Store, files: dict[str, str], key: str = "k1", replaces: bool = False, **facts: Any) -> Manifest:
    with store.draft() as draft:
        for name, text in files.items():
            (draft / "content" / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / "content" / name).write_text(text)
        (draft / "notes" / "report.md").write_text("a note")
        known = {"stage": "toy", "key": key, "recipe": "r", "kind": "Model", "parents": [], **facts}
        return store.publish(draft, known, replaces)


def ref(manifest: Manifest, **changed: Any) -> dict[str, Any]:
    names = ("kind", "stage", "recipe", "key", "digest")
    return {**{n: manifest[n] for n in names}, "whole": "", "part_digests": manifest["parts"], **changed}


def folder(store: Store, manifest: Manifest) -> Path:
    return store.root / "objects" / str(manifest["digest"])


def edit(path: Path, text: str) -> None:
    """As a person would who forces an editor: the file is writable, other, and of another time."""
    path.chmod(0o644)
    path.write_text(text)
    os.utime(path, (1, 1))


# What is a hit


def test_what_was_published_is_found_by_a_later_process(store: Store) -> None:
    made = publish(store, WEIGHTS)
    assert Store(store.root).find("toy", "k1") == made
    assert (store.fetch(ref(made)) / "model.safetensors").read_text() == "weights"


def test_another_key_is_a_miss_and_nothing_to_speak_of(store: Store, said: list[str]) -> None:
    publish(store, WEIGHTS)
    assert store.find("toy", "k2") is None and said == []


def test_a_deleted_artifact_is_a_miss(store: Store, said: list[str]) -> None:
    made = publish(store, WEIGHTS)
    folder(store, made).rename(store.root.parent / "elsewhere")
    assert store.find("toy", "k1") is None
    assert said == [f"toy: artifact {made['digest'][:12]} is gone from the store; it is made again."]


@pytest.mark.parametrize("text", ["weight", "WEIGHTS", ""])
def test_an_altered_file_is_a_miss_and_is_named(store: Store, said: list[str], text: str) -> None:
    made = publish(store, WEIGHTS | WORDS)
    edit(folder(store, made) / "model.safetensors", text)
    assert store.find("toy", "k1") is None
    assert said == [f"toy: model.safetensors of artifact {made['digest'][:12]} was altered; it is made again."]


def test_an_added_or_a_missing_file_is_a_miss(store: Store, said: list[str]) -> None:
    made = publish(store, WEIGHTS | WORDS)
    (folder(store, made) / "more.txt").write_text("more")
    assert store.find("toy", "k1") is None
    (folder(store, made) / "more.txt").unlink()
    assert store.find("toy", "k1") == made
    (folder(store, made) / "tokenizer.json").unlink()
    assert store.find("toy", "k1") is None
    assert ["were added or removed" in sentence for sentence in said] == [True, True]


def test_a_touched_but_unaltered_file_is_still_a_hit(store: Store, said: list[str]) -> None:
    made = publish(store, WEIGHTS)
    os.utime(folder(store, made) / "model.safetensors", (1, 1))
    assert store.find("toy", "k1") == made and said == []


@pytest.mark.parametrize("rubbish", [b'{"stage": "to', b"\xff\xfe\x00", b"", bytes(512)])
def test_a_broken_manifest_is_a_miss_said_aloud_and_is_replaced(store: Store, said: list[str], rubbish: bytes) -> None:
    publish(store, WEIGHTS)
    (store.root / "manifests" / "toy" / "k1.json").write_bytes(rubbish)
    assert store.find("toy", "k1") is None
    assert said == ["toy: the manifest of k1 cannot be read; it is made again."]
    made = publish(store, WEIGHTS)
    assert store.find("toy", "k1") == made
    assert not list((store.root / "history").rglob("*.json"))  # rubbish is not kept


# What publishing does


def test_the_same_content_in_two_stores_has_the_same_digest(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "far" / "away")
    assert publish(store, WEIGHTS)["digest"] == publish(other, WEIGHTS, key="k9", metrics={"loss": 1.0})["digest"]
    assert publish(other, WEIGHTS, key="k8")["digest"] != publish(other, {"weights": "weights"}, key="k7")["digest"]


def test_the_same_bytes_from_two_keys_share_one_object(store: Store) -> None:
    one, two = publish(store, WEIGHTS), publish(store, WEIGHTS, key="k2")
    assert one["digest"] == two["digest"] and one["notes"] != two["notes"]
    assert [p.name for p in (store.root / "objects").iterdir()] == [one["digest"]]


def test_of_two_writers_the_first_manifest_stands(store: Store) -> None:
    first = publish(store, WEIGHTS)
    second = publish(store, {"model.safetensors": "other weights"})
    assert second == first == store.find("toy", "k1")


def test_a_replaced_manifest_goes_to_the_history(store: Store) -> None:
    first = publish(store, WEIGHTS)
    second = publish(store, {"model.safetensors": "other weights"}, replaces=True)
    assert store.find("toy", "k1") == second != first
    (kept,) = (store.root / "history" / "toy").glob("k1.*.json")
    assert json.loads(kept.read_text()) == first


def test_a_damaged_object_is_replaced_by_a_good_one(store: Store) -> None:
    made = publish(store, WEIGHTS)
    edit(folder(store, made) / "model.safetensors", "rubbish")
    again = publish(store, WEIGHTS, replaces=True)
    assert again["digest"] == made["digest"] and store.find("toy", "k1") == again


def test_a_damaged_manifest_that_a_writer_meets_goes_to_the_history(store: Store) -> None:
    made = publish(store, WEIGHTS)
    edit(folder(store, made) / "model.safetensors", "rubbish")
    again = publish(store, {"model.safetensors": "other weights"})
    assert store.find("toy", "k1") == again
    assert len(list((store.root / "history" / "toy").iterdir())) == 1


def test_a_writer_that_dies_before_its_manifest_leaves_a_miss(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(store, "_write_manifest", die)
        publish(store, WEIGHTS)
    assert store.find("toy", "k1") is None
    assert publish(store, WEIGHTS) == store.find("toy", "k1")


def test_a_manifest_is_written_when_everything_it_names_is_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    complete: list[bool] = []
    write = store._write_manifest

    def look(draft: Path, manifest: Manifest, replaces: bool) -> Manifest:
        noted = all((store.root / manifest["notes"] / name).exists() for name in manifest["noted"])
        complete.append(noted and not store.damage(manifest))
        return write(draft, manifest, replaces)

    monkeypatch.setattr(store, "_write_manifest", look)
    publish(store, WEIGHTS)
    assert complete == [True]


def test_a_draft_leaves_nothing_behind_after_an_exception(store: Store) -> None:
    with pytest.raises(ValueError), store.draft() as draft:
        (draft / "content" / "half").write_text("half")
        raise ValueError
    publish(store, WEIGHTS)
    assert list((store.root / "tmp").iterdir()) == []


def test_sealed_files_are_read_only(store: Store) -> None:
    made = publish(store, WEIGHTS)
    for path in (folder(store, made) / "model.safetensors", store.root / made["notes"] / "report.md"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_notes_are_kept_but_are_no_part_of_the_digest(store: Store) -> None:
    made = publish(store, WEIGHTS)
    assert list(made["noted"]) == ["report.md"]
    edit(store.root / made["notes"] / "report.md", "another note")
    assert store.find("toy", "k1") == made


def test_unfinished_work_is_gone_once_its_key_is_published(store: Store) -> None:
    (store.workplace("toy", "k1") / "checkpoint").write_text("half")
    (store.workplace("toy", "k2") / "checkpoint").write_text("half")
    publish(store, WEIGHTS)
    assert [p.name for p in (store.root / "work" / "toy").iterdir()] == ["k2"]


# Parts, bases and lineage


def tokenizer(store: Store, made: Manifest) -> Artifact:
    return store.localise(Model.of(ref(made)).tokenizer.ref())


def test_a_part_has_its_own_digest_and_only_its_files(store: Store) -> None:
    one = publish(store, WEIGHTS | WORDS)
    two = publish(store, {"model.safetensors": "tuned"} | WORDS, key="k2")
    part = tokenizer(store, one)
    assert one["parts"] == two["parts"] and one["digest"] != two["digest"]
    assert part.kind == "Tokenizer" and part.digest == one["parts"]["tokenizer"]
    assert [p.name for p in part.path.iterdir()] == ["tokenizer.json"]


def test_a_part_in_a_folder_of_its_own_is_a_part(store: Store) -> None:
    part = tokenizer(store, publish(store, WEIGHTS | {"extra/x.tiktoken": "more"}))
    assert (part.path / "extra" / "x.tiktoken").read_text() == "more"


@pytest.mark.parametrize("text", ["rubbish", None])
def test_a_damaged_part_is_taken_anew_from_the_whole(store: Store, text: str | None) -> None:
    made = publish(store, WEIGHTS | WORDS)
    place = tokenizer(store, made).path / "tokenizer.json"
    edit(place, text) if text else place.unlink()
    again = publish(store, WEIGHTS | WORDS, replaces=True)
    assert (tokenizer(store, again).path / "tokenizer.json").read_text() == "words"


def test_an_adapter_finds_the_model_it_stands_on(store: Store) -> None:
    base = publish(store, WEIGHTS)
    made = publish(store, {"adapter": "a", "stands_on.json": json.dumps({"base": base["digest"]})}, key="k2")
    adapter = store.localise(ref(made))
    assert isinstance(adapter, Model)
    assert (adapter.base.path / "model.safetensors").read_text() == "weights"
    assert adapter.base.base == adapter.base


def test_an_artifact_that_is_gone_says_what_to_do(store: Store) -> None:
    made = publish(store, WEIGHTS)
    with pytest.raises(FileNotFoundError, match=r"toy ffff is gone from .* Run the command again\."):
        store.localise(ref(made, digest="ffff"))


def test_lineage_goes_from_the_oldest_to_the_youngest_each_once(store: Store) -> None:
    base = publish(store, WEIGHTS, stage="base")
    left = publish(store, {"l": ""}, "k2", stage="left", parents=[ref(base)])
    right = publish(store, {"r": ""}, "k3", stage="right", parents=[ref(base), ref(left)])
    assert [m["stage"] for m in store.lineage(ref(right))] == ["base", "left", "right"]


# Locks

HOLD = """
import sys, time
from pathlib import Path
from tasks.runtime.store import Store
with Store(Path(sys.argv[1])).lock("k1", "toy"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_holder_frees_its_lock(
    store: Store, said: list[str], python: Callable[..., subprocess.Popen[str]]
) -> None:
    holder = python(HOLD, store.root)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    mine = threading.Event()

    def work() -> None:
        with store.lock("k1", "toy"):
            mine.set()

    waiter = threading.Thread(target=work, daemon=True)
    waiter.start()
    wait_for(lambda: said)
    assert f"toy: process {holder.pid} on " in said[0] and "waiting for its result" in said[0]
    assert not mine.is_set()
    holder.send_signal(signal.SIGKILL)
    assert mine.wait(20)
    waiter.join()


def test_another_key_has_another_lock(store: Store, said: list[str]) -> None:
    with store.lock("k1", "toy"), store.lock("k2", "toy"):
        assert said == []
