"""What the model is trained on, before it is: rendered rows with the tokens that bear loss coloured. Trains nothing.

python -m flows.preview                                          three rows of the bundled task
python -m flows.preview --rows 10 --html rows.html chats.path=mine.jsonl download=qwen3_0_6b encode.mask=assistant

It takes the overrides of flows.sft_then_dpo and walks the first stages of that road: what a run made is found, and what
is made here a run will find. Control tokens stand out, so a spelling of one that looks like other text is text.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from flows import report
from flows.compose import ConfigError, compose
from flows.sft_then_dpo import SFTThenDPO
from flows.surroundings import prepare_environment
from tasks.download import download
from tasks.encode import encode
from tasks.llm import preview
from tasks.preprocess import preprocess
from tasks.runtime import session
from tasks.runtime.stopping import Stopped

_STYLES = {(True, False): "bold green", (True, True): "bold green reverse", (False, True): "magenta"}
"""(bears loss, is a control token) -> how it looks."""


def main(argv: list[str] | None = None) -> int:
    """The exit code: 0, 1 where a stage failed, 2 where the config is wrong."""
    args = _parser().parse_intermixed_args(argv)
    say = Console(stderr=True, highlight=False)
    try:
        config = compose("sft_then_dpo", SFTThenDPO, args.overrides)
    except ConfigError as error:
        say.print(f"The config is wrong:\n{error}", markup=False, soft_wrap=True)
        return 2
    prepare_environment(config.runtime)
    try:
        tokenizer, rows, words = encoded(config)
    except Stopped as stop:
        say.print(f"{stop}.")
        return stop.code
    except Exception as error:
        say.print(str(error) or type(error).__name__, markup=False, soft_wrap=True)
        return 1
    show(Console(highlight=False), tokenizer, rows[: args.rows], words)
    if args.html:
        args.html.write_text(preview.page(tokenizer, rows[: args.rows], words), encoding="utf-8")
        print(f"{args.html}: the same as a page")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m flows.preview", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as flows.sft_then_dpo takes them")
    parser.add_argument("--rows", type=_positive, default=3, help="how many rows to show (3)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write them as one page that needs nothing else, too")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no number of rows; give 1 or more")
    return int(text)


def encoded(config: SFTThenDPO) -> tuple[Any, list[dict[str, Any]], list[str]]:
    """Tokenizer, rows to train on and the words of the proof, through the stages that a run has them from."""
    import pyarrow.parquet as pq

    from tasks.llm import models

    seats = {id(config.download): "download", id(config.chats): "chats", id(config.encode): "encode"}
    with session(config.runtime, seats=seats) as now:
        chats = preprocess(config.chats)  # what is wrong with rows is told before a long download
        base = download(config.download)
        tokens = encode(config.encode, base.tokenizer, chats)
        tokenizer = models.load_tokenizer(now.store.fetch(base.tokenizer.ref()))
        rows = pq.read_table(now.store.fetch(tokens.ref()) / "train.parquet").to_pylist()
        notes = now.store.root / now.records[-1].manifest["notes"] / "report.md"
        words = [line.removeprefix("* ") for line in notes.read_text(encoding="utf-8").splitlines()]
        left = [f"Left out: {text}" for name, text in report.remarks(now) if name == "left out"]
        return tokenizer, rows, [*words, *left]


def show(console: Console, tokenizer: Any, rows: list[dict[str, Any]], words: list[str]) -> None:
    plain = console.color_system is None
    for number, row in enumerate(rows, 1):
        for ids, labels in preview.documents(row):
            console.print(f"\nRow {number}: {preview.caption(ids, labels)}", style="bold")
            console.print(_coloured(preview.pieces(tokenizer, ids, labels), plain), soft_wrap=True)
    console.print()
    legend = Text("⟦what bears loss⟧") if plain else Text("bears loss", _STYLES[True, False])
    console.print(legend, Text("control token", _STYLES[False, True]), sep=", ")
    for line in words:
        console.print(line, markup=False, soft_wrap=True)


def _coloured(pieces: list[preview.Piece], plain: bool) -> Text:
    """Where there are no colours, what bears loss stands in brackets."""
    text, before = Text(), False
    for piece in [*pieces, preview.Piece("", False, False)]:
        if plain and piece.trained != before:
            text.append("⟦" if piece.trained else "⟧")
        text.append(piece.text, _STYLES.get((piece.trained, piece.control), ""))
        before = piece.trained
    return text


if __name__ == "__main__":
    sys.exit(main())
