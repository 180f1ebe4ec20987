from __future__ import annotations

import math

import pytest

from tasks.llm import judging
from tasks.llm.judging import Judged

YES, NO = '{"a": true}', '{"b": null}'  # equally long, both valid


def test_the_loss_is_that_of_bradley_and_terry_summed_by_hand() -> None:
    pairs = [Judged("", "", 2.0, 0.5), Judged("", "", -1.0, 1.0, margin=0.5)]
    by_hand = [-math.log(1 / (1 + math.exp(-1.5))), -math.log(1 / (1 + math.exp(2.5)))]
    assert judging.loss(pairs) == pytest.approx(sum(by_hand) / 2)
    assert judging.loss([Judged("", "", 7.0, 7.0)]) == pytest.approx(math.log(2))
    assert judging.loss([Judged("", "", -900.0, 900.0)]) == pytest.approx(1800)


def test_a_tie_is_half_a_win() -> None:
    assert [judging.win(2, 1), judging.win(1, 1), judging.win(1, 2)] == [1, 0.5, 0]


def test_pairs_are_matched_when_both_are_valid_and_equally_long() -> None:
    assert Judged(YES, NO).matched
    assert not Judged(YES, NO + " ").matched
    assert not Judged(YES, "x" * len(YES)).matched
    assert not Judged("x" * 5, "y" * 5).matched


def test_which_way_length_points_is_read_off_the_training_pairs_and_measured_on_the_held_out_ones() -> None:
    held_out = [Judged("short", "longer"), Judged("short", "longer"), Judged("longer", "short"), Judged("same", "size")]
    shorter = judging.report([Judged("a", "bb")], held_out)
    longer = judging.report([Judged("aa", "b"), Judged("a", "b")], held_out)
    assert (shorter["length_says"], shorter["length_alone"]) == ("shorter", (1 + 1 + 0 + 0.5) / 4)
    assert (longer["length_says"], longer["length_alone"]) == ("longer", (0 + 0 + 1 + 0.5) / 4)


def test_validity_alone_prefers_what_a_program_can_read() -> None:
    pairs = [Judged(YES, "Sure: " + YES), Judged("no", YES), Judged(YES, NO), Judged("no", "not")]
    assert judging.report(pairs, pairs)["validity_alone"] == (1 + 0 + 0.5 + 0.5) / 4


def test_the_matched_pairs_are_reported_apart_and_tell_nothing_by_length_or_validity() -> None:
    seen, missed = Judged(YES, NO, 1.0, -1.0), Judged(YES, NO, -1.0, 1.0)
    wrapped = Judged(YES, f"Here: {YES}", 3.0, 0.0)
    found = judging.report([wrapped], [seen, seen, seen, missed, wrapped, wrapped])
    assert (found["pairs"], found["accuracy"]) == (6, 5 / 6)
    assert (found["length_alone"], found["validity_alone"]) == (4 / 6, 4 / 6)
    matched = found["matched"]
    assert (matched["pairs"], matched["accuracy"]) == (4, 0.75)
    assert (matched["length_alone"], matched["validity_alone"]) == (0.5, 0.5)
    low, high = matched["interval"]
    assert 0 < low < 0.75 < high <= 1


def test_without_matched_pairs_there_are_no_figures_of_them() -> None:
    assert "matched" not in judging.report([Judged("a", "bb")], [Judged("a", "bb", 1.0, 0.0)])


def test_a_judged_answer_may_open_as_many_brackets_as_it_likes() -> None:
    assert judging.report([], [judging.Judged("{}", "[" * 20_000)])["validity_alone"] == 1
