from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from tasks.llm import knobs

CONFIGS = ("SFTConfig", "DPOConfig", "RewardConfig")


def _real(config: str) -> dict[str, dataclasses.Field[Any]]:
    import trl

    return {item.name: item for item in dataclasses.fields(getattr(trl, config))}


@pytest.mark.parametrize("config", CONFIGS)
def test_the_names_are_those_of_the_installed_library(config: str) -> None:
    assert set(knobs.of(config)) == set(_real(config))


@pytest.mark.parametrize("config", CONFIGS)
def test_literal_defaults_are_those_of_the_installed_library(config: str) -> None:
    for name, item in _real(config).items():
        real = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        if name == "optim":  # chosen when the library is imported
            assert knobs.of(config)[name].default == "default_optim"
        else:
            assert (name, knobs.of(config)[name].default) == (name, real)


def test_every_name_we_own_or_free_is_a_real_knob() -> None:
    real = set(_real("SFTConfig")) | set(_real("DPOConfig"))
    assert set(knobs.OWNED) - real == set()
    assert set(knobs.FREE) - real == set()
    assert set(knobs.OWNED) & knobs.FREE == set()


def test_nothing_of_the_library_is_imported_for_it() -> None:
    asked = "from tasks.llm import knobs; knobs.keyed('DPOConfig', {'beta': 1}); list(knobs.problems('SFTConfig', {}))"
    heavy = "import sys; print([m for m in ('trl', 'transformers', 'torch') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", f"{asked}; {heavy}"], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


def test_a_typo_is_answered_with_the_nearest_names() -> None:
    (problem,) = knobs.problems("SFTConfig", {"learning_rat": 1e-4})
    assert problem.startswith("args.learning_rat is no knob of SFTConfig. Did you mean learning_rate")
    (problem,) = knobs.problems("SFTConfig", {"beta": 0.1})
    assert "args.beta is no knob of SFTConfig." in problem


def test_no_owned_name_is_offered_for_a_typo() -> None:
    (problem,) = knobs.problems("DPOConfig", {"output_dirs": "x"})
    assert "output_dir?" not in problem


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("seed", "the stage's seed"),
        ("per_device_train_batch_size", "batch_size (sequences per optimizer step) and runtime.micro_batch"),
        ("max_length", "the cutoff of the stage that encodes"),
        ("bf16", "the stage's precision"),
        ("output_dir", "the work folder"),
        ("report_to", "MLFLOW_TRACKING_URI"),
    ],
)
def test_a_name_of_ours_is_refused_and_says_where_it_is_set(name: str, ours: str) -> None:
    (problem,) = knobs.problems("SFTConfig", {name: 1})
    assert problem.startswith(f"args.{name} is not set here: it follows from ")
    assert ours in problem


def test_all_problems_are_told_at_once_and_a_good_config_has_none() -> None:
    assert len(list(knobs.problems("DPOConfig", {"bta": 1, "seed": 1, "beta": "strong"}))) == 3
    good = {"beta": 0.3, "learning_rate": 1, "num_train_epochs": 3, "warmup_steps": 0.1, "loss_type": ["sigmoid"]}
    assert list(knobs.problems("DPOConfig", good)) == []


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("learning_rate", 1, 1.0),
        ("num_train_epochs", 3, 3.0),
        ("max_steps", 3.0, 3),
        ("save_steps", 0.5, 0.5),
        ("lr_scheduler_type", "cosine", "cosine"),
        ("activation_offloading", True, True),
        ("optim_args", None, None),
        ("loss_type", ["sigmoid", "sft"], ["sigmoid", "sft"]),
        ("loss_type", "ipo", ["ipo"]),
        ("lr_scheduler_kwargs", {"num_cycles": 2}, {"num_cycles": 2}),
    ],
)
def test_a_value_is_cast_to_the_declared_type(name: str, value: Any, meant: Any) -> None:
    found = knobs.cast(knobs.of("DPOConfig")[name], value)
    assert (found, type(found)) == (meant, type(meant))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_steps", 2.5),
        ("max_steps", "many"),
        ("max_steps", True),
        ("max_steps", float("inf")),
        ("max_steps", float("nan")),
        ("learning_rate", "3e-4x"),
        ("learning_rate", False),
        ("activation_offloading", 1),
        ("activation_offloading", "yes"),
        ("lr_scheduler_type", 3),
        ("learning_rate", [1e-4]),
        ("max_grad_norm", {"value": 1}),
    ],
)
def test_a_value_of_another_type_is_a_problem_that_names_the_type(name: str, value: Any) -> None:
    (problem,) = knobs.problems("SFTConfig", {name: value})
    kinds = {"max_steps": "a whole number", "activation_offloading": "true or false"}
    kind = knobs.of("SFTConfig")[name].type if name == "lr_scheduler_type" else kinds.get(name, "a number")
    assert problem == f"args.{name} is {value!r}, but SFTConfig wants {kind}."


def test_logging_steps_is_no_part_of_the_key() -> None:
    assert knobs.keyed("SFTConfig", {"logging_steps": 1, "save_steps": 7}) == knobs.keyed("SFTConfig", {}) == {}


def test_recomputing_activations_is_no_part_of_the_key_by_its_old_name_or_its_new_one() -> None:
    old, new = ({name: True, f"{name}_kwargs": {}} for name in ("gradient_checkpointing", "activation_checkpointing"))
    assert knobs.keyed("SFTConfig", old) == knobs.keyed("SFTConfig", new) == {}


def test_a_default_that_is_set_is_the_same_key_as_one_that_is_not() -> None:
    assert knobs.keyed("DPOConfig", {"beta": 0.1, "num_train_epochs": 3, "loss_type": ["sigmoid"]}) == {}
    assert knobs.keyed("DPOConfig", {"beta": 0.3}) == {"beta": 0.3}


def test_three_and_three_point_zero_are_the_same_key() -> None:
    one, other = ({"learning_rate": value, "max_steps": value} for value in (2, 2.0))
    assert repr(knobs.keyed("SFTConfig", one)) == repr(knobs.keyed("SFTConfig", other))
    assert repr(knobs.keyed("SFTConfig", one)) == "{'learning_rate': 2.0, 'max_steps': 2}"


def test_numbers_in_a_list_are_cast_as_well() -> None:
    args = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1, 0.5]}
    assert repr(knobs.keyed("DPOConfig", args)["loss_weights"]) == "[1.0, 0.5]"


def test_the_order_of_args_changes_nothing_and_unknown_names_are_left_to_problems() -> None:
    assert knobs.keyed("SFTConfig", {"bogus": 1, "max_steps": 2}) == {"max_steps": 2}
