"""How rows come together: several packed into one, kept apart by their positions, or batched with others as long.

A packed row is documents end to end, `seq_lengths` says of what lengths. Position ids begin again at 0 in each; from
these, and from there being no attention mask, transformers makes attention block-diagonal (`masking_utils`).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import Any

from tasks.llm.masks import IGNORED

Row = dict[str, Any]
_TRIED = 64
"""Tokens of a document in the trial of `keep_apart`."""


def packed(rows: Sequence[Row], room: int) -> list[Row]:
    """Best fit, longest first: each row goes to the fullest bin of `room` tokens that still takes it."""
    bins: list[list[Row]] = []
    free: list[tuple[int, int]] = []  # (room left, bin), sorted
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        length = len(row["input_ids"])
        at = bisect.bisect_left(free, (length, -1))
        left, into = free.pop(at) if at < len(free) else (room, len(bins))
        if into == len(bins):
            bins.append([])
        bins[into].append(row)
        if left > length:
            bisect.insort(free, (left - length, into))
    return [_joined(documents) for documents in bins]


def _joined(documents: list[Row]) -> Row:
    """One row; the first token of a document is not foretold by the end of the one before."""
    return {
        "id": " ".join(row["id"] for row in documents),
        "input_ids": [token for row in documents for token in row["input_ids"]],
        "labels": [label for row in documents for label in (IGNORED, *row["labels"][1:])],
        "seq_lengths": [len(row["input_ids"]) for row in documents],
    }


def alone(rows: Sequence[Row]) -> list[Row]:
    """Rows in the form of packed ones, of one document each."""
    return [_joined([row]) for row in rows]


def positions(lengths: Sequence[int]) -> list[int]:
    """0, 1, 2 ... for each document."""
    return [place for length in lengths for place in range(length)]


class PackedCollator:
    """Packed rows to a batch: `input_ids`, `labels` and `position_ids` of shape (rows, longest), and no attention mask.

    Every token of padding is a document by itself.
    """

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        import torch

        width = max(len(row["input_ids"]) for row in rows)

        def filled(lists: list[list[int]], with_: int) -> Any:
            return torch.tensor([[*values, *[with_] * (width - len(values))] for values in lists])

        return {
            "input_ids": filled([row["input_ids"] for row in rows], self.pad),
            "labels": filled([row["labels"] for row in rows], IGNORED),
            "position_ids": filled([positions(row["seq_lengths"]) for row in rows], 0),
        }


def keep_apart(model: Any, rows: Any) -> None:
    """Raises ValueError where a document of a packed row changes what the model says after the next one: what is masked
    adds exact zeros, so not one bit of it may change. Tried on the beginnings of the first two that share a row."""
    import torch

    row = next((row for row in rows if len(row["seq_lengths"]) > 1), None)
    if row is None:
        return
    first, second = row["seq_lengths"][:2]
    one, other = (row["input_ids"][at : at + min(n, _TRIED)] for at, n in ((0, first), (first, second)))
    pair = {"input_ids": one + other, "labels": one + other, "seq_lengths": [len(one), len(other)]}
    batch = {name: value.to(model.device) for name, value in PackedCollator(0)([pair]).items() if name != "labels"}
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][0, : len(one)] = other[0]
    training = model.training
    model.eval()
    with torch.inference_mode():
        before, after = (model(**ids, use_cache=False, logits_to_keep=1).logits for ids in (batch, changed))
    model.train(training)
    if not torch.equal(before, after):
        moved = (before - after).abs().max().item()
        raise ValueError(
            f"This model ({model.config.model_type}) lets the documents of a packed row see one another: the first one "
            f"moved the logits after the next by {moved:.3g}. Use encode.packing=false."
        )


class Grouped:
    """The order of an epoch with rows of about the same length side by side, as transformers' `group_by_length` has it.

    transformers draws it from whatever state the process is in and per process, so a resumed training would skip and
    repeat rows, and another number of ranks would be another recipe. This one follows from seed and epoch alone.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        import torch
        from transformers.trainer_pt_utils import get_length_grouped_indices

        drawn = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=drawn))


def group(trainer: Any) -> None:
    """Where a trainer was told to group by length, have it do so, by the rows of an optimizer step. A pair is as long
    as all of it."""
    import pyarrow.compute as pc
    from torch.utils.data import SequentialSampler

    args = trainer.args
    if args.train_sampling_strategy != "group_by_length":
        return
    rows = trainer.train_dataset.with_format("arrow")[:]
    columns = [pc.list_value_length(rows[name]).to_pylist() for name in rows.column_names if name.endswith("_ids")]
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    grouped = Grouped([sum(lengths) for lengths in zip(*columns, strict=True)], step, args.seed)
    trainer._get_train_sampler = lambda *_: grouped
    trainer._get_eval_sampler = SequentialSampler  # it would group these too, at random
