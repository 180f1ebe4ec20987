"""`seeds.png`: every model and every step of a road over several seeds, each seed beside the mean of all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.pictures import style

if TYPE_CHECKING:
    from flows.seeds import Pooled, Seeds

_LANE = 0.62
"""Of the room between two names, what the seeds take below the mean."""


def draw(found: Seeds, place: Path) -> None:
    rows = len(found.models)
    with style.sheet(place, 2, height=1.3 + rows * (0.35 + 0.11 * len(found.seeds))) as (left, right):
        _pooled(left, found.models, "{:.3f}")
        left.set(xlabel=f"{found.metric} (95 % interval)", title=f"{found.prompts} held-out prompts")
        _pooled(right, found.steps, "{:+.3f}")
        right.axvline(0, color=style.INK, linewidth=1)
        right.set(xlabel=f"difference in {found.metric}")
        right.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=2)


def _pooled(axes: Any, items: list[Pooled], written: str) -> None:
    at = [float(-i) for i in range(len(items))]
    for n in range(len(items[0].each)):
        below = [y - _LANE * (n + 1) / len(items[0].each) for y in at]
        values, spans = [item.each[n][0] for item in items], [item.each[n][1] for item in items]
        style.whiskers(axes, below, values, spans, 0, flat=True, small=True, label="" if n else "each seed")
    means, spans = [item.mean for item in items], [item.interval for item in items]
    style.whiskers(axes, at, means, spans, 1, flat=True, label="mean of all")
    style.write_values(axes, at, means, written)
    axes.set_yticks(at, [item.name for item in items])
    axes.set_ylim(-len(items) + 0.2, 0.5)
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)
