"""Where Hydra stops: what a person types becomes a dataclass, or a list of everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flows import compose
from flows.rlhf import RLHF
from flows.sft_then_dpo import SFTThenDPO
from tasks.runtime import keys


def composed(*overrides: str) -> SFTThenDPO:
    return compose.compose("sft_then_dpo", SFTThenDPO, list(overrides))


def wrong(*overrides: str) -> list[str]:
    with pytest.raises(compose.ConfigError) as error:
        composed(*overrides)
    return error.value.problems


def test_the_default_road_composes_into_plain_dataclasses() -> None:
    config = composed()
    assert isinstance(config, SFTThenDPO)
    assert config.dpo.args["beta"] == 0.1


def test_a_trainers_own_knob_needs_no_plus() -> None:
    assert composed("dpo.args.loss_type=[ipo]").dpo.args["loss_type"] == ["ipo"]


@pytest.mark.parametrize(
    "place", sorted(p for p in compose.CONF.glob("*/*.yaml") if p.parent.name != "experiment"), ids=str
)
def test_every_choice_composes(place: Path, tmp_path: Path) -> None:
    group, choice = place.parent.name, place.stem
    (tmp_path / "config.json").write_text("{}")
    needs = {
        "download/local": [f"download.path={tmp_path}"],
        "download/gguf": [f"download.path={tmp_path / 'config.json'}"],
        "download/hub": ["download.repo=owner/name"],
    }
    needs["dpo/full"] = ["sft=full"]
    flow, schema, seat = next(
        (flow, schema, seat)
        for flow, schema in (("sft_then_dpo", SFTThenDPO), ("rlhf", RLHF))
        for seat, (_, options) in compose.choices(flow).items()
        if seat.split("@")[0] == group and choice in options
    )
    seat = "evaluate@retention" if choice == "loss_only" else seat  # the road's own answers are scored
    compose.compose(flow, schema, [f"{seat}={choice}", *needs.get(f"{group}/{choice}", [])])


def test_what_two_flows_call_alike_is_each_ones_own() -> None:
    same = [compose.compose("rlhf", RLHF, [f"debug={name}"]) for name in ("smoke", "rlhf/smoke")]
    assert same[0] == same[1]
    assert same[0].ppo.updates == 2
    assert compose.compose("sft_then_dpo", SFTThenDPO, ["debug=smoke"]).dpo.args["max_steps"] > 0


def test_an_address_needs_no_quotes() -> None:
    asked = "ppo.rewards.mine.source=http://localhost:8000/score?v=2&w=1"
    assert compose.compose("rlhf", RLHF, [asked]).ppo.rewards["mine"].source == asked.partition("=")[2]


def test_a_misspelled_key_names_the_nearest() -> None:
    assert wrong("sft.lora.rnk=8") == ["sft.lora.rnk: no such key. Did you mean sft.lora.rank?"]


def test_a_misspelled_choice_names_the_nearest_and_all() -> None:
    (problem,) = wrong("download=qwen3_06b")
    assert "Did you mean qwen3_0_6b" in problem
    assert "smollm2_135m" in problem


def test_a_misspelled_knob_of_the_trainer_names_the_nearest() -> None:
    (problem,) = wrong("dpo.args.bta=0.3")
    assert problem.startswith("dpo.args.bta is no knob of DPOConfig. Did you mean beta")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("ppo.rewards=x", "ppo.rewards=x: give each of them by its name: ppo.rewards.NAME.weight=."),
        ("ppo.critic=both", "ppo.critic=both: no such choice. There are: shared, separate."),
    ],
)
def test_a_value_that_a_key_cannot_hold_says_what_it_can(override: str, said: str) -> None:
    with pytest.raises(compose.ConfigError) as error:
        compose.compose("rlhf", RLHF, [override])
    assert error.value.problems == [said]


def test_a_stage_of_another_road_is_no_stage_of_this_one() -> None:
    assert wrong("reward_model=null") == ["reward_model: this road has no such stage."]


def test_all_mistakes_are_told_at_once() -> None:
    assert len(wrong("sft.lora.rnk=8", "dwnload=hub", "quantize=q9")) == 3
    assert len(wrong("sft.batch_size=0", "reference.cutoff=1", "sft.args.seed=3")) == 3


def test_a_mistake_is_told_with_the_problems_of_stages_it_cannot_be_about() -> None:
    rank, batch = wrong("sft.lora.rnk=8", "sft.args.seed=3", "dpo.batch_size=0", "dpo.method=full")
    assert rank.startswith("sft.lora.rnk: no such key") and batch.startswith("dpo.batch_size is 0")
    (other,) = wrong("dwnload=local", "download.path=mine")
    assert other.startswith("dwnload: no such key"), "what it would have mended is no problem"


def test_a_knob_that_is_ours_says_where_it_is_set() -> None:
    (problem,) = wrong("sft.args.per_device_train_batch_size=4")
    assert "batch_size" in problem
    assert "runtime.micro_batch" in problem


def test_a_knob_out_of_range_is_refused_before_anything_runs() -> None:
    (problem,) = wrong("dpo.args.beta=-1")
    assert problem == "dpo.args.beta is -1.0; give a positive number such as 0.1."


def test_an_adapter_for_dpo_that_nobody_would_use_is_refused() -> None:
    assert wrong("dpo.lora.rank=8")[0].startswith("dpo.lora has no effect")
    assert wrong("dpo=full")[0].startswith("dpo.method is full")
    assert composed("sft=full", "dpo.lora.rank=8").dpo.lora.rank == 8
    assert composed("sft=null", "dpo.lora.rank=8").sft is None
    assert composed("sft=null", "dpo=full").sft is None


def test_a_problem_reads_as_a_sentence_under_its_stage() -> None:
    assert wrong("chats.path=")[0].startswith("chats: no data given")


def test_a_missing_value_is_named() -> None:
    assert wrong("download=local") == ["download.path is empty; source=local needs it."]


def test_rows_of_the_wrong_kind_in_a_seat_are_refused() -> None:
    (problem,) = wrong("preprocess@pairs=tickets_chats")
    assert problem.startswith("pairs.kind is chats, and this road needs pairs there")


def test_a_value_of_the_wrong_type_is_named_with_its_key() -> None:
    assert wrong("sft.batch_size=many") == ["sft.batch_size=many: it wants a whole number."]


def test_a_secret_cannot_be_interpolated_into_a_config() -> None:
    (problem,) = wrong("download.repo=${oc.env:HF_TOKEN}")
    assert "secrets" in problem


def test_a_secret_cannot_come_in_through_a_file_either(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndownload: {repo: '${oc.env:HF_TOKEN}'}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    with pytest.raises(compose.ConfigError, match="secrets"):
        compose.compose("sft_then_dpo", SFTThenDPO, ["experiment=mine"], [str(tmp_path)])


def test_choices_of_ones_own_are_found_in_a_config_folder(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ndpo: {args: {beta: 0.7}}\n")
    config = compose.compose("sft_then_dpo", SFTThenDPO, ["experiment=mine"], [str(tmp_path)])
    assert config.dpo.args["beta"] == 0.7


def test_a_missing_data_file_is_said_before_anything_runs() -> None:
    (problem,) = wrong("chats.path=data/tickets/chat.jsonl")
    assert "chats.jsonl" in problem


def test_a_split_that_does_not_come_out_even_is_refused_before_anything_runs() -> None:
    problems = wrong("runtime.micro_batch=3", "sft.batch_size=6", "dpo.batch_size=8")
    assert problems == ["dpo: runtime.micro_batch=3 does not divide batch_size=8: use 2 or 4."]


def test_a_batch_that_ranks_cannot_share_names_the_nearest_that_they_can() -> None:
    assert composed("runtime=ranks").runtime.ranks == 2
    assert composed("runtime=ranks", "runtime.strategy=zero2").runtime.strategy == "zero2"
    (problem,) = wrong("runtime=ranks", "runtime.ranks=3", "sft.batch_size=6")
    near = "use runtime.ranks=2, or batch_size=9 (another recipe)"
    assert problem == f"dpo: batch_size=8 cannot be shared by runtime.ranks=3 evenly: {near}."
    (problem,) = wrong("runtime=ranks", "runtime.micro_batch=4", "sft.batch_size=12")
    assert problem == "sft: runtime.micro_batch=4 does not divide batch_size=12, shared by 2 ranks: use 3 or 6."


def test_runtime_is_no_part_of_a_key(tmp_path: Path) -> None:
    one, other = composed(), composed("runtime.root=/elsewhere", "runtime.micro_batch=2")
    assert keys.plain(one.sft) == keys.plain(other.sft)


def test_the_choices_of_a_flow_are_the_files_of_its_groups() -> None:
    found = compose.choices("sft_then_dpo")
    assert found["quantize"][0] == "q8_0"
    assert "q4_k_m" in found["quantize"][1]
    assert found["debug"] == ("none", ["none", "smoke"])
    assert found["preprocess@chats"][1] == ["tickets_chats"]
    assert compose.choices("rlhf")["debug"] == ("none", ["none", "rlhf/smoke"])  # of that flow alone
    assert found["preprocess@general"][1] == ["general_prompts", "tickets_prompts"]


def test_a_choice_or_knob_written_as_an_option_is_told_how_it_is_written() -> None:
    argv = ["--debug", "--sft.batch_size=4", "--cfg", "job", "-m", "quantize=f16"]
    assert compose.dashed(SFTThenDPO, argv) == [
        "--debug: write debug=..., without dashes.",
        "--sft.batch_size=4: write sft.batch_size=..., without dashes.",
    ]


MIXED = [
    ["dpo.args.beta=0.3", "debug=smoke"],
    ["debug=smoke", "sft.batch_size=2", "dpo.args.loss_type=[ipo]", "runtime.root='/some where'"],
    ["sft=full", "dpo=full", "+dpo.args.rpo_alpha=1.0", "~sft.args.warmup_steps"],
    ["preprocess@pairs=tickets_pairs", "compare.gates.levels={q8_0:{kl_max:0.5}}", "quantize=q4_k_m"],
]


@pytest.mark.parametrize("overrides", MIXED, ids=str)
def test_many_trials_are_composed_to_what_hydra_composes_one_by_one(overrides: list[str]) -> None:
    composed()  # registers the flow
    straight = OmegaConf.to_container(compose._compose("sft_then_dpo", overrides, []))
    composer = compose._Composer("sft_then_dpo", SFTThenDPO, [])
    for trial in (overrides, ["sft.seed=7"], overrides):  # the second must leave no trace in the third
        found = composer._node(trial)
    assert OmegaConf.to_container(found) == straight


def test_hydra_composes_once_for_all_trials_that_differ_in_values_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    straight = compose._compose
    monkeypatch.setattr(
        compose, "_compose", lambda name, words, search: calls.append(words) or straight(name, words, search)
    )
    trials = [[f"dpo.args.beta={n + 1}", "debug=smoke"] for n in range(20)]
    found = compose.compose_all("sft_then_dpo", SFTThenDPO, trials)
    assert calls == [["debug=smoke"]]
    assert [config.dpo.args["beta"] for config in found] == [float(n + 1) for n in range(20)]


def test_one_wrong_trial_leaves_the_others_as_they_are() -> None:
    right, wrong_one = compose.compose_all("sft_then_dpo", SFTThenDPO, [["dpo.args.beta=0.3"], ["dpo.args.beta=-1"]])
    assert right.dpo.args["beta"] == 0.3
    assert isinstance(wrong_one, compose.ConfigError)


def test_a_seat_that_may_be_null_is_left_out_and_its_keys_are_known() -> None:
    assert composed("general=null").general is None
    assert composed("~preprocess@general", "debug=smoke").general is None
    assert composed("general.max_rows=4").general.max_rows == 4
    (problem,) = wrong("general.max_row=4")
    assert problem == "general.max_row: no such key. Did you mean general.max_rows or general.min_rows?"


def test_null_where_it_cannot_stand_says_what_to_write() -> None:
    assert wrong("preprocess@general=null") == [
        "preprocess@general=null: a choice is left out with ~preprocess@general."
    ]
    assert wrong("general=null", "general.max_rows=4") == [
        "A value stands below something that is null: leave out the value, or the null."
    ]


def test_a_null_where_a_value_must_be_is_refused_in_words() -> None:
    assert wrong("sft.batch_size=null", "sft.args.learning_rate=null", "sft.args.max_steps=null") == [
        "sft.batch_size=null: it wants a value; leave the override out for the default."
    ]
    assert wrong("sft.args.learning_rate=null") == ["sft.args.learning_rate is None, but SFTConfig wants a number."]


@pytest.mark.parametrize("where", ["a file", "a folder that takes no files"])
def test_a_root_that_cannot_be_written_to_is_refused(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "root"
    if where == "a file":
        place.touch()
    else:
        place.mkdir()
        monkeypatch.setattr("tempfile.TemporaryFile", refusing)
    (problem,) = wrong(f"runtime.root={place}")
    assert problem == f"runtime.root={place} is no folder that can be written to ({place}): choose another."


def refusing(**_: object) -> None:
    raise PermissionError


def test_values_that_are_swept_need_a_sweep() -> None:
    (problem,) = wrong("dpo.args.beta=0.1,0.3")
    assert problem == "dpo.args.beta=0.1,0.3: several values are a sweep and want -m; a list is written [a,b]."


def test_numbers_without_end_are_refused_wherever_they_stand_and_once() -> None:
    assert wrong(
        "sft.args.learning_rate=1e400", "dpo.args.beta=nan", "chats.eval_rows=0", "chats.eval_fraction=nan"
    ) == [
        "chats.eval_fraction=nan is not a share; give 0 (none) to below 1, such as 0.05",
        "sft.args.learning_rate is inf; give a finite number such as 0.0002.",
        "dpo.args.beta is nan; give a finite number such as 0.1.",
    ]
    assert wrong("sft.args.lr_scheduler_kwargs={a:inf}") == [
        "sft.args.lr_scheduler_kwargs.a is inf; give a finite number."
    ]
