from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tasks.fidelity import FidelityConfig, fidelity
from tasks.llm import gguf
from tasks.runtime import GGUF, Dataset, Model, Run
from tests import hand, tiny

FEW = FidelityConfig(chats=0)


@pytest.fixture
def full(tiny_model: Path) -> Model:
    return hand.handle(Model, tiny_model)


@pytest.fixture
def f16(tiny_gguf: Path, tmp_path: Path) -> GGUF:
    (tmp_path / "f16").mkdir()
    shutil.copyfile(tiny_gguf, tmp_path / "f16" / "model-f16.gguf")
    return hand.handle(GGUF, tmp_path / "f16")


@pytest.fixture
def prompts(tmp_path: Path) -> Dataset:
    return hand.dataset(tmp_path / "prompts", held_out=hand.prompts())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return hand.run(tmp_path / "run")


def test_identical_models_are_not_apart_and_f16_is_as_good_as_fp32(
    run: Run, full: Model, f16: GGUF, prompts: Dataset, tiny_model: Path
) -> None:
    metrics = fidelity.body(run, FEW, full, full, f16, f16, prompts)
    assert (metrics["merged_kl"], metrics["merged_same_top1"]) == (0, 1)
    assert abs(metrics["f16_kl"]) < 1e-6  # a reference in bf16 would be 9e-6 away
    assert metrics["f16_same_top1"] == 1
    assert (metrics["level_kl"], metrics["level_same_top1"]) == (0, 1)
    assert metrics["tokens"] == sum(len(turn.answer) for turn in hand.turns(tiny_model))
    assert metrics["rows"] == 4


def test_what_an_adapter_changed_shows_as_a_distance_from_its_merge(
    run: Run, full: Model, f16: GGUF, prompts: Dataset, tmp_path: Path
) -> None:
    adapter = hand.adapter(tmp_path / "adapter", full, scale=0.2)
    metrics = fidelity.body(run, FEW, adapter, full, f16, f16, prompts)  # merged without the adapter: wrong
    assert metrics["merged_kl"] > 0.01
    assert abs(metrics["f16_kl"]) < 1e-5


def test_a_model_that_answers_with_no_number_is_an_error(
    run: Run, full: Model, f16: GGUF, prompts: Dataset, tmp_path: Path
) -> None:
    broken = hand.adapter(tmp_path / "adapter", full, scale=float("nan"))
    with pytest.raises(ValueError, match=r"The trained model answers with NaN.* lower its args\.learning_rate"):
        fidelity.body(run, FEW, broken, full, f16, f16, prompts)


def test_a_level_is_measured_against_f16_and_named_after_its_file(
    run: Run, full: Model, f16: GGUF, prompts: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "level").mkdir()
    small = tmp_path / "level" / "model-q4_k_m.gguf"
    gguf.quantize(gguf.file_in(f16.path), small, "q4_k_m", tmp_path / "log", lambda *_: None)
    metrics = fidelity.body(run, FEW, full, full, f16, hand.handle(GGUF, small.parent), prompts)
    assert metrics["level_kl"] > 100 * abs(metrics["f16_kl"])
    found = json.loads((run.out / "metrics.json").read_text())
    assert (found["level"], found["rows"], found["tokens"]) == ("q4_k_m", 4, metrics["tokens"])
    assert found["pairs"]["level"] == {"kl": metrics["level_kl"], "same_top1": metrics["level_same_top1"]}


def test_as_many_rows_as_asked_for_are_measured_and_progress_reaches_the_end(
    full: Model, f16: GGUF, prompts: Dataset, tmp_path: Path
) -> None:
    told: list[tuple[int, int, str]] = []
    run = hand.run(tmp_path / "run", progress=lambda *step: told.append(step))
    metrics = fidelity.body(run, FidelityConfig(rows=2, chats=0), full, full, f16, f16, prompts)
    assert metrics["rows"] == 2
    assert [done for done, _, _ in told] == list(range(1, 9))
    assert [what for _, _, what in told[::2]] == ["adapter", "merged", "f16", "level"]
    assert {total for _, total, _ in told} == {8}


def test_a_gguf_that_chats_as_its_model_does_meets_the_same_prompts_and_begins_the_same_answers(
    run: Run, full: Model, f16: GGUF, prompts: Dataset
) -> None:
    metrics = fidelity.body(run, FidelityConfig(chats=3), full, full, f16, f16, prompts)
    assert (metrics["prompt_ids_same"], metrics["first_tokens_same"], metrics["chats"]) == (1, 1, 3)
    found = json.loads((run.out / "metrics.json").read_text())
    assert found["chat"] == {"chats": 3, "first_tokens": 8, "prompt_ids_same": 1, "first_tokens_same": 1}


def test_a_gguf_whose_template_opens_no_answer_is_found_out(
    run: Run, full: Model, f16: GGUF, prompts: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "deaf").mkdir()
    deaf = tmp_path / "deaf" / "model-f16.gguf"
    gguf.annotate(gguf.file_in(f16.path), deaf, {"tokenizer.chat_template": tiny.TEMPLATE.replace("assistant", "")})
    metrics = fidelity.body(run, FidelityConfig(), full, full, hand.handle(GGUF, deaf.parent), f16, prompts)
    assert (metrics["prompt_ids_same"], metrics["f16_kl"] < 1e-6) == (0, True)  # its weights are as they were


def test_a_gguf_of_another_model_begins_other_answers(
    run: Run, full: Model, f16: GGUF, prompts: Dataset, tmp_path: Path
) -> None:
    other = hand.handle(Model, tiny.build(tmp_path / "other", says="No."))
    metrics = fidelity.body(run, FidelityConfig(), full, other, f16, f16, prompts)
    assert (metrics["prompt_ids_same"], metrics["first_tokens_same"]) == (1, 0)


def test_nothing_to_measure_on_is_refused_before_any_model_is_loaded(run: Run, full: Model, tmp_path: Path) -> None:
    nothing = hand.handle(GGUF, run.work)
    with pytest.raises(ValueError, match="no held-out rows"):
        fidelity.body(run, FidelityConfig(), full, full, nothing, nothing, hand.dataset(tmp_path / "none"))


def test_a_number_of_rows_that_cannot_be_is_a_problem() -> None:
    assert list(FidelityConfig().problems()) == []
    assert len(list(FidelityConfig(rows=0, chats=-1).problems())) == 2
