"""Components that are not ours, tried before the long work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.llm import reward_trial
from tasks.llm.rewards import Reward

HEAD = "def first(answer):\n    return answer.split()[0]\n\ndef score(prompts, answers, wanted):\n    print('mine')\n"


def told(folder: Path, returns: str, **more: float) -> list[str]:
    place = folder / "mine.py"
    place.write_text(f"{HEAD}    return {returns}\n")
    mine = Reward(source=f"{place}:score", **more)
    rewards = {"mine": mine, "json_valid": Reward(), "model": Reward()}
    return list(reward_trial.problems(rewards, [{"role": "user", "content": "Hi"}], "Hello"))


@pytest.mark.parametrize(
    ("returns", "problem"),
    [
        ("[float(wanted == ['Hello'] * 2 and prompts[0][0]['content'] == 'Hi') for a in answers]", ""),
        ("[len(first(a)) for a in answers]", "list index out of range (line 2: return answer.split()[0])"),
        ("[1.0]", "mine.py:score must return 2 scores, one for each answer, and returned 1: [1.0]."),
        ("__import__('json').loads(answers[0])", "stopped with JSONDecodeError: Expecting value"),
        ("__import__('os')._exit(3)", "rewards.mine: it ended its process with code 3."),
        ("exit()", "rewards.mine: it ended its process with code 0."),
        ("exit('no model here')", "rewards.mine: it ended its process with code 1. mine\nno model here"),
    ],
)
def test_a_function_is_tried_on_two_answers_and_what_is_wrong_is_told(
    tmp_path: Path, returns: str, problem: str
) -> None:
    found = told(tmp_path, returns)
    assert len(found) == bool(problem)
    for said in found:
        assert said.startswith("rewards.mine: ") and problem in said


def test_what_has_no_weight_is_not_tried(tmp_path: Path) -> None:
    assert told(tmp_path, "1 / 0", weight=0) == []


def test_a_file_that_cannot_be_run_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(a, b, c): ...\nimport no_such_thing\n")
    (said,) = reward_trial.problems({"mine": Reward(source=f"{tmp_path}/mine.py:score")}, [], "")
    assert "cannot be imported: ModuleNotFoundError: No module named 'no_such_thing' (line 2: import no_such" in said


def test_a_file_that_imports_what_lies_beside_it_is_told_why_that_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("WORDS = []\n")
    (tmp_path / "mine.py").write_text("from beside import WORDS\ndef score(a, b, c): ...\n")
    (said,) = reward_trial.problems({"mine": Reward(source=f"{tmp_path}/mine.py:score")}, [], "")
    assert said.endswith("(a file finds what is installed, not what lies beside it)")
