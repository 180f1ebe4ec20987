from __future__ import annotations

import pytest
import torch

from tasks.llm.advantages import KLControl, gae, shaped

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_the_score_falls_on_the_last_token_and_the_penalty_on_each() -> None:
    kl = torch.tensor([[0.1, 0.2, 0.3], [0.5, 9.0, 9.0]])
    found = shaped(torch.tensor([2.0, -1.0]), kl, MASK, coef=0.5)
    assert found.flatten().tolist() == pytest.approx([-0.05, -0.1, 2 - 0.15, -1 - 0.25, 0, 0])


def test_an_empty_answer_gets_no_reward() -> None:
    nothing = torch.zeros(1, 2).bool()
    assert shaped(torch.tensor([5.0]), torch.ones(1, 2), nothing, 0.1).abs().max() == 0


def test_gae_by_hand_on_three_tokens() -> None:
    rewards = torch.tensor([[0.0, 0.0, 1.0], [2.0, 9.0, 9.0]])
    values = torch.tensor([[0.5, 0.4, 0.3], [0.5, 9.0, 9.0]])
    advantages, returns = gae(rewards, values, MASK, gamma=0.9, lam=0.8)
    third = 1.0 - 0.3
    second = 0.9 * 0.3 - 0.4 + 0.72 * third
    first = 0.9 * 0.4 - 0.5 + 0.72 * second
    assert advantages.flatten().tolist() == pytest.approx([first, second, third, 1.5, 0, 0])
    assert returns.flatten().tolist() == pytest.approx([first + 0.5, second + 0.4, 1.0, 2.0, 0, 0])


def test_gae_equals_a_slow_sum_over_all_later_tokens() -> None:
    torch.manual_seed(0)
    rows, width, gamma, lam = 5, 7, 0.97, 0.9
    lengths = [7, 1, 4, 0, 6]
    mask = torch.tensor([[t < n for t in range(width)] for n in lengths])
    rewards, values = torch.randn(2, rows, width, dtype=torch.float64)
    found, returns = gae(rewards, values, mask, gamma, lam)
    for i, n in enumerate(lengths):
        v = [*values[i, :n].tolist(), 0.0]
        delta = [float(rewards[i, t]) + gamma * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            slow = sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, n))  # Eq. 16 as it is printed
            assert found[i, t].item() == pytest.approx(slow)
            assert returns[i, t].item() == pytest.approx(slow + v[t])
        assert found[i, n:].abs().sum() == returns[i, n:].abs().sum() == 0


def test_with_lambda_1_returns_are_what_was_really_earned() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0]])
    _, returns = gae(rewards, torch.randn(1, 3), torch.ones(1, 3).bool(), gamma=1, lam=1)
    assert returns.flatten().tolist() == pytest.approx([6.0, 5.0, 3.0])


def test_the_coefficient_follows_its_target_by_at_most_two_percent_a_step() -> None:
    control = KLControl(0.1, target=4.0)
    control.update(4.4)
    assert control.coef == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    control = KLControl(0.1, target=4.0)
    control.update(100)
    assert control.coef == pytest.approx(0.1 * 1.02)
    control.update(0)
    assert control.coef == pytest.approx(0.1 * 1.02 * 0.98)
    fixed = KLControl(0.1)
    fixed.update(100)
    assert fixed.coef == 0.1
