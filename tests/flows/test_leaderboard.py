"""The end of a sweep, on trials made by hand: who is best, and what a reader is shown."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from rich.console import Console

from flows import leaderboard, trials
from flows.leaderboard import Board
from flows.pictures import sweep as picture
from flows.trials import State, Trial

BETA, RATE = "dpo.args.beta", "sft.args.learning_rate"


def trial(number: int, score: float | None, state: State = State.passed, **turned: str) -> Trial:
    stages = [
        {"stage": "dpo", "state": "made", "recipe": str(number)},
        {"stage": "sft", "state": "cached", "recipe": "s"},
    ]
    return Trial(
        number,
        overrides=[],
        swept={BETA: turned.get("beta", "0.1"), RATE: turned.get("rate", "1e-4")},
        state=state,
        seconds=3.0,
        run=f"run-{number}",
        score=score,
        interval=[] if score is None else [score - 0.1, score + 0.1],
        stages=stages,
    )


def board(*found: Trial, maximize: bool = True) -> Board:
    return Board("a-sweep", "exact_match", maximize, [BETA, RATE], list(found))


def numbers(found: Board) -> list[int]:
    return [one.number for one in found.ranked]


def test_the_best_comes_first_whichever_way_is_better() -> None:
    three = (trial(1, 0.2), trial(2, 0.5), trial(3, 0.3))
    assert numbers(board(*three)) == [2, 3, 1]
    assert numbers(board(*three, maximize=False)) == [1, 3, 2]


def test_a_failed_verdict_keeps_its_score_and_is_never_the_best() -> None:
    found = board(trial(1, 0.2), trial(2, 0.9, State.refused), trial(3, None, State.failed))
    assert numbers(found) == [1, 2, 3]
    assert [found.rank(one) for one in found.ranked] == ["1", "", ""]
    assert found.best is not None and found.best.number == 1
    (row,) = (row for row in leaderboard.rows(found) if row["trial"] == "2")
    assert (row["exact_match"], row["state"]) == ("0.9", "verdict failed")
    assert board(trial(2, 0.9, State.refused)).best is None


def test_a_failed_trial_is_reported_with_what_it_turned_and_why() -> None:
    lost = trial(2, None, State.failed, beta="0.3")
    lost.error = "No pair is short enough."
    told = leaderboard.sentences(board(trial(1, 0.2), lost))
    assert "failed: trial 2, beta=0.3 learning_rate=1e-4: No pair is short enough." in told


def test_knobs_are_called_by_the_shortest_name_that_is_theirs_alone() -> None:
    names = leaderboard.short(["sft.seed", "dpo.seed", "dpo.args.beta", "sft.lora.rank", "quantize"])
    assert list(names.values()) == ["sft.seed", "dpo.seed", "beta", "lora.rank", "quantize"]


def test_what_ran_is_counted_beside_what_was_asked_for() -> None:
    found = [trial(1, 0.2), trial(2, 0.3)]
    assert leaderboard.executions(found) == {"dpo": 2}


def test_the_files_hold_every_trial_for_programs_and_for_people(tmp_path: Path) -> None:
    found = board(trial(1, 0.2, beta="0.05"), trial(2, None, State.stopped))
    leaderboard.write(found, tmp_path)
    with open(tmp_path / "leaderboard.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["rank"], first["low"], first[BETA], first["made"], first["cached"]) == ("1", "0.1", "0.05", "1", "1")
    assert (second["state"], second["exact_match"]) == ("stopped", "")
    text = (tmp_path / "leaderboard.md").read_text()
    assert "| 1 | 0.200 [0.100, 0.300] | 0.05 | 1e-4 | passed |" in text
    assert "best: beta=0.05" in text


def test_the_table_cuts_nothing_in_a_narrow_window(tmp_path: Path) -> None:
    screen = Console(file=io.StringIO(), width=40)
    leaderboard.show(screen, board(trial(1, 0.2)), tmp_path)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert all(word in shown for word in ("exact_match [95 % interval]", "0.200 [0.100, 0.300]", "run-1", "best: "))


def test_a_trial_that_was_written_down_is_read_back(tmp_path: Path) -> None:
    one = trial(7, 0.25, State.refused)
    one.save(tmp_path)
    assert trials.load(tmp_path, 7) == one
    assert trials.load_all(tmp_path) == [one]


def drawn(found: Board, tmp_path: Path) -> tuple[bool, bytes]:
    place = tmp_path / "score.png"
    return picture.draw(found, place), place.read_bytes() if place.exists() else b""


def test_one_knob_two_knobs_words_and_many_knobs_each_have_a_picture(tmp_path: Path) -> None:
    from matplotlib.image import imread

    one = board(*(trial(n, n / 10, beta=beta) for n, beta in enumerate(("0.01", "0.1", "1"), 1)))
    two = board(*(trial(n, n / 10, beta=b, rate=r) for n, (b, r) in enumerate([("1", "1"), ("2", "1"), ("1", "2")], 1)))
    words = board(*(trial(n, n / 10, State.refused, beta=word) for n, word in enumerate(("lora", "full"), 1)))
    many = board(*(trial(n, n / 50, beta=str(n), rate=str(n * n)) for n in range(1, 21)))
    for found in (one, two, words, many):
        assert drawn(found, tmp_path)[0]
        assert imread(tmp_path / "score.png")[0, 0, 3] == 0  # no background: readable on light pages and on dark ones


def test_without_a_score_or_a_difference_there_is_no_picture(tmp_path: Path) -> None:
    assert drawn(board(trial(1, None), trial(2, None, beta="0.3")), tmp_path) == (False, b"")
    assert drawn(board(trial(1, 0.1), trial(2, 0.1)), tmp_path) == (False, b"")
