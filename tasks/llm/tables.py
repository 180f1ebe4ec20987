"""Data files as streams of records: JSON, JSONL, CSV and Parquet, alone or as a folder or glob of one kind.

A record knows its file and row, so that every later complaint can name them. A line that cannot be parsed is a record
with a `problem`, to be counted like any other bad row; a file that cannot be read at all is a TableError.
"""

from __future__ import annotations

import csv
import difflib
import glob
import io
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# `.json` and `.jsonl` are two kinds: a folder of both mostly holds rows in one and notes about them in the other.
TOO_MANY_CELLS = "more cells than the header has columns; put text that holds the delimiter in quotes"
KINDS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


class TableError(ValueError):
    """A file, or a choice of files, that cannot be read; the message says what to do."""


@dataclass(frozen=True)
class Record:
    """One row as it stands in a file."""

    file: str
    """Name of the file, relative to the folder that was given."""
    number: int
    """From 1: the line of a JSONL file, the row a spreadsheet shows for a CSV file, else the index of the row."""
    value: Any
    """What stands there; a mapping of columns, if all is well."""
    at: int
    """Bytes of the file read so far, roughly: for a progress bar."""
    problem: str = ""
    """Why the row could not be parsed, and what to do."""

    @property
    def where(self) -> str:
        return f"{self.file}:{self.number}"


def find(path: str) -> dict[str, Path]:
    """The files under a path, a folder or a glob, by name and in the order of their names; all of one kind."""
    root = Path(path).expanduser()
    if root.is_file():
        found = {root.name: root}
    elif root.is_dir():
        found = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file() and _is_table(p, root)}
    else:
        fixed = Path(*_before_the_stars(root))
        found = {
            p.relative_to(fixed).as_posix(): p for p in map(Path, glob.glob(str(root), recursive=True)) if p.is_file()
        }
    if not found:
        raise TableError(f"{path}: {_nothing_found(root)}")
    kinds = {suffix: name for name, p in sorted(found.items(), reverse=True) for suffix in [p.suffix.lower()]}
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise TableError(f"{path}: cannot read {kinds[unknown[0]]}; give files that end in {', '.join(KINDS)}")
    if len(kinds) > 1:
        raise TableError(
            f"{path}: holds files of several kinds ({', '.join(sorted(kinds.values()))}); "
            f"choose one kind with a glob such as {path.rstrip('/')}/*{min(kinds)}"
        )
    return dict(sorted(found.items()))


def read(name: str, path: Path) -> Iterator[Record]:
    """The records of one file, in order. JSONL, CSV and Parquet are streamed; a JSON array is loaded whole."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet(name, path)
    elif suffix in (".csv", ".tsv"):
        yield from _csv(name, path, "\t" if suffix == ".tsv" else ",")
    elif suffix == ".jsonl" or _holds_lines(path):
        yield from _lines(name, path)
    else:
        yield from _array(name, path)


def missing(path: str) -> str:
    """A sentence on why nothing can be read at `path`, with the nearest name; empty when something stands there."""
    root = Path(path).expanduser()
    found = root.exists() or any(glob.iglob(str(root), recursive=True))
    return "" if found else f"{path}: {_nothing_found(root)}"


def _nothing_found(path: Path) -> str:
    if path.is_dir():
        return f"no data file in this folder; it should hold files that end in {', '.join(KINDS)}"
    return f"there is no such file, folder or glob; {nearest(path, KINDS)}"


def nearest(path: Path, suffixes: Collection[str]) -> str:
    """What may be meant by a path that does not exist: a name like it of a folder or of such a file."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    wrong = path.relative_to(folder).parts[0]
    there = sorted(p.name for p in folder.iterdir() if p.is_dir() or p.suffix.lower() in suffixes)
    near = difflib.get_close_matches(wrong, there, 2, 0.6)
    named = " or ".join(str(folder / name) for name in near)
    return f"did you mean {named}?" if near else f"look into {folder.resolve()}"


def _is_table(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and path.suffix.lower() in KINDS


def _before_the_stars(path: Path) -> tuple[str, ...]:
    parts = path.parts[:-1]
    starred = [i for i, part in enumerate(parts) if glob.has_magic(part)]
    return parts[: starred[0]] if starred else parts


def _holds_lines(path: Path) -> bool:
    """Whether a `.json` file is JSON Lines under another name, as many tools write it: one object on its first line."""
    with path.open("rb") as handle:
        first = handle.readline()
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def _lines(name: str, path: Path) -> Iterator[Record]:
    at = 0
    with path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            at += len(line)
            if not line.strip():
                continue
            try:
                yield Record(name, number, json.loads(line.decode("utf-8-sig")), at)
            except UnicodeDecodeError:
                yield Record(name, number, None, at, "not UTF-8; save the file as UTF-8")
            except (ValueError, RecursionError) as error:
                yield Record(name, number, None, at, f"not JSON ({error}); write one complete JSON object per line")


def _array(name: str, path: Path) -> Iterator[Record]:
    try:
        rows = json.loads(path.read_text("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise TableError(
            f"{name}:{error.lineno}: not JSON ({error.msg}, column {error.colno}); mend that line, or end the name in "
            ".jsonl if every line is a row of its own"
        ) from error
    except UnicodeDecodeError as error:
        raise TableError(f"{name}: not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if not isinstance(rows, list):
        found = f"{type(rows).__name__} with the keys {', '.join(rows)}" if isinstance(rows, dict) else repr(rows)[:60]
        raise TableError(f"{name}: holds one JSON {found}; write an array of rows: [{{...}}, {{...}}]")
    size = path.stat().st_size
    for number, row in enumerate(rows, 1):
        yield Record(name, number, row, size * number // len(rows))


def _csv(name: str, path: Path, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is shorter than a long conversation
    with path.open("rb") as raw:
        table = csv.DictReader(io.TextIOWrapper(raw, "utf-8-sig", newline=""), delimiter=delimiter)
        try:
            for number, row in enumerate(table, 2):  # row 1 is the header, as a spreadsheet counts
                yield Record(name, number, row, raw.tell(), TOO_MANY_CELLS if None in row else "")
        except UnicodeDecodeError as error:
            raise TableError(f"{name}: not UTF-8 (near line {table.line_num + 1}); save it as CSV UTF-8") from error
        except csv.Error as error:
            raise TableError(f"{name}:{table.line_num}: not CSV ({error}); mend that line") from error


def _parquet(name: str, path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        total, size, number = max(table.metadata.num_rows, 1), path.stat().st_size, 0
        for batch in table.iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield Record(name, number, row, size * number // total)
    except pyarrow.ArrowException as error:
        raise TableError(f"{name}: not a readable Parquet file ({error}); fetch or write it again") from error
