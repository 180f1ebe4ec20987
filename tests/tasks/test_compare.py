from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tasks.compare import CompareConfig, Direction, Gates, LevelGate, compare
from tasks.runtime import Metrics
from tests import hand

NOTHING = Gates(None, None, None, {}, None, None)
FIDELITY = {
    "level": "q8_0",
    "tokens": 2500,
    "pairs": {
        "merged": {"kl": 0.0, "same_top1": 1.0},
        "f16": {"kl": 0.0004, "same_top1": 0.995},
        "level": {"kl": 0.02, "same_top1": 0.95},
    },
}


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
    tmp_path: Path, gates: Gates, scores: list[Metrics], trust: Metrics | None = None, objective: str = "exact_match"
) -> dict[str, Any]:
    run = hand.run(tmp_path / "run")
    metrics = compare.body(run, CompareConfig(objective, gates), scores, trust)
    verdict: dict[str, Any] = json.loads((run.out / "verdict.json").read_text())
    assert metrics["passed"] == verdict["passed"]
    assert metrics["gates"] == len(verdict["gates"])
    return verdict


def test_a_difference_is_the_mean_of_the_differences_prompt_by_prompt(tmp_path: Path) -> None:
    scores = [_scores(tmp_path, "base", [0, 0, 1, 0]), _scores(tmp_path, "sft", [1, 0, 1, 1])]
    verdict = _verdict(tmp_path, NOTHING, scores)
    (found,) = verdict["differences"]
    assert (found["from"], found["to"], found["objective"], found["mean"]) == ("base", "sft", "exact_match", 0.5)
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
    assert (found["mean"], found["objective"]) == (-0.5, "loss")


def test_models_measured_on_different_prompts_cannot_be_paired(tmp_path: Path) -> None:
    scores = [_scores(tmp_path, "base", [0, 1], "ab"), _scores(tmp_path, "sft", [0, 1], "ac")]
    with pytest.raises(ValueError, match="on different prompts and cannot be paired: evaluate them again"):
        compare.body(hand.run(tmp_path / "run"), CompareConfig(), scores, None)


def test_good_numbers_pass_every_gate(tmp_path: Path) -> None:
    gates = Gates(levels={"q8_0": LevelGate(0.05, 0.9)})
    verdict = _verdict(tmp_path, gates, [_scores(tmp_path, "gguf", [1, 1])], _trust(tmp_path))
    assert verdict["passed"]
    assert [(gate["name"], gate["value"], gate["limit"]) for gate in verdict["gates"]] == [
        ("merged_kl_max", 0.0, 0.005),
        ("f16_kl_max", 0.0004, 0.001),
        ("f16_same_top1_min", 0.995, 0.99),
        ("fidelity_tokens_min", 2500, 2000),
        ("q8_0.kl_max", 0.02, 0.05),
        ("q8_0.same_top1_min", 0.95, 0.9),
        ("stopped_min", 1.0, 0.9),
    ]
    assert verdict["fidelity"] == FIDELITY


@pytest.mark.parametrize(
    ("gates", "name", "value", "limit", "advice"),
    [
        (Gates(merged_kl_max=-0.1), "merged_kl_max", 0.0, -0.1, "Merge into an fp32 base"),
        (Gates(f16_kl_max=0.0003), "f16_kl_max", 0.0004, 0.0003, "converter changed the model"),
        (Gates(f16_same_top1_min=0.999), "f16_same_top1_min", 0.995, 0.999, "converter changed the model"),
        (Gates(levels={"q8_0": LevelGate(0.01, 0.9)}), "q8_0.kl_max", 0.02, 0.01, "gentler level"),
        (Gates(levels={"q8_0": LevelGate(0.1, 0.96)}), "q8_0.same_top1_min", 0.95, 0.96, "gentler level"),
        (Gates(fidelity_tokens_min=3000), "fidelity_tokens_min", 2500, 3000, "Give more held-out prompts"),
        (Gates(stopped_min=1.1), "stopped_min", 1.0, 1.1, "raise evaluate.max_new_tokens"),
    ],
)
def test_a_failed_gate_has_its_number_its_limit_and_what_to_do(
    tmp_path: Path, gates: Gates, name: str, value: float, limit: float, advice: str
) -> None:
    verdict = _verdict(tmp_path, gates, [_scores(tmp_path, "gguf", [1, 1])], _trust(tmp_path))
    assert not verdict["passed"]
    (failed,) = [gate for gate in verdict["gates"] if not gate["passed"]]
    assert (failed["name"], failed["value"], failed["limit"]) == (name, value, limit)
    assert advice in failed["advice"]


def test_answers_that_do_not_end_fail_the_candidate_and_nobody_else(tmp_path: Path) -> None:
    endless, ending = (_scores(tmp_path, name, [1, 1], stopped=s) for name, s in (("base", 0.5), ("sft", 0.95)))
    verdict = _verdict(tmp_path, Gates(), [endless, ending])
    assert verdict["passed"]
    assert not _verdict(tmp_path, Gates(), [ending, endless])["passed"]


def test_a_number_at_its_limit_passes(tmp_path: Path) -> None:
    gates = Gates(f16_kl_max=0.0004, f16_same_top1_min=0.995, levels={"q8_0": LevelGate(0.02, 0.95)}, stopped_min=1.0)
    assert _verdict(tmp_path, gates, [_scores(tmp_path, "gguf", [1, 1])], _trust(tmp_path))["passed"]


def test_a_gate_that_is_null_is_off(tmp_path: Path) -> None:
    bad = {"pairs": {name: {"kl": 9.0, "same_top1": 0.0} for name in ("merged", "f16", "level")}}
    verdict = _verdict(tmp_path, NOTHING, [_scores(tmp_path, "gguf", [1, 1], stopped=0.0)], _trust(tmp_path, **bad))
    assert (verdict["passed"], verdict["gates"]) == (True, [])


def test_a_level_without_a_gate_is_measured_and_not_judged(tmp_path: Path) -> None:
    gates = Gates(levels={"q8_0": LevelGate(0.0, 1.0)})
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
