"""On fixed rollouts, losses and gradients of three epochs are those of the PPO that TRL shipped last (1.12.0).

Where the definitions differ, ours is on purpose:
* The score falls on an answer's last token; TRL puts it one later where an answer ends early, and values that place.
* Means are over the tokens of a minibatch however it is split; TRL's are means over micro-batches.
* Gradients are cut to a length, and dropout is off; TRL's loop does neither.
* The KL of the padding is 0; TRL's approxkl and entropy average over it.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from tasks.llm.actor import Actor, Reference
from tasks.llm.ppo import Trainer
from tasks.llm.ppo_knobs import KL, Algorithm, Schedule
from tasks.llm.rollouts import Drawn
from tests import trl_parity as trl

TOLD = json.loads(trl.PLACE.read_text())


@pytest.fixture(scope="module")
def ours() -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What an update returns, and the gradients of each of its steps."""
    policy, reference, critic = trl.policies()
    head = torch.nn.Linear(TOLD["hidden"], 1)
    head.weight.data.copy_(critic.score.weight)
    head.bias.requires_grad_(False).zero_()
    how = Algorithm(
        updates=1,
        batch_size=4,
        minibatch_size=4,
        epochs=trl.EPOCHS,
        learning_rate=trl.RATE,
        critic_learning_rate=trl.RATE,
        schedule=Schedule.constant,
        warmup=0.0,
        gamma=trl.GAMMA,
        lam=trl.LAM,
        value_coef=trl.VALUE_COEF,
        max_grad_norm=1e9,
        kl=KL(trl.COEF),
        stop_kl=None,
        missing_eos_penalty=0.0,
    )

    def drawn(prompts: Any, _: int) -> list[Drawn]:
        answers = [trl.ANSWERS[trl.PROMPTS.index(prompt)] for prompt in prompts]
        return [Drawn(p, a, [0.0] * len(a), finished=False) for p, a in zip(prompts, answers, strict=True)]

    def scores(rows: Any, _: Any) -> Any:
        return [trl.SCORES[row] for row in rows], {}

    acting = Actor(policy, head, critic.model)
    trainer = Trainer(how, acting, Reference(reference), drawn, scores, trl.PROMPTS, trl.PAD, 0, nullcontext)
    steps: list[dict[str, Any]] = []
    step = trainer.optimizer.step

    def watched(*given: Any, **named: Any) -> Any:
        parts = {f"model.{name}": weight for name, weight in critic.model.named_parameters()}
        grads = {"policy": dict(policy.named_parameters()), "critic": parts | {"score.weight": head.weight}}
        steps.append({part: trl.fingerprint(weights) for part, weights in grads.items()})
        return step(*given, **named)

    trainer.optimizer.step = watched  # type: ignore[method-assign]
    return trainer.update(0), steps


def test_every_gradient_of_every_step_is_the_same(ours: Any) -> None:
    _, steps = ours
    assert len(steps) == len(TOLD["steps"]) == 3
    for mine, theirs in zip(steps, TOLD["steps"], strict=True):
        for part in ("policy", "critic"):
            assert mine[part].keys() == theirs[part].keys()
            for name, (length, product) in theirs[part].items():
                assert mine[part][name] == pytest.approx([length, product], rel=2e-3, abs=2e-5), (part, name)


def test_losses_kl_and_clipping_are_the_same(ours: Any) -> None:
    told, _ = ours
    logged = TOLD["logged"]
    assert told["kl"] == pytest.approx(logged["objective/kl"], abs=1e-5)
    assert told["policy_loss"] == pytest.approx(logged["loss/policy_avg"], rel=1e-3, abs=1e-5)
    assert told["value_loss"] == pytest.approx(logged["loss/value_avg"], rel=1e-3)
    assert told["clip_fraction"] == pytest.approx(logged["policy/clipfrac_avg"], abs=1e-6)
    assert told["policy_loss"] + trl.VALUE_COEF * told["value_loss"] == pytest.approx(
        sum(step["loss"] for step in TOLD["steps"]) / 3, rel=1e-3
    )
