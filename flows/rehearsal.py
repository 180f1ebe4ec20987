"""Rewards that are not ours, asked once before the long work: what would end PPO in an hour ends the run at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tasks.llm import reward_trial, rewards
from tasks.llm.rows import answer_of, prompt_of, read_split
from tasks.runtime import Dataset
from tasks.runtime.plan import Plan, State
from tasks.runtime.session import current


class Unready(RuntimeError):
    """A reward would end the training: what is wrong with each, and how to go on."""


def of_rewards(drawing: Callable[[Any], Any], cfg: Any, questions: Dataset) -> None:
    """Ask every foreign component about the first question, where PPO will run; a plan and a cached PPO ask nobody."""
    now, chosen = current(), cfg.ppo.rewards
    if now.plan is not None:
        return
    if cfg.reward_model and not rewards.of_model(chosen):
        now.screen.say("A reward model is part of this run, and no reward asks it: reward_model=null leaves it out.")
    rows = list(read_split(now.store.fetch(questions.ref()), "train"))
    found = list(rewards.unsuited(chosen, [answer_of(row) for row in rows]))
    if (foreign := reward_trial.foreign(chosen)) and _runs(drawing, cfg):
        said = " and ".join(map(repr, reward_trial.ANSWERS))
        for name, reward in foreign.items():
            now.screen.say(f"ppo.rewards.{name}: {reward.source} is tried on the answers {said} before the long work.")
        for row in rows[:1]:
            found += reward_trial.problems(foreign, prompt_of(row), answer_of(row))
    if found:
        told = "".join(f"\n  {number}. ppo.{problem}" for number, problem in enumerate(found, 1))
        raise Unready(f"Nothing is trained yet, since PPO could not be rewarded:{told}")


def _runs(drawing: Callable[[Any], Any], cfg: Any) -> bool:
    """Whether a PPO of this road is still to be made, as a plan of it says."""
    now = current()
    now.plan = plan = Plan(now)
    try:
        drawing(cfg)
    finally:
        now.plan = None
    return any(step.name == "ppo" and step.state is not State.cached for step in plan.steps)
