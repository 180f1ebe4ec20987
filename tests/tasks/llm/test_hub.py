"""Downloads from a model hub, against a small one on loopback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.llm import hub as ours
from tasks.llm.hub import HubError, Unreachable
from tests.fake_hub import FakeHub, Get, blob_id, content, sha256

WEIGHTS = bytes(range(256)) * 1500  # more than one read of a socket
TINY = {".gitattributes": b"x", "config.json": b'{"a": 1}', "README.md": b"", "model.safetensors": WEIGHTS}


def patiently(attempt: Callable[[], dict[str, bytes]], tries: int = 3) -> dict[str, bytes]:
    """What the runtime does around a stage: try again on a ConnectionError, on nothing else."""
    for _ in range(tries - 1):
        try:
            return attempt()
        except ConnectionError:
            pass
    return attempt()


def test_main_is_resolved_to_the_commit_it_points_at_now(hub: FakeHub) -> None:
    first = hub.push("acme/tiny", TINY)
    assert ours.resolve("acme/tiny", "main") == first
    second = hub.push("acme/tiny", TINY | {"config.json": b"{}"})
    assert ours.resolve("acme/tiny", "main") == second != first


def test_a_commit_needs_no_network(hub: FakeHub) -> None:
    assert ours.resolve("acme/tiny", "0" * 40) == "0" * 40
    assert not hub.seen


def test_the_files_of_a_commit_arrive_byte_for_byte(hub: FakeHub, get: Get) -> None:
    commit = hub.push("acme/tiny", TINY)
    hub.push("acme/tiny", TINY | {"config.json": b"newer"})
    assert get("acme/tiny", commit) == {name: TINY[name] for name in TINY if name != ".gitattributes"}


def test_a_folder_holds_real_files_and_nothing_of_the_client(hub: FakeHub, get: Get, tmp_path: Path) -> None:
    get("acme/tiny", hub.push("acme/tiny", TINY))
    assert not any(path.is_symlink() or path.name.startswith(".") for path in (tmp_path / "out").rglob("*"))
    assert not content(tmp_path / "work")


def test_progress_counts_bytes_up_to_all_of_them(hub: FakeHub, get: Get) -> None:
    told: list[tuple[int, int, str]] = []
    get("acme/tiny", hub.push("acme/tiny", TINY), progress=lambda *step: told.append(step))
    total = len(WEIGHTS) + len(TINY["config.json"])
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1] == (total, total, "model.safetensors")
    assert len([1 for _, _, what in told if what == "model.safetensors"]) > 2


def test_safetensors_are_chosen_over_every_other_form_of_the_weights(hub: FakeHub) -> None:
    other = [
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "tf_model.h5",
        "flax_model.msgpack",
        "x.gguf",
        "old.pt",
    ]
    other += ["onnx/model.onnx", "original/params.json", "original/consolidated.00.pth", "consolidated.safetensors"]
    commit = hub.push(
        "acme/tiny", TINY | {"tokenizer.model": b"t", "modeling_tiny.py": b""} | dict.fromkeys(other, b"x")
    )
    names = {file.name for file in ours.files("acme/tiny", commit)}
    assert names == {"config.json", "README.md", "model.safetensors", "tokenizer.model", "modeling_tiny.py"}


def test_a_repo_with_pickles_only_is_refused_before_a_byte_is_fetched(hub: FakeHub, get: Get) -> None:
    commit = hub.push("acme/old", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(HubError, match=r"only as pickle files \(pytorch_model.bin\).* a revision with safetensors"):
        get("acme/old", commit)
    assert not hub.paths("/resolve/")


def test_a_repo_with_gguf_only_names_the_preset_for_it(hub: FakeHub) -> None:
    with pytest.raises(HubError, match=r"only GGUF files \(m.gguf\).*download=gguf"):
        ours.files("acme/q", hub.push("acme/q", {"m.gguf": b"x"}))


def test_patterns_narrow_the_choice_and_an_empty_one_says_what_there_is(hub: FakeHub) -> None:
    commit = hub.push("acme/tiny", TINY)
    assert [file.name for file in ours.files("acme/tiny", commit, patterns=["*.json"])] == ["config.json"]
    with pytest.raises(HubError, match=r"config\.json, README\.md, model\.safetensors"):
        ours.files("acme/tiny", commit, patterns=["*.txt"])


def test_a_data_set_is_its_tables_in_any_folder(hub: FakeHub, get: Get) -> None:
    tables = {"train.jsonl": b"{}\n", "data/test.parquet": b"PAR1", "a.csv": b"a", "b.json": b"[]"}
    commit = hub.push("acme/rows", tables | {"README.md": b"", "picture.png": b"", "load.py": b""}, kind="dataset")
    assert ours.resolve("acme/rows", "main", "dataset") == commit
    assert get("acme/rows", commit, kind="dataset") == tables
    some = ours.files("acme/rows", commit, "dataset", patterns=["data/*", "*.csv"], ignore=["a.*"])
    assert [file.name for file in some] == ["data/test.parquet"]


def test_a_data_set_without_tables_says_which_formats_are_read(hub: FakeHub) -> None:
    with pytest.raises(HubError, match=r"no json, jsonl, csv or parquet file, only load\.py"):
        ours.files("acme/rows", hub.push("acme/rows", {"load.py": b""}, kind="dataset"), "dataset")


def test_503_is_said_at_once_and_the_third_attempt_succeeds(hub: FakeHub, get: Get) -> None:
    commit = hub.push("acme/tiny", TINY)
    hub.fail(503, times=2, where="model.safetensors")
    with pytest.raises(Unreachable, match=r"answered 503 for acme/tiny: it is busy or down"):
        get("acme/tiny", commit)
    assert len(hub.paths("model.safetensors")) == 1
    assert patiently(lambda: get("acme/tiny", commit))["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_listing_that_fails_twice_and_then_comes_is_enough(hub: FakeHub, status: int) -> None:
    commit = hub.push("acme/tiny", TINY)
    hub.fail(status, times=2)
    for _ in range(2):
        with pytest.raises(Unreachable):
            ours.resolve("acme/tiny", "main")
    assert ours.resolve("acme/tiny", "main") == commit


@pytest.mark.parametrize("how", ["cut", "shorten"])
def test_a_body_cut_short_is_taken_up_where_it_broke(hub: FakeHub, get: Get, how: str) -> None:
    getattr(hub, how)("model.safetensors", after=200_000)
    assert get("acme/tiny", hub.push("acme/tiny", TINY))["model.safetensors"] == WEIGHTS
    ranges = [headers["Range"] for server, _, headers in hub.seen if server == "storage"]
    assert ranges == [None, "bytes=200000-"]


def test_a_server_that_ignores_ranges_sends_the_file_again(hub: FakeHub, get: Get) -> None:
    hub.ranges = False
    hub.cut("model.safetensors", after=200_000)
    assert get("acme/tiny", hub.push("acme/tiny", TINY))["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize("how", ["cut", "shorten"])
def test_a_connection_that_brings_nothing_is_unreachable_and_the_next_attempt_goes_on(
    hub: FakeHub, get: Get, tmp_path: Path, how: str
) -> None:
    commit = hub.push("acme/tiny", TINY)
    getattr(hub, how)("model.safetensors", after=200_000)
    getattr(hub, how)("model.safetensors", after=0)
    with pytest.raises(Unreachable, match="acme/tiny"):
        get("acme/tiny", commit)
    assert not content(tmp_path / "out")
    hub.seen.clear()
    assert get("acme/tiny", commit)["model.safetensors"] == WEIGHTS
    assert [h["Range"] for server, _, h in hub.seen if server == "storage"] == ["bytes=200000-"]
    assert not hub.paths("config.json")


def test_a_small_file_cut_short_is_retryable_too(hub: FakeHub, get: Get) -> None:
    commit = hub.push("acme/tiny", TINY)
    hub.cut("config.json", after=0, times=2)
    assert patiently(lambda: get("acme/tiny", commit))["config.json"] == TINY["config.json"]


@pytest.mark.parametrize(("name", "digest"), [("model.safetensors", sha256), ("config.json", blob_id)])
def test_a_wrong_byte_names_file_and_both_digests_and_leaves_nothing(
    hub: FakeHub, get: Get, tmp_path: Path, name: str, digest: Callable[[bytes], str]
) -> None:
    commit = hub.push("acme/tiny", TINY)
    hub.corrupt(name)
    arrived = bytes([TINY[name][0] ^ 1]) + TINY[name][1:]
    with pytest.raises(HubError, match=f"{name} of acme/tiny .*{digest(TINY[name])}.*{digest(arrived)}"):
        get("acme/tiny", commit)
    assert not content(tmp_path / "out")
    assert not [path for path in content(tmp_path / "work") if path.endswith(name)]
    assert get("acme/tiny", commit)[name] == TINY[name]
