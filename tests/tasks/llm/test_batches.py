from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.llm import batches, models
from tasks.llm.masks import IGNORED

CUTOFF = 24
Row = dict[str, Any]


def rows(lengths: Sequence[int], seed: int = 0) -> list[Row]:
    """Documents of random tokens whose last third bears loss; of the first one, every token."""
    drawn = random.Random(seed)
    made = []
    for number, length in enumerate(lengths):
        ids = [drawn.randrange(260, 380) for _ in range(length)]
        quiet = 1 if number == 0 else length - length // 3 - 1
        made.append({"id": f"r{number}", "input_ids": ids, "labels": [IGNORED] * quiet + ids[quiet:]})
    return made


DOCUMENTS = rows([13, 5, 9, 24, 7, 3, 11])


@pytest.fixture
def model(tiny_model: Path) -> Any:
    return models.load(tiny_model, tiny_model, "fp32", trainable=True)


def batch(packed: Sequence[Row]) -> dict[str, Any]:
    return batches.PackedCollator(pad=2)(packed)


def summed_loss(model: Any, inputs: dict[str, Any]) -> Any:
    """The sum over labelled tokens, by hand: token t is foretold at t - 1."""
    import torch

    known = {name: value for name, value in inputs.items() if name != "labels"}
    log_p = torch.log_softmax(model(**known, use_cache=False).logits, -1)[:, :-1]
    labels = inputs["labels"][:, 1:]
    said = log_p.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -said[labels != IGNORED].sum()


def one_by_one(model: Any, documents: Sequence[Row]) -> Any:
    import torch

    columns = ("input_ids", "labels")
    return sum(summed_loss(model, {name: torch.tensor([row[name]]) for name in columns}) for row in documents)


# Packing


def test_each_document_is_packed_once_and_whole_and_no_row_is_too_long() -> None:
    documents = rows([random.Random(n).randrange(1, CUTOFF + 1) for n in range(200)])
    found = []
    for row in batches.packed(documents, CUTOFF):
        assert sum(row["seq_lengths"]) == len(row["input_ids"]) == len(row["labels"]) <= CUTOFF
        at = 0
        for name, length in zip(row["id"].split(), row["seq_lengths"], strict=True):
            found.append((name, row["input_ids"][at : at + length]))
            at += length
    assert sorted(found) == sorted((row["id"], row["input_ids"]) for row in documents)


def test_a_document_goes_to_the_fullest_row_that_still_takes_it() -> None:
    packed = batches.packed(rows([5, 10, 3, 7, 2]), 12)
    assert [row["seq_lengths"] for row in packed] == [[10, 2], [7, 5], [3]]


def test_best_fit_fills_rows_of_usual_lengths_to_more_than_nine_tenths() -> None:
    drawn = random.Random(1)
    documents = rows([min(1024, int(drawn.lognormvariate(5, 0.8)) + 1) for _ in range(500)])
    packed = batches.packed(documents, 1024)
    assert sum(len(row["input_ids"]) for row in packed) / (1024 * len(packed)) > 0.9


def test_the_same_rows_pack_the_same_way() -> None:
    assert batches.packed(DOCUMENTS, CUTOFF) == batches.packed(DOCUMENTS, CUTOFF)


def test_positions_begin_again_in_each_document_and_padding_is_alone() -> None:
    found = batch(batches.packed(rows([4, 3, 6]), 8))
    assert found["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 0], [0, 1, 2, 3, 0, 1, 2]]
    assert found["labels"][0, 6] == IGNORED
    assert "attention_mask" not in found


def test_packed_loss_and_gradients_are_those_of_the_rows_one_by_one(model: Any) -> None:
    import torch

    packed = batches.packed(DOCUMENTS, CUTOFF)
    assert max(len(row["seq_lengths"]) for row in packed) > 1
    assert len(packed) > 1
    gradients = []
    for loss in (one_by_one(model, DOCUMENTS), summed_loss(model, batch(packed))):
        model.zero_grad()
        loss.backward()
        gradients.append((loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    (alone, expected), (together, found) = gradients
    assert together == pytest.approx(alone, rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())
    labels = [sum(label != IGNORED for label in row["labels"]) for row in DOCUMENTS]
    assert int((batch(packed)["labels"] != IGNORED).sum()) == sum(labels)


def test_a_token_of_one_document_changes_not_one_bit_of_another(model: Any) -> None:
    import torch

    row = batches.packed(rows([9, 8, 7]), CUTOFF)[0]
    assert row["seq_lengths"] == [9, 8, 7]
    inputs = {name: value for name, value in batch([row]).items() if name != "labels"}
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][0, 10] += 1  # the second token of the second document
    with torch.inference_mode():
        before, after = (model(**ids, use_cache=False).logits[0] for ids in (inputs, changed))
    same = [bool(torch.equal(one, other)) for one, other in zip(before, after, strict=True)]
    assert same == [True] * 10 + [False] * 7 + [True] * 7


def test_a_model_that_keeps_documents_apart_passes_and_stays_in_training(model: Any) -> None:
    model.train()
    batches.keep_apart(model, batches.packed(DOCUMENTS, CUTOFF))
    batches.keep_apart(model, batches.alone(DOCUMENTS[:1]))
    assert model.training


def test_a_model_that_does_not_is_refused(model: Any) -> None:
    class Blind(type(model)):  # type: ignore[misc]
        """Sees no positions, so one document."""

        def forward(self, position_ids: Any = None, **inputs: Any) -> Any:
            return super().forward(**inputs)

    model.__class__ = Blind
    with pytest.raises(ValueError, match=r"\(llama\) lets the documents .* see one another.* Use encode.packing=false"):
        batches.keep_apart(model, batches.packed(DOCUMENTS, CUTOFF))


# Grouping


def test_grouped_rows_come_once_each_with_others_about_as_long() -> None:
    lengths = [random.Random(n).randrange(10, 1000) for n in range(256)]
    order = list(batches.Grouped(lengths, 8, seed=3))
    assert sorted(order) == list(range(256))

    def padding(order: Sequence[int]) -> float:
        widths = [max(lengths[i] for i in order[at : at + 8]) for at in range(0, 256, 8)]
        return 1 - sum(lengths) / sum(8 * width for width in widths)

    assert padding(order) < padding(range(256)) / 3


def test_an_epochs_order_follows_from_seed_and_epoch_alone() -> None:
    import torch

    grouped = batches.Grouped(list(range(64)), 4, seed=3)
    first = list(grouped)
    torch.rand(7)  # whatever else draws numbers
    assert list(grouped) == first
    grouped.set_epoch(1)
    second = list(grouped)
    assert second != first
    again = batches.Grouped(list(range(64)), 4, seed=3)
    again.set_epoch(1)
    assert list(again) == second
    assert list(batches.Grouped(list(range(64)), 4, seed=4)) != first
