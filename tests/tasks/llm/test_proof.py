from __future__ import annotations

from itertools import pairwise

import pytest

from tasks.llm.masks import IGNORED, Encoded
from tasks.llm.proof import Proof, histogram

STOP = 9


def row(prompt: int, answer: list[int], spelled: int = 0, kept: bool = True, part: int = 0, parts: int = 1) -> Encoded:
    return Encoded(0, [1] * prompt + answer, [IGNORED] * prompt + answer, spelled, kept, part, parts)


def told(*rows: Encoded, cutoff: int = 100) -> Proof:
    proof = Proof(STOP, cutoff)
    for each in rows:
        proof.add("train", each)
    return proof


def test_tokens_and_labels_are_counted_on_the_rows_as_kept() -> None:
    proof = told(row(3, [5, 6, STOP]), row(6, [5, STOP]), cutoff=7)
    assert proof.lengths == [6, 7]
    figures = proof.metrics
    assert (figures["rows"], figures["tokens"], figures["trained_share"]) == (2, 13, 4 / 13)
    assert (figures["truncated"], figures["no_label"], figures["fully_masked"]) == (1, 0, 0)


def test_the_stop_token_is_looked_for_at_the_end_of_every_answer_that_was_not_cut() -> None:
    labels = [IGNORED, 5, STOP, IGNORED, 5, STOP]
    proof = told(Encoded(0, [1, 5, STOP, 1, 5, STOP], labels), row(5, [5, STOP]), cutoff=6)
    assert (proof.counts["stops"], proof.counts["ends"]) == (2, 2)
    assert proof.metrics["stop_trained"] == 1.0
    proof.check()


def test_an_answer_that_never_stops_is_an_error() -> None:
    proof = told(row(2, [5, STOP]), row(2, [5, 6]))
    assert proof.metrics["stop_trained"] == 0.5
    with pytest.raises(
        ValueError, match=r"1 answers do not end with the stop token: look at the rows with flows\.prev"
    ):
        proof.check()


def test_a_row_without_a_label_is_not_kept_and_counted() -> None:
    proof = Proof(STOP, 4)
    assert proof.add("train", row(4, [5, STOP])) is None
    assert proof.add("train", row(3, [5, STOP])) == {"input_ids": [1, 1, 1, 5], "labels": [IGNORED] * 3 + [5]}
    assert (proof.metrics["rows"], proof.metrics["no_label"]) == (1, 1)


def test_a_spelling_counts_once_for_a_conversation_in_parts() -> None:
    proof = told(row(2, [STOP], 1, part=0, parts=2), row(5, [STOP], 3, part=1, parts=2), row(2, [STOP], 1, kept=False))
    figures = proof.metrics
    assert (figures["spelled"], figures["leaked"], figures["parts"]) == (4, 1, 2)
    assert proof.report()["conversations_in_parts"] == 1
    words = "\n".join(proof.words("<end>"))
    assert "1 conversations took a row for each answer, 2 in all" in words
    assert "spelled in messages: 4, 1 rows could not keep them as text" in words


def test_the_histogram_counts_every_length_once_between_edges_of_one_width() -> None:
    lengths = [7, 7, 8, 40, 130]
    found = histogram(lengths)
    edges, counts = found["edges"], found["counts"]
    assert len(edges) == len(counts) + 1 <= 26
    assert {b - a for a, b in pairwise(edges)} == {6}
    for (a, b), count in zip(pairwise(edges), counts, strict=True):
        assert count == sum(a <= length < b for length in lengths)
    assert sum(counts) == len(lengths)


@pytest.mark.parametrize("lengths", [[], [5], [0, 0]])
def test_a_histogram_of_hardly_anything_is_one_bin(lengths: list[int]) -> None:
    assert histogram(lengths)["counts"] == [len(lengths)]
