"""What an answer is worth to PPO: components with weights, added up.

A component is a ready-made function, the trained reward model, a function of yours, or a server. A function of yours is

    def score(prompts, answers, wanted) -> list[float]

for a batch: `prompts` are lists of messages, `answers` what the policy said, `wanted` the answers of the rows; all of
one length, and so is what it returns. The same texts must always get the same score: what is resumed or cached relies
on it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tasks.llm import reward_code, reward_server
from tasks.llm.messages import Message
from tasks.llm.reward_calls import RewardError, in_batches, score_of
from tasks.llm.reward_ready import COMPARES, READY

MODEL = "model"


@dataclass
class Reward:
    """One component."""

    weight: float = 1.0
    """What its scores are multiplied with; below 0 punishes, 0 leaves the component out."""
    source: str = ""
    """Where its scores come from: exact_match, json_valid, field_match, regex, length, model (the trained reward
    model), module:function, path/file.py:function, http://... or https://... Empty: the component's own name."""
    pattern: str = ""
    """Of regex: a Python regular expression for the whole answer, white space at its ends aside. In quotes of its own,
    as in 'ppo.rewards.regex.pattern="(?s).*it.*"', which finds it anywhere."""
    target: int = 0
    """Of length: how many tokens an answer should have."""
    timeout: float = 60.0
    """Of a server: seconds to wait for its answer."""
    retries: int = 5
    """Of a server: how often more to ask one that does not answer, is busy (429) or stumbles (5xx)."""
    batch_size: int = 64
    """Of a server: the most answers in one request."""

    def origin(self, name: str) -> str:
        """Its source, or the name it has among the rewards."""
        return self.source or name

    def is_code(self) -> bool:
        """Never by its name: what may be set by whom is told by the field."""
        return reward_code.NAMED.fullmatch(self.source) is not None

    def is_server(self) -> bool:
        return reward_server.is_url(self.source)

    def problems(self, name: str) -> Iterator[str]:
        """What is wrong with it, under the name a person would type: `rewards.<name>.<field>`."""
        here, origin = f"rewards.{name}", self.origin(name)
        if not math.isfinite(self.weight):
            yield f"{here}.weight={self.weight} is no weight; give a finite number such as 1"
        if self.weight == 0:
            return
        yield from (f"{here}{'.source' if self.source else ''}: {problem}" for problem in _unfit(self, name))
        yield from self._misplaced(here, origin)
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            yield f"{here}.timeout={self.timeout} is no time; give seconds above 0, such as 60"
        for knob, least in (("retries", 0), ("batch_size", 1)):
            if getattr(self, knob) < least:
                yield f"{here}.{knob}={getattr(self, knob)} is too small; give {least} or more"

    def _misplaced(self, here: str, origin: str) -> Iterator[str]:
        """`pattern` and `target` where they belong, and only there."""
        if origin == "regex":
            try:
                re.compile(self.pattern)
            except re.error as error:
                yield f"{here}.pattern={self.pattern} is no regular expression: {error}; mend it"
            if not self.pattern:
                yield f"{here}.pattern is empty; give the regular expression that answers should match"
        elif self.pattern:
            yield f"{here}.pattern belongs to regex; leave it away, or set ppo.{here}.source=regex"
        if origin == "length" and self.target < 1:
            yield f"{here}.target={self.target} is no length; give the number of tokens that answers should have"
        elif origin != "length" and self.target:
            yield f"{here}.target belongs to length; leave it away, or set ppo.{here}.source=length"


@dataclass(frozen=True)
class Asked:
    """An answer that wants a reward."""

    prompt: list[Message]
    answer: str
    """What the policy said."""
    wanted: str
    """The answer of the row."""
    tokens: int
    """Of what the policy said."""
    finished: bool
    """Whether it ended by a stop token."""


Scorer = Callable[[Sequence[Asked]], list[float]]


def _unfit(reward: Reward, name: str) -> Iterator[str]:
    """What is wrong with a source; nothing is imported or asked for that."""
    origin = reward.origin(name)
    if reward.is_server():
        if problem := reward_server.unfit(origin):
            yield f"the address {problem}"
    elif reward.is_code():
        try:
            reward_code.locate(origin)
        except reward_code.CodeError as error:
            yield str(error)
    elif origin not in READY and origin != MODEL:
        known = [*READY, MODEL]
        near = " or ".join(difflib.get_close_matches(origin, known, 2))
        meant = f" Did you mean {near}?" if near else ""
        way = "As source go" if reward.source else f"Give ppo.rewards.{name}.source=..., one of"
        others = f"module:function, path/file.py:function {'and' if reward.source else 'or'} a URL"
        yield f"there is no reward '{origin}'.{meant} {way} {', '.join(known)}, {others}"


