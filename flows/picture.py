"""`score.png` of a sweep: the score with its interval against what was swept, readable on light and on dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.leaderboard import Board, short
from flows.trials import State, Trial

_INK = "#808080"
"""Half-way between black and white, on no background: the page's own shows through."""
_COLOURS = ("#2a8fd8", "#e07b1a", "#2fa35c", "#c14f9c", "#8b6fe0", "#b0902a")
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
    from matplotlib.figure import Figure

    across, lines = _plan(scored, knobs)
    figure = Figure(figsize=(1.5 + 4.5 * len(across), 4.2), layout="constrained")
    panels = figure.subplots(1, len(across), sharey=True, squeeze=False)[0]
    for axes, knob in zip(panels, across, strict=True):
        _panel(axes, board, scored, knob, lines, joined=len(across) == 1)
    panels[0].set_ylabel(f"{board.metric} (95 % interval)", color=_INK)
    if any(trial.state is not State.passed for trial in scored):
        panels[-1].set_title("hollow: verdict failed", color=_INK, fontsize=9, loc="right")
    figure.savefig(place, dpi=150, transparent=True)
    return True


def _plan(scored: list[Trial], knobs: list[str]) -> tuple[list[str], str]:
    """The knob of each panel, and the knob that has a line for each of its values."""
    if len(knobs) != 2:
        return knobs, ""
    values = {knob: {t.swept[knob] for t in scored} for knob in knobs}
    fine, coarse = sorted(knobs, key=lambda knob: (not _numbers(values[knob]), -len(values[knob])))
    if len(values[coarse]) <= len(_COLOURS) and len(values[fine]) * len(values[coarse]) <= 2 * len(scored):
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
        _points(axes, mine, [where[t.swept[knob]] + shift for t in mine], _COLOURS[n], label, joined and bool(numbers))
    if best := board.best:
        axes.annotate("best", (where[best.swept[knob]], best.score), (6, 6), textcoords="offset points", color=_INK)
    if numbers and min(numbers.values()) > 0 and max(numbers.values()) >= 10 * min(numbers.values()):
        axes.set_xscale("log")
    if not numbers or len(values) <= 8:
        axes.set_xticks(list(where.values()), list(where), rotation=0 if max(map(len, where)) < 10 else 20)
        axes.minorticks_off()
    axes.margins(x=0.12)
    _dress(axes, names[knob], bool(lines))


def _points(axes: Any, trials: list[Trial], at: list[float], colour: str, label: str, joined: bool) -> None:
    """Filled where the verdict passed, hollow where it failed."""
    scores = [t.score or 0.0 for t in trials]
    span = [t.interval or [t.score or 0.0] * 2 for t in trials]
    around = [
        [max(0.0, s - low) for s, (low, _) in zip(scores, span, strict=True)],
        [max(0.0, high - s) for s, (_, high) in zip(scores, span, strict=True)],
    ]
    axes.errorbar(at, scores, yerr=around, fmt="-" if joined else "none", color=colour, capsize=3, alpha=0.8)
    faces = [colour if t.state is State.passed else "none" for t in trials]
    axes.scatter(at, scores, s=36, facecolors=faces, edgecolors=colour, zorder=3, label=label)


def _dress(axes: Any, name: str, legend: bool) -> None:
    axes.set_xlabel(name, color=_INK)
    axes.tick_params(colors=_INK, which="both")
    axes.grid(color=_INK, alpha=0.25)
    for side in axes.spines.values():
        side.set_color(_INK)
    if legend:
        axes.legend(frameon=False, labelcolor=_INK)


def _numbers(values: Sequence[str] | set[str]) -> dict[str, float]:
    """Value -> number, empty unless every value is one."""
    try:
        return {value: float(value) for value in values}
    except ValueError:
        return {}
