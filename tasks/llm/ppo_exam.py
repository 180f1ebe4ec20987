"""Held-out questions during PPO: what they are worth before and after, and some of the answers on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.llm import scoring

_SHOWN = 4
"""Questions whose answers are shown over time."""
_LOOKS = 5
"""How often."""


@dataclass
class Exam:
    model: Any
    tokenizer: Any
    rows: Sequence[dict[str, Any]]
    score: Callable[..., tuple[list[float], dict[str, list[float]]]]
    """As the training scores; without the penalty for a missing stop token."""
    max_new: int
    mixed: Callable[[], Any]
    work: Path
    """Where what was seen is kept for a run that goes on."""
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Update -> `answers`, `scores` and `parts` of the rows that were asked then."""

    def look(self, update: int, updates: int) -> None:
        """After `update` of `updates`: all rows at the beginning and at the end, a few in between. Asked once each."""
        place = self.work / "exam.json"
        if not self.told and place.exists():
            self.told = json.loads(place.read_text())
        ends = update in (0, updates)
        due = {round(n * updates / (_LOOKS - 1)) for n in range(_LOOKS)}
        if self.rows and update in due and str(update) not in self.told:
            self.told[str(update)] = self._asked(self.rows if ends else self.rows[:_SHOWN])
            draft = place.with_suffix(".new")
            draft.write_text(json.dumps(self.told))
            draft.replace(place)

    def _asked(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        from tasks.llm import chat, models
        from tasks.llm.rows import answer_of, prompt_of

        turns = chat.turns(self.tokenizer, [prompt_of(row) for row in rows], [answer_of(row) for row in rows])
        stops = models.stop_ids(self.model, self.tokenizer)
        with self.mixed():
            prompts = [turn.prompt for turn in turns]
            found = scoring.generate(self.model, self.tokenizer, prompts, stops, self.max_new, 32)
            said = sorted(found, key=lambda one: one.index)
        tokens = [len(ids) for ids in self.tokenizer([one.text for one in said])["input_ids"]]
        texts = [one.text for one in said]
        scores, parts = self.score(rows, list(zip(texts, tokens, [one.finished for one in said], strict=True)))
        return {"answers": texts, "scores": scores, "parts": parts}

    def result(self) -> dict[str, float]:
        """Held-out reward before and after, and the paired difference with its 95 % interval."""
        if not self.told:
            return {}
        ends = sorted(self.told, key=int)
        before, after = (self.told[end]["scores"] for end in (ends[0], ends[-1]))
        gained = [b - a for a, b in zip(before, after, strict=True)]
        low, high = scoring.interval(gained)
        means = {name: sum(values) / len(values) for name, values in (("before", before), ("after", after))}
        gain = sum(gained) / len(gained)
        return {f"eval_{n}": v for n, v in {**means, "gain": gain, "gain_low": low, "gain_high": high}.items()}

    def write(self, notes: Path) -> None:
        """All of it as data, and the same questions' answers over time as a table to read."""
        (notes / "held_out.json").write_text(json.dumps(self.told, indent=1, ensure_ascii=False))
        updates = sorted(self.told, key=int)
        parts = []
        for number, row in enumerate(self.rows[:_SHOWN]):
            lines = ["| after update | reward | answer |", "|---|---|---|"]
            for update in updates:
                told = self.told[update]
                lines.append(f"| {update} | {told['scores'][number]:.3f} | {_in_a_cell(told['answers'][number])} |")
            parts.append(f"**{_in_a_cell(_question(row))}**\n\n" + "\n".join(lines) + "\n")
        (notes / "answers.md").write_text("\n".join(parts), encoding="utf-8")


def _question(row: dict[str, Any]) -> str:
    from tasks.llm.rows import prompt_of

    return str(prompt_of(row)[-1]["content"])


def _in_a_cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
