"""What PPO minimises and what it watches, on tensors of shape (rows, tokens): token t of a row is one the policy chose.

`mask` is True where there is such a token; rows are padded on the right. Means are over tokens, not over rows first.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Estimator(StrEnum):
    """How the KL divergence of the policy from the reference is estimated on the token that was drawn."""

    k1 = "k1"
    k3 = "k3"


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean over the tokens of `mask`; 0 where there is none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def whiten(values: Tensor, mask: Tensor, shift: bool = True) -> Tensor:
    """Values with standard deviation 1 over the tokens of `mask`, and mean 0 unless `shift` is off; 0 elsewhere."""
    count, mean = mask.sum(), masked_mean(values, mask)
    variance = ((values - mean) ** 2 * mask).sum() / (count - 1).clamp(min=1)  # Bessel's correction
    white = (values - mean) * (variance + 1e-8).rsqrt()
    return (white if shift else white + mean) * mask


def policy_log_probs(logits: Tensor, chosen: Tensor) -> Tensor:
    """log pi of the chosen tokens: logits (..., vocabulary) in any float format, result (...) in fp32."""
    logits = logits.float()
    picked: Tensor = logits.gather(-1, chosen.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
    return picked


def entropy(logits: Tensor) -> Tensor:
    """H = -sum_v p_v log p_v of each position, in nats: (..., vocabulary) to (...)."""
    log_p = logits.float().log_softmax(-1)
    found: Tensor = -(log_p.exp() * log_p).sum(-1)
    return found


def kl(log_p: Tensor, log_q: Tensor, estimator: Estimator) -> Tensor:
    """KL(p || q) of each token, estimated where the token was drawn from p (Schulman, 2020, "Approximating KL
    divergence"): k1 = log p - log q, without bias and of either sign; k3 = (q/p - 1) - log(q/p), without bias and
    never below 0."""
    log_ratio = log_q - log_p
    return -log_ratio if estimator is Estimator.k1 else log_ratio.exp() - 1 - log_ratio


@dataclass(frozen=True)
class Clipped:
    """A clipped loss, and the share of tokens at which the clip was what counted."""

    loss: Tensor
    clipped: Tensor


def policy_loss(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> Clipped:
    """-E[min(r A, clip(r, 1 - c, 1 + c) A)], r = exp(new - old) (Schulman et al., 2017, Eq. 7)."""
    import torch

    ratio = torch.exp(new - old)
    plain, bounded = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return _clipped(plain, bounded, mask)


def value_loss(new: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Clipped:
    """1/2 E[max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2)] (Schulman et al., 2017, Eq. 9 with the clipping of
    its published code); `clip` 0 leaves the clipping out."""
    import torch

    plain = (new - returns) ** 2
    bounded = (torch.clamp(new, old - clip, old + clip) - returns) ** 2 if clip else plain
    found = _clipped(plain, bounded, mask)
    return Clipped(0.5 * found.loss, found.clipped)


def _clipped(plain: Tensor, bounded: Tensor, mask: Tensor) -> Clipped:
    import torch

    return Clipped(masked_mean(torch.max(plain, bounded), mask), masked_mean((bounded > plain).float(), mask).detach())


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(R - V) / Var(R) over the tokens of `mask`: 1 is a perfect critic, 0 one that knows the mean alone."""
    seen: Any = returns[mask]
    spread = seen.var(unbiased=False)
    if seen.numel() < 2 or spread == 0:
        return 0.0
    return float(1 - (seen - values[mask]).var(unbiased=False) / spread)