def problems(rewards: dict[str, Reward], has_model: bool) -> Iterator[str]:
    """All that can be known before the run. `has_model`: whether a reward model is trained or given."""
    for name, reward in rewards.items():
        yield from reward.problems(name)
    if not _weighed(rewards):
        yield "rewards: nothing has a weight, so nothing is learned; give one, such as ppo.rewards.exact_match.weight=1"
    for name in of_model(rewards) if not has_model else []:
        yield (
            f"rewards.{name} asks the trained reward model, and there is none; "
            f"set ppo.rewards.{name}.weight=0, or leave the reward_model stage in"
        )


def of_model(rewards: dict[str, Reward]) -> list[str]:
    """The components that ask the trained reward model."""
    return [name for name, reward in _weighed(rewards).items() if reward.origin(name) == MODEL]


def unsuited(rewards: dict[str, Reward], wanted: Sequence[str]) -> Iterator[str]:
    """Components that compare with the wanted answer, where rows have none that can be compared with."""
    for name, reward in _weighed(rewards).items():
        fits, what = COMPARES.get(reward.origin(name), (None, ""))
        bad = [number for number, text in enumerate(wanted) if fits and not fits(text)]
        if bad:
            yield (
                f"rewards.{name} compares with the wanted answer, which is not {what} in {len(bad)} of {len(wanted)} "
                f"rows, the first being {wanted[bad[0]][:80]!r}; "
                f"leave such rows out, or set ppo.rewards.{name}.weight=0"
            )


def identity(rewards: dict[str, Reward]) -> dict[str, Any]:
    """What enters the key of a training: all that changes scores, as plain JSON.

    A function enters by its name and the content of its file. A server enters by its URL: what it answers cannot be
    keyed, so give another URL (a query will do, such as ?v=2) when what it answers has changed. The model is an input
    of the stage and keyed as such.
    """
    return {
        name: {"weight": float(reward.weight), **_origin_identity(reward, name)}
        for name, reward in _weighed(rewards).items()
    }


def _origin_identity(reward: Reward, name: str) -> dict[str, Any]:
    origin = reward.origin(name)
    if reward.is_server():
        return {"url": origin}
    if reward.is_code():
        return reward_code.identity(origin)
    of_it: dict[str, dict[str, Any]] = {"regex": {"pattern": reward.pattern}, "length": {"target": reward.target}}
    return {"reward": origin, **of_it.get(origin, {})}


def scorers(
    rewards: dict[str, Reward], model: Scorer | None, say: Callable[[str], None] = lambda text: None
) -> dict[str, Scorer]:
    """Every component with a weight, opened: a user's file is run, a server is not asked yet. `say`: told of servers
    that are waited for."""
    return {name: _opened(name, reward, model, say) for name, reward in _weighed(rewards).items()}


def _opened(name: str, reward: Reward, model: Scorer | None, say: Callable[[str], None]) -> Scorer:
    origin = reward.origin(name)
    if origin == MODEL:
        if model is None:
            raise RewardError(f"rewards.{name} asks the trained reward model, and there is none.")
        return model
    if reward.is_server():
        server = reward_server.Server(
            origin,
            reward.timeout,
            reward.retries,
            say=lambda text: say(f"rewards.{name}: {text}"),
            here=f"ppo.rewards.{name}",
        )
        return partial(in_batches, partial(score_of, name, origin, server), reward.batch_size)
    if reward.is_code():
        return partial(score_of, name, origin, reward_code.load(origin))
    ready = READY[origin]
    return lambda asked: [ready(one, reward) for one in asked]


def totals(parts: dict[str, list[float]], rewards: dict[str, Reward]) -> list[float]:
    """sum_c weight_c * score_c of each answer."""
    weighted = [[rewards[name].weight * score for score in scores] for name, scores in parts.items()]
    return [math.fsum(of_one) for of_one in zip(*weighted, strict=True)]


def _weighed(rewards: dict[str, Reward]) -> dict[str, Reward]:
    return {name: reward for name, reward in rewards.items() if reward.weight != 0}
