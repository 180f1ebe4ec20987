"""The algorithm on a policy of sixteen tokens: step-0 facts, bandits whose optimum is known, going on after a kill."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.llm import losses, ppo
from tasks.llm.forks import forks
from tasks.llm.ppo import Trainer
from tasks.llm.ppo_knobs import KL, Algorithm, LogProbs
from tasks.llm.rollouts import Drawn, Sampling, Transformers
from tests import toy_policy
from tests.toy_policy import PAD, PROMPTS, STOP

ONE_TOKEN = Sampling(max_new_tokens=1)
RIGHT = 12


def bandit(seed: int, **knobs: Any) -> Trainer:
    given = {"updates": 30, "batch_size": 32, "minibatch_size": 16, "epochs": 4, "learning_rate": 3e-3, "kl": KL(0.0)}
    how = Algorithm(sampling=ONE_TOKEN, stop_kl=None, **given | knobs)
    return toy_policy.trainer(how, lambda one: float(one.answer[0] == RIGHT), seed)


def chance_of(trainer: Trainer, token: int) -> float:
    told = forks(PROMPTS, [[token]] * len(PROMPTS), PAD, "cpu")
    with torch.no_grad():
        return float(trainer.actor(told).log_probs.exp().mean())


@pytest.mark.parametrize("seed", range(5))
def test_a_bandit_learns_the_token_that_pays_within_30_updates(seed: int) -> None:
    trainer = bandit(seed)
    assert chance_of(trainer, RIGHT) < 0.15
    for number in range(30):
        trainer.update(number)
    assert chance_of(trainer, RIGHT) > 0.9


def test_under_a_kl_penalty_the_optimum_is_the_reference_times_exp_of_the_reward() -> None:
    """max_p E_p[r] - b KL(p || q) is p ~ q exp(r / b) (Rafailov et al., 2023, Eq. 4)."""
    b = 0.5
    trainer = bandit(0, kl=KL(b), whiten_advantages=False, batch_size=128, minibatch_size=128, updates=60)
    q = chance_of(trainer, RIGHT)
    for number in range(60):
        told = trainer.update(number)
    optimum = q * math.exp(1 / b) / (q * math.exp(1 / b) + 1 - q)
    assert optimum > 3 * q
    assert chance_of(trainer, RIGHT) == pytest.approx(optimum, abs=0.06)
    assert told["kl"] < 1


def longer(one: Drawn) -> float:
    return len(one.answer) / 8


def test_the_first_update_begins_where_the_reference_is() -> None:
    how = Algorithm(updates=1, batch_size=8, minibatch_size=8, epochs=1, sampling=Sampling(8))
    told = toy_policy.trainer(how, longer).update(0)
    assert told["kl"] == pytest.approx(0, abs=1e-6)
    assert told["ratio"] == pytest.approx(1, abs=1e-6)
    assert told["step_kl"] == pytest.approx(0, abs=1e-6)
    assert told["clip_fraction"] == told["explained_variance"] == 0  # the head says 0 of everything
    assert told["log_prob_gap"] < 1e-5  # drawn with a cache and padding, looked at without
    assert told["policy_loss"] == pytest.approx(0, abs=1e-5)  # white advantages have mean 0
    assert 0 < told["entropy"] < math.log(toy_policy.VOCABULARY)


def test_the_sampler_gives_the_log_probabilities_of_what_it_drew_and_stops_at_the_stop_token() -> None:
    policy = toy_policy.model()
    drawn = Transformers(policy, PAD, [STOP], Sampling(12), at_once=3)(PROMPTS * 3, seed=1)
    assert any(one.finished for one in drawn) and any(len(one.answer) == 12 for one in drawn)
    for one in drawn:
        assert one.finished == (one.answer[-1] == STOP) and STOP not in one.answer[:-1]
        with torch.no_grad():
            logits = policy(torch.tensor([one.prompt + one.answer])).logits[0, len(one.prompt) - 1 : -1]
        slow = losses.policy_log_probs(logits, torch.tensor(one.answer))
        assert one.log_probs == pytest.approx(slow.tolist(), abs=1e-5)


def test_what_is_drawn_is_distributed_as_the_policy_says() -> None:
    policy = toy_policy.model()
    drawn = Transformers(policy, PAD, [STOP], ONE_TOKEN, at_once=500)([[2, 3]] * 4000, seed=0)
    with torch.no_grad():
        wanted = policy(torch.tensor([[2, 3]])).logits[0, -1].softmax(-1)
    found = torch.bincount(torch.tensor([one.answer[0] for one in drawn]), minlength=toy_policy.VOCABULARY) / 4000
    assert float((found - wanted).abs().sum()) < 0.08  # about 0.04 by chance


def test_top_k_and_top_p_draw_from_the_likeliest_alone() -> None:
    policy = toy_policy.model()
    with torch.no_grad():
        order = policy(torch.tensor([[2, 3]])).logits[0, -1].sort(descending=True)
    few = {one.answer[0] for one in Transformers(policy, PAD, [STOP], Sampling(1, top_k=2))([[2, 3]] * 64, 0)}
    assert few == set(order.indices[:2].tolist())
    chances = order.values.softmax(-1).cumsum(-1)
    least = int((chances < 0.5).sum()) + 1
    half = {one.answer[0] for one in Transformers(policy, PAD, [STOP], Sampling(1, top_p=0.5))([[2, 3]] * 400, 0)}
    assert half == set(order.indices[:least].tolist())


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.actor.trained().items()}


def test_how_a_minibatch_is_split_changes_nothing_but_rounding() -> None:
    how = Algorithm(updates=2, batch_size=8, minibatch_size=8, epochs=2, sampling=Sampling(8))
    whole, split = (toy_policy.trainer(how, longer, at_once=at_once) for at_once in (8, 3))
    for number in range(2):
        whole.update(number), split.update(number)
    for name, weight in parameters(whole).items():
        assert torch.allclose(weight, parameters(split)[name], atol=1e-5), name


@pytest.mark.parametrize("separate", [False, True])
def test_resumed_equals_uninterrupted_to_the_last_bit(tmp_path: Path, separate: bool) -> None:
    how = Algorithm(updates=4, batch_size=8, minibatch_size=4, epochs=2, sampling=Sampling(8), kl=KL(0.1, target=1.0))
    through = toy_policy.trainer(how, longer, separate=separate)
    told = [through.update(number) for number in range(4)]
    first = toy_policy.trainer(how, longer, separate=separate)
    for number in range(2):
        first.update(number)
    first.save(tmp_path / "checkpoint-2", {"history": told[:2]})
    second = toy_policy.trainer(how, longer, separate=separate)
    assert second.restore(tmp_path / "checkpoint-2") == {"history": told[:2]}
    again = [second.update(number) for number in (2, 3)]
    timed = {name for name in told[0] if "second" in name}
    assert [{n: v for n, v in one.items() if n not in timed} for one in again] == [
        {n: v for n, v in one.items() if n not in timed} for one in told[2:]
    ]
    for name, weight in parameters(through).items():
        assert torch.equal(weight, parameters(second)[name]), name


def test_log_probabilities_of_the_sampler_serve_as_well() -> None:
    how = Algorithm(updates=1, batch_size=8, minibatch_size=8, epochs=1, sampling=Sampling(8))
    taken = toy_policy.trainer(Algorithm(**vars(how) | {"log_probs": LogProbs.generated}), longer).update(0)
    asked = toy_policy.trainer(how, longer).update(0)
    assert taken["ratio"] == pytest.approx(asked["ratio"], abs=1e-4)


def test_an_update_ends_early_when_the_policy_has_moved_far() -> None:
    def steps(stop_kl: float | None) -> float:
        how = Algorithm(
            updates=2, batch_size=8, minibatch_size=4, epochs=8, learning_rate=1e-2, stop_kl=stop_kl, warmup=0
        )
        return toy_policy.trainer(how, longer).update(0)["steps"]

    assert steps(None) == 16
    assert 1 < steps(0.01) < 16


def test_every_prompt_is_taken_once_before_one_is_taken_again() -> None:
    trainer = toy_policy.trainer(Algorithm(updates=4, batch_size=3, minibatch_size=3), longer)
    taken = [row for number in range(4) for row in trainer._rows(number)]
    assert [sorted(taken[n : n + 4]) for n in (0, 4, 8)] == [[0, 1, 2, 3]] * 3
    assert taken[:4] != taken[4:8] or taken[4:8] != taken[8:]


def test_reading_a_prompt_once_for_all_its_answers_changes_nothing_but_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    how = Algorithm(updates=2, batch_size=16, answers_per_prompt=4, minibatch_size=8, epochs=2, sampling=Sampling(8))
    shared = toy_policy.trainer(how, longer)
    told = [shared.update(number) for number in range(2)]
    monkeypatch.setattr(ppo, "possible", lambda _: False)
    alone = toy_policy.trainer(how, longer)
    for number in range(2):
        assert alone.update(number)["policy_loss"] == pytest.approx(told[number]["policy_loss"], abs=1e-5)
    for name, weight in parameters(shared).items():
        assert torch.allclose(weight, parameters(alone)[name], atol=1e-5), name


def test_answers_to_one_prompt_are_drawn_and_learned_from_together() -> None:
    how = Algorithm(updates=2, batch_size=8, answers_per_prompt=4, minibatch_size=4, epochs=1, sampling=Sampling(8))
    trainer = toy_policy.trainer(how, longer)
    taken = [row for number in range(2) for row in trainer._rows(number)]
    assert [taken[n : n + 4] for n in range(0, 16, 4)] == [[row] * 4 for row in taken[::4]]
    assert sorted(taken[::4]) == [0, 1, 2, 3]
    drawn = trainer.sampler([trainer.prompts[row] for row in taken], seed=0)
    (some, given), *_ = trainer._batches(drawn, [4, 5, 6, 7])
    assert (some, given.ids.shape[0]) == ([4, 5, 6, 7], 1)


def test_problems_name_the_knob_and_what_to_give() -> None:
    assert list(Algorithm().problems()) == []
    said = list(Algorithm(batch_size=32, minibatch_size=12, lam=1.5, learning_rate=0).problems())
    assert said[0] == "minibatch_size=12 does not divide batch_size=32: use 8."
    assert list(Algorithm(answers_per_prompt=6).problems()) == [
        "answers_per_prompt=6 does not divide batch_size=32: use 4."
    ]
    assert list(Algorithm(answers_per_prompt=4, minibatch_size=2).problems()) == [
        "minibatch_size=2 cuts answers_per_prompt=4 apart: use 4."
    ]
    assert list(Algorithm(batch_size=30, answers_per_prompt=3).problems()) == [
        "minibatch_size=16 does not divide batch_size=30: use 15."
    ]
    assert any(one.startswith("lam is 1.5") for one in said) and any("learning_rate is 0" in one for one in said)
