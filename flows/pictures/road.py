"""The pictures of one run: how it learned, how its models score, what each form of them lost, how long its rows are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows import report
from flows.pictures import rollouts, style
from flows.story import Story
from tasks.runtime.store import Manifest

_CURVES = {
    "loss": "loss (nats)",
    "rewards/margins": "reward margin (nats)",
    "rewards/accuracies": "share of pairs ranked right",
}
"""What trainers log and a reader wants to see, with its unit; `eval_` before a name is the same on held-out rows."""


def draw(story: Story, folder: Path, kind: str = "png") -> list[Path]:
    """Every picture that the road has numbers for, as `folder/<name>.<kind>` (png or svg), in a reader's order."""
    pictures = {
        "scores": scores,
        "training": training,
        "rollouts": rollouts.draw,
        "fidelity": fidelity,
        "lengths": lengths,
    }
    places = {name: folder / f"{name}.{kind}" for name in pictures}
    return [places[name] for name, picture in pictures.items() if picture(story, places[name])]


def scores(story: Story, place: Path) -> bool:
    """Each model's objective with its interval, and its difference to the model before it on the same prompts."""
    if not story.verdict:
        return False
    verdict, objective = story.verdict, story.verdict["objective"]
    models = [story.called(score["model"]["stage"]) for score in verdict["scores"]]
    steps = [f"{story.called(step['from'])} → {story.called(step['to'])}" for step in verdict["differences"]]
    with style.sheet(place, 2, height=1.2 + 0.42 * len(models)) as (left, right):
        values = [score[objective] for score in verdict["scores"]]
        _ranked(left, models, values, [score["interval"] for score in verdict["scores"]], 0, "{:.3f}")
        style.from_zero_along_x(left)
        prompts = verdict["scores"][-1]["prompts"]
        left.set(title=f"{prompts} held-out prompts", xlabel=f"{objective} (mean, 95 % interval)")
        values = [step["mean"] for step in verdict["differences"]]
        _ranked(right, steps, values, [step["interval"] for step in verdict["differences"]], 1, "{:+.3f}")
        right.axvline(0, color=style.INK, linewidth=1)
        right.set(title="against the model before, prompt by prompt", xlabel=f"difference in {objective}")
    return True


def _ranked(axes: Any, names: list[str], values: list[float], spans: list[Any], n: int, written: str) -> None:
    """A line for each name, the first on top, its value written above its point."""
    at = [float(-i) for i in range(len(names))]
    style.whiskers(axes, at, values, spans, n, flat=True)
    style.write_values(axes, at, values, written)
    axes.set_yticks(at, names)
    axes.set_ylim(-len(names) + 0.4, 0.6)
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)


def training(story: Story, place: Path) -> bool:
    """A panel for each curve of each training."""
    curves = [(m, name, log) for m in story.manifests if (log := _history(story, m)) for name in _named(log)]
    if not curves:
        return False
    with style.sheet(place, len(curves)) as panels:
        for axes, (manifest, name, log) in zip(panels, curves, strict=True):
            for n, (key, label) in enumerate(((name, "training"), (f"eval_{name}", "held out"))):
                points = [(line["step"], line[key]) for line in log if key in line]
                marker = style.MARKERS[n] if len(points) <= _FEW else ""
                if points:
                    axes.plot(*zip(*points, strict=True), marker=marker, color=style.COLOURS[n], label=label)
            axes.set(title=story.called(manifest["stage"]), xlabel="optimizer step", ylabel=_CURVES[name])
            style.from_zero(axes)
            axes.xaxis.get_major_locator().set_params(integer=True)
        panels[0].legend()  # the others have the same colours
    return True


_FEW = 40
"""Points up to which each has a mark of its own."""


def _history(story: Story, manifest: Manifest) -> list[dict[str, float]]:
    return [line for line in story.note(manifest, "history.json") or [] if "step" in line]


def _named(log: list[dict[str, float]]) -> Iterator[str]:
    yield from (name for name in _CURVES if any(name in line or f"eval_{name}" in line for line in log))


def fidelity(story: Story, place: Path) -> bool:
    """How far each form is from the one it was made of, with the limits of the gates."""
    forms = report.forms(story.verdict)
    if not forms:
        return False
    at = [float(-i) for i in range(len(forms))]
    with style.sheet(place, 2, height=1.2 + 0.42 * len(forms), sharey=True) as (left, right):
        kl = [form["kl"] for form in forms]
        known = [value for value in [*kl, *(form["kl_max"] for form in forms)] if value]
        least = min(known, default=1e-6) / 4
        left.set_xscale("log")
        left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        left.minorticks_off()
        _measured(left, at, [value or least for value in kl], [f"{value:.2g}" for value in kl])
        _limits(left, at, [form["kl_max"] for form in forms])
        left.set(xlabel="KL divergence (nats per token)", title=f"{_tokens(story)} held-out answer tokens")
        same = [100 * form["same_top1"] for form in forms]
        _measured(right, at, same, [f"{value:.4g}" for value in same])
        _limits(right, at, [form["same_top1_min"] and 100 * form["same_top1_min"] for form in forms])
        right.set(xlabel="unchanged most likely tokens (%)")
        left.set_yticks(at, [form["name"].replace("->", "→") for form in forms])
        left.set_ylim(-len(forms) + 0.4, 0.6)
        if right.get_legend_handles_labels()[0]:
            right.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    return True


def _tokens(story: Story) -> str:
    return f"{(story.verdict or {})['fidelity'].get('tokens', 0):,}"


def _measured(axes: Any, at: list[float], values: list[float], written: list[str]) -> None:
    """Points with their values in words; a zero, which a logarithmic axis does not have, is hollow."""
    faces = ["none" if text == "0" else style.COLOURS[0] for text in written]
    axes.scatter(values, at, s=38, facecolors=faces, edgecolors=style.COLOURS[0], zorder=3)
    for value, y, text in zip(values, at, written, strict=True):
        axes.annotate(text, (value, y), (0, 6), textcoords="offset points", ha="center", fontsize="small")
    axes.margins(x=0.12)
    axes.grid(axis="y", visible=False)


def _limits(axes: Any, at: list[float], limits: list[float | None]) -> None:
    """A stroke where each gate closes."""
    label = "limit of the gate"
    for limit, y in zip(limits, at, strict=True):
        if limit is not None:
            axes.plot([limit] * 2, [y - 0.3, y + 0.3], color=style.COLOURS[1], label=label)
            label = ""


def lengths(story: Story, place: Path) -> bool:
    """How many rows of each length the training reads."""
    for manifest in story.of("encode"):
        found = (story.note(manifest, "report.json") or {}).get("lengths")
        if found and found["counts"]:
            with style.sheet(place) as (axes,):
                axes.stairs(found["counts"], found["edges"], fill=True, color=style.COLOURS[0], alpha=0.85)
                axes.set(title="training rows", xlabel="tokens per row", ylabel="rows")
                axes.yaxis.get_major_locator().set_params(integer=True)
            return True
    return False
