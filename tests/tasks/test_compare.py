from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.compare import CompareConfig, Direction, Gates, LevelGate, compare
from tasks.runtime import Metrics
from tests import hand

NOTHING = Gates(None, None, None, {}, None, None, None, None, None, None)
FIDELITY = {
    "level": "q8_0",
    "tokens": 2500,
    "pairs": {
        "merged": {"kl": 0.0, "same_top1": 1.0},
        "f16": {"kl": 0.0004, "same_top1": 0.995},
        "level": {"kl": 0.02, "same_top1": 0.95},
    },
    "chat": {"chats": 16, "first_tokens": 8, "prompt_ids_same": 1.0, "first_tokens_same": 0.9375},
}
GATES = Gates(f16_first_tokens_min=0.9)


def _scores(folder: Path, stage: str, values: Sequence[float], ids: str = "abcdefgh", stopped: float = 1.0) -> Metrics:
    """What evaluate leaves: one line per prompt, in the order in which the model was done with them."""
    folder = folder / stage
    folder.mkdir(parents=True)
    lines = [{"id": i, "exact_match": v, "loss": 1 - v, "stopped": stopped} for i, v in zip(ids, values, strict=False)]
    order = lines if stage == "base" else lines[::-1]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in order))
    mean = sum(values) / len(values)
    model = {"stage": stage, "kind": "Model", "digest": stage}
    (folder / "metrics.json").write_text(
        json.dumps({"model": model, "exact_match": mean, "loss": 1 - mean, "stopped": stopped})
    )
    return hand.handle(Metrics, folder, stage="evaluate")


def _trust(folder: Path, **level: Any) -> Metrics:
    (folder / "trust").mkdir(parents=True)
    (folder / "trust" / "metrics.json").write_text(json.dumps(FIDELITY | level))
    return hand.handle(Metrics, folder / "trust", stage="fidelity")


def _verdict(
    tmp_path: Path,
    gates: Gates,
    scores: list[Metrics],
    trust: Metrics | None = None,
    objective: str = "exact_match",
    retained: list[Metrics] | None = None,
) -> dict[str, Any]:
    run = hand.run(tmp_path / "run")
    metrics = compare.body(run, CompareConfig(objective, gates), scores, trust, retained)
    verdict: dict[str, Any] = json.loads((run.out / "verdict.json").read_text())
    assert metrics["passed"] == verdict["passed"]
    assert metrics["gates"] == len(verdict["gates"])
    return verdict


def test_a_difference_is_the_mean_of_the_differences_prompt_by_prompt(tmp_path: Path) -> None:
    scores = [_scores(tmp_path, "base", [0, 0, 1, 0]), _scores(tmp_path, "sft", [1, 0, 1, 1])]
    verdict = _verdict(tmp_path, NOTHING, scores)
    (found,) = verdict["differences"]
    assert (found["from"], found["to"], found["metric"], found["mean"]) == ("base", "sft", "exact_match", 0.5)
    assert found["prompts"] == 4
    assert found["interval"] == [0.0, 1.0]
    assert [score["exact_match"] for score in verdict["scores"]] == [0.25, 0.75]
    assert verdict["candidate"]["stage"] == "sft"


def test_a_constant_difference_has_an_interval_of_no_width_however_the_scores_spread(tmp_path: Path) -> None:
    spread = [0.0, 0.125, 0.5, 0.75]
    scores = [_scores(tmp_path, "base", spread), _scores(tmp_path, "sft", [value + 0.25 for value in spread])]
    verdict = _verdict(tmp_path, NOTHING, scores)
    assert verdict["differences"][0]["interval"] == [0.25, 0.25]
    low, high = verdict["scores"][0]["interval"]
    assert low < high


def test_each_model_is_set_against_the_one_before_it(tmp_path: Path) -> None:
    scores = [_scores(tmp_path, name, [value] * 3) for name, value in (("base", 0.0), ("sft", 1.0), ("dpo", 0.5))]
    found = _verdict(tmp_path, NOTHING, scores)["differences"]
    assert [(d["from"], d["to"], d["mean"]) for d in found] == [("base", "sft", 1.0), ("sft", "dpo", -0.5)]


def test_the_objective_is_what_is_compared(tmp_path: Path) -> None:
    scores = [_scores(tmp_path, "base", [0.0, 0.0]), _scores(tmp_path, "sft", [0.25, 0.75])]
    found = _verdict(tmp_path, NOTHING, scores, objective="loss")["differences"][0]
    assert (found["mean"], found["metric"]) == (-0.5, "loss")


def test_models_measured_on_different_prompts_cannot_be_paired(tmp_path: Path) -> None:
    scores = [_scores(tmp_path, "base", [0, 1], "ab"), _scores(tmp_path, "sft", [0, 1], "ac")]
    with pytest.raises(ValueError, match="on different prompts and cannot be paired: evaluate them again"):
        compare.body(hand.run(tmp_path / "run"), CompareConfig(), scores, None)


