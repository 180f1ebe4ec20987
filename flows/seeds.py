"""A sweep that turned nothing but seeds: what each model and each step of the road comes to over all of them.

A prompt's value (or difference between two models) is averaged over the seeds first, then prompts are drawn again, so
the interval says how sure the mean is for prompts like these. What another seed may change is in the range.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.leaderboard import Board, show_table
from flows.story import Story
from flows.trials import Trial
from tasks.runtime.store import Manifest

Column = dict[str, float]
"""Prompt -> value."""


@dataclass
class Pooled:
    """A model or a step between two: its mean over seeds and prompts, and what each seed says of it."""

    name: str
    mean: float
    interval: tuple[float, float]
    each: list[tuple[float, tuple[float, float]]]
    """Mean and interval of each seed."""

    @property
    def beyond_chance(self) -> bool:
        return self.interval[0] > 0 or self.interval[1] < 0


@dataclass
class Seeds:
    metric: str
    seeds: list[str]
    prompts: int
    models: list[Pooled]
    steps: list[Pooled]
    lost: int
    """Trials without a verdict."""


def over(board: Board, store: Path) -> Seeds | None:
    """The summary over seeds, from what the trials left in the store; none where anything else was turned."""
    found = [(trial, story) for trial in board.trials if (story := _story(trial, store)) is not None]
    if len(found) < 2 or not board.knobs or not all(knob.split(".")[-1] == "seed" for knob in board.knobs):
        return None
    roads = [_columns(story, board.metric) for _, story in found]
    if len({tuple(road) for road in roads}) > 1:  # other models: nothing to set beside each other
        return None
    names = list(roads[0])
    models = [_pooled(name, [road[name] for road in roads]) for name in names]
    steps = [
        _pooled(f"{before} → {after}", [_less(road[after], road[before]) for road in roads])
        for before, after in itertools.pairwise(names)
    ]
    seeds = ["/".join(trial.swept[knob] for knob in board.knobs) for trial, _ in found]
    prompts = len(set[str]().union(*(road[names[0]] for road in roads)))
    return Seeds(board.metric, seeds, prompts, models, steps, len(board.trials) - len(found))


def _story(trial: Trial, store: Path) -> Story | None:
    """A trial's comparison with its measurements, read from the store; none where it did not come to one."""
    for stage in reversed(trial.stages):
        seal = store / "manifests" / stage["stage"] / f"{stage.get('key')}.json"
        manifest: Manifest = json.loads(seal.read_text()) if seal.exists() else {"kind": ""}
        if manifest["kind"] == "Comparison":
            verdict = json.loads((store / "objects" / manifest["digest"] / "verdict.json").read_text())
            return Story(store, [manifest], verdict)
    return None


def _columns(story: Story, metric: str) -> dict[str, Column]:
    """Model -> its value for each prompt; a comparison's first parents are the measurements, in its verdict's order."""
    (comparison,), scores = story.manifests, (story.verdict or {})["scores"]
    measured = zip(scores, comparison["parents"], strict=False)
    return {story.called(score["model"]["stage"]): _column(story, parent, metric) for score, parent in measured}


def _column(story: Story, measurement: dict[str, Any], metric: str) -> Column:
    with open(story.content(measurement) / "predictions.jsonl", encoding="utf-8") as file:
        return {line["id"]: line[metric] for line in map(json.loads, file)}


def _less(after: Column, before: Column) -> Column:
    return {prompt: after[prompt] - before[prompt] for prompt in after if prompt in before}


def _pooled(name: str, columns: list[Column]) -> Pooled:
    from tasks.llm.scoring import interval

    by_prompt: dict[str, list[float]] = defaultdict(list)
    for column in columns:
        for prompt, value in column.items():
            by_prompt[prompt].append(value)
    means = [_mean(by_prompt[prompt]) for prompt in sorted(by_prompt)]
    each = [[column[prompt] for prompt in sorted(column)] for column in columns]
    return Pooled(name, _mean(means), interval(means), [(_mean(one), interval(one)) for one in each])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def tables(found: Seeds) -> list[list[list[str]]]:
    """A header and a line per model; a header and a line per step of the road."""
    count = f"{len(found.seeds)} seeds"
    models = [["model", f"{found.metric}, mean of {count} [95 % interval]", "lowest", "highest"]]
    for model in found.models:
        values = [mean for mean, _ in model.each]
        models.append([model.name, _span(model.mean, model.interval), f"{min(values):.3f}", f"{max(values):.3f}"])
    steps = [["step", f"difference over {count} [95 % interval]", "", *(f"seed {seed}" for seed in found.seeds)]]
    for step in found.steps:
        word = "beyond chance" if step.beyond_chance else "within chance"
        each = [_span(mean, span, "+") for mean, span in step.each]
        steps.append([step.name, _span(step.mean, step.interval, "+"), word, *each])
    return [models, steps]


def _span(mean: float, interval: tuple[float, float], sign: str = "") -> str:
    return f"{mean:{sign}.3f} [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"


def _sentences(found: Seeds) -> list[str]:
    told = [
        f"{found.prompts} held-out prompts; each difference is of two models on the same prompts.",
        "Intervals over all seeds: a prompt's value is averaged over the seeds, then prompts are drawn again "
        "(bootstrap). They hold for other prompts of this kind; what another seed may change, the seeds' own show.",
    ]
    return told + ([f"{found.lost} more trials came to no verdict and are not in it."] if found.lost else [])


def markdown(found: Seeds, name: str) -> str:
    def table(lines: list[list[str]]) -> str:
        head, *body = lines
        return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *body])

    models, steps = map(table, tables(found))
    told = "".join(f"* {sentence}\n" for sentence in _sentences(found))
    return f"# {name}, over seeds\n\n{models}\n{steps}\n{told}"


def write(found: Seeds, name: str, folder: Path) -> list[Path]:
    """`seeds.md` and `seeds.png`."""
    from flows.pictures import seeds as picture

    text = folder / "seeds.md"
    text.write_text(markdown(found, name) + "\n![](seeds.png)\n", encoding="utf-8")
    picture.draw(found, folder / "seeds.png")
    return [text, folder / "seeds.png"]


def show(console: Console, found: Seeds, folder: Path) -> None:
    for table in tables(found):
        show_table(console, *table)
    for sentence in _sentences(found):
        console.print(f"  {sentence}", markup=False, soft_wrap=True)
    console.print(f"  over seeds   {folder / 'seeds.md'}", soft_wrap=True)
