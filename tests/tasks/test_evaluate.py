from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tasks.evaluate import EvaluateConfig, evaluate
from tasks.llm import gguf, models, scoring
from tasks.runtime import GGUF, Dataset, Model, Precision, Run
from tests import hand, tiny

WANTED = ["Ok.", '{"a": 1}', " Ok.\n", "ok."]
CONFIG = EvaluateConfig(max_new_tokens=8, precision=Precision.fp32, batch_size=4)


@pytest.fixture
def prompts(tmp_path: Path) -> Dataset:
    told = [{"done": row["done"], "said": wanted} for row, wanted in zip(hand.TOLD, WANTED, strict=True)]
    return hand.dataset(tmp_path / "prompts", held_out=hand.prompts(told))


@pytest.fixture
def full(tiny_model: Path) -> Model:
    return hand.handle(Model, tiny_model, stage="download", digest="ba5e")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return hand.run(tmp_path / "run")


def _lines(run: Run) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in (run.out / "predictions.jsonl").read_text().splitlines()]
    return {line["id"]: line for line in lines}


def test_a_model_that_says_ok_to_everything_is_right_where_ok_was_wanted(
    run: Run, full: Model, prompts: Dataset
) -> None:
    metrics = evaluate.body(run, CONFIG, full, prompts)
    lines = _lines(run)
    assert [lines[i]["prediction"] for i in "0123"] == ["Ok."] * 4
    assert [lines[i]["exact_match"] for i in "0123"] == [1, 0, 1, 0]
    assert [lines[i]["json_valid"] for i in "0123"] == [0, 0, 0, 0]
    assert [lines[i]["answer"] for i in "0123"] == WANTED
    assert (metrics["exact_match"], metrics["json_valid"], metrics["stopped"]) == (0.5, 0, 1)
    assert metrics["loss"] == pytest.approx(sum(line["loss"] for line in lines.values()) / 4)


def test_the_loss_is_the_mean_surprise_at_the_wanted_answers_tokens(run: Run, full: Model, prompts: Dataset) -> None:
    import torch

    evaluate.body(run, CONFIG, full, prompts)
    model, tokenizer = models.load(full.path, full.path, "fp32"), models.load_tokenizer(full.path)
    for i, row in enumerate(hand.TOLD):
        prompt = tokenizer.apply_chat_template(hand.asked(row["done"]), add_generation_prompt=True)["input_ids"]
        answer = [*tokenizer(WANTED[i], add_special_tokens=False)["input_ids"], tiny.STOP]
        with torch.inference_mode():
            ids = torch.tensor([prompt + answer])
            loss = model(input_ids=ids, labels=torch.tensor([[-100] * len(prompt) + answer])).loss.item()
        assert _lines(run)[str(i)]["loss"] == pytest.approx(loss, rel=1e-4)


def test_the_metrics_say_whose_they_are(run: Run, full: Model, prompts: Dataset) -> None:
    metrics = evaluate.body(run, CONFIG, full, prompts)
    found = json.loads((run.out / "metrics.json").read_text())
    assert found["model"] == {"stage": "download", "kind": "Model", "digest": "ba5e"}
    assert found["prompts"] == 4
    assert {name: found[name] for name in metrics} == metrics


def test_padding_changes_no_answer(prompts: Dataset, tmp_path: Path) -> None:
    talker = hand.handle(Model, tiny.build(tmp_path / "talker", seed=3, says=""))
    told = []
    for size in (1, 4):
        run = hand.run(tmp_path / str(size))
        cfg = EvaluateConfig(max_new_tokens=12, precision=Precision.fp32, batch_size=size)
        evaluate.body(run, cfg, talker, prompts)
        told.append({i: line["prediction"] for i, line in _lines(run).items()})
    assert told[0] == told[1]
    assert len(set(told[0].values())) > 2  # else it would prove little


