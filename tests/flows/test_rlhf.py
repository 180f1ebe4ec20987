"""SFT, reward model, PPO on the tiny model: what runs, what a changed knob costs, what is refused before the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flows import plan, rehearsal, store
from flows.compose import ConfigError, compose
from flows.launch import travel
from flows.rlhf import RLHF, rlhf
from flows.sweeps import through_hydra
from tasks.llm.tables import TableError
from tests.flows import roads

WITHOUT = ["reward_model=null", "ppo.rewards.model.weight=0", "ppo.rewards.field_match.weight=1"]


def overrides(model: Path, root: Path, *more: str) -> list[str]:
    local = ["download=local", f"download.path={model}", "ppo.watch.then=ignore"]  # a random model says what it says
    return ["debug=rlhf/smoke", *local, f"runtime.root={root}", *more]


def travelled(model: Path, root: Path, *more: str) -> dict[str, str]:
    given = overrides(model, root, *more)
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


def test_in_a_sweep_too_a_choice_is_the_flows_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["-m", "plan=true", "debug=smoke", "ppo.kl.coef=0.1,0.2", f"runtime.root={tmp_path}"]
    assert through_hydra(rlhf, RLHF, words) == 0
    assert "2 ppo" in capsys.readouterr().out


def test_another_kl_runs_ppo_and_what_lies_below_it(tiny_model: Path, first: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(first, tmp_path / "again"))
    below = {"ppo", "merge", "convert", "quantize", "fidelity", "evaluate of ppo", "evaluate of quantize", "compare"}
    assert roads.made(travelled(tiny_model, again, "ppo.kl.coef=0.3")) == below | {"evaluate retention of ppo"}


def test_what_is_wrong_with_several_files_of_rows_is_told_at_once_and_nothing_is_fetched(
    tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "odd.jsonl").write_text('{"said": "yes"}\n')
    given = overrides(
        tiny_model, tmp_path, *(f"{seat}.path={tmp_path / 'odd.jsonl'}" for seat in ("chats", "questions"))
    )
    with pytest.raises(TableError, match=r"(?s)^chats: .*said.*\nquestions: .*said"):
        travel(rlhf, compose("rlhf", RLHF, given), given)
    assert {kind.name for kind in (tmp_path / "store/manifests").iterdir()} == {"preprocess"}


MINE = "def score(prompts, answers, wanted):\n    open({tally!r}, 'a').write('asked\\n')\n    return {returns}\n"


def mine(folder: Path, returns: str) -> tuple[str, Path]:
    """A reward of one's own, and the file in which it counts how often it was asked."""
    place, tally = folder / "mine.py", folder / "tally"
    place.write_text(MINE.format(tally=str(tally), returns=returns))
    return f"ppo.rewards.mine.source={place}:score", tally


def test_without_a_reward_model_a_function_rewards_and_a_cached_run_asks_nobody(
    tiny_model: Path, first: Path, tmp_path: Path
) -> None:
    again = Path(shutil.copytree(first, tmp_path / "again"))
    own, tally = mine(tmp_path, "[len(a) / 100 for a in answers]")
    assert "reward_model" not in travelled(tiny_model, again, *WITHOUT, own)
    asked = tally.read_text()
    assert "reward_model" not in travelled(tiny_model, again, *WITHOUT, own, "evaluate.max_new_tokens=15")
    assert tally.read_text() == asked
    (ppo,) = (p for p in (again / "store/manifests/ppo").glob("*.json") if "field_match" in p.read_text())
    assert "field_match" in json.dumps(json.loads(ppo.read_text())["fields"])


