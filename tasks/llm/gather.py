"""Many rows at once: read them from files, count every one that is left out and why, sample, split, measure.

Sampling and splitting go by a hash of seed and content, so what falls where does not depend on the order of the rows.
"""

from __future__ import annotations

import difflib
import statistics
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.llm.messages import BadRow
from tasks.llm.rows import PAIR, SHAPES, Format, Kind, Row, answer_of, digest, normalise, prompt_of
from tasks.llm.tables import Record, TableError, read

EXAMPLES = 3
DUPLICATE, TOO_LONG, HELD_OUT = "duplicate", "too long", "prompt is held out"
WISHED = (DUPLICATE, TOO_LONG, HELD_OUT)
"""Reasons that are the user's own wish and no fault of the row."""


@dataclass
class Left:
    """The rows left out for one reason; the first few of them as `file:row detail`."""

    rows: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class Tally:
    """What became of every row."""

    rows: int = 0
    kept: int = 0
    left: dict[str, Left] = field(default_factory=dict)

    def leave(self, record: Record, reason: str, detail: str = "") -> None:
        left = self.left.setdefault(reason, Left())
        left.rows += 1
        if len(left.examples) < EXAMPLES:
            left.examples.append(f"{record.where} {detail}".strip())

    def add(self, other: Tally) -> None:
        self.rows += other.rows
        self.kept += other.kept
        for reason, left in other.left.items():
            mine = self.left.setdefault(reason, Left())
            mine.rows += left.rows
            mine.examples = (mine.examples + left.examples)[:EXAMPLES]

    @property
    def dropped(self) -> int:
        return sum(left.rows for left in self.left.values())

    @property
    def bad(self) -> dict[str, Left]:
        """The faults alone, the most frequent first."""
        faults = [(reason, left) for reason, left in self.left.items() if reason not in WISHED]
        return dict(sorted(faults, key=lambda fault: -fault[1].rows))

    def report(self) -> dict[str, Any]:
        reasons = {reason: {"rows": left.rows, "examples": left.examples} for reason, left in sorted(self.left.items())}
        return {"rows": self.rows, "kept": self.kept, "dropped": self.dropped, "reasons": reasons}


@dataclass
class Gather:
    """How rows are read. Call it with files by name: it gives the rows, and what became of the others."""

    kind: Kind
    shape: Format = Format.auto
    drop_duplicates: bool = True
    max_chars: int = 0
    """Longest row in characters, all its text together; 0 for no limit."""
    tick: Callable[[int, int], None] = lambda done, total: None
    """Told now and then how many bytes of how many are read."""

    def __call__(self, files: Mapping[str, Path], held_out: Collection[str] = ()) -> tuple[list[Row], Tally]:
        """`held_out`: keys of prompts (`prompt_key`) that must not be among the rows. Raises TableError."""
        kept: list[Row] = []
        tally = Tally()
        seen: set[str] = set()
        sizes = {name: path.stat().st_size for name, path in files.items()}
        before, total = 0, sum(sizes.values())
        for name, path in files.items():
            one = Tally()
            for record in read(name, path):
                if row := self._sift(record, one, seen, held_out):
                    kept.append(row)
                if one.rows % 1000 == 0:
                    self.tick(before + record.at, total)
            if one.rows and sum(left.rows for left in one.bad.values()) == one.rows:
                count = f"none of its {one.rows} rows can be read as {self.kind.value}"
                raise TableError(f"{name}: {count}. {self._why(one, path)}")
            tally.add(one)
            before += sizes[name]
            self.tick(before, total)
        return kept, tally

    def _sift(self, record: Record, tally: Tally, seen: set[str], held_out: Collection[str]) -> Row | None:
        """The record's row, or None and a line in the tally."""
        tally.rows += 1
        try:
            if record.problem:
                raise BadRow("cannot be parsed", record.problem)
            row = normalise(record.value, self.kind, self.shape)
            if self.max_chars and (size := characters(row)) > self.max_chars:
                raise BadRow(TOO_LONG, f"{size} characters")
            if held_out and prompt_key(row) in held_out:
                raise BadRow(HELD_OUT)
            if self.drop_duplicates and row["id"] in seen:
                raise BadRow(DUPLICATE)
        except BadRow as bad:
            tally.leave(record, bad.reason, bad.detail)
            return None
        seen.add(row["id"])
        tally.kept += 1
        return row

    def _why(self, tally: Tally, path: Path) -> str:
        """Of a file with no good row: its commonest fault, where, what was expected, the likely way out."""
        reason, left = next(iter(tally.bad.items()))
        first = next((r.value for r in read(path.name, path) if not r.problem), None)
        columns = list(first) if isinstance(first, Mapping) else []
        where, _, found = left.examples[0].partition(" ")
        fault = f"{where}: {reason}" + (f", {found}" if found else "")
        hint = self._hint(columns, path) if first is not None else ""  # columns that nobody could read
        return f"{fault}. Expected {expected(self.kind, self.shape)}. {hint}".strip()

    def _hint(self, columns: list[str], path: Path) -> str:
        if self._fits(columns):
            return ""
        here = self.kind.value
        if self.kind is not Kind.pairs and set(PAIR) <= set(columns):
            each = "" if self.kind is Kind.questions else " with an answer each"
            way = f"give rows{each}, or did you mean {Kind.pairs.value}.path?"
            return f"These look like preference pairs, not {here}: {way}"
        if self.kind is Kind.pairs and any(set(shape.columns) <= set(columns) for shape in SHAPES.values()):
            way = f"give rows with 'chosen' and 'rejected', or did you mean {Kind.chats.value}.path?"
            return f"These look like chats, not {here}: {way}"
        names = self._renames(columns)
        where = _NAMED_IN.get(path.suffix.lower(), "in every row")
        if names and self._fits([names.get(column, column) for column in columns]):
            said = " and ".join(f"'{old}' to '{new}'" for old, new in names.items())
            return f"Rename the column{'s' if len(names) > 1 else ''} {said} {where}."
        if self.kind is Kind.questions:
            return f"Rename the column of the question to 'prompt', that of an answer to 'completion' {where}."
        if self.kind is Kind.pairs:
            return f"Rename the columns of the question and its two answers to 'prompt', 'chosen', 'rejected' {where}."
        wanted = " and ".join(f"'{column}'" for column in self._wanted)
        what = "columns of the question and the answer" if len(self._wanted) > 1 else "column of the talk"
        return f"Rename the {what} to {wanted} {where}."

    @property
    def _wanted(self) -> tuple[str, ...]:
        """The columns to advise."""
        return SHAPES[self.shape if self.shape in SHAPES else Format.prompt_completion].columns

    def _fits(self, columns: list[str]) -> bool:
        shapes = [SHAPES[self.shape]] if self.shape in SHAPES else list(SHAPES.values())
        needed = [PAIR] if self.kind is Kind.pairs else [shape.columns for shape in shapes]
        return any(set(one) <= set(columns) for one in needed)

    def _renames(self, columns: list[str]) -> dict[str, str]:
        """Unknown column -> the known one it is a misspelling or another word of; each known one once."""
        known, found = known_columns(self.kind), dict[str, str]()
        for column in (c for c in columns if c not in known):
            word = column.strip().lower()
            near = [_MEANT[word]] if word in _MEANT else difflib.get_close_matches(word, known, 1, 0.6)
            if near and near[0] in known and near[0] not in (*columns, *found.values()):
                found[column] = near[0]
        return found


