"""`plan=true`: what a run, or a whole sweep, would do, before anything is downloaded, trained or written."""

from __future__ import annotations

import dataclasses
import io
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from tasks.runtime import devices, session
from tasks.runtime.plan import Plan, State, Step, spoken

Drawing = Callable[[Any], Any]
_WIDTH = 140
"""Columns where no terminal says how many it has."""
_ROWS = 40
"""Lines of a sweep's table; where there are more, calls of one name share a line."""


def show(drawing: Drawing, config: Any) -> None:
    """Print the plan of one run."""
    _print(_told(drawn(drawing, [config]), config))


def show_sweep(drawing: Drawing, configs: list[Any]) -> None:
    """Print the plan of all trials of a sweep as one: work that trials share stands there once."""
    plan = drawn(drawing, configs)
    _print([headline(plan, len(configs)), *_told(plan, configs[0])])


def text(drawing: Drawing, config: Any) -> str:
    """The plan of one run as Markdown."""
    console = Console(file=io.StringIO(), width=_WIDTH, highlight=False)
    for part in _told(drawn(drawing, [config]), config):
        console.print(part, soft_wrap=isinstance(part, str))
    return f"```\n{console.file.getvalue()}```\n"  # type: ignore[attr-defined]


def drawn(drawing: Drawing, configs: Sequence[Any]) -> Plan:
    """Walk the drawing for each config with a plan in the place of the work."""
    with session(configs[0].runtime) as now:
        now.plan = plan = Plan(now)
        for config in configs:
            now.seats = {id(getattr(config, item.name)): item.name for item in dataclasses.fields(config)}
            drawing(config)
    return plan


def headline(plan: Plan, trials: int) -> str:
    """`12 trials: 1 download, 2 preprocess, 3 sft, 12 dpo; 9 sft saved`: of the stages that compute, what is shared."""
    works = Counter(step.name for step in plan.steps)
    calls, heavy = Counter[str](), {step.name for step in plan.steps if step.device}
    for step in plan.steps:
        calls[step.name] += step.trials
    saved = [f"{calls[name] - works[name]} {name}" for name in works if name in heavy and calls[name] > works[name]]
    counts = ", ".join(f"{count} {name}" for name, count in works.items())
    return f"{trials} trials: {counts}" + (f"; {', '.join(saved)} saved" if saved else "")


def _print(parts: list[RenderableType]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), markup=False)


def _told(plan: Plan, config: Any) -> list[RenderableType]:
    root = Path(config.runtime.root).resolve()
    free = shutil.disk_usage(next(place for place in (root, *root.parents) if place.exists())).free
    return [_table(plan.steps), totals(plan.steps, free), *_remarks(plan.steps, free)]


def _table(steps: list[Step]) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("stage", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("why", overflow="fold")
    for name in ("time", "peak memory", "disk"):
        table.add_column(name, justify="right", no_wrap=True)
    alike: list[list[Step]] = [[step] for step in steps]
    if len(steps) > _ROWS:
        groups: dict[tuple[str, str], list[Step]] = {}
        for step in steps:
            groups.setdefault((step.label, step.state), []).append(step)
        alike = list(groups.values())
    for group in alike:
        table.add_row(*_row(group))
    return table


def _row(group: list[Step]) -> tuple[str, ...]:
    first, works = group[0], [step for step in group if step.state in (State.runs, State.depends)]
    times = "" if len(group) == 1 else f" ({len(group)} times)"
    why = "\n".join(first.why) + ("\n..." if times and first.why else "")
    if not works:
        return first.label + times, first.state, why, "", "", ""
    peaks = [step.peak for step in works if step.peak is not None]
    sure = f"{first.peak_note.split(',')[0]} " if first.peak_note else ""  # "at most, ..." or "about, ..."
    peak = f"{sure}{_gb(max(peaks))}" if peaks else "" if first.peak_note == "not estimated" else "unknown"
    seconds, disk = _sum(step.seconds for step in works), _sum(step.disk for step in works)
    time = "unknown" if seconds is None else spoken(seconds)
    return first.label + times, first.state, why, time, peak, "unknown" if disk is None else _gb(disk)


def totals(steps: list[Step], free: float) -> str:
    """`6 cached, 3 run, 2 depend; about 4 min; 6.1 GB peak of 23 GB; 1.2 GB of 64 GB free disk`."""
    states = Counter(step.state for step in steps)
    words = {"cached": "cached", "runs": "run", "depends": "depend", "unknown": "unknown", "stops": "stop the run"}
    parts = [", ".join(f"{states[state]} {words[state]}" for state in State if states[state])]
    works = [step for step in steps if step.state in (State.runs, State.depends)]
    if works:
        parts.append(_known("about ", [step.seconds for step in works], spoken, "time"))
        peaks = [step.peak for step in works if step.peak is not None]
        if peaks:
            rest = "" if len(peaks) == len(works) else ", of the stages that are estimated"
            parts.append(f"{_gb(max(peaks))} peak of {_gb(devices.memory())}{rest}")
        parts.append(_known("", [step.disk for step in works], _gb, "disk") + f" of {_gb(free)} free disk")
    return "; ".join(parts)


def _known(about: str, figures: list[float | None], say: Callable[[float], str], what: str) -> str:
    told = [figure for figure in figures if figure is not None]
    if not told:
        return f"{what} unknown"
    silent = len(figures) - len(told)
    return f"{about}{say(sum(told))}" + (f" and {silent} of unknown {what}" if silent else "")


def _remarks(steps: list[Step], free: float) -> list[str]:
    """What the figures rest on, and what to turn where memory or disk will not suffice."""
    notes = dict.fromkeys((step.name, step.peak_note) for step in steps if step.peak_note not in ("", "not estimated"))
    lines = [f"peak memory of {name}: {note}" for name, note in notes]
    room = devices.memory()
    for step in steps:
        if step.peak and step.peak > room:
            least = f" (1 takes about {_gb(step.peak_least)})" if step.peak_least else ""
            ways = f"lower runtime.micro_batch{least}, the cutoff of its rows, or train an adapter: method=lora"
            lines.append(f"{step.label} needs about {_gb(step.peak)} of memory and there are {_gb(room)}: {ways}.")
    disk = _sum(step.disk for step in steps) or 0.0
    if disk > free:
        ways = "make room (python -m flows.store gc shows what can go), or choose another disk with runtime.root"
        lines.append(f"The results need about {_gb(disk)} of disk and {_gb(free)} are free: {ways}.")
    return list(dict.fromkeys(lines))


def _sum(figures: Any) -> float | None:
    told = [figure for figure in figures if figure is not None]
    return sum(told) if told else None


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB" if size >= 5e4 else f"{size / 1e3:.1f} kB"