def test_a_reward_that_would_end_ppo_ends_the_run_before_anything_is_loaded(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, tally = mine(tmp_path, "[1 / len(a) for a in answers]")
    judge = "ppo.rewards.judge.source=http://127.0.0.1:9/score"
    with pytest.raises(rehearsal.Unready) as error:
        travelled(tiny_model, tmp_path / "root", own, judge, "ppo.rewards.model.weight=0")
    assert "1. ppo.rewards.mine: " in str(error.value) and "(line 3: return [1 / len(a) for a" in str(error.value)
    assert "2. ppo.rewards.judge: http://127.0.0.1:9/score cannot be reached" in str(error.value)
    assert tally.read_text() == "asked\n"
    assert [place.name for place in (tmp_path / "root/store/manifests").iterdir()] == ["preprocess"]
    assert "reward_model=null leaves it out" in " ".join(capsys.readouterr().err.split())


def test_rows_that_a_reward_cannot_compare_with_end_the_run_at_once(tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n}?", "completion": "no JSON"}) + "\n" for n in range(8)))
    with pytest.raises(rehearsal.Unready, match=r"ppo\.rewards\.field_match compares .* in 7 of 7 rows"):
        travelled(tiny_model, tmp_path / "root", *WITHOUT, f"questions.path={rows}", "questions.eval_rows=1")


def test_without_sft_an_earlier_runs_adapter_is_the_model_that_everything_begins_from(
    tiny_model: Path, first: Path, tmp_path: Path
) -> None:
    again, mine = Path(shutil.copytree(first, tmp_path / "again")), tmp_path / "mine"
    assert store.main(["export", "sft", str(mine), "--root", str(again)]) == 0
    found = travelled(mine, again, "sft=null", "ppo.lora.rank=4")
    assert not {"sft", "encode", "preprocess chats"} & found.keys() and found["reward_model"] == "made"
    report = roads.newest(again)
    assert [score["model"]["stage"] for score in report["verdict"]["scores"]] == ["download", "ppo", "quantize"]
    digests = {row["call"]: row["digest"] for row in report["stages"]}
    policy = again / "store" / "objects" / digests["ppo"]
    assert json.loads((policy / "stands_on.json").read_text()) == {"base": digests["download"]}
    assert json.loads((policy / "adapter_config.json").read_text())["r"] == 4


def test_what_is_left_out_takes_its_rows_along(tiny_model: Path, tmp_path: Path) -> None:
    config = compose("rlhf", RLHF, overrides(tiny_model, tmp_path, "sft=null", *WITHOUT))
    labels = [step.label for step in plan.drawn(rlhf, [config]).steps]
    assert "ppo of download" in labels and "evaluate of download" in labels
    assert not {"sft", "encode", "reward_model"} & {label.split()[0] for label in labels}
    assert not {"preprocess chats", "preprocess pairs"} & set(labels)
    assert len(labels) == len(set(labels)), "no model is measured twice"


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


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("ppo.rewards.model.weight=high", "ppo.rewards.model.weight=high: it wants a number."),
        ("ppo.rewards.mine.src=x", "ppo.rewards.mine.src: no such key. Did you mean ppo.rewards.mine.source?"),
        ("ppo.rewards.mine.wieght=1", "ppo.rewards.mine.wieght: no such key. Did you mean ppo.rewards.mine.weight?"),
        ("+ppo.rewards.mine.source=x", "+ppo.rewards.mine.source=x: the key is there already; leave out the +."),
        ("ppo.rewards.mine=/a.py:score", "name what of it is set: ppo.rewards.mine.weight=, .source=, .pattern="),
        (
            "ppo.rewards.mine.weight=1",
            "there is no reward 'mine'. Give ppo.rewards.mine.source=..., one of exact_match",
        ),
    ],
)
def test_a_mistake_in_a_reward_of_ones_own_names_the_key_that_was_meant(override: str, told: str) -> None:
    (problem,) = problems(override)
    assert told in problem


@pytest.mark.parametrize("override", ["ppo=null", "~ppo"])
def test_without_ppo_it_is_another_road(override: str) -> None:
    told = f"{override}: flows.rlhf needs its ppo; a road without it is flows.sft_then_dpo."
    assert problems(override) == [told]


def test_knobs_that_an_adapter_of_sft_makes_void_are_good_without_it() -> None:
    assert [p.split(",")[0].split(":")[0] for p in problems("ppo.method=full", "ppo.lora.rank=8")] == [
        "ppo.method is full",
        "ppo.lora has no effect",
    ]
    config = compose("rlhf", RLHF, ["sft=null", "ppo.method=full"])
    assert config.sft is None and compose("rlhf", RLHF, ["sft=null", "ppo.lora.rank=8"]).ppo.lora.rank == 8


def test_rows_of_the_wrong_kind_are_refused() -> None:
    (problem,) = problems("preprocess@questions=tickets_judged")
    assert problem.startswith("questions.kind is pairs, and this road needs questions there")
