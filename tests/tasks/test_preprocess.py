"""preprocess: rows in, checked rows out, and a word on every row that is not among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.llm.rows import Format, Kind, read_split
from tasks.llm.tables import TableError
from tasks.preprocess import OnBadRows, PreprocessConfig, preprocess
from tasks.runtime import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folders = {name: tmp_path / "run" / name for name in ("out", "notes", "work")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    return Run(**folders)


def file(path: Path, *rows: Any) -> str:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return str(path)


def numbered(path: Path, count: int) -> str:
    return file(path, *({"prompt": f"{i}?", "completion": f"{i}!"} for i in range(count)))


def written(run: Run, name: str) -> list[dict[str, Any]]:
    return list(read_split(run.out, name))


def report(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.notes / "report.json").read_text("utf-8"))
    return found


def test_chats_are_split_and_every_row_is_accounted_for(run: Run, tmp_path: Path) -> None:
    cfg = PreprocessConfig(path=numbered(tmp_path / "a.jsonl", 40), eval_fraction=0.1)
    assert preprocess.body(run, cfg) == {"rows": 40, "train": 36, "eval": 4, "dropped": 0}
    assert len({row["id"] for name in ("train", "eval") for row in written(run, name)}) == 40


def test_prompts_are_all_held_out(run: Run, tmp_path: Path) -> None:
    preprocess.body(run, PreprocessConfig(kind=Kind.prompts, path=numbered(tmp_path / "a.jsonl", 3)))
    assert (written(run, "train"), len(written(run, "eval"))) == ([], 3)
    assert written(run, "eval")[0]["answer"] == "0!"


def test_content_is_utf8_with_sorted_keys_and_the_rows_in_their_order(run: Run, tmp_path: Path) -> None:
    rows = ({"prompt": text, "completion": "ü"} for text in "cab")
    preprocess.body(run, PreprocessConfig(path=file(tmp_path / "a.jsonl", *rows)))
    lines = (run.out / "train.jsonl").read_bytes().decode("utf-8").splitlines()
    assert [json.loads(line)["messages"][0]["content"] for line in lines] == ["c", "a", "b"]
    assert "ü" in lines[0]
    assert lines[0] == json.dumps(json.loads(lines[0]), sort_keys=True, ensure_ascii=False)


def test_content_does_not_know_where_the_rows_came_from(run: Run, tmp_path: Path) -> None:
    contents = []
    for name in ("one.jsonl", "another.jsonl"):
        preprocess.body(run, PreprocessConfig(path=numbered(tmp_path / name, 5)))
        contents.append((run.out / "train.jsonl").read_bytes())
    assert contents[0] == contents[1]


def test_held_out_rows_of_their_own_leave_train_and_are_not_split_again(run: Run, tmp_path: Path) -> None:
    train, held = numbered(tmp_path / "a.jsonl", 10), numbered(tmp_path / "b.jsonl", 3)
    metrics = preprocess.body(run, PreprocessConfig(path=train, eval_path=held))
    assert metrics == {"rows": 13, "train": 7, "eval": 3, "dropped": 3}
    assert report(run)["reasons"]["prompt is held out"]["rows"] == 3


def test_a_sample_is_told_apart_from_dropped_rows(run: Run, tmp_path: Path) -> None:
    cfg = PreprocessConfig(path=numbered(tmp_path / "a.jsonl", 10), max_rows=4)
    assert preprocess.body(run, cfg) == {"rows": 10, "train": 4, "eval": 0, "dropped": 0}
    assert report(run)["not_sampled"] == 6


def test_bad_rows_are_dropped_and_counted_or_fail_the_stage_with_their_places(run: Run, tmp_path: Path) -> None:
    path = file(
        tmp_path / "a.jsonl", {"prompt": "a", "completion": "b"}, {"prompt": "a"}, {"prompt": "a", "completion": ""}
    )
    assert preprocess.body(run, PreprocessConfig(path=path))["dropped"] == 2
    with pytest.raises(TableError) as error:
        preprocess.body(run, PreprocessConfig(path=path, on_bad_rows=OnBadRows.fail))
    for word in ("2 of 3 rows", "a.jsonl:2", "a.jsonl:3", "on_bad_rows=drop"):
        assert word in str(error.value)


def test_a_duplicate_is_no_bad_row(run: Run, tmp_path: Path) -> None:
    path = file(tmp_path / "a.jsonl", *[{"prompt": "a", "completion": "b"}] * 2)
    assert preprocess.body(run, PreprocessConfig(path=path, on_bad_rows=OnBadRows.fail))["train"] == 1


def test_too_few_rows_are_an_error_that_says_where_the_others_went(run: Run, tmp_path: Path) -> None:
    path = file(tmp_path / "a.jsonl", *[{"prompt": "a", "completion": "b"}] * 5)
    with pytest.raises(TableError, match=r"only 1 of 5 rows are left, and 3 must be .* duplicate 4"):
        preprocess.body(run, PreprocessConfig(path=path, min_rows=3))


@pytest.mark.parametrize("text", ["", "prompt,completion\n"])
def test_a_file_without_rows_is_named(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "bare.csv").write_text(text)
    with pytest.raises(TableError, match=r"bare\.csv has no rows: give rows"):
        preprocess.body(run, PreprocessConfig(path=str(tmp_path / "bare.csv")))


def test_the_rows_that_max_rows_takes_are_told_from_those_of_the_file(run: Run, tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"a\.jsonl has 9 rows, max_rows takes 4 of them, and eval_rows holds out 5"):
        preprocess.body(run, PreprocessConfig(path=numbered(tmp_path / "a.jsonl", 9), max_rows=4, eval_rows=5))


def test_holding_out_everything_is_an_error(run: Run, tmp_path: Path) -> None:
    with pytest.raises(TableError) as error:
        preprocess.body(run, PreprocessConfig(path=numbered(tmp_path / "a.jsonl", 10), eval_rows=16))
    said = str(error.value)
    assert said.startswith("a.jsonl has 10 rows and eval_rows holds out 16 (what suits the bundled data")
    assert said.endswith("set chats.eval_rows=2.")
    with pytest.raises(TableError, match=r"a\.jsonl has 1 row and eval_fraction holds out 1"):
        preprocess.body(run, PreprocessConfig(path=numbered(tmp_path / "a.jsonl", 1), eval_fraction=0.1))


def test_where_rows_are_lost_a_split_that_fails_says_so_first(run: Run, tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 1)
    with open(path, "a") as rows:
        rows.write('\n{"prompt": "cut')
    with pytest.raises(TableError, match=r"^1 of 2 rows do not fit\. cannot be parsed \(1\): a\.jsonl:2 .*") as error:
        preprocess.body(run, PreprocessConfig(path=path, eval_rows=8))
    assert "Mend them. Without them a.jsonl has 1 row and eval_rows holds out 8" in str(error.value)


def test_rows_that_all_share_one_prompt_cannot_be_split(run: Run, tmp_path: Path) -> None:
    path = file(tmp_path / "a.jsonl", *({"prompt": "same", "completion": str(i)} for i in range(10)))
    with pytest.raises(TableError, match="share one prompt"):
        preprocess.body(run, PreprocessConfig(path=path, eval_rows=2))


def test_a_data_set_of_the_hub_is_fetched_by_its_commit(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.llm import hub

    asked: list[Any] = []

    def download(repo: str, commit: str, folder: Path, progress: Any, **more: Any) -> None:
        asked.append((repo, commit, more["kind"], more["patterns"]))
        (folder / "data").mkdir(parents=True)
        numbered(folder / "data" / "train-0.jsonl", 3)

    monkeypatch.setattr(hub, "resolve", lambda repo, revision, kind: f"commit of {revision}")
    monkeypatch.setattr(hub, "download", download)
    cfg = PreprocessConfig(repo="owner/set", files=["data/train-*.jsonl"])
    assert preprocess.body(run, cfg)["train"] == 3
    assert asked == [("owner/set", "commit of main", "dataset", ["data/train-*.jsonl"])]


def test_all_problems_are_told_at_once() -> None:
    cfg = PreprocessConfig(
        kind=Kind.prompts,
        path="no/such.jsonl",
        repo="owner/set",
        format=Format.preference,
        eval_fraction=2.0,
        min_rows=0,
    )
    text = "\n".join(cfg.problems())
    for word in (
        "no/such.jsonl",
        "give one of them",
        "files=[",
        "format=preference",
        "eval_fraction=2.0",
        "min_rows=0",
    ):
        assert word in text
    assert "kind=prompts holds out every row already" in text


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "no data given"),
        ({"files": ["*.csv"], "path": "data"}, "files belongs to repo"),
        ({"path": "data", "eval_rows": 3, "eval_fraction": 0.1}, "eval_fraction and eval_rows each say"),
        ({"path": "data", "eval_rows": -1}, "eval_rows=-1"),
        ({"path": "data", "kind": Kind.pairs, "format": Format.alpaca}, "does not go with kind=pairs"),
    ],
)
def test_a_problem_says_what_to_do(wrong: dict[str, Any], says: str) -> None:
    assert says in "\n".join(PreprocessConfig(**wrong).problems())


@pytest.mark.parametrize(("name", "rows"), [("chats", 400), ("pairs", 160), ("prompts", 300)])
def test_the_bundled_presets_read_without_a_dropped_row(run: Run, name: str, rows: int) -> None:
    import yaml

    preset = yaml.safe_load((ROOT / f"conf/preprocess/tickets_{name}.yaml").read_text("utf-8"))
    places = {"kind": Kind(preset["kind"]), "path": str(ROOT / preset["path"])}
    cfg = PreprocessConfig(**preset | places)
    assert list(cfg.problems()) == []
    metrics = preprocess.body(run, cfg)
    assert (metrics["rows"], metrics["dropped"]) == (rows, 0)
    assert metrics["train"] + metrics["eval"] == (cfg.max_rows or rows)
