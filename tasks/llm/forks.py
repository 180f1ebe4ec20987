"""Prompts with answers, as one forward pass takes them: a prompt is read once for all of its answers.

A row is a prompt and then its answers, one after the other. Every answer sees the prompt and itself, and its positions
go on from the prompt's last, so what is said of it is what would be said of prompt and answer alone, but for rounding.
Two answers to a long question cost little more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Forks:
    """`ids`, `positions` and `owner`: (rows, longest row), padded on the right. `answers`, `mask` and `before`:
    (answers, longest answer), in the order they were given in."""

    ids: Tensor
    positions: Tensor
    owner: Tensor
    """0 where a prompt has a token, n where its n-th answer has one, -1 in the padding."""
    answers: Tensor
    """Padding is token 0."""
    mask: Tensor
    """Where an answer has a token."""
    row: Tensor
    """(answers, 1): the row that each answer stands in."""
    before: Tensor
    """The column in front of each token; of an answer's first, the prompt's last."""
    end: Tensor
    """(answers, 1): the column of each answer's last token."""

    def inputs(self) -> dict[str, Any]:
        """What a model of transformers is called with."""
        attention = self._apart() if bool((self.owner > 1).any()) else (self.owner >= 0).long()
        given = {"input_ids": self.ids, "attention_mask": attention, "position_ids": self.positions}
        return {**given, "use_cache": False}

    def _apart(self) -> Tensor:
        """Who may look at whom, (rows, 1, longest row, longest row): nobody ahead, at another answer, or at padding but
        at itself."""
        import torch

        known, looking, size = self.owner[:, None, :], self.owner[:, :, None], self.ids.shape[1]
        behind = torch.ones(size, size, dtype=torch.bool, device=self.ids.device).tril()
        itself = torch.eye(size, dtype=torch.bool, device=self.ids.device)
        return (itself | (behind & ((known == 0) | (known == looking)) & (known >= 0)))[:, None]

    def foretelling(self, columns: Tensor) -> Tensor:
        """(rows, longest row, ...) -> (answers, longest answer, ...): of each token the column that foretells it."""
        return columns[self.row, self.before]

    def last(self, columns: Tensor) -> Tensor:
        """(rows, longest row, ...) -> (answers, ...): the column of each answer's last token."""
        return columns[self.row, self.end].squeeze(1)


def forks(
    prompts: Sequence[list[int]], answers: Sequence[list[int]], pad: int, device: Any, shared: bool = True
) -> Forks:
    """An answer to each of the prompts; equal prompts share a row unless `shared` is off. Raises ValueError where a
    prompt or an answer has no token."""
    import torch

    if not all(prompts) or not all(answers):
        raise ValueError("A prompt or an answer has no token: there is nothing to predict.")
    rows: dict[Any, list[int]] = {}
    for number, prompt in enumerate(prompts):
        rows.setdefault(tuple(prompt) if shared else number, []).append(number)
    ids, positions, owner = ([list[int]() for _ in rows] for _ in range(3))
    row, before, end = ([[0]] * len(answers) for _ in range(3))
    for at, some in enumerate(rows.values()):
        prompt = prompts[some[0]]
        ids[at], positions[at], owner[at] = [*prompt], [*range(len(prompt))], [0] * len(prompt)
        for n, number in enumerate(some, 1):
            answer, start = answers[number], len(ids[at])
            row[number], end[number] = [at], [start + len(answer) - 1]
            before[number] = [len(prompt) - 1, *range(start, end[number][0])]
            ids[at] += answer
            positions[at] += range(len(prompt), len(prompt) + len(answer))
            owner[at] += [n] * len(answer)
    lists = (_filled(ids, pad), _filled(positions, 0), _filled(owner, -1), _filled(answers, 0))
    mask = _filled([[1] * len(answer) for answer in answers], 0)
    told = [torch.tensor(some, device=device) for some in (*lists, mask, row, _filled(before, 0), end)]
    told[4] = told[4].bool()
    return Forks(*told)


def _filled(lists: Sequence[list[int]], with_: int) -> list[list[int]]:
    width = max(map(len, lists))
    return [[*values, *[with_] * (width - len(values))] for values in lists]


def possible(config: Any) -> bool:
    """Whether a model looks as far back as the mask says. One with a window or a state of its own counts columns, and
    must get every answer in a row of its own."""
    text = config.get_text_config()
    if kinds := getattr(text, "layer_types", None):
        return all(kind == "full_attention" for kind in kinds)
    return not getattr(text, "sliding_window", None) and hasattr(text, "num_attention_heads")
