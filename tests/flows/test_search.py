"""The search: what it may be asked for, what it asks, and what it makes of the answers."""

from __future__ import annotations

import math
import statistics

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from flows import search
from flows.compose import ConfigError
from flows.search import Sampler, SearchConfig, Space
from flows.trials import State, Trial

BETA = "dpo.args.beta=tag(log,interval(0.01,1))"


def space(*words: str, trials: int = 4, sampler: Sampler = Sampler.tpe, maximize: bool = True) -> Space:
    swept = {o.get_key_element(): o for o in OverridesParser.create().parse_overrides([*words])}
    found = search.space(swept, SearchConfig(n_trials=trials, sampler=sampler))
    found.maximize = maximize
    return found


class Road:
    """Answers each trial with a score that is better the nearer beta is to 0.1, and remembers what it was asked."""

    def __init__(self, state: State = State.passed, best: float = 0.1) -> None:
        self.state, self.best = state, best
        self.batches: list[int] = []
        self.asked: list[dict[str, str]] = []

    def __call__(self, turned: list[dict[str, str]]) -> list[Trial]:
        self.batches.append(len(turned))
        self.asked += turned
        return [self.trial(values) for values in turned]

    def trial(self, values: dict[str, str]) -> Trial:
        away = abs(math.log10(float(values["dpo.args.beta"]) / self.best))
        score = None if self.state is State.failed else -away
        return Trial(1, [], values, self.state, score=score)

    def betas(self) -> list[float]:
        return [float(values["dpo.args.beta"]) for values in self.asked]


def test_every_kind_of_knob_stays_within_what_was_asked_for() -> None:
    road = Road()
    knobs = ("sft.lora.rank=8,16", "sft=choice(lora,full)", "dpo.seed=range(1,9,2)", "sft.seed=int(interval(3,5))")
    space(BETA, *knobs, trials=25).run(road, 1)
    assert all(0.01 <= beta <= 1 for beta in road.betas())
    assert {values["sft.lora.rank"] for values in road.asked} == {"8", "16"}
    assert {values["sft"] for values in road.asked} == {"lora", "full"}
    assert {values["dpo.seed"] for values in road.asked} <= {"1", "3", "5", "7"}
    assert {values["sft.seed"] for values in road.asked} == {"3", "4", "5"}


def test_tpe_turns_to_where_the_scores_are_better_and_chance_does_not() -> None:
    guided, blind = Road(), Road()
    space(BETA, trials=40).run(guided, 1)
    space(BETA, trials=40, sampler=Sampler.random).run(blind, 1)

    def away(road: Road) -> float:
        return sum(abs(math.log10(beta / road.best)) for beta in road.betas()[-20:])

    assert away(guided) < away(blind) / 2


def test_the_direction_is_the_objectives() -> None:
    far = Road()
    space(BETA, trials=40, maximize=False).run(far, 1)
    assert statistics.median(abs(math.log10(beta / far.best)) for beta in far.betas()[-10:]) > 0.7


def test_the_same_command_asks_the_same_questions_so_that_a_killed_search_goes_on_from_the_store() -> None:
    once, again = Road(), Road()
    space(BETA, "sft.seed=1,2", trials=14).run(once, 1)
    space(BETA, "sft.seed=1,2", trials=16).run(again, 1)
    assert again.asked[:14] == once.asked


def test_as_many_are_asked_for_as_run_at_once() -> None:
    road = Road()
    space(BETA, trials=5).run(road, 2)
    assert road.batches == [2, 2, 1]


@pytest.mark.parametrize("state", [State.failed, State.refused])
def test_trials_that_fail_do_not_end_a_search(state: State) -> None:
    road = Road(state)
    space(BETA, trials=12).run(road, 1)
    assert len(road.asked) == 12


def test_a_search_turns_away_from_where_the_verdict_fails() -> None:
    class Higher(Road):
        """The higher, the better; above 0.1 no verdict passes, if there are verdicts."""

        def trial(self, values: dict[str, str]) -> Trial:
            beta = float(values["dpo.args.beta"])
            return Trial(1, [], values, self.state if beta > 0.1 else State.passed, score=beta)

    free, gated = Higher(), Higher(State.refused)
    space(BETA, trials=40).run(free, 1)
    space(BETA, trials=40).run(gated, 1)
    assert statistics.median(gated.betas()[-15:]) < 0.2 < 0.4 < statistics.median(free.betas()[-15:])


def test_the_corners_hold_every_choice_and_both_ends() -> None:
    assert space("a=interval(0.5,2)", "b=x,y,z").corners() == [
        {"a": "0.5", "b": "x"},
        {"a": "2", "b": "x"},
        {"a": "0.5", "b": "y"},
        {"a": "0.5", "b": "z"},
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dpo.args.beta=interval(2,1)"], "lower end first"),
        (["dpo.args.beta=tag(log,interval(0,1))"], "above 0"),
        (["sft.seed=tag(log,choice(1,2))"], "log is for interval"),
        (["sft.seed=tag(often,interval(1,2))"], "the tags of a search are float, int, log"),
        ([], "nothing to search over"),
    ],
)
def test_what_cannot_be_searched_is_said_with_what_to_write(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        space(*words)


def test_every_mistake_of_a_search_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        space("a=interval(2,1)", "b=tag(log,interval(0,1))", trials=0)
    assert len(error.value.problems) == 3
