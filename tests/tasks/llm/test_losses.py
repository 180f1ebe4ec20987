"""Every loss of PPO with the sum done by hand on a few tokens."""

from __future__ import annotations

import math

import pytest
import torch

from tasks.llm import losses
from tasks.llm.losses import Estimator

MASK = torch.tensor([[True, True, False], [True, False, False]])


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_the_policy_loss_is_equation_7_of_ppo_with_the_padding_left_out() -> None:
    old = logs([0.5, 0.5, 0.1], [0.2, 0.9, 0.9])
    new = logs([0.75, 0.25, 0.9], [0.2, 0.1, 0.1])  # ratios 1.5, 0.5, -; 1, -, -
    advantages = torch.tensor([[2.0, -1.0, 99.0], [3.0, 99.0, 99.0]])
    found = losses.policy_loss(new, old, advantages, MASK, clip=0.2)
    by_hand = -(min(1.5 * 2, 1.2 * 2) + min(0.5 * -1, 0.8 * -1) + 1 * 3) / 3
    assert found.loss.item() == pytest.approx(by_hand)
    assert found.clipped.item() == pytest.approx(2 / 3)


def test_a_clipped_token_has_no_gradient_unless_it_would_go_back() -> None:
    old = torch.zeros(1, 2)
    new = torch.tensor([[1.0, 1.0]], requires_grad=True)  # ratio e: far above 1.2
    losses.policy_loss(new, old, torch.tensor([[1.0, -1.0]]), torch.ones(1, 2).bool(), 0.2).loss.backward()
    assert new.grad is not None
    assert new.grad.tolist() == [[0.0, pytest.approx(math.e / 2)]]


def test_step_0_has_a_ratio_of_one_and_the_mean_advantage_as_its_loss() -> None:
    old = logs([0.5, 0.3, 1.0], [0.2, 1.0, 1.0])
    found = losses.policy_loss(old, old, torch.tensor([[1.0, 2.0, 0.0], [-6.0, 0.0, 0.0]]), MASK, 0.2)
    assert (found.loss.item(), found.clipped.item()) == (pytest.approx(1.0), 0.0)


def test_the_value_loss_takes_the_worse_of_the_plain_and_the_clipped_error() -> None:
    old = torch.tensor([[1.0, 1.0, 9.0], [0.0, 9.0, 9.0]])
    new = torch.tensor([[1.5, 0.9, 9.0], [-1.0, 9.0, 9.0]])
    returns = torch.tensor([[2.0, 2.0, 0.0], [-1.0, 0.0, 0.0]])
    found = losses.value_loss(new, old, returns, MASK, clip=0.2)
    by_hand = 0.5 * (max(0.5**2, 0.8**2) + max(1.1**2, 1.1**2) + max(0.0, 0.8**2)) / 3
    assert found.loss.item() == pytest.approx(by_hand)
    assert found.clipped.item() == pytest.approx(2 / 3)
    plain = losses.value_loss(new, old, returns, MASK, clip=0)
    assert plain.loss.item() == pytest.approx(0.5 * (0.5**2 + 1.1**2 + 0) / 3)


def test_k1_and_k3_are_those_of_the_note_and_agree_in_the_mean() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]).double(), torch.tensor([0.3, 0.3, 0.4]).double()
    truth = float((p * (p / q).log()).sum())
    for estimator in Estimator:
        each = losses.kl(p.log(), q.log(), estimator)
        assert float((p * each).sum()) == pytest.approx(truth)
    assert losses.kl(p.log(), q.log(), Estimator.k1)[0].item() == pytest.approx(math.log(0.7 / 0.3))
    assert losses.kl(p.log(), q.log(), Estimator.k3)[2].item() == pytest.approx(4 - 1 - math.log(4))
    assert (losses.kl(p.log(), q.log(), Estimator.k3) >= 0).all()
    assert losses.kl(p.log(), p.log(), Estimator.k3).abs().max() == 0


def test_entropy_and_log_probabilities_of_a_few_logits() -> None:
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]])  # probabilities 1/8, 2/8, 5/8
    wanted = -sum(x / 8 * math.log(x / 8) for x in (1, 2, 5))
    assert losses.entropy(logits).item() == pytest.approx(wanted)
    assert losses.policy_log_probs(logits, torch.tensor([2])).item() == pytest.approx(math.log(5 / 8))
    assert losses.policy_log_probs(logits.bfloat16(), torch.tensor([2])).dtype == torch.float32


def test_whitening_looks_at_masked_tokens_alone() -> None:
    values = torch.tensor([[1.0, 3.0, 50.0], [5.0, -50.0, 0.0]])
    white = losses.whiten(values, MASK)
    assert white[MASK].tolist() == pytest.approx([-1.0, 0.0, 1.0])
    assert white[~MASK].abs().max() == 0
    assert losses.whiten(values, MASK, shift=False)[MASK].tolist() == pytest.approx([2.0, 3.0, 4.0])


def test_explained_variance_is_one_for_the_truth_and_zero_for_the_mean() -> None:
    returns = torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]])
    assert losses.explained_variance(returns, returns, MASK) == 1
    assert losses.explained_variance(torch.full_like(returns, 2.0), returns, MASK) == 0
    assert losses.explained_variance(returns, torch.ones_like(returns), MASK) == 0


def test_gradients_equal_finite_differences_in_float64() -> None:
    torch.manual_seed(0)
    old, new, advantages = (torch.randn(2, 3, dtype=torch.float64) for _ in range(3))

    def both(new: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        policy = losses.policy_loss(new, old, advantages, MASK, 0.2).loss
        return policy, losses.value_loss(values, old, advantages, MASK, 0.2).loss

    values = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(both, (new.requires_grad_(), values))
