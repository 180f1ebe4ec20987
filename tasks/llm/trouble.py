"""What goes wrong in reinforcement learning, seen in the numbers of its updates while something can still be done."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

History = Sequence[Mapping[str, float]]


class Then(StrEnum):
    """What is done about trouble."""

    stop = "stop"
    adapt = "adapt"
    ignore = "ignore"


@dataclass
class Watch:
    """When a training is in trouble."""

    then: Then = Then.stop
    """stop: end with an error. adapt: back to the last good checkpoint with half the learning rate and twice the KL
    coefficient, up to three times. ignore: say it and go on. NaN always stops."""
    kl_max: float = 50.0
    """Nats per answer between the policy and its reference."""
    length_growth: float = 2.0
    """Answers this many times as long as at first, while fewer of them end by themselves."""
    value_min: float = -2.0
    """Explained variance of the critic, five updates long."""
    empty_max: float = 0.5
    """Share of answers without text."""

    def problems(self) -> Iterator[str]:
        if not self.kl_max > 0:
            yield f"kl_max is {self.kl_max:g}; give a positive number of nats such as 50."
        if not self.length_growth > 1:
            yield f"length_growth is {self.length_growth:g}; give a number above 1 such as 2."
        if not 0 < self.empty_max <= 1:
            yield f"empty_max is {self.empty_max:g}; give a share above 0 and up to 1."


@dataclass(frozen=True)
class Trouble:
    """`name` for programs, `text` for people: what was seen, and what to try."""

    name: str
    text: str
    fatal: bool = False
    """No weights that came out of it are worth going on with."""


class InTrouble(RuntimeError):
    """Training ended because of what it saw."""


_FEW = 3
"""Updates that a trend is taken from."""
_LONG = 5


def seen(history: History, watch: Watch) -> list[Trouble]:
    """What is wrong after the last update of `history`."""
    return [found for look in (_nan, _kl, _length, _value, _equal, _empty) for found in look(history, watch)]


def _nan(history: History, _: Watch) -> Iterator[Trouble]:
    if broken := [name for name, value in history[-1].items() if not math.isfinite(value)]:
        way = "lower learning_rate; if the reward is among them, look at what it returns"
        yield Trouble("nan", f"{', '.join(broken)} {'is' if len(broken) == 1 else 'are'} no number: {way}.", fatal=True)


def _kl(history: History, watch: Watch) -> Iterator[Trouble]:
    if history[-1]["kl"] > watch.kl_max:
        far = (
            f"the policy is {history[-1]['kl']:.1f} nats per answer from its reference (watch.kl_max={watch.kl_max:g})"
        )
        yield Trouble("kl explosion", f"{far}: raise kl.coef, set kl.target, or lower learning_rate.")


def _length(history: History, watch: Watch) -> Iterator[Trouble]:
    if len(history) < 2 * _FEW:
        return
    length, ended = (
        [_over(part, name) for part in (history[:_FEW], history[-_FEW:])] for name in ("length", "finished")
    )
    if length[1] > watch.length_growth * length[0] and ended[1] < ended[0]:
        grown = f"answers grew from {length[0]:.0f} to {length[1]:.0f} tokens and {1 - ended[1]:.0%} do not end"
        yield Trouble("length hacking", f"{grown}: raise missing_eos_penalty, or give rewards.length a weight.")


def _value(history: History, watch: Watch) -> Iterator[Trouble]:
    recent = [told["explained_variance"] for told in history[-_LONG:]]
    if len(history) > _LONG and max(recent) < watch.value_min:
        bad = f"the critic is worse than none (explained variance {recent[-1]:.1f} for {_LONG} updates)"
        yield Trouble("value collapse", f"{bad}: lower critic_learning_rate or value_coef, or set critic=separate.")


def _equal(history: History, _: Watch) -> Iterator[Trouble]:
    if len(history) >= _FEW and all(told["reward_spread"] == 0 for told in history[-_FEW:]):
        way = "choose a reward that tells answers apart, other prompts, or a policy that gets some of them right"
        yield Trouble("equal rewards", f"every answer of {_FEW} updates had the same reward: {way}.")


def _empty(history: History, watch: Watch) -> Iterator[Trouble]:
    if history[-1]["empty"] > watch.empty_max:
        share = f"{history[-1]['empty']:.0%} of the answers have no text"
        yield Trouble("empty generations", f"{share}: raise kl.coef, and see that the reward does not like silence.")


def _over(history: History, name: str) -> float:
    return sum(told[name] for told in history) / len(history)
