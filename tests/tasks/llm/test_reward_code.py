"""Code that a config names: found without running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import form
from tasks.llm import reward_code, rewards
from tasks.llm.rewards import Reward


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("def other(): ...\ndef _hidden(): ...\nscore = 3", "no `def score` stands in {place}; functions there: other"),
        ("class Scorer:\n    def score(self, a, b, c): ...", "functions there: none"),
        ("async def score(a, b, c): ...", "no `def score`"),
        ("def score(prompts, answers: ...", "cannot be read as Python: "),
        ("x = '\0'", "cannot be read as Python: "),
        ("def score(a, b, c, d): ...", "must be written `def score(prompts, answers, wanted)`"),
        ("def score(a, b, c, *, d): ...", "must be written"),
        ("def score(a, b, c, d=1, *more, e=2): ...", ""),
        ("def score(*all): ...", ""),
        ("from functools import cache\n@cache\ndef score(): ...", ""),
    ],
)
def test_a_file_is_read_and_not_run_to_find_a_function(tmp_path: Path, body: str, told: str) -> None:
    place = tmp_path / "mine.py"
    place.write_text(f"{body}\nraise SystemExit\n")
    found = list(rewards.problems({"it": Reward(source=f"{place}:score")}, has_model=False))
    assert told.format(place=place) in found[0] if told else found == []


@pytest.mark.parametrize("source", ["a.b:c", "x/y.py:score", "~/my rewards/a-b.py:f", "a.py:f", "os:system"])
def test_what_names_code_is_what_a_form_may_not_say(source: str) -> None:
    assert reward_code.NAMED.pattern == form._CODE.pattern
    assert form.refused([f"+ppo.rewards.it.source='{source}'"])
