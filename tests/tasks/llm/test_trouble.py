"""Trouble is named from the numbers, and dealt with as the config says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.llm import ppo_loop, trouble
from tasks.llm.ppo_knobs import Algorithm
from tasks.llm.rollouts import Drawn, Sampling
from tasks.llm.trouble import InTrouble, Then, Watch
from tests import toy_policy

FINE = {"kl": 1.0, "length": 20.0, "finished": 1.0, "explained_variance": 0.1, "reward_spread": 1.0, "empty": 0.0}


def names(*history: dict[str, float], **watch: Any) -> list[str]:
    return [found.name for found in trouble.seen([{**FINE, **told} for told in history], Watch(**watch))]


def test_what_is_fine_is_no_trouble() -> None:
    assert names({}, {}, {}, {}, {}, {}, {}) == []


@pytest.mark.parametrize(
    ("name", "history"),
    [
        ("nan", [{}, {"policy_loss": math.nan}]),
        ("kl explosion", [{}, {"kl": 51.0}]),
        ("length hacking", [{}] * 3 + [{"length": 60.0, "finished": 0.5}] * 3),
        ("value collapse", [{}] + [{"explained_variance": -3.0}] * 5),
        ("equal rewards", [{}] + [{"reward_spread": 0.0}] * 3),
        ("empty generations", [{"empty": 0.6}]),
    ],
)
def test_trouble_has_a_name_and_says_what_to_try(name: str, history: list[dict[str, float]]) -> None:
    (found,) = trouble.seen([{**FINE, **told} for told in history], Watch())
    assert found.name == name
    assert ": " in found.text and found.text.endswith(".")


def test_short_trends_and_longer_answers_that_end_are_no_trouble() -> None:
    assert names({}, *[{"length": 60.0}] * 5) == []
    assert names(*[{"explained_variance": -3.0}] * 4) == []
    assert names({"reward_spread": 0.0}, {"reward_spread": 0.0}) == []


def loop(work: Path, watch: Watch, score: Any = lambda one: len(one.answer) / 8, updates: int = 4) -> ppo_loop.Loop:
    how = Algorithm(updates=updates, batch_size=8, minibatch_size=8, epochs=1, sampling=Sampling(8))
    logged: list[int] = []
    return ppo_loop.Loop(toy_policy.trainer(how, score), watch, work, lambda _, at: logged.append(at), lambda *_: None)


def test_a_reward_that_is_no_number_stops_with_the_last_good_policy_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo_loop, "_SHARE", 0)
    asked = iter([1.0] * 16 + [math.nan] * 8)
    one = loop(tmp_path, Watch(), lambda _: next(asked) * torch.rand(1).item())
    with pytest.raises(InTrouble, match=r"Update 3: nan: reward.*The policy of update 2 is kept"):
        one.run()
    kept = json.loads((tmp_path / "checkpoints" / "checkpoint-2" / "trainer_state.json").read_text())
    assert len(kept["history"]) == 2
    weights = one.trainer.actor.trained()
    assert all(weight.isfinite().all() for weight in weights.values())


def test_adapting_goes_back_and_draws_anew_with_smaller_steps_and_a_dearer_kl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo_loop, "_SHARE", 0)  # a checkpoint after each update
    calls: list[Drawn] = []

    def score(one: Drawn) -> float:
        calls.append(one)
        return math.nan if 16 <= len(calls) - 1 < 24 else len(one.answer) / 8

    one = loop(tmp_path, Watch(then=Then.adapt), score)
    one.run()
    assert len(one.history) == 4 and len(calls) == 5 * 8
    assert [(told["update"], told["name"], told["then"]) for told in one.troubles] == [(3, "nan", "adapt")]
    assert calls[16:24] != calls[24:32]
    assert one.trainer.control.coef == pytest.approx(0.1)
    assert one.trainer.scheduler.base_lrs == [pytest.approx(0.5e-4), pytest.approx(0.5e-3)]


def test_adapting_ends_after_three_tries(tmp_path: Path) -> None:
    with pytest.raises(InTrouble, match="nan"):
        loop(tmp_path, Watch(then=Then.adapt), lambda _: math.nan).run()


def test_trouble_that_is_ignored_is_said_and_kept(tmp_path: Path) -> None:
    one = loop(tmp_path, Watch(then=Then.ignore), lambda _: 1.0)
    with pytest.warns(UserWarning, match="equal rewards"):
        one.run()
    assert [told["update"] for told in one.troubles] == [3, 4]


def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint_and_the_next_goes_on_from_it(tmp_path: Path) -> None:
    first = loop(tmp_path, Watch())
    first.stopping = lambda: len(first.history) == 2
    with pytest.raises(InterruptedError, match="stopped after update 2 of 4"):
        first.run()
    second = loop(tmp_path, Watch())
    second.run()
    through = loop(tmp_path / "other", Watch())
    through.run()
    for name, weight in through.trainer.actor.trained().items():
        assert torch.equal(weight, second.trainer.actor.trained()[name])
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