_MEANT = dict.fromkeys(("question", "query", "user"), "prompt")
_MEANT |= dict.fromkeys(("answer", "response", "reply", "assistant"), "completion")
_NAMED_IN = dict.fromkeys((".csv", ".tsv"), "in the file's first line") | {".parquet": "in the table"}


def expected(kind: Kind, shape: Format = Format.auto) -> str:
    """The columns that rows of a kind may have, in words."""
    if kind is Kind.pairs:
        return "the columns 'chosen' and 'rejected', and beside them 'prompt', 'instruction' or 'conversations'"
    shapes = [SHAPES[shape]] if shape in SHAPES else SHAPES.values()
    return "the columns " + ", or ".join(" and ".join(f"'{column}'" for column in s.columns) for s in shapes)


def known_columns(kind: Kind) -> list[str]:
    if kind is Kind.pairs:
        return [*PAIR, "prompt", "instruction", "input", "conversations", "system", "history"]
    return [*(column for shape in SHAPES.values() for column in shape.columns), "input", "system", "history"]


def prompt_key(row: Row) -> str:
    """The same for two rows that ask the same."""
    return digest(prompt_of(row))


def characters(row: Row) -> int:
    return sum(len(m["content"]) for m in prompt_of(row)) + len(answer_of(row)) + len(row.get("rejected", ""))


def few(rows: int) -> int:
    """How many to hold out of a small number of rows."""
    return max(rows // 5, min(rows - 1, 1))


def sample(rows: list[Row], size: int, seed: int) -> list[Row]:
    """`size` of the rows, in their order; all of them when there are fewer."""
    if len(rows) <= size:
        return rows
    lots = sorted(range(len(rows)), key=lambda i: (digest(["sample", seed, rows[i]["id"]]), i))
    return [rows[i] for i in sorted(lots[:size])]


def split(rows: list[Row], size: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Train and held-out rows. Rows that share a prompt stay together, so a few less than `size` may be held out."""
    keys = [prompt_key(row) for row in rows]
    groups: dict[str, int] = {}
    for key in keys:
        groups[key] = groups.get(key, 0) + 1
    held, room = set(), size
    for key in sorted(groups, key=lambda key: digest(["split", seed, key])):
        if groups[key] <= room:
            held.add(key)
            room -= groups[key]
    train = [row for row, key in zip(rows, keys, strict=True) if key not in held]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in held]


def lengths(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Characters of prompts and answers: least, middle, 95 of 100, most."""
    if not rows:
        return {}
    asked = sorted(sum(len(m["content"]) for m in prompt_of(row)) for row in rows)
    said = sorted(len(answer_of(row)) for row in rows)
    return {"prompt": _spread(asked), "answer": _spread(said)}


def _spread(sizes: list[int]) -> dict[str, float]:
    p95 = sizes[int(0.95 * (len(sizes) - 1))]
    return {"min": sizes[0], "median": statistics.median(sizes), "p95": p95, "max": sizes[-1]}
