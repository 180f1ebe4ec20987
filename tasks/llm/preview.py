"""Encoded rows for the eye: their text with what bears loss coloured and every control token visible."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise
from typing import Any

from tasks.llm.masks import IGNORED

Row = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """Tokens that stand together and are alike, as text."""

    text: str
    trained: bool
    control: bool


def documents(row: Row) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and labels of each document of a row; of one that is not packed, itself."""
    ends = [0]
    for length in row.get("seq_lengths") or [len(row["input_ids"])]:
        ends.append(ends[-1] + length)
    for start, end in pairwise(ends):
        yield row["input_ids"][start:end], row["labels"][start:end]


def pieces(tokenizer: Any, ids: Sequence[int], labels: Sequence[int]) -> list[Piece]:
    """Text is taken from what the tokens before it do not say already: by itself, a first space may be lost."""
    control = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found, said, end = [], "", 0
    kinds = [(label != IGNORED, token in control) for token, label in zip(ids, labels, strict=True)]
    for (trained, special), alike in groupby(kinds):
        end += len(list(alike))
        text = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        found.append(Piece(text[len(said) :], trained, special))
        said = text
    return found


def caption(ids: Sequence[int], labels: Sequence[int]) -> str:
    trained = len(labels) - labels.count(IGNORED)
    return f"{len(ids):,} tokens, {trained:,} bear loss"


def page(tokenizer: Any, rows: Iterable[Row], words: Sequence[str]) -> str:
    """One HTML page that needs nothing else, for light and dark screens."""
    body = "".join(_section(tokenizer, number, row) for number, row in enumerate(rows, 1))
    proof = "".join(f"<li>{escape(line)}</li>" for line in words)
    return f"{_HEAD}<ul>{proof}</ul>{body}</body></html>\n"


def _section(tokenizer: Any, number: int, row: Row) -> str:
    parts = list(documents(row))
    texts = []
    for ids, labels in parts:
        marked = "".join(_marked(piece) for piece in pieces(tokenizer, ids, labels))
        texts.append(f"<small>{caption(ids, labels)}</small><pre>{marked}</pre>")
    packed = f", {len(parts)} packed" if len(parts) > 1 else ""
    return f"<section><h2>Row {number}{packed}</h2>{''.join(texts)}</section>"


def _marked(piece: Piece) -> str:
    kinds = " ".join(name for name in ("trained", "control") if getattr(piece, name))
    text = escape(piece.text)
    return f'<span class="{kinds}">{text}</span>' if kinds else text


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>What the model is trained on</title>
<style>
:root { color-scheme: light dark; --ink: #1c1f23; --paper: #fff; --quiet: #667; --line: #d8dbe0; --loss: #b9ecc6;
  --control: #8a3ffc }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --paper: #14171a; --quiet: #98a1ab; --line: #333a41;
  --loss: #14532d; --control: #c9a6ff } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem }
h2 { font-size: 1rem; margin: 1.5rem 0 0 } small { color: var(--quiet) }
pre { font: 13px/1.55 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .8rem;
  padding: .7rem; border: 1px solid var(--line); border-radius: 6px }
.trained { background: var(--loss) } .control { color: var(--control); font-weight: 600 }
</style></head><body>
<h1>What the model is trained on</h1>
<p><span class="trained">Coloured</span> tokens bear loss; <span class="control">control tokens</span> stand out, so a
spelling of one that looks like any other text is text.</p>
"""
