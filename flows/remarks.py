"""What somebody should look at before they trust a result: rows left out or held out, prompts learned by heart.

Everything is read from manifests, their notes and the rows in the store; what a clean-up took away is not remarked on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from flows.story import Story
from tasks.llm.gather import few
from tasks.llm.rows import Row, digest, prompt_of, read_split
from tasks.runtime.store import Manifest

Names = Mapping[str, str]
"""Key of a manifest -> its seat in the drawing. One without a seat goes by the kind of its rows."""


def left_out(story: Story, names: Names) -> Iterator[str]:
    """Of every data set that lost rows: how many, the first of the commonest kind, where all are told."""
    for rows in story.of("preprocess"):
        if dropped := int(rows["metrics"].get("dropped", 0)):
            place = story.store / rows["notes"] / "report.json"
            count = f"{dropped} of {rows['metrics'].get('rows', 0):.0f} rows of {_name(rows, names)}"
            example = _example(story.note(rows, "report.json"))
            yield f"{count}{example}; {'more about it' if dropped == 1 else 'why and which'}: {place}"


def _example(report: Any) -> str:
    parts = [part for part in (report or {}, (report or {}).get("eval_path")) if part]
    reasons = [reason for part in parts for reason in part.get("reasons", {}).items()]
    if not reasons:
        return ""
    reason, left = max(reasons, key=lambda reason: reason[1]["rows"])
    where = re.match(r".+?:\d+", left["examples"][0]) if left["examples"] else None
    if where is None:
        return f" ({reason})"
    return f", {'such as ' if sum(r['rows'] for _, r in reasons) > 1 else ''}{where[0]} ({reason})"


def held_out(story: Story, names: Names) -> Iterator[str]:
    """Data sets of which more than a third is held out, so that little is left to train on."""
    for rows in story.of("preprocess"):
        config, held = rows["config"], int(rows["metrics"].get("eval", 0))
        total = int(rows["metrics"].get("train", 0)) + held
        if config.get("kind") == "prompts" or config.get("eval_path") or 3 * held <= total:
            continue
        name = _name(rows, names)
        better = "eval_fraction=0.2" if config.get("eval_fraction") else f"eval_rows={few(total)}"
        yield f"{name}: {held} of {total} rows are held out; {name}.{better} leaves more to learn from."


def rewarded(story: Story, names: Names) -> Iterator[str]:
    """What learning from rewards was worth on questions that were held out, and where their answers can be read."""
    for ppo in story.of("ppo"):
        told = ppo["metrics"]
        if "eval_gain" in told:
            gain = f"{told['eval_gain']:+.3f} [{told['eval_gain_low']:+.3f}, {told['eval_gain_high']:+.3f}]"
            ends = f"{told['eval_before']:.3f} -> {told['eval_after']:.3f}, {gain}"
            place = story.store / ppo["notes"] / "answers.md"
            yield f"on held-out questions {ends}, {told['kl']:.2f} nats per answer away; the answers over time: {place}"


def memory(story: Story, names: Names) -> Iterator[str]:
    """Held-out prompts that a training saw too: what they score is not what the model does with new ones."""
    data = story.of("preprocess")
    trained = [rows for rows in data if rows["config"].get("kind") != "prompts"]
    for asked in data:
        if asked["config"].get("kind") != "prompts":
            continue
        prompts = story.content(asked)
        known = {_name(rows, names): _known(prompts, story.content(rows)) for rows in trained}
        if both := set[int]().union(*known.values()):
            name, total = _name(asked, names), int(asked["metrics"].get("eval", 0))
            which = f"{len(both)} of the {total} held-out {'prompts' if name == 'prompts' else f'prompts of {name}'}"
            verb = "is" if len(both) == 1 else "are"
            by = " and ".join(seat for seat, found in known.items() if found)
            yield f"{which} {verb} also trained on ({by}): their scores measure memory. Remove them from {name}."


@lru_cache(maxsize=16)  # a run asks for its report, its card and its page; content never changes under its digest
def _known(prompts: Path, trained: Path) -> frozenset[int]:
    """Which rows of `prompts`, by number, ask what a row to train on of `trained` asks. Holds the prompts alone."""
    try:
        asked: dict[str, list[int]] = {}
        for number, row in enumerate(read_split(prompts, "eval")):
            asked.setdefault(_asks(row), []).append(number)
        found = {key for key in map(_asks, read_split(trained, "train")) if key in asked}
    except (OSError, ValueError):
        return frozenset()
    return frozenset(number for key in found for number in asked[key])


def _asks(row: Row) -> str:
    """The same for rows that ask the same but for case and white space: system turn, talk so far and last question."""
    return digest([[m["role"], " ".join(m["content"].casefold().split())] for m in prompt_of(row)])


def _name(rows: Manifest, names: Names) -> str:
    return names.get(rows["key"]) or str(rows["config"].get("kind", "rows"))
