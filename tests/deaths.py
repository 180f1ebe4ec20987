"""What is done while death strikes, and what must hold afterwards: the scenarios of tests/dying.py."""

from __future__ import annotations

import json
from pathlib import Path

from tasks.runtime import Model, RuntimeConfig, keys, session
from tasks.runtime.hashes import file_sha256
from tasks.runtime.session import Drift
from tasks.runtime.store import Manifest, Store
from tests import toys

FILES = {"model.safetensors": "weights " * 1000, "tokenizer.json": "words", "extra/x.tiktoken": "more words"}
OTHER = {**FILES, "model.safetensors": "other weights"}


def opened(root: Path) -> Store:
    return Store(root, say=lambda text: None)


def publish(store: Store, files: dict[str, str], key: str = "k1", replaces: bool = False) -> Manifest:
    with store.draft() as draft:
        for name, text in files.items():
            (draft / "content" / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / "content" / name).write_text(text)
        (draft / "notes" / "report.md").write_text("a note")
        facts = {"stage": "toy", "key": key, "recipe": "r", "kind": "Model", "parents": []}
        return store.publish(draft, facts, replaces)


def content(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def ref(made: Manifest) -> dict[str, object]:
    names = ("kind", "stage", "recipe", "key", "digest")
    return {**{name: made[name] for name in names}, "whole": "", "part_digests": made["parts"]}


def nothing_is_broken(root: Path) -> None:
    """No file can be found under its final name that is not whole, and nothing half is left beside them."""
    for place in (*root.glob("manifests/*/*.json"), *root.glob("history/*/*.json")):
        sealed = json.loads(place.read_text())
        assert sealed["key"] == place.name.split(".")[0]
    for folder in (root / "objects").iterdir():
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        found = [[p.relative_to(folder).as_posix(), file_sha256(p)] for p in files]
        assert keys.digest(found) == folder.name
    assert not [p for p in (root / "tmp").rglob("*") if p.is_file()]


class Publish:
    """The first publish of a key."""

    key, files, allowed = "k1", FILES, [FILES]

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        (opened(self.root).workplace("toy", self.key) / "checkpoint").write_text("half way")

    def act(self) -> None:
        publish(opened(self.root), self.files, self.key, replaces=self.replaces(opened(self.root)))

    def replaces(self, store: Store) -> bool:
        return store.manifest("toy", self.key) is not None

    def look(self) -> None:
        """A clean miss or a complete hit; and the next run makes it or hits it."""
        store, work = opened(self.root), self.root / "work" / "toy" / self.key
        found = store.find("toy", self.key)
        if found:
            assert content(self.root / "objects" / found["digest"]) in self.allowed
        if work.exists():
            assert (work / "checkpoint").read_text() == "half way"
        if not found or content(self.root / "objects" / found["digest"]) != self.files:
            publish(store, self.files, self.key, replaces=self.replaces(store))
        found = opened(self.root).find("toy", self.key)
        assert found and content(self.root / "objects" / found["digest"]) == self.files
        assert content(self.root / found["notes"]) == {"report.md": "a note"}
        nothing_is_broken(self.root)


class OverDamage(Publish):
    """The publish that takes the place of a damaged artifact."""

    def prepare(self) -> None:
        made = publish(opened(self.root), self.files)
        super().prepare()
        damaged = self.root / "objects" / made["digest"] / "model.safetensors"
        damaged.chmod(0o644)
        damaged.write_text("rubbish")


class OverRubbish(Publish):
    """The publish that takes the place of a manifest cut in half."""

    def prepare(self) -> None:
        publish(opened(self.root), self.files)
        super().prepare()
        place = self.root / "manifests" / "toy" / "k1.json"
        place.write_text(place.read_text()[:100])


class OverDrift(Publish):
    """The publish that takes the place of what other code made; that goes to the history."""

    files, allowed = OTHER, [FILES, OTHER]

    def prepare(self) -> None:
        publish(opened(self.root), FILES)
        super().prepare()

    def look(self) -> None:
        super().look()
        kept = [json.loads(place.read_text())["digest"] for place in self.root.glob("history/toy/*")]
        first = opened(self.root / "elsewhere")
        assert set(kept) == {publish(first, FILES)["digest"]}


class Shared(Publish):
    """The publish of bytes that another key has published before."""

    key = "k2"

    def prepare(self) -> None:
        publish(opened(self.root), FILES)
        super().prepare()


class Part:
    """A part taken from its whole."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self) -> None:
        publish(opened(self.root), FILES)

    def act(self) -> None:
        store = opened(self.root)
        found = store.find("toy", "k1")
        assert found
        self.part = store.localise(Model.of(ref(found)).tokenizer.ref()).path
        assert content(self.part) == {name: FILES[name] for name in ("tokenizer.json", "extra/x.tiktoken")}

    def look(self) -> None:
        self.act()
        nothing_is_broken(self.root)


class DamagedPart(Part):
    """A damaged part taken anew from its whole."""

    def prepare(self) -> None:
        super().prepare()
        self.act()
        (self.part / "tokenizer.json").unlink()
        (self.part / "tokenizer.json").write_text("rubbish")


class Call:
    """A whole stage call: look-up, lock, work folder, body, publish. What was finished before it is a hit."""

    def __init__(self, root: Path) -> None:
        self.root, self.tally = root, root / "tally"

    def prepare(self) -> None:
        self.root.mkdir(parents=True)
        with session(RuntimeConfig(root=str(self.root))):
            self._rows()

    def _rows(self) -> toys.Dataset:
        return toys.collect(toys.CollectConfig(tally=str(self.tally)))

    def act(self) -> None:
        with session(RuntimeConfig(root=str(self.root))):
            toys.train(toys.TrainConfig(), self._rows())

    def look(self) -> None:
        for states in (("made", "cached"), ("cached",)):
            with session(RuntimeConfig(root=str(self.root), drift=Drift.refuse)) as now:
                made = toys.train(toys.TrainConfig(), self._rows())
            assert now.records[0].state == "cached"
            assert now.records[1].state in states
            expected = {"model.safetensors": "0.5 a row", "tokenizer.json": "a b c"}
            assert content(now.store.fetch(made.ref())) == expected
        assert self.tally.read_text().split() == ["collect"]
        nothing_is_broken(self.root / "store")
