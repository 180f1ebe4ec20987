"""`score.png` of a sweep: the score with its interval against what was swept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.leaderboard import Board, short
from flows.pictures import style
from flows.trials import State, Trial

_PANELS = 6


def draw(board: Board, place: Path) -> bool:
    """Write the picture; false, and no picture, where there is no score or nothing was turned.

    One knob: a line (values in words: points). Two: a line over the finer one for each value of the other. More, or
    too many values for lines: a panel for each knob.
    """
    scored = [trial for trial in board.trials if trial.score is not None]
    knobs = [knob for knob in board.knobs if len({t.swept[knob] for t in scored}) > 1][:_PANELS]
    if not knobs:
        return False
    across, lines = _plan(scored, knobs)
    with style.sheet(place, len(across), height=3.6, sharey=True) as panels:
        joined = len(across) == 1 and across[0].split(".")[-1] != "seed"  # there is nothing between two seeds
        for axes, knob in zip(panels, across, strict=True):
            _panel(axes, board, scored, knob, lines, joined)
        for axes in panels[::2]:
            axes.set_ylabel(f"{board.metric} (95 % interval)")
        if any(trial.state is not State.passed for trial in scored):
            panels[0].set_title("hollow: verdict failed")
    return True


def _plan(scored: list[Trial], knobs: list[str]) -> tuple[list[str], str]:
    """The knob of each panel, and the knob that has a line for each of its values."""
    if len(knobs) != 2:
        return knobs, ""
    values = {knob: {t.swept[knob] for t in scored} for knob in knobs}
    fine, coarse = sorted(knobs, key=lambda knob: (not _numbers(values[knob]), -len(values[knob])))
    if len(values[coarse]) <= len(style.COLOURS) and len(values[fine]) * len(values[coarse]) <= 2 * len(scored):
        return [fine], coarse
    return knobs, ""


def _panel(axes: Any, board: Board, scored: list[Trial], knob: str, lines: str, joined: bool) -> None:
    values = list(dict.fromkeys(t.swept[knob] for t in scored))
    numbers = _numbers(values)
    where = numbers or {value: float(n) for n, value in enumerate(values)}
    names = short(board.knobs)
    for n, series in enumerate(dict.fromkeys(t.swept.get(lines, "") for t in scored)):
        mine = sorted((t for t in scored if t.swept.get(lines, "") == series), key=lambda t: where[t.swept[knob]])
        shift = 0.0 if numbers else 0.08 * n
        label = f"{names[lines]}={series}" if lines else ""
        scores = [t.score or 0.0 for t in mine]
        spans = [t.interval or [t.score or 0.0] * 2 for t in mine]
        hollow = [t.state is not State.passed for t in mine]
        at = [where[t.swept[knob]] + shift for t in mine]
        style.whiskers(axes, at, scores, spans, n, label=label, joined=joined and bool(numbers), hollow=hollow)
    if best := board.best:
        axes.annotate("best", (where[best.swept[knob]], best.score), (6, 6), textcoords="offset points")
    if numbers and min(numbers.values()) > 0 and max(numbers.values()) >= 10 * min(numbers.values()):
        axes.set_xscale("log")
    if not numbers or len(values) <= 8:
        axes.set_xticks(list(where.values()), list(where), rotation=0 if max(map(len, where)) < 10 else 20)
        axes.minorticks_off()
    axes.margins(x=0.12)
    axes.set_xlabel(names[knob])
    if lines:
        axes.legend()


def _numbers(values: Sequence[str] | set[str]) -> dict[str, float]:
    """Value -> number, empty unless every value is one."""
    try:
        return {value: float(value) for value in values}
    except ValueError:
        return {}
