"""Which tokens of a conversation bear loss.

Loss is only put on what the model meets at inference: an answer after its prompt, both in the very tokens that
`chat.turns` gives them. Where a template shows earlier turns otherwise than it once showed them as the last (Qwen3
leaves their thinking out), one row cannot hold them all, and each answer gets a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tasks.llm import chat

IGNORED = -100
"""The label that bears no loss, as PyTorch's cross entropy has it."""


class Mask(StrEnum):
    """What bears loss. Rows have one form, with an answer as their last turn, so `last_turn` (LLaMA-Factory's
    `mask_history`) is another name for `completion`. `everything` is its `train_on_prompt`, `assistant` its default
    and TRL's `assistant_only_loss`."""

    completion = "completion"
    last_turn = "last_turn"
    assistant = "assistant"
    everything = "everything"


@dataclass(frozen=True)
class Encoded:
    """One row in token ids, of the conversation number `row`; part `part` of `parts` that this one took."""

    row: int
    ids: list[int]
    labels: list[int]
    spelled: int = 0
    kept: bool = True
    part: int = 0
    parts: int = 1


def encoded(tokenizer: Any, conversations: Sequence[Sequence[chat.Message]], mask: Mask) -> Iterator[Encoded]:
    """Rows in order, at least one for each conversation."""
    every = mask is Mask.assistant
    ends = [_answers(said) if every else [len(said) - 1] for said in conversations]
    asked = [said[:end] for said, at in zip(conversations, ends, strict=True) for end in at]
    answers = [said[end]["content"] for said, at in zip(conversations, ends, strict=True) for end in at]
    turns = chat.turns(tokenizer, asked, answers)
    for row, at in enumerate(ends):
        found = _rows([next(turns) for _ in at], mask)
        for part, (ids, labels, last) in enumerate(found):
            yield Encoded(row, ids, labels, last.spelled, last.kept, part, len(found))


def _answers(said: Sequence[chat.Message]) -> list[int]:
    return [at for at, message in enumerate(said) if message["role"] == "assistant"]


def _rows(turns: list[chat.Turn], mask: Mask) -> list[tuple[list[int], list[int], chat.Turn]]:
    """Ids, labels and last turn: of one row for all turns, or of one each where they are not tokens of one another."""
    last = turns[-1]
    ids = last.prompt + last.answer
    if mask is Mask.everything:
        return [(ids, [IGNORED, *ids[1:]], last)]  # nothing foretells the first token
    if any(ids[: len(turn.prompt) + len(turn.answer)] != turn.prompt + turn.answer for turn in turns):
        return [alone for turn in turns for alone in _rows([turn], mask)]
    labels = [IGNORED] * len(ids)
    for turn in turns:
        start = len(turn.prompt)
        labels[start : start + len(turn.answer)] = turn.answer
    return [(ids, labels, last)]
