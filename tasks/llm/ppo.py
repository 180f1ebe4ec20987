"""Proximal Policy Optimization (Schulman et al., 2017) of a language model, as Ziegler et al. (2019) use it.

One update: draw an answer to each of a batch of prompts; score it; take what drifting from the reference costs off each
token's reward; ask the critic what was expected (GAE); then a few epochs of clipped steps on the same answers. A seed
and the number of an update decide which prompts it takes, what it draws and in which order it learns, so a training
that is resumed goes on as if it had not been stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.llm import advantages, losses
from tasks.llm.actor import Actor, Reference
from tasks.llm.forks import Forks, forks, possible
from tasks.llm.losses import Estimator
from tasks.llm.ppo_knobs import Algorithm, LogProbs
from tasks.llm.rollouts import Drawn, Sampler

if TYPE_CHECKING:
    from torch import Tensor

Scores = Callable[[Sequence[int], Sequence[Drawn]], tuple[list[float], dict[str, list[float]]]]
"""Row numbers and their answers -> a score for each, and its components by name."""


@dataclass(frozen=True)
class Rollouts:
    """What an update learns from. Tensors: (rows, longest answer), fp32, 0 in the padding."""

    drawn: list[Drawn]
    mask: Tensor
    old: Tensor
    """log pi of each token before the update."""
    values: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass
class Trainer:
    how: Algorithm
    actor: Actor
    reference: Reference
    sampler: Sampler
    scores: Scores
    prompts: Sequence[list[int]]
    pad: int
    seed: int
    mixed: Callable[[], Any]
    at_once: int = 16
    """Sequences per forward and backward pass; no part of the result but for rounding."""
    control: advantages.KLControl = field(init=False)
    again: int = 0
    """How often training went back to a good checkpoint: then it draws anew."""

    def __post_init__(self) -> None:
        import torch
        from transformers import get_scheduler

        self.control = advantages.KLControl(self.how.kl.coef, self.how.kl.target)
        weights, own = self.actor.trained(), self.actor.critics()
        groups = (
            ([w for n, w in weights.items() if n not in own], self.how.learning_rate),
            ([w for n, w in weights.items() if n in own], self.how.critic_learning_rate),
        )
        self.optimizer = torch.optim.AdamW(
            [{"params": p, "lr": rate} for p, rate in groups], weight_decay=0.0, eps=1e-8
        )
        steps = self.how.updates * self.how.epochs * (self.how.batch_size // self.how.minibatch_size)
        self.scheduler = get_scheduler(self.how.schedule.value, self.optimizer, round(self.how.warmup * steps), steps)

    # One update

    def update(self, number: int) -> dict[str, float]:
        """Update `number`, counted from 0; returns what to watch."""
        began = time.monotonic()
        rows = self._rows(number)
        drawn = self.sampler([self.prompts[i] for i in rows], _seed(self.seed, number, self.again))
        sampled = time.monotonic()
        scores, parts = self.scores(rows, drawn)
        scored = time.monotonic()
        rollouts, seen = self._look(drawn, scores)
        looked = time.monotonic()
        learned = self._learn(rollouts, number)
        self.control.update(seen["kl"])
        ended = time.monotonic()
        return {
            "reward": _mean(scores),
            "reward_spread": _spread(scores),
            **{f"reward/{name}": _mean(values) for name, values in parts.items()},
            **seen,
            **learned,
            "length": _mean([len(one.answer) for one in drawn]),
            "finished": _mean([one.finished for one in drawn]),
            "empty": _mean([len(one.answer) == one.finished for one in drawn]),
            "samples_per_second": len(drawn) / (ended - began),
            "seconds/generate": sampled - began,
            "seconds/score": scored - sampled,
            "seconds/look": looked - scored,
            "seconds/learn": ended - looked,
        }

    def _rows(self, number: int) -> list[int]:
        """Which prompts: all of them in an order of their own, then all of them in another. One that is answered
        several times is there as often."""
        count, size = len(self.prompts), self.how.batch_size // self.how.answers_per_prompt
        places = range(number * size, (number + 1) * size)
        orders = {place // count: _shuffled(count, _seed(self.seed, place // count, -1)) for place in places}
        return [orders[place // count][place % count] for place in places for _ in range(self.how.answers_per_prompt)]

    def _look(self, drawn: list[Drawn], scores: list[float]) -> tuple[Rollouts, dict[str, float]]:
        """What policy, critic and reference say of the answers, and the advantages that follow."""
        import torch

        shape, device = (len(drawn), max(len(one.answer) for one in drawn)), self.actor.device
        old, values, known, entropy, sampled = (torch.zeros(shape, device=device) for _ in range(5))
        mask = torch.zeros(shape, dtype=torch.bool, device=device)
        with torch.no_grad(), self.mixed():
            for some, told in self._batches(drawn, range(len(drawn))):
                said, width = self.actor(told, entropy=True), told.mask.shape[1]
                assert said.entropy is not None
                parts = ((old, said.log_probs), (values, said.values), (entropy, said.entropy), (mask, told.mask))
                for whole, part in (*parts, (known, self.reference(told))):
                    whole[some, :width] = part
        for row, one in enumerate(drawn):
            sampled[row, : len(one.answer)] = torch.tensor(one.log_probs, device=device)
        gap = losses.masked_mean((sampled - old).abs(), mask)
        if self.how.log_probs is LogProbs.generated:
            old = sampled
        kl = losses.kl(old, known, self.how.kl.estimator) * mask
        rewards = advantages.shaped(torch.tensor(scores, device=device), kl, mask, self.control.coef)
        if self.how.whiten_rewards:
            rewards = losses.whiten(rewards, mask, shift=False)
        gained, returns = advantages.gae(rewards, values, mask, self.how.gamma, self.how.lam)
        if self.how.whiten_advantages:
            gained = losses.whiten(gained, mask)
        seen = {
            "kl": kl.sum(1).mean().item(),
            "kl_coef": self.control.coef,
            "entropy": losses.masked_mean(entropy, mask).item(),
            "explained_variance": losses.explained_variance(values, returns, mask),
            "log_prob_gap": gap.item(),
        }
        return Rollouts(drawn, mask, old, values, gained, returns), seen

    def _learn(self, rollouts: Rollouts, number: int) -> dict[str, float]:
        """The epochs of clipped steps; means over all steps that were taken."""
        steps: list[dict[str, float]] = []
        for epoch in range(self.how.epochs):
            each = self.how.answers_per_prompt
            prompts = _shuffled(len(rollouts.drawn) // each, _seed(self.seed, number, epoch))
            order = [prompt * each + n for prompt in prompts for n in range(each)]
            for start in range(0, len(order), self.how.minibatch_size):
                steps.append(self._step(rollouts, order[start : start + self.how.minibatch_size]))
                if self.how.stop_kl is not None and steps[-1]["step_kl"] > self.how.stop_kl:
                    return _means(steps)
        return _means(steps)

    def _step(self, rollouts: Rollouts, rows: list[int]) -> dict[str, float]:
        """One optimizer step on some rows. Its loss is a mean over their tokens, however they are split."""
        import torch

        tokens, told = int(rollouts.mask[rows].sum()), dict[str, float]()
        for some, given in self._batches(rollouts.drawn, rows):
            with self.mixed():
                said = self.actor(given)
            loss, parts = self._loss(said.log_probs, said.values, rollouts, some, given)
            share = int(given.mask.sum()) / tokens
            (loss * share).backward()
            for name, value in parts.items():
                told[name] = told.get(name, 0.0) + value * share
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        norm = float(torch.nn.utils.clip_grad_norm_(weights, self.how.max_grad_norm))
        if math.isfinite(norm):  # else the watch ends it, and the weights are still those of the last step
            self.optimizer.step()
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {**told, "grad_norm": norm}

    def _loss(
        self, new: Tensor, values: Tensor, rollouts: Rollouts, rows: list[int], given: Forks
    ) -> tuple[Tensor, dict[str, float]]:
        import torch

        width, mask = given.mask.shape[1], given.mask
        old, before, gained, returns = (
            part[rows, :width] for part in (rollouts.old, rollouts.values, rollouts.advantages, rollouts.returns)
        )
        policy = losses.policy_loss(new, old, gained, mask, self.how.clip)
        value = losses.value_loss(values, before, returns, mask, self.how.value_clip)
        with torch.no_grad():
            moved = losses.masked_mean(losses.kl(old, new, Estimator.k3), mask)
            ratio = losses.masked_mean((new - old).exp(), mask)
        parts = {
            "policy_loss": policy.loss,
            "value_loss": value.loss,
            "clip_fraction": policy.clipped,
            "value_clip_fraction": value.clipped,
            "step_kl": moved,
            "ratio": ratio,
        }
        return policy.loss + self.how.value_coef * value.loss, {n: float(p.detach()) for n, p in parts.items()}

    def _batches(self, drawn: Sequence[Drawn], rows: Sequence[int]) -> Iterator[tuple[list[int], Forks]]:
        """Rows of like length together, the longest first: what does not fit says so at once. Answers to one prompt
        stay together."""
        each = self.how.answers_per_prompt
        longest: dict[int, int] = {}
        for i in rows:
            longest[i // each] = max(longest.get(i // each, 0), len(drawn[i].prompt) + len(drawn[i].answer))
        order = sorted(rows, key=lambda i: (-longest[i // each], i))
        size, shared = max(each, self.at_once // each * each), possible(self.actor.policy.config)
        for start in range(0, len(order), size):
            some = order[start : start + size]
            prompts, answers = ([getattr(drawn[i], part) for i in some] for part in ("prompt", "answer"))
            yield some, forks(prompts, answers, self.pad, self.actor.device, shared)

    def careful(self, times: int) -> None:
        """From here on with learning rates so many times smaller, and a nat that costs so many times more."""
        rates = [self.how.learning_rate / times, self.how.critic_learning_rate / times]
        for group, before, rate in zip(self.optimizer.param_groups, self.scheduler.base_lrs, rates, strict=True):
            group["lr"] *= rate / before
        self.scheduler.base_lrs = rates
        self.control.coef = self.how.kl.coef * times

    # Kept between updates

    def save(self, place: Path, told: dict[str, Any]) -> None:
        """Everything the next update depends on; the file that says so comes last."""
        import torch
        from safetensors.torch import save_file

        place.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.actor.trained().items()}
        save_file(weights, place / "weights.safetensors")
        steps = {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
        torch.save(steps, place / "optimizer.pt")
        state = {**told, "kl_coef": self.control.coef, "again": self.again}
        (place / "trainer_state.json").write_text(json.dumps(state))

    def restore(self, place: Path) -> dict[str, Any]:
        """Go on from there; returns what `save` was told."""
        import torch
        from safetensors.torch import load_file

        kept = load_file(place / "weights.safetensors")
        with torch.no_grad():
            for name, weight in self.actor.trained().items():
                weight.copy_(kept[name])
        steps = torch.load(place / "optimizer.pt", weights_only=True, map_location=self.actor.device)
        self.optimizer.load_state_dict(steps["optimizer"])
        self.scheduler.load_state_dict(steps["scheduler"])
        told: dict[str, Any] = json.loads((place / "trainer_state.json").read_text())
        self.control.coef, self.again = told.pop("kl_coef"), told.pop("again")
        return told


def _seed(*parts: int) -> int:
    """One number out of several, the same everywhere."""
    import hashlib

    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


def _shuffled(count: int, seed: int) -> list[int]:
    import torch

    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _spread(values: Sequence[float]) -> float:
    return math.sqrt(_mean([(value - _mean(values)) ** 2 for value in values]))


def _means(steps: list[dict[str, float]]) -> dict[str, float]:
    return {name: _mean([step[name] for step in steps]) for name in steps[0]} | {"steps": len(steps)}
