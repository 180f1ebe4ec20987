"""Reading data files: what stands where, and what is said when it cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.llm.tables import Record, TableError, find, missing, read

ROWS = [{"prompt": "Größe?", "completion": "12 cm"}, {"prompt": "two\nlines", "completion": 'said "so"'}]


def records(path: Path) -> list[Record]:
    return list(read(path.name, path))


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


def test_json_jsonl_csv_tsv_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    import pandas

    table = pandas.DataFrame(ROWS)
    write(tmp_path / "a.json", json.dumps(ROWS))
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, ROWS)))
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    table.to_parquet(tmp_path / "a.parquet")
    for path in tmp_path.iterdir():
        assert [record.value for record in records(path)] == ROWS, path.suffix


def test_a_record_names_the_line_an_editor_shows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2}\n')
    assert [record.where for record in records(path)] == ["a.jsonl:1", "a.jsonl:3"]


def test_a_csv_record_names_the_row_a_spreadsheet_shows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'q,a\n"two\nlines",x\nnext,y\n')
    assert [record.number for record in records(path)] == [2, 3]


def test_a_broken_line_says_what_to_do_and_the_lines_after_it_are_read(tmp_path: Path) -> None:
    good, bad, after = records(write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": \n{"a": 3}\n'))
    assert (good.problem, after.value) == ("", {"a": 3})
    assert bad.where == "a.jsonl:2"
    assert "one complete JSON object per line" in bad.problem


def test_a_line_in_another_encoding_is_a_problem_of_that_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "\xe4"}\n{"a": "ok"}\n')
    bad, good = records(tmp_path / "a.jsonl")
    assert "UTF-8" in bad.problem
    assert good.value == {"a": "ok"}


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path) -> None:
    for name, text in (("a.jsonl", '{"q": 1}\n'), ("a.json", '[{"q": 1}]'), ("a.csv", "q\n1\n")):
        (record,) = records(write(tmp_path / name, text, "utf-8-sig"))
        assert list(record.value) == ["q"]


def test_a_json_file_of_lines_is_read_as_lines(tmp_path: Path) -> None:
    assert len(records(write(tmp_path / "a.json", '{"a": 1}\n{"a": 2}\n'))) == 2


def test_a_broken_json_array_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"a\.json:2: not JSON .* mend that line"):
        records(write(tmp_path / "a.json", '[{"a": 1},\n {"a" 2}]'))


def test_a_json_object_instead_of_an_array_names_its_keys(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="with the keys data, version; write an array"):
        records(write(tmp_path / "a.json", '{\n"data": [],\n"version": 1}'))


def test_a_csv_row_with_too_many_cells_says_so(tmp_path: Path) -> None:
    (record,) = records(write(tmp_path / "a.csv", "q,a\nwell, then,x\n"))
    assert "more cells than the header" in record.problem


def test_a_csv_in_another_encoding_says_how_to_save_it(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="save it as CSV UTF-8"):
        records(write(tmp_path / "a.csv", "q,a\nGröße,x\n", "latin-1"))


def test_a_file_that_only_ends_in_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="not a readable Parquet file"):
        records(write(tmp_path / "a.parquet", "no"))


def test_a_folder_is_read_in_the_order_of_names_and_without_hidden_or_other_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "deeper/c.jsonl", ".hidden/d.jsonl", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "{}")
    assert list(find(str(tmp_path))) == ["a.jsonl", "b.jsonl", "deeper/c.jsonl"]


def test_a_glob_takes_what_it_matches(tmp_path: Path) -> None:
    for name in ("train-0.csv", "train-1.csv", "test-0.csv"):
        write(tmp_path / name, "q\n1\n")
    assert list(find(str(tmp_path / "train-*.csv"))) == ["train-0.csv", "train-1.csv"]


def test_a_folder_of_two_kinds_asks_for_one(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "q\n1\n")
    write(tmp_path / "b.jsonl", "{}")
    with pytest.raises(TableError, match=r"several kinds \(a\.csv, b\.jsonl\); choose one kind with a glob"):
        find(str(tmp_path))


def test_a_file_of_an_unknown_kind_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"cannot read a\.xlsx; give files that end in \.json"):
        find(str(write(tmp_path / "a.xlsx", "")))


def test_a_misspelled_file_or_folder_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "chats.jsonl", "{}")
    assert "did you mean" in missing(str(tmp_path / "mine" / "chat.jsonl"))
    assert str(tmp_path / "mine" / "chats.jsonl") in missing(str(tmp_path / "mine" / "chat.jsonl"))
    assert str(tmp_path / "mine") in missing(str(tmp_path / "mien" / "chats.jsonl"))
    assert missing(str(tmp_path / "mine" / "*.jsonl")) == ""


def test_an_empty_folder_says_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no data file in this folder"):
        find(str(tmp_path))
