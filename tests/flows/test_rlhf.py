"""SFT, reward model, PPO on the tiny model: what runs, what a changed knob costs, what is refused before the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flows.compose import ConfigError, compose
from flows.launch import travel
from flows.rlhf import RLHF, rlhf
from tests.flows import roads

WITHOUT = ["reward_model=null", "ppo.rewards.model.weight=0", "ppo.rewards.field_match.weight=1"]


def travelled(model: Path, root: Path, *more: str) -> dict[str, str]:
    local = ["download=local", f"download.path={model}", "ppo.watch.then=ignore"]  # a random model says what it says
    given = ["debug=rlhf/smoke", *local, f"runtime.root={root}", *more]
    travel(rlhf, compose("rlhf", RLHF, given), given)
    return roads.states(root)


@pytest.fixture(scope="module")
def first(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("first")
    assert set(travelled(tiny_model, root).values()) == {"made"}
    return root


def test_the_road_ends_with_a_gguf_and_the_curves_of_ppo(first: Path) -> None:
    report = roads.newest(first)
    assert [score["model"]["stage"] for score in report["verdict"]["scores"]] == ["download", "sft", "ppo", "quantize"]
    assert Path(report["product"]).suffix == ".gguf"
    (folder,) = (first / "runs").iterdir()
    assert (folder / "pictures" / "rollouts.png").exists()


def test_another_kl_runs_ppo_and_what_lies_below_it(tiny_model: Path, first: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(first, tmp_path / "again"))
    below = {"ppo", "merge", "convert", "quantize", "fidelity", "evaluate of ppo", "evaluate of quantize", "compare"}
    assert roads.made(travelled(tiny_model, again, "ppo.kl.coef=0.2")) == below | {"evaluate retention of ppo"}


def test_without_a_reward_model_a_function_rewards(tiny_model: Path, first: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(first, tmp_path / "again"))
    assert "reward_model" not in travelled(tiny_model, again, *WITHOUT)
    (ppo,) = (p for p in (again / "store/manifests/ppo").glob("*.json") if "field_match" in p.read_text())
    assert "field_match" in json.dumps(json.loads(ppo.read_text())["fields"])


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        compose("rlhf", RLHF, list(overrides))
    return error.value.problems


def test_a_reward_that_names_a_model_that_is_not_trained_is_refused() -> None:
    assert problems("reward_model=null") == [
        "ppo.rewards.model asks the trained reward model, and reward_model is null: set its weight to 0."
    ]
    assert compose("rlhf", RLHF, WITHOUT).reward_model is None


def test_rewards_have_names_of_ones_own_and_misspelled_sources_are_told() -> None:
    config = compose("rlhf", RLHF, ["ppo.rewards.short.source=length", "ppo.rewards.short.target=20"])
    assert config.ppo.rewards["short"].target == 20
    assert "Did you mean exact_match" in problems("ppo.rewards.exact_mach.weight=1")[0]
