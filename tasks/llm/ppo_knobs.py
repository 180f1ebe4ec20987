"""The knobs of PPO, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from tasks.llm.losses import Estimator
from tasks.llm.rollouts import Sampling


class LogProbs(StrEnum):
    """Where the log-probabilities that an update starts from come from."""

    recomputed = "recomputed"
    generated = "generated"


class Schedule(StrEnum):
    """How the learning rate goes on after its warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@dataclass
class KL:
    """The cost of drifting from the policy that training started from."""

    coef: float = 0.05
    """What a nat costs, in units of the reward."""
    estimator: Estimator = Estimator.k1
    """k1 = log p - log q; k3 = q/p - 1 - log(q/p), never negative (Schulman, 2020)."""
    target: float | None = None
    """Nats per answer that the coefficient is steered to; null keeps it fixed."""

    def problems(self) -> Iterator[str]:
        if self.coef < 0:
            yield f"coef is {self.coef:g}; give 0 (free to drift) or a positive number such as 0.05."
        if self.target is not None and self.target <= 0:
            yield f"target is {self.target:g} nats; give a positive number such as 6, or null."


@dataclass
class Algorithm:
    """The knobs of PPO."""

    updates: int = 32
    """How often a batch of answers is drawn and learned from."""
    batch_size: int = 32
    """Answers drawn for each update."""
    answers_per_prompt: int = 1
    """How many of them to each prompt; a divisor of minibatch_size. Several share the reading of their prompt, which is
    most of the work where prompts are longer than answers."""
    minibatch_size: int = 16
    """Answers per optimizer step; a divisor of batch_size."""
    epochs: int = 2
    """How often an update goes over its answers."""
    learning_rate: float = 1e-4
    """Of the policy, and of a trunk that the critic shares with it."""
    critic_learning_rate: float = 1e-3
    """Of what the critic alone has: the value head, and its own trunk."""
    schedule: Schedule = Schedule.linear
    """constant, or down to 0 by a line or a cosine."""
    warmup: float = 0.05
    """Share of the optimizer steps in which the learning rates rise."""
    gamma: float = 1.0
    """Discount per token."""
    lam: float = 0.95
    """Lambda of GAE: 1 trusts what was earned, 0 the critic."""
    clip: float = 0.2
    """How far from 1 a token's probability ratio may go and still be learned from."""
    value_clip: float = 0.2
    """How far an update may move a value; 0 for no limit."""
    value_coef: float = 0.1
    """Weight of the critic's loss."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are cut to it."""
    kl: KL = field(default_factory=KL)
    stop_kl: float | None = 0.1
    """An update ends early when a step has moved the policy this far, in nats per token; null for never."""
    whiten_rewards: bool = False
    """Divide the rewards of a batch by their standard deviation."""
    whiten_advantages: bool = True
    """Give the advantages of a batch mean 0 and standard deviation 1."""
    missing_eos_penalty: float = 1.0
    """Taken off the score of an answer that was cut."""
    sampling: Sampling = field(default_factory=Sampling)
    log_probs: LogProbs = LogProbs.recomputed
    """recomputed: by a forward pass. generated: as the sampler saw them."""

    def problems(self) -> Iterator[str]:
        for name in ("updates", "batch_size", "answers_per_prompt", "minibatch_size", "epochs"):
            if getattr(self, name) < 1:
                yield f"{name} is {getattr(self, name)}; give a positive number."
        yield from self._uneven()
        for name in ("learning_rate", "critic_learning_rate", "clip", "max_grad_norm"):
            if not getattr(self, name) > 0:
                yield f"{name} is {getattr(self, name):g}; give a positive number."
        for name in ("gamma", "lam", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                yield f"{name} is {getattr(self, name):g}; give a number from 0 to 1."
        for name in ("value_clip", "value_coef", "missing_eos_penalty"):
            if getattr(self, name) < 0:
                yield f"{name} is {getattr(self, name):g}; give 0 or more."

    def _uneven(self) -> Iterator[str]:
        """batch_size is a number of minibatches, and these are a number of prompts with all their answers."""
        batch, mini, each = self.batch_size, self.minibatch_size, self.answers_per_prompt
        if min(batch, mini, each) < 1:
            return
        if batch % each:
            near = max(n for n in range(1, each) if batch % n == 0)
            yield f"answers_per_prompt={each} does not divide batch_size={batch}: use {near}."
        elif batch % mini or mini % each:
            fits = [n for n in range(each, batch + 1, each) if batch % n == 0]
            near = min(fits, key=lambda n: (abs(n - mini), n))
            wrong = f"does not divide batch_size={batch}" if batch % mini else f"cuts answers_per_prompt={each} apart"
            yield f"minibatch_size={mini} {wrong}: use {near}."
