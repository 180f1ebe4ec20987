"""Answers drawn from a policy, to learn from: what was drawn, how likely it was, whether it ended by itself.

Whoever draws answers is a `Sampler`; `Transformers` is one. A seed and a policy give the same answers, so a training
that is resumed draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Sampling:
    """How answers are drawn. What is drawn must be what the policy would say: every limit biases what is learned."""

    max_new_tokens: int = 96
    """Tokens an answer may have; one that is not over by then is cut."""
    temperature: float = 1.0
    """Divides the logits, here and wherever the policy is asked how likely an answer was."""
    top_k: int = 0
    """Draw among the k likeliest tokens only; 0 for all."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together have this probability; 1 for all."""

    def problems(self) -> Iterator[str]:
        if self.max_new_tokens < 1:
            yield f"max_new_tokens is {self.max_new_tokens}; give a positive number such as 96."
        if not self.temperature > 0:
            yield f"temperature is {self.temperature:g}; give a positive number, 1 for the policy itself."
        if self.top_k < 0:
            yield f"top_k is {self.top_k}; give 0 for all tokens, or a positive number."
        if not 0 < self.top_p <= 1:
            yield f"top_p is {self.top_p:g}; give a share above 0 and up to 1, 1 for all tokens."


@dataclass(frozen=True)
class Drawn:
    """One answer. `log_probs`: of each of its tokens by the policy, as the sampler saw it."""

    prompt: list[int]
    answer: list[int]
    """Ends with the stop token where `finished`."""
    log_probs: list[float]
    finished: bool


class Sampler(Protocol):
    def __call__(self, prompts: Sequence[list[int]], seed: int) -> list[Drawn]:
        """One answer to each prompt, in their order."""
        ...


@dataclass
class Transformers:
    """Draws with a model of transformers: batched by length, with a KV cache that reads a prompt once for all of its
    answers, and forgets those that are over."""

    model: Any
    pad: int
    stops: Sequence[int]
    sampling: Sampling
    at_once: int = 32
    """Prompts per batch: only speed and memory."""
    mixed: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __call__(self, prompts: Sequence[list[int]], seed: int) -> list[Drawn]:
        import torch

        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        dice = torch.Generator(self.model.device).manual_seed(seed)
        found: dict[int, Drawn] = {}
        with torch.inference_mode(), self.mixed():
            for start in range(0, len(order), self.at_once):
                some = order[start : start + self.at_once]
                drawn = self._batch([prompts[i] for i in some], dice)
                found |= dict(zip(some, drawn, strict=True))
        return [found[i] for i in range(len(prompts))]

    def _batch(self, prompts: list[list[int]], dice: Any) -> list[Drawn]:
        import torch
        from transformers import DynamicCache

        device, cache = self.model.device, DynamicCache()
        once = {tuple(prompt): n for n, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        ids, mask = _padded_left([list(prompt) for prompt in once], self.pad, device)
        asked = torch.tensor([once[tuple(prompt)] for prompt in prompts], device=device)
        answers: list[list[int]] = [[] for _ in prompts]
        log_probs: list[list[float]] = [[] for _ in prompts]
        finished, rows = [False] * len(prompts), list(range(len(prompts)))
        for _ in range(self.sampling.max_new_tokens):
            at = mask.cumsum(-1)[:, -ids.shape[1] :] - 1
            step = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=at.clamp(min=0),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = step.logits[:, -1].float()
            if not answers[0] and len(once) < len(prompts):  # read once, answered several times
                cache.batch_select_indices(asked)
                mask, logits = mask[asked], logits[asked]
            tokens, chances = _draw(logits, self.sampling, dice)
            for row, token, chance in zip(rows, tokens.tolist(), chances.tolist(), strict=True):
                answers[row].append(token)
                log_probs[row].append(chance)
                finished[row] = token in self.stops
            left = [n for n, row in enumerate(rows) if not finished[row]]
            if not left:
                break
            if len(left) < len(rows):
                keep = torch.tensor(left, device=device)
                cache.batch_select_indices(keep)
                mask, tokens, rows = mask[keep], tokens[keep], [rows[n] for n in left]
            ids, mask = tokens.unsqueeze(1), torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        parts = zip(prompts, answers, log_probs, finished, strict=True)
        return [Drawn(*part) for part in parts]


def _padded_left(prompts: Sequence[list[int]], pad: int, device: Any) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (rows, longest prompt)."""
    import torch

    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _draw(logits: Tensor, how: Sampling, dice: Any) -> tuple[Tensor, Tensor]:
    """A token for each row of logits (rows, vocabulary), and its log-probability by the whole distribution."""
    import torch

    log_p = (logits / how.temperature).log_softmax(-1)
    tokens = torch.multinomial(_limited(log_p, how).exp(), 1, generator=dice)
    return tokens.squeeze(1), log_p.gather(1, tokens).squeeze(1)


def _limited(log_p: Tensor, how: Sampling) -> Tensor:
    """Without the tokens that top-k and top-p (Holtzman et al., 2020) leave out; the likeliest always stays."""
    import torch

    if how.top_k:
        least = log_p.topk(min(how.top_k, log_p.shape[-1])).values[:, -1:]
        log_p = log_p.masked_fill(log_p < least, -torch.inf)
    if how.top_p < 1:
        ordered, at = log_p.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        log_p = log_p.masked_fill((before >= how.top_p).scatter(1, at, before >= how.top_p), -torch.inf)
    return log_p
