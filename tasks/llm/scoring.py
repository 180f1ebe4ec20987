"""What a model says and how sure it is: greedy answers, log-probabilities of given answers, and what they are worth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.llm.chat import Turn

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Answer:
    """A generated answer: which prompt it belongs to, its text, and whether it ended by a stop token."""

    index: int
    text: str
    finished: bool


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], stops: list[int], max_new: int, batch: int
) -> Iterator[Answer]:
    """Greedy answers, batched by length and padded on the left; yielded as each batch is done."""
    import torch

    pad = tokenizer.pad_token_id
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = max(len(prompts[i]) for i in chosen)
        empty = {i: width - len(prompts[i]) for i in chosen}
        ids = torch.tensor([[pad] * empty[i] + prompts[i] for i in chosen], device=model.device)
        mask = torch.tensor([[0] * empty[i] + [1] * len(prompts[i]) for i in chosen], device=model.device)
        with torch.inference_mode():
            made = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new,
                do_sample=False,
                eos_token_id=stops,
                pad_token_id=pad,
                **_GREEDY,
            )
        for i, said in zip(chosen, made[:, width:].tolist(), strict=True):
            end = next((n for n, token in enumerate(said) if token in stops), None)
            yield Answer(i, tokenizer.decode(said[:end], skip_special_tokens=True), end is not None)


_GREEDY: dict[str, Any] = {"temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0, "num_beams": 1}
"""A model's own generation config may ask for sampling or penalties; a measurement does not."""


def answer_logits(model: Any, turn: Turn) -> np.ndarray[Any, Any]:
    """The logits that predict each answer token: shape (answer tokens, vocabulary), fp32."""
    import torch

    ids = torch.tensor([turn.prompt + turn.answer], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(turn.answer) + 1).logits[0, :-1]
    array: np.ndarray[Any, Any] = logits.float().cpu().numpy()
    return array


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Log-probabilities over the last axis, in fp32."""
    import numpy as np

    shifted = logits - logits.max(axis=-1, keepdims=True)
    out: np.ndarray[Any, Any] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return out


def answer_loss(logits: np.ndarray[Any, Any], answer: list[int]) -> float:
    """Mean negative log-likelihood of the answer's tokens, in nats."""
    return float(-log_softmax(logits)[range(len(answer)), answer].mean())


class Divergence:
    """Mean KL(p || q) over tokens, and how often p and q put the same token first."""

    def __init__(self) -> None:
        self.tokens, self._kl, self._same = 0, 0.0, 0

    def add(self, p_logits: np.ndarray[Any, Any], q_logits: np.ndarray[Any, Any]) -> None:
        """Both of shape (tokens, vocabulary). KL(p || q) = sum_v p_v (log p_v - log q_v)."""
        import numpy as np

        log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
        self._kl += float((np.exp(log_p) * (log_p - log_q)).sum(dtype=np.float64))
        self._same += int((p_logits.argmax(-1) == q_logits.argmax(-1)).sum())
        self.tokens += len(p_logits)

    def result(self) -> dict[str, float]:
        return {"kl": max(0.0, self._kl / self.tokens), "same_top1": self._same / self.tokens}


class LogitsFile:
    """The logits of many answers on disk, one after the other, so that two models need not be in memory at once."""

    def __init__(self, place: Path, lengths: list[int], vocabulary: int) -> None:
        import numpy as np

        self.starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        self._rows = np.memmap(place, dtype=np.float32, mode="w+", shape=(self.starts[-1], vocabulary))

    def __setitem__(self, index: int, logits: np.ndarray[Any, Any]) -> None:
        self._rows[self.starts[index] : self.starts[index + 1]] = logits

    def __getitem__(self, index: int) -> np.ndarray[Any, Any]:
        return self._rows[self.starts[index] : self.starts[index + 1]]


def followed(logits: np.ndarray[Any, Any], said: Sequence[int]) -> bool:
    """Whether each of these tokens is one that greedy decoding may take where `logits` (tokens, vocabulary) hold.

    Two number formats may order a near tie differently, so a token within `_TIE` of the best one counts as the best.
    """
    chosen = logits[range(len(said)), list(said)]
    return bool((logits.max(axis=-1) - chosen <= _TIE).all())


_TIE = 0.05
"""Nats."""


def room(asked: Sequence[dict[str, Any]]) -> int:
    """Tokens that no row's prompt and answer exceed in any vocabulary: none has a token shorter than a byte."""
    texts = [[*(message["content"] for message in row["prompt"]), row["answer"]] for row in asked]
    return max(sum(len(text.encode()) for text in told) for told in texts) + _TEMPLATE_TOKENS


_TEMPLATE_TOKENS = 256
"""Room for what a chat template writes around the messages."""


def exact_match(said: str, wanted: str) -> float:
    """1 when the answer is the wanted text to the letter, white space at the ends aside."""
    return float(said.strip() == wanted.strip())


def json_valid(said: str, wanted: str) -> float:
    """1 when the whole answer is one JSON object or array."""
    try:
        return float(isinstance(json.loads(said), dict | list))
    except (ValueError, RecursionError):  # a model may well say a thousand times [
        return 0.0


METRICS: dict[str, Callable[[str, str], float]] = {"exact_match": exact_match, "json_valid": json_valid}


def interval(values: Sequence[float], seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """The 95 % bootstrap percentile interval of the mean (Efron and Tibshirani, 1993, section 13.3)."""
    import numpy as np

    if not values:
        return math.nan, math.nan
    random, all_values = np.random.default_rng(seed), np.asarray(values)
    means = [all_values[random.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