def test_an_adapter_answers_with_what_it_stands_on(full: Model, prompts: Dataset, tmp_path: Path) -> None:
    plain, tuned = hand.run(tmp_path / "plain"), hand.run(tmp_path / "tuned")
    evaluate.body(plain, CONFIG, full, prompts)
    evaluate.body(tuned, CONFIG, hand.adapter(tmp_path / "adapter", full, scale=0.2), prompts)
    assert [_lines(tuned)[i]["loss"] for i in "0123"] != pytest.approx([_lines(plain)[i]["loss"] for i in "0123"])


@pytest.mark.parametrize("kind", [Model, GGUF])
def test_predictions_are_on_disk_as_soon_as_they_are_made(
    kind: type[Model] | type[GGUF], tiny_model: Path, tiny_gguf: Path, prompts: Dataset, tmp_path: Path
) -> None:
    seen: list[int] = []

    def die(done: int, total: int, what: str) -> None:
        seen.append(len(_lines(broken)))
        if done == 2:
            raise KeyboardInterrupt

    broken = hand.run(tmp_path / "run", progress=die)
    path = tiny_model if kind is Model else tiny_gguf.parent
    with pytest.raises(KeyboardInterrupt):
        evaluate.body(broken, CONFIG, hand.handle(kind, path), prompts)
    assert seen == [1, 2]
    assert [line["prediction"] for line in _lines(broken).values()] == ["Ok.", "Ok."]


@pytest.mark.parametrize("kind", [Model, GGUF])
def test_an_answer_cut_by_the_limit_counts_as_not_stopped(
    kind: type[Model] | type[GGUF], tiny_model: Path, tiny_gguf: Path, prompts: Dataset, run: Run
) -> None:
    path = tiny_model if kind is Model else tiny_gguf.parent
    cfg = EvaluateConfig(max_new_tokens=2, precision=Precision.fp32)
    metrics = evaluate.body(run, cfg, hand.handle(kind, path), prompts)
    assert (metrics["stopped"], metrics["exact_match"]) == (0, 0)
    assert {line["prediction"] for line in _lines(run).values()} == {"Ok"}


def test_a_gguf_is_measured_as_the_model_it_was_made_of(
    full: Model, tiny_gguf: Path, prompts: Dataset, tmp_path: Path
) -> None:
    runs = [hand.run(tmp_path / name) for name in ("model", "gguf")]
    made = hand.handle(GGUF, tiny_gguf.parent, stage="convert")
    found = [evaluate.body(run, CONFIG, model, prompts) for run, model in zip(runs, (full, made), strict=True)]
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    for i in "0123":
        assert _lines(runs[0])[i] == pytest.approx(_lines(runs[1])[i], abs=1e-3)
    assert json.loads((runs[1].out / "metrics.json").read_text())["model"]["kind"] == "GGUF"


@pytest.mark.parametrize("kind", [Model, GGUF])
def test_without_answers_the_losses_are_the_same_and_nothing_is_generated(
    kind: type[Model] | type[GGUF],
    tiny_model: Path,
    tiny_gguf: Path,
    prompts: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = hand.handle(kind, tiny_model if kind is Model else tiny_gguf.parent)
    runs = [hand.run(tmp_path / name) for name in ("answers", "losses")]
    evaluate.body(runs[0], CONFIG, model, prompts)
    monkeypatch.delattr(scoring, "generate")
    monkeypatch.delattr(gguf.Engine, "chat")
    metrics = evaluate.body(runs[1], dataclasses.replace(CONFIG, max_new_tokens=0), model, prompts)
    answers, losses = map(_lines, runs)
    assert set(losses["0"]) == {"id", "answer", "loss"}
    assert [losses[i]["loss"] for i in "0123"] == pytest.approx([answers[i]["loss"] for i in "0123"])
    assert list(metrics) == ["loss"]


def test_without_prompts_it_says_what_to_give(run: Run, full: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no held-out prompts: give preprocess@prompts rows with kind=prompts"):
        evaluate.body(run, CONFIG, full, hand.dataset(tmp_path / "none"))


def test_numbers_that_cannot_be_are_problems() -> None:
    assert list(EvaluateConfig().problems()) == []
    assert len(list(EvaluateConfig(max_new_tokens=-1, batch_size=0).problems())) == 2
    assert list(EvaluateConfig(max_new_tokens=0).problems()) == []