def test_good_numbers_pass_every_gate(tmp_path: Path) -> None:
    gates = Gates(levels={"q8_0": LevelGate(0.05, 0.9)}, f16_first_tokens_min=0.9)
    verdict = _verdict(tmp_path, gates, [_scores(tmp_path, "gguf", [1, 1])], _trust(tmp_path))
    assert verdict["passed"]
    assert [(gate["name"], gate["value"], gate["limit"]) for gate in verdict["gates"]] == [
        ("merged_kl_max", 0.0, 0.005),
        ("f16_kl_max", 0.0004, 0.001),
        ("f16_same_top1_min", 0.995, 0.99),
        ("fidelity_tokens_min", 2500, 2000),
        ("prompt_ids_same_min", 1.0, 1.0),
        ("f16_first_tokens_min", 0.9375, 0.9),
        ("q8_0.kl_max", 0.02, 0.05),
        ("q8_0.same_top1_min", 0.95, 0.9),
        ("stopped_min", 1.0, 0.9),
    ]
    assert verdict["fidelity"] == FIDELITY


@pytest.mark.parametrize(
    ("changed", "name", "value", "limit", "means", "advice"),
    [
        ({"merged_kl_max": -0.1}, "merged_kl_max", 0.0, -0.1, "rounded away", "merge.precision=fp32"),
        ({"f16_kl_max": 0.0003}, "f16_kl_max", 0.0004, 0.0003, "another model", "convert.llama_cpp"),
        ({"f16_same_top1_min": 0.999}, "f16_same_top1_min", 0.995, 0.999, "another model", "convert.llama_cpp"),
        (
            {"levels": {"q8_0": LevelGate(0.01, 0.9)}},
            "q8_0.kl_max",
            0.02,
            0.01,
            "differently",
            "gentler level (quantize.level=f16)",
        ),
        (
            {"levels": {"q8_0": LevelGate(0.1, 0.96)}},
            "q8_0.same_top1_min",
            0.95,
            0.96,
            "differently",
            "more answer tokens",
        ),
        ({"fidelity_tokens_min": 3000}, "fidelity_tokens_min", 2500, 3000, "chance", "more held-out prompts"),
        ({"prompt_ids_same_min": 1.1}, "prompt_ids_same_min", 1.0, 1.1, "meets other tokens", "download.template"),
        ({"f16_first_tokens_min": 1.0}, "f16_first_tokens_min", 0.9375, 1.0, "another answer", "download.template"),
        ({"stopped_min": 1.1}, "stopped_min", 1.0, 1.1, "do not end", "Raise evaluate.max_new_tokens"),
    ],
)
def test_a_failed_gate_has_its_number_its_limit_what_it_means_and_what_to_try(
    tmp_path: Path, changed: dict[str, Any], name: str, value: float, limit: float, means: str, advice: str
) -> None:
    gates = dataclasses.replace(GATES, **changed)
    verdict = _verdict(tmp_path, gates, [_scores(tmp_path, "gguf", [1, 1])], _trust(tmp_path))
    assert not verdict["passed"]
    (failed,) = [gate for gate in verdict["gates"] if not gate["passed"]]
    assert (failed["name"], failed["value"], failed["limit"]) == (name, value, limit)
    assert means in failed["means"]
    assert advice in failed["advice"]


LOST = [0.1, 0.3, 0.1, 0.3]
"""Nats by which the loss of four general rows rises: resampled means lie between 0.1 and 0.3, 0.2 in the middle."""


def _kept(folder: Path, lost: Sequence[float]) -> list[Metrics]:
    """The base and the aligned model on the general rows; `_scores` makes a loss of 1 - value."""
    return [_scores(folder, "base", [0.5] * len(lost)), _scores(folder, "dpo", [0.5 - more for more in lost])]


def test_what_was_forgotten_is_the_mean_rise_of_the_loss_row_by_row_and_the_gate_holds_its_upper_end(
    tmp_path: Path,
) -> None:
    limit = dataclasses.replace(NOTHING, retention_loss_max=0.25)
    verdict = _verdict(tmp_path / "a", limit, [_scores(tmp_path, "gguf", [1])], retained=_kept(tmp_path / "a", LOST))
    told, (gate,) = verdict["retention"], verdict["gates"]
    facts = {"metric": "loss", "from": "base", "to": "dpo", "prompts": 4, "limit": 0.25}
    assert {name: told[name] for name in facts} == facts
    assert told["mean"] == pytest.approx(0.2)
    assert told["interval"] == pytest.approx([0.1, 0.3])
    assert (gate["name"], gate["passed"]) == ("retention_loss_max", False)  # the mean alone would have passed
    assert gate["value"] == told["interval"][1]
    assert "loss changed by +0.200 [+0.100, +0.300] from base to dpo" in gate["means"]
    ways = ("learning rate", "epochs", "rank", "mix general rows", "more general rows")
    assert all(way in gate["advice"] for way in ways)


