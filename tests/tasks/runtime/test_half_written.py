"""Files of the store's own that were cut, by a power cut or by hand: made or asked again, aloud, and never an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.runtime import Moving
from tasks.runtime.hashes import Hashes, file_sha256
from tasks.runtime.store import Store
from tests import toys
from tests.deaths import FILES, publish
from tests.toys import Open


@pytest.mark.parametrize("text", ["", '{"toy@main": {"mea', "[]", "null", '{"toy@main": 3}', '{"toy@main": {}}'])
def test_what_moving_names_mean_is_asked_again_where_it_cannot_be_read(
    store: Store, said: list[str], text: str
) -> None:
    place = store.root / "names.json"
    place.write_text(text)
    asked = iter(["commit-1", "commit-2"])
    moving = Moving("toy@main", lambda: next(asked))
    assert [store.resolve(moving), Store(store.root).resolve(moving)] == ["commit-1", "commit-1"]
    assert json.loads(place.read_text())["toy@main"]["means"] == "commit-1"
    assert said == [f"{place} cannot be read: what moving names mean is asked again."]


def in_half(place: Path) -> None:
    place.write_bytes(place.read_bytes()[: place.stat().st_size // 2])


def as_rubbish(place: Path) -> None:
    place.write_bytes(b"rubbish " * 1000)


def in_its_middle(place: Path) -> None:
    known = place.read_bytes()
    place.write_bytes(known[:4096] + b"\xff" * 2048 + known[6144:])


@pytest.mark.parametrize("broken", [in_half, as_rubbish, in_its_middle, lambda place: place.write_bytes(b"")])
def test_a_broken_memory_of_hashes_begins_anew(tmp_path: Path, broken: Callable[[Path], None]) -> None:
    said: list[str] = []
    files = [tmp_path / f"file-{number}" for number in range(60)]
    first = Hashes(tmp_path / "memory")
    for file in files:
        file.write_text(file.name)
        first.of(file, sealed=True)
    first._db.close()
    (place,) = (tmp_path / "memory").glob("*.sqlite")
    broken(place)
    for _ in range(2):
        memory = Hashes(tmp_path / "memory", said.append)
        assert [memory.of(file, sealed=True) for file in files] == [file_sha256(file) for file in files]
    assert said in ([], [f"{place} cannot be read: it is begun anew, and files are read again."])
    assert said or place.read_bytes()[:6] == b"SQLite"


def test_a_memory_that_breaks_while_it_is_used_begins_anew(tmp_path: Path) -> None:
    said: list[str] = []
    memory, file = Hashes(tmp_path / "memory", said.append), tmp_path / "file"
    file.write_text("one")
    memory.of(file, sealed=True)
    memory._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    as_rubbish(memory.place)
    assert Hashes(tmp_path / "memory", said.append).of(file, sealed=True) == memory.of(file, sealed=True)
    assert len(said) == 1


def test_a_memory_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("one")
    memory = Hashes(tmp_path / "memory")
    memory._db.execute("PRAGMA query_only = ON")  # as sqlite does on a full disk: every write fails
    assert [memory.of(file, sealed=True) for _ in range(2)] == [file_sha256(file)] * 2


def test_a_broken_memory_makes_no_finished_stage_run_again(
    opened: Open, tally: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened() as now:
        toys.collect(toys.CollectConfig(tally=str(tally)))
    now.store.hashes._db.close()
    as_rubbish(now.store.hashes.place)
    with opened() as now:
        toys.collect(toys.CollectConfig(tally=str(tally)))
    assert [record.state for record in now.records] == ["cached"] and tally.read_text().split() == ["collect"]
    assert "it is begun anew, and files are read again" in capsys.readouterr().err


def test_what_an_earlier_child_left_half_written_is_not_read(opened: Open) -> None:
    with opened(isolation="process") as now:
        with pytest.raises(RuntimeError, match="The knob is wrong"):
            toys.trouble(toys.TroubleConfig())
        (job,) = now.store.root.glob("work/trouble/*/job")
        for name in ("events.jsonl", "result.json", "job.json"):
            (job / name).write_text('{"metrics": {"lo')
        with pytest.raises(RuntimeError, match="The knob is wrong"):
            toys.trouble(toys.TroubleConfig())


def test_a_part_of_a_whole_that_was_altered_is_refused(store: Store) -> None:
    from tasks.runtime import Model
    from tests.deaths import ref

    made = publish(store, FILES)
    words = store.root / "objects" / made["digest"] / "tokenizer.json"
    words.chmod(0o644)
    words.write_text("other")
    with pytest.raises(RuntimeError, match=r"was altered after this run had found it\. Run the command again\."):
        store.localise(Model.of(ref(made)).tokenizer.ref())
