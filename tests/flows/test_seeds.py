"""A sweep over seeds alone: prompts keep their partners, seeds are averaged first, and each is told."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows import seeds
from flows.leaderboard import Board
from flows.trials import State, Trial
from tasks.llm.scoring import interval
from tests.flows import stories

SFT = {1: [1.0, 0, 0, 0, 0, 0, 1, 0], 2: [1.0, 1, 0, 0, 0, 0, 0, 0]}
DPO = {1: [1.0, 1, 1, 0, 0, 0, 1, 0], 2: [0.0, 1, 1, 0, 0, 1, 0, 0]}


def trial(store: Path, number: int, knob: str = "sft.seed") -> Trial:
    values = {"download": [0.0] * 8, "sft": SFT[number], "dpo": DPO[number], "quantize": DPO[number]}
    judged = stories.told(store, values, number).manifests[-1]
    stages = [{"stage": "compare", "state": "made", "recipe": "r", "key": judged["key"]}]
    return Trial(number, [], {knob: str(number)}, State.passed, score=0.5, interval=[0.4, 0.6], stages=stages)


def board(*found: Trial, knob: str = "sft.seed") -> Board:
    return Board("a-sweep", "exact_match", True, [knob], list(found))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> seeds.Seeds:
    store = tmp_path_factory.mktemp("seeds") / "store"
    found = seeds.over(board(trial(store, 1), trial(store, 2)), store)
    assert found is not None
    return found


def test_a_prompts_difference_is_averaged_over_the_seeds_before_prompts_are_drawn_again(both: seeds.Seeds) -> None:
    step = both.steps[1]
    means = [0.0 - 0.5, 0.5, 1, 0, 0, 0.5, 0, 0]  # by hand: DPO less SFT, prompt by prompt, mean of both seeds
    assert (step.name, step.mean, step.interval) == ("SFT → DPO", sum(means) / 8, interval(means))
    assert [mean for mean, _ in step.each] == [2 / 8, 1 / 8]
    assert step.each[0][1] == interval([0.0, 1, 1, 0, 0, 0, 0, 0])


def test_each_model_has_its_mean_and_its_range(both: seeds.Seeds) -> None:
    models, _ = seeds.tables(both)
    assert [line[0] for line in models[1:]] == ["base", "SFT", "DPO", "GGUF q8_0"]
    assert models[3][1].startswith("0.438 [") and models[3][2:] == ["0.375", "0.500"]


def test_only_seeds_are_averaged(store: Path) -> None:
    other = [trial(store, n, "dpo.args.beta") for n in (1, 2)]
    assert seeds.over(board(*other, knob="dpo.args.beta"), store) is None
    assert seeds.over(board(trial(store, 1)), store) is None  # one seed has nothing beside it


def test_a_trial_without_a_verdict_is_left_out_and_told(store: Path) -> None:
    lost = Trial(3, [], {"sft.seed": "3"}, State.failed)
    found = seeds.over(board(trial(store, 1), trial(store, 2), lost), store)
    assert found is not None and (found.seeds, found.lost) == (["1", "2"], 1)
    assert "1 more trials came to no verdict" in seeds.markdown(found, "a-sweep")


def test_the_summary_is_written_drawn_and_shown(both: seeds.Seeds, tmp_path: Path) -> None:
    text, picture = seeds.write(both, "a-sweep", tmp_path)
    assert "| SFT → DPO | +0.188 [" in text.read_text() and "![](seeds.png)" in text.read_text()
    assert picture.read_bytes()[1:4] == b"PNG"
    screen = Console(file=io.StringIO(), width=40)
    seeds.show(screen, both, tmp_path)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "difference over 2 seeds [95 % interval]" in shown and "seeds.md" in shown
