"""How a reinforcement learning went: reward, drift, answers, critic and time, update by update."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from flows.pictures import style
from flows.story import Story

_PANELS = (
    ("reward", ("reward",), "mean of an update's answers"),
    ("nats per answer", ("kl",), "drift from the reference (KL)"),
    ("tokens", ("length",), "length of the answers"),
    ("nats per token", ("entropy",), "entropy of the policy"),
    ("share of tokens", ("clip_fraction", "value_clip_fraction"), "clipped steps of policy and critic"),
    ("share of the variance", ("explained_variance",), "returns that the critic foretold"),
    ("share of answers", ("finished", "empty"), "how the answers ended"),
    ("seconds", ("seconds/generate", "seconds/score", "seconds/look", "seconds/learn"), "where the time goes"),
)
_CALLED = {"clip_fraction": "policy", "value_clip_fraction": "critic", "finished": "by themselves", "reward": "in all"}


def draw(story: Story, place: Path) -> bool:
    """The panels of the last training that left updates."""
    trainings = [(m, log) for m in story.manifests if (log := _updates(story, m))]
    if not trainings:
        return False
    manifest, log = trainings[-1]
    with style.sheet(place, len(_PANELS)) as panels:
        for axes, (unit, names, title) in zip(panels, _PANELS, strict=True):
            shown = [*names, *(_components(log) if unit == "reward" else [])]
            for n, name in enumerate(shown):
                axes.plot(
                    range(1, len(log) + 1),
                    [told.get(name, math.nan) for told in log],  # an earlier version may not have logged it
                    color=style.COLOURS[n % len(style.COLOURS)],
                    label=_CALLED.get(name, name.rpartition("/")[2]),
                    linewidth=1.0 if name.startswith("reward/") else 1.8,
                )
            if unit == "reward" and (off := manifest["config"].get("missing_eos_penalty")):
                title += f", {off:g} off where cut"
            axes.set(title=title, xlabel=f"update of {story.called(manifest['stage'])}", ylabel=unit)
            style.from_zero(axes)
            if len(shown) > 1:
                low, high = axes.get_ylim()
                axes.set_ylim(low, high + (high - low) / 4)  # room for the legend, which would lie on the lines
                axes.legend(loc="upper right", ncols=2)
            axes.xaxis.get_major_locator().set_params(integer=True)
    return True


def _updates(story: Story, manifest: dict[str, Any]) -> list[dict[str, float]]:
    return [told for told in story.note(manifest, "history.json") or [] if "reward" in told and "kl" in told]


def _components(log: list[dict[str, float]]) -> list[str]:
    """Where there is more than one: a lone one is the reward."""
    found = [name for name in log[0] if name.startswith("reward/")]
    return found if len(found) > 1 else []
