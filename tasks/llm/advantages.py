"""From scores of whole answers to an advantage for every token: shaped rewards, GAE, and the coefficient of the KL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def shaped(scores: Tensor, kl: Tensor, mask: Tensor, coef: float) -> Tensor:
    """The reward of every token: -coef KL, and the score (rows,) on top at each row's last token (Ziegler et al., 2019,
    Eq. 2). `kl` and `mask`: (rows, tokens). A row without a token gets none."""
    import torch

    rewards = -coef * kl * mask
    last = mask.sum(1) - 1
    there = torch.nonzero(last >= 0).squeeze(1)
    rewards[there, last[there]] += scores[there]
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns of every token, both (rows, tokens), 0 outside of `mask` (Schulman et al., 2016, Eq. 16):

        delta_t = r_t + gamma V_(t+1) - V_t,   A_t = delta_t + gamma lam A_(t+1),   R_t = A_t + V_t

    The answer's last token is the end of its episode: nothing follows, cut off or not.
    """
    import torch

    rewards, values = rewards * mask, values * mask
    advantage, after = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    found = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * after - values[:, t]
        advantage = (delta + gamma * lam * advantage) * mask[:, t]
        found[:, t], after = advantage, values[:, t]
    return found, (found + values) * mask


@dataclass
class KLControl:
    """The coefficient of the KL penalty: fixed, or steered towards a target (Ziegler et al., 2019, section 2.2)."""

    coef: float
    target: float | None = None
    """Nats per answer; None leaves the coefficient as it is."""
    gain: float = 0.1

    def update(self, kl: float) -> None:
        """After a batch whose answers were `kl` nats from the reference in the mean:
        e = clip(KL / target - 1, -0.2, 0.2), coef <- coef (1 + gain e)."""
        if self.target:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + self.gain * error
