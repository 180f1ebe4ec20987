"""Many rows: all are accounted for, and what is sampled or held out depends on content and seed alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.llm.gather import Gather, lengths, prompt_key, sample, split
from tasks.llm.rows import Kind, Row, normalise
from tasks.llm.tables import TableError


def row(question: str, answer: str = "yes") -> dict[str, str]:
    return {"prompt": question, "completion": answer}


def rows(count: int) -> list[Row]:
    return [normalise(row(f"question {i}"), Kind.chats) for i in range(count)]


def write(path: Path, *values: Any) -> dict[str, Path]:
    path.write_text("\n".join(json.dumps(value) for value in values), encoding="utf-8")
    return {path.name: path}


def test_every_row_is_kept_or_counted_with_its_first_three_places(tmp_path: Path) -> None:
    faults = [row(f"empty {i}", "") for i in range(5)]
    kept, tally = Gather(Kind.chats)(write(tmp_path / "a.jsonl", row("one"), row("one"), *faults, row("two")))
    assert len(kept) == tally.kept == 2
    assert tally.report() == {
        "rows": 8,
        "kept": 2,
        "dropped": 6,
        "reasons": {
            "duplicate": {"rows": 1, "examples": ["a.jsonl:2"]},
            "empty answer": {"rows": 5, "examples": ["a.jsonl:3", "a.jsonl:4", "a.jsonl:5"]},
        },
    }


def test_duplicates_are_found_across_files_and_kept_on_wish(tmp_path: Path) -> None:
    files = write(tmp_path / "a.jsonl", row("one")) | write(tmp_path / "b.jsonl", row("one"), row("two"))
    assert len(Gather(Kind.chats)(files)[0]) == 2
    assert len(Gather(Kind.chats, drop_duplicates=False)(files)[0]) == 3


def test_rows_that_are_too_long_or_held_out_are_left_out_and_are_no_fault(tmp_path: Path) -> None:
    held_out = {prompt_key(normalise(row("secret"), Kind.prompts))}
    files = write(tmp_path / "a.jsonl", row("x" * 50), row("secret", "other answer"), row("fine"))
    kept, tally = Gather(Kind.chats, max_chars=40)(files, held_out)
    assert [r["messages"][0]["content"] for r in kept] == ["fine"]
    assert sorted(tally.left) == ["prompt is held out", "too long"]
    assert not tally.bad


def test_a_file_without_one_good_row_is_an_error_that_names_file_row_and_the_nearest_columns(tmp_path: Path) -> None:
    files = write(tmp_path / "a.jsonl", *[{"Prompt": "a", "completions": "b", "id": 1}] * 3)
    with pytest.raises(TableError) as error:
        Gather(Kind.chats)(files)
    assert str(error.value) == (
        "a.jsonl: none of its 3 rows can be read as chats. "
        "a.jsonl:1: missing column, found 'Prompt', 'completions', 'id'. "
        "Expected the columns 'messages', or 'conversations', or 'instruction' and 'output', "
        "or 'prompt' and 'completion'. "
        "Rename the columns 'Prompt' to 'prompt' and 'completions' to 'completion' in every row."
    )


def test_one_bad_file_among_good_ones_is_found(tmp_path: Path) -> None:
    files = write(tmp_path / "a.jsonl", row("one")) | write(tmp_path / "b.jsonl", {"text": "a"})
    with pytest.raises(TableError, match=r"b\.jsonl: none of its 1 rows"):
        Gather(Kind.chats)(files)


def test_pairs_read_as_chats_and_chats_read_as_pairs_say_which_kind_they_are(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"preference pairs, not chats: .* did you mean pairs\.path\?"):
        Gather(Kind.chats)(write(tmp_path / "a.jsonl", {"prompt": "a", "chosen": "b", "rejected": "c"}))
    with pytest.raises(TableError, match=r"chats, not pairs: .* did you mean chats\.path\?"):
        Gather(Kind.pairs)(write(tmp_path / "a.jsonl", row("one")))


@pytest.mark.parametrize(
    ("kind", "header", "says"),
    [
        (
            Kind.chats,
            "question,answer",
            "Rename the columns 'question' to 'prompt' and 'answer' to 'completion' in the",
        ),
        (Kind.chats, "promt,completion", "Rename the column 'promt' to 'prompt' in the file's first line."),
        (
            Kind.chats,
            "a,b",
            "Rename the columns of the question and the answer to 'prompt' and 'completion' in the file",
        ),
        (Kind.prompts, "promt,b", "Rename the columns of the question and the answer to 'prompt' and 'completion'"),
        (Kind.pairs, "chosen,rejectd", "Rename the column 'rejectd' to 'rejected' in the file's first line."),
        (Kind.pairs, "good,bad", "to 'prompt', 'chosen', 'rejected' in the file's first line."),
    ],
)
def test_unknown_columns_are_told_their_new_names(tmp_path: Path, kind: Kind, header: str, says: str) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\none,two\n")
    with pytest.raises(TableError) as error:
        Gather(kind)({"a.csv": tmp_path / "a.csv"})
    assert says in str(error.value)


def test_rows_whose_columns_are_right_are_not_told_to_rename_them(tmp_path: Path) -> None:
    with pytest.raises(TableError) as error:
        Gather(Kind.chats)(write(tmp_path / "a.jsonl", {"prompt": "a", "completion": "", "prompts": 1}))
    assert "empty answer" in str(error.value) and "Rename" not in str(error.value)


def test_a_file_of_broken_lines_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{\n"prompt": "a"\n}')
    with pytest.raises(TableError, match="write one complete JSON object per line"):
        Gather(Kind.chats)({"a.jsonl": tmp_path / "a.jsonl"})


def test_a_split_is_disjoint_complete_and_of_the_size_asked_for() -> None:
    train, held = split(rows(100), 10, seed=0)
    assert (len(train), len(held)) == (90, 10)
    assert not {prompt_key(r) for r in train} & {prompt_key(r) for r in held}


def test_the_same_prompt_never_stands_on_both_sides() -> None:
    asked = [normalise(row(f"question {i % 20}", f"answer {i}"), Kind.chats) for i in range(100)]
    train, held = split(asked, 23, seed=0)
    assert len(held) == 20  # whole groups of five
    assert not {prompt_key(r) for r in train} & {prompt_key(r) for r in held}


def test_a_split_does_not_depend_on_the_order_of_rows_but_on_the_seed() -> None:
    ids = [
        {r["id"] for r in split(list(some), 10, seed)[1]}
        for some, seed in ((rows(100), 0), (rows(100)[::-1], 0), (rows(100), 1))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_a_sample_keeps_the_order_and_does_not_depend_on_it() -> None:
    some = sample(rows(100), 10, seed=0)
    assert some == [r for r in rows(100) if r in some]
    assert {r["id"] for r in some} == {r["id"] for r in sample(rows(100)[::-1], 10, seed=0)}
    assert {r["id"] for r in some} != {r["id"] for r in sample(rows(100), 10, seed=1)}
    assert len(sample(rows(3), 10, seed=0)) == 3


def test_lengths_are_those_of_prompts_and_answers() -> None:
    measured = lengths([normalise(row("x" * n, "y"), Kind.chats) for n in (1, 2, 9)])
    assert measured["prompt"] == {"min": 1, "median": 2, "p95": 2, "max": 9}
    assert measured["answer"]["max"] == 1
    assert lengths([]) == {}


def test_progress_ends_at_all_bytes(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    Gather(Kind.chats, tick=lambda done, total: told.append((done, total)))(write(tmp_path / "a.jsonl", row("one")))
    assert told[-1][0] == told[-1][1] == (tmp_path / "a.jsonl").stat().st_size
