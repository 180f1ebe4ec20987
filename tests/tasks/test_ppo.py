"""The stage: from a policy on disk to a better one, on the tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.llm import models
from tasks.llm.actor import Critic, Opening
from tasks.llm.forks import forks
from tasks.llm.ppo_knobs import KL
from tasks.llm.rewards import Reward
from tasks.llm.rollouts import Sampling
from tasks.llm.training import LoRA, Method
from tasks.ppo import PPOConfig, ppo
from tasks.runtime import Dataset, Model, Precision
from tests import hand

SHORT = PPOConfig(
    updates=3,
    batch_size=4,
    minibatch_size=2,
    epochs=2,
    learning_rate=1e-3,
    kl=KL(0.01),
    lora=LoRA(rank=4, dropout=0.1),
    precision=Precision.fp32,
    sampling=Sampling(max_new_tokens=6),
    rewards={"length": Reward(target=6), "exact_match": Reward(weight=0.5)},
)


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Model:
    return hand.handle(Model, tiny_model, digest="ba5e")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return hand.dataset(tmp_path_factory.mktemp("questions"), hand.chats(), hand.chats()[:2])


def config(**more: Any) -> PPOConfig:
    return replace(SHORT, **more)


def history(folder: Path) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((folder / "notes" / "history.json").read_text())
    return found


@pytest.mark.parametrize("critic", Critic)
@pytest.mark.parametrize("method", Method)
def test_a_policy_becomes_another_and_the_first_update_begins_at_its_reference(
    base: Model, questions: Dataset, tmp_path: Path, method: Method, critic: Critic
) -> None:
    run = hand.run(tmp_path)
    metrics = ppo.body(run, config(method=method, critic=critic), base, questions)
    told = history(tmp_path)
    assert len(told) == metrics["updates"] == 3
    assert told[0]["kl"] == pytest.approx(0, abs=1e-5) and told[2]["kl"] != 0
    assert told[0]["reward"] == pytest.approx(told[0]["reward/length"] + 0.5 * told[0]["reward/exact_match"], abs=2)
    assert {"eval_before", "eval_after", "eval_gain_low", "eval_gain_high"} <= metrics.keys()
    assert models.is_adapter(run.out) == (method is Method.lora)
    assert "reward" in (run.notes / "answers.md").read_text()


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_an_adapter_is_gone_on_with_and_its_frozen_copy_is_the_reference(
    base: Model, questions: Dataset, tmp_path: Path, precision: Precision
) -> None:
    first = hand.adapter(tmp_path / "first", base, scale=0.5)
    run = hand.run(tmp_path)
    ppo.body(run, config(updates=1, precision=precision), first, questions)
    assert history(tmp_path)[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert json.loads((run.out / "stands_on.json").read_text()) == {"base": "ba5e"}


def test_in_bf16_an_adapter_multiplies_in_bf16_and_its_weights_stay_fp32(base: Model) -> None:
    opening = Opening(base.path, base.path, False, LoRA(rank=4), Critic.shared, "bf16", 1.0, 0)
    acting, _ = opening()
    layers = {name: one for name, one in acting.policy.named_modules() if name.endswith("lora_A.default")}
    read, given = set[Any](), forks([[1, 2, 3]], [[4, 5]], 0, "cpu")
    for layer in layers.values():
        layer.register_forward_hook(lambda layer, inputs, out: read.add((inputs[0].dtype, out.dtype)))
    with opening.mixed():
        said = acting(given)
    (said.log_probs.sum() + said.values.sum()).backward()
    assert read == {(torch.bfloat16, torch.bfloat16)} and said.values.dtype == torch.float32
    trained = acting.trained()
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in trained.values())


def test_questions_need_no_answer_where_no_reward_compares_with_one(
    base: Model, questions: Dataset, tmp_path: Path
) -> None:
    asked = [{"id": str(n), "prompt": row["messages"][:-1], "answer": ""} for n, row in enumerate(hand.chats())]
    bare = hand.dataset(tmp_path / "asked", asked, asked[:2])
    one, other = hand.run(tmp_path / "one"), hand.run(tmp_path / "other")
    of_length = config(updates=1, rewards={"length": Reward(target=6)})
    ppo.body(one, of_length, base, bare)
    ppo.body(other, of_length, base, questions)
    assert hand.content(one.out) == hand.content(other.out)
    with pytest.raises(ValueError, match=r"rewards.exact_match compares with the wanted answer, which is not a text"):
        ppo.body(hand.run(tmp_path / "third"), config(), base, bare)


def test_every_weight_of_an_adapter_cannot_be_trained(base: Model, questions: Dataset, tmp_path: Path) -> None:
    first = hand.adapter(tmp_path / "first", base)
    with pytest.raises(ValueError, match=r"ppo.method=full has no weights of its own: merge it first"):
        ppo.body(hand.run(tmp_path), config(method=Method.full), first, questions)


@pytest.mark.parametrize("method", Method)
def test_stopped_and_gone_on_with_gives_the_same_bytes(
    base: Model, questions: Dataset, tmp_path: Path, method: Method
) -> None:
    through, stopped = hand.run(tmp_path / "through"), hand.run(tmp_path / "stopped")
    ppo.body(through, config(method=method), base, questions)
    asked = iter([False, True])
    with pytest.raises(InterruptedError):
        ppo.body(hand.run(tmp_path / "stopped", stopping=lambda: next(asked)), config(method=method), base, questions)
    ppo.body(stopped, config(method=method), base, questions)
    assert hand.content(through.out) == hand.content(stopped.out)


def test_questions_that_a_reward_cannot_compare_with_are_told_before_anything_is_drawn(
    base: Model, questions: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"rewards.field_match compares with the wanted answer, which is not .* 4 of 4"
    ):
        ppo.body(hand.run(tmp_path), config(rewards={"field_match": Reward()}), base, questions)


def test_problems_name_the_knob() -> None:
    assert list(config().problems()) == []
    said = "\n".join(PPOConfig(updates=0, rewards={"exact_macth": Reward()}).problems())
    assert "updates is 0" in said and "Did you mean exact_match" in said
