"""One look for every picture: no background, and ink and colours that stand out on white and on near-black alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INK = "#7a7a7a"
"""As far from white (contrast 4.3) as from near-black (4.4): a page of either kind shows through."""
COLOURS = ("#1f83cc", "#d9701c", "#14a08c", "#7335fe", "#c2304b", "#6d6845")
"""Contrast of 3 and more on both; told apart by people who see two colours, the first four at a glance."""
MARKERS = ("o", "s", "^", "D", "v", "P")
"""One for each colour, since nobody should need the colour."""
_WIDTH = 9.0
_LOOK: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color", "legend.labelcolor"), INK),
    **{"axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True, "legend.frameon": False},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": "medium", "axes.titlelocation": "left"},
    **{"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"], "font.size": 10},
    **{"svg.fonttype": "none", "svg.hashsalt": "posttrain"},
    **{"lines.linewidth": 1.8, "lines.markersize": 4.5, "errorbar.capsize": 3},
}


@contextmanager
def sheet(place: Path, panels: int = 1, columns: int = 2, height: float = 3.0, **how: Any) -> Iterator[list[Any]]:
    """Panels to draw on, `height` inches each; the picture is written (.png or .svg) when they are drawn.

    The same numbers give the same bytes.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    across = min(panels, columns)
    down = -(-panels // across)
    with rc_context(_LOOK):
        figure = Figure(figsize=(_WIDTH if across > 1 else 0.7 * _WIDTH, height * down), layout="constrained")
        found = list(figure.subplots(down, across, squeeze=False, **how).flat)
        yield found[:panels]
        for empty in found[panels:]:
            empty.set_visible(False)
        place.parent.mkdir(parents=True, exist_ok=True)
        anonymous = {"Date": None, "Creator": None} if place.suffix == ".svg" else {"Software": None}
        figure.savefig(place, dpi=150, transparent=True, metadata=anonymous)


def whiskers(
    axes: Any, at: Sequence[float], values: Sequence[float], spans: Sequence[Sequence[float]], n: int, **how: Any
) -> None:
    """Points with their intervals in the n-th colour. `flat`: values run along x. `joined`: by a line. `hollow`: the
    points that are. `small`: beside something larger. `label`: in the legend."""
    flat, joined, colour = how.get("flat", False), how.get("joined", False), COLOURS[n % len(COLOURS)]
    around = [
        [max(0.0, value - span[0]) for value, span in zip(values, spans, strict=True)],
        [max(0.0, span[1] - value) for value, span in zip(values, spans, strict=True)],
    ]
    x, y = (values, at) if flat else (at, values)
    error = {"xerr": around} if flat else {"yerr": around}
    thin = 1.0 if how.get("small") or joined else 1.8
    axes.errorbar(x, y, **error, fmt="-" if joined else "none", color=colour, alpha=0.8, elinewidth=thin)
    hollow = how.get("hollow") or [False] * len(values)
    faces = ["none" if empty else colour for empty in hollow]
    marker = MARKERS[n % len(MARKERS)]
    size, label = 14 if how.get("small") else 38, how.get("label", "")
    axes.scatter(x, y, s=size, marker=marker, facecolors=faces, edgecolors=colour, zorder=3, label=label)


def write_values(axes: Any, at: Sequence[float], values: Sequence[float], written: str) -> None:
    """Each value in words above its point, where values run along x."""
    for y, value in zip(at, values, strict=True):
        text = written.format(value).replace("-", "\N{MINUS SIGN}")
        axes.annotate(text, (value, y), (0, 6), textcoords="offset points", ha="center", fontsize="small")


def from_zero_along_x(axes: Any) -> None:
    """No negative numbers where no value is negative; all of the first marker is seen."""
    high = axes.get_xlim()[1] if axes.dataLim.intervalx[1] > 0 else 1.0
    axes.set_xlim(-0.04 * high, high)


def from_zero(axes: Any) -> None:
    """Values run from zero, or from below it, with some air above."""
    low, high = axes.dataLim.intervaly
    least = min(0.0, low)
    axes.set_ylim(least - 0.05 * (high - least) * (least < 0), high + 0.08 * (high - least) or 1.0)