def test_a_loss_that_rises_by_the_limit_itself_passes(tmp_path: Path) -> None:
    limit = dataclasses.replace(NOTHING, retention_loss_max=0.25)
    kept = _kept(tmp_path, [0.25] * 3)
    assert _verdict(tmp_path, limit, [_scores(tmp_path, "gguf", [1])], retained=kept)["passed"]


def test_without_general_rows_nothing_is_said_of_what_was_kept(tmp_path: Path) -> None:
    verdict = _verdict(tmp_path, Gates(), [_scores(tmp_path, "gguf", [1])])
    assert verdict["retention"] is None
    assert [gate["name"] for gate in verdict["gates"]] == ["stopped_min"]


@pytest.mark.parametrize("objective", ["exact_match", "loss"])
def test_a_candidate_may_not_be_worse_than_what_it_was_made_from(objective: str, tmp_path: Path) -> None:
    """exact_match goes 1 -> 1 and 1 -> 0.5, the loss 0 -> 0 and 0 -> 0.5: either way worse by 0.5 at worst."""
    scores = [_scores(tmp_path, "dpo", [1.0, 1.0]), _scores(tmp_path, "gguf", [1.0, 0.5])]
    for limit, passed in ((0.5, True), (0.4, False)):
        gates = dataclasses.replace(NOTHING, objective_loss_max=limit)
        verdict = _verdict(tmp_path, gates, scores, objective=objective)
        (gate,) = verdict["gates"]
        assert (gate["value"], gate["passed"]) == (0.5, passed)
        assert "from dpo to gguf: the last step may have made it worse" in gate["means"]


def test_answers_that_do_not_end_fail_the_candidate_and_nobody_else(tmp_path: Path) -> None:
    endless, ending = (_scores(tmp_path, name, [1, 1], stopped=s) for name, s in (("base", 0.5), ("sft", 0.95)))
    verdict = _verdict(tmp_path, Gates(), [endless, ending])
    assert verdict["passed"]
    assert not _verdict(tmp_path, Gates(), [ending, endless])["passed"]


def test_a_number_at_its_limit_passes(tmp_path: Path) -> None:
    gates = Gates(f16_kl_max=0.0004, f16_same_top1_min=0.995, levels={"q8_0": LevelGate(0.02, 0.95)}, stopped_min=1.0)
    gates.f16_first_tokens_min = 0.9375
    assert _verdict(tmp_path, gates, [_scores(tmp_path, "gguf", [1, 1])], _trust(tmp_path))["passed"]


def test_a_gate_that_is_null_is_off(tmp_path: Path) -> None:
    bad = {"pairs": {name: {"kl": 9.0, "same_top1": 0.0} for name in ("merged", "f16", "level")}}
    verdict = _verdict(tmp_path, NOTHING, [_scores(tmp_path, "gguf", [1, 1], stopped=0.0)], _trust(tmp_path, **bad))
    assert (verdict["passed"], verdict["gates"]) == (True, [])


def test_a_level_without_a_gate_is_measured_and_not_judged(tmp_path: Path) -> None:
    gates = dataclasses.replace(GATES, levels={"q8_0": LevelGate(0.0, 1.0)})
    scores, trust = [_scores(tmp_path, "gguf", [1, 1])], _trust(tmp_path, level="q4_k_m")
    verdict = _verdict(tmp_path, gates, scores, trust)
    assert verdict["passed"]
    assert not any("level" in gate["name"] or "q" in gate["name"] for gate in verdict["gates"])
    assert verdict["fidelity"]["pairs"]["level"]["kl"] == 0.02


def test_without_fidelity_only_the_answers_are_judged(tmp_path: Path) -> None:
    verdict = _verdict(tmp_path, Gates(), [_scores(tmp_path, "sft", [1, 1])])
    assert [gate["name"] for gate in verdict["gates"]] == ["stopped_min"]


def test_an_unknown_objective_is_a_problem_that_names_the_choices() -> None:
    assert list(CompareConfig().problems()) == []
    (problem,) = CompareConfig(objective="bleu").problems()
    assert problem == "objective is 'bleu'; choose one of exact_match, json_valid, loss."


def test_better_is_higher_unless_the_metric_or_the_config_says_otherwise() -> None:
    assert CompareConfig().maximize
    assert not CompareConfig(objective="loss").maximize
    assert not CompareConfig(direction=Direction.minimize).maximize
    assert CompareConfig(objective="loss", direction=Direction.maximize).maximize
