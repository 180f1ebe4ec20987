"""Components that are not ours, asked once before a long training: what would end it after an hour is told at once.

`python -m tasks.llm.reward_trial`, a component and what it is asked on stdin: a process of its own, so that what a file
of yours loads, a model on a GPU perhaps, is gone again before anything trains.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace

from tasks.llm.messages import Message
from tasks.llm.reward_calls import RewardError
from tasks.llm.reward_code import CodeError
from tasks.llm.reward_server import ServerError
from tasks.llm.rewards import Asked, Reward, scorers

ANSWERS = ("It depends.", "")
"""Made up; a policy may well say nothing. Two, so that one score for all of them shows."""


def foreign(rewards: dict[str, Reward]) -> dict[str, Reward]:
    """The components that a function of yours or a server gives."""
    return {name: one for name, one in rewards.items() if one.weight and (one.is_code() or one.is_server())}


def problems(rewards: dict[str, Reward], prompt: list[Message], wanted: str) -> Iterator[str]:
    """What is wrong with each foreign component, by what it makes of ANSWERS to one row; a server is asked once."""
    asked = [asdict(Asked(prompt, answer, wanted, len(answer.split()), True)) for answer in ANSWERS]
    for name, reward in foreign(rewards).items():
        if said := _said([name, asdict(replace(reward, retries=0)), asked]):
            yield said if said.startswith("rewards.") else f"rewards.{name}: {said}"


def _said(job: Sequence[object]) -> str:
    """What is wrong, as the trial's process says; empty when nothing is."""
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tasks.llm.reward_trial"]
    done = subprocess.run(command, input=json.dumps(job), env=here, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        return f"it ended its process with code {done.returncode}. {done.stderr.strip()[-300:]}".strip()
    return done.stdout.splitlines()[-1]


def main() -> None:
    name, reward, asked = json.load(sys.stdin)
    said = ""
    with redirect_stdout(sys.stderr):  # what a file of yours prints is no word of ours
        try:
            scorers({name: Reward(**reward)}, None)[name]([Asked(**one) for one in asked])
        except (CodeError, RewardError, ServerError) as error:
            said = str(error)
    print("\n" + " ".join(said.split()))


if __name__ == "__main__":
    main()
