from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.llm import models, training
from tests.hand import turns


class Killed(Exception):
    """The moment a training process is lost."""


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "at_once"), [(8, 0, 4), (12, 0, 4), (6, 0, 3), (7, 0, 1), (8, 2, 2), (6, 6, 6)]
)
def test_a_batch_is_split_evenly(batch_size: int, micro_batch: int, at_once: int) -> None:
    assert training.rows_at_once(batch_size, micro_batch) == at_once


@pytest.mark.parametrize(("batch_size", "ranks", "at_once"), [(8, 2, 4), (16, 2, 4), (12, 2, 3), (6, 3, 2), (2, 2, 1)])
def test_each_rank_takes_its_share_of_a_batch(batch_size: int, ranks: int, at_once: int) -> None:
    assert training.rows_at_once(batch_size, 0, ranks=ranks) == at_once


def test_a_batch_that_ranks_cannot_share_names_the_nearest_that_they_can() -> None:
    with pytest.raises(ValueError, match=r"use runtime.ranks=3, or batch_size=12 \(another recipe\)"):
        training.rows_at_once(9, 0, ranks=4)


def test_a_pair_counts_as_two_sequences() -> None:
    assert training.rows_at_once(8, 0, sequences_per_row=2) == 2


@pytest.mark.parametrize(("batch_size", "micro_batch", "near"), [(8, 3, "2 or 4"), (7, 3, "1 or 7"), (8, 16, "8")])
def test_an_uneven_split_names_the_nearest_even_ones(batch_size: int, micro_batch: int, near: str) -> None:
    with pytest.raises(ValueError, match=f"does not divide batch_size={batch_size}: use {near}."):
        training.rows_at_once(batch_size, micro_batch)


def test_lora_says_what_is_wrong_with_it() -> None:
    assert list(training.LoRA().problems()) == []
    assert len(list(training.LoRA(rank=0, dropout=1.0).problems())) == 2


def _arguments(work: Path, batch_size: int = 2, micro_batch: int = 0, **args: Any) -> Any:
    import trl

    at_once = training.rows_at_once(batch_size, micro_batch)
    return training.arguments(trl.SFTConfig, args, work, batch_size=batch_size, at_once=at_once, autocast=False, seed=5)


def test_what_is_ours_is_set_over_what_is_the_users_and_values_are_cast(tmp_path: Path) -> None:
    made = _arguments(tmp_path, 12, 3, learning_rate=1, max_steps=4.0, output_dir="elsewhere", seed=9)
    assert made.output_dir == str(tmp_path / "checkpoints")
    assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == (3, 4)
    assert (made.learning_rate, made.max_steps, made.seed, made.report_to) == (1.0, 4, 5, [])
    assert (made.max_length, made.bf16, made.fp16) == (None, False, False)


def _checkpoint(folder: Path, step: int) -> Path:
    import torch
    from safetensors.torch import save_file

    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    save_file({"a": torch.zeros(3, 5), "b": torch.ones(2)}, place / "adapter_model.safetensors")
    (place / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return place


def test_the_newest_checkpoint_is_taken_by_its_number(tmp_path: Path) -> None:
    assert training.last_complete(tmp_path) is None
    places = [_checkpoint(tmp_path, step) for step in (100, 9, 50)]
    assert training.last_complete(tmp_path) == str(places[0])


def _without_state(place: Path) -> None:
    (place / "trainer_state.json").unlink()


def _with_half_a_state(place: Path) -> None:
    (place / "trainer_state.json").write_text('{"global_step": 1')


def _with_cut_weights(place: Path) -> None:
    weights = place / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def _with_a_cut_header(place: Path) -> None:
    weights = place / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])


def _with_empty_weights(place: Path) -> None:
    (place / "adapter_model.safetensors").write_bytes(b"")


def _without_weights(place: Path) -> None:
    (place / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize(
    "damage",
    [_without_state, _with_half_a_state, _with_cut_weights, _with_a_cut_header, _with_empty_weights, _without_weights],
)
def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    whole, cut = _checkpoint(tmp_path, 2), _checkpoint(tmp_path, 4)
    damage(cut)
    assert training.last_complete(tmp_path) == str(whole)


# Resuming, with a real trainer


class Training:
    """SFT of the tiny model with dropout, four steps, a checkpoint after each second one."""

    def __init__(self, base: Path, work: Path) -> None:
        self.base, self.work = base, work
        work.mkdir()

    def fit(self, dies_after: int = 0, micro_batch: int = 0, **args: Any) -> Training:
        import trl
        from datasets import Dataset

        lora = training.LoRA(rank=4, dropout=0.2)
        rows = [dict.fromkeys(("input_ids", "labels"), turn.prompt + turn.answer) for turn in turns(self.base)]
        given = {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-2} | args
        trainer = trl.SFTTrainer(
            model=training.adapt(models.load(self.base, self.base, "fp32"), lora, 0),
            args=_arguments(self.work, 2, micro_batch, dataset_kwargs={"skip_prepare_dataset": True}, **given),
            train_dataset=Dataset.from_list(rows),
            processing_class=models.load_tokenizer(self.base),
        )
        self.steps: list[int] = []
        self.logged: dict[int, dict[str, float]] = {}

        def progress(done: int, total: int, what: str) -> None:
            assert total == given["max_steps"]
            self.steps.append(done)
            if done == dies_after:
                raise Killed

        def log(metrics: dict[str, float], step: int) -> None:
            self.logged[step] = self.logged.get(step, {}) | metrics

        self.metrics = training.fit(trainer, self.work, log, progress)
        training.history(trainer, self.work)
        self.weights = {n: w.detach().clone() for n, w in trainer.model.named_parameters() if w.requires_grad}
        return self

    def checkpoint(self, step: int) -> Path:
        return self.work / "checkpoints" / f"checkpoint-{step}"


@pytest.fixture(scope="module")
def uninterrupted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return Training(tiny_model, tmp_path_factory.mktemp("training") / "work").fit()


def _same_weights(one: Training, other: Training) -> bool:
    import torch

    return all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_every_step_is_told_as_it_is_done_and_every_logged_number_with_its_step(uninterrupted: Training) -> None:
    assert uninterrupted.steps == [1, 2, 3, 4]
    assert all(uninterrupted.logged[step]["loss"] > 0 for step in (1, 2, 3, 4))
    mean = uninterrupted.logged[4]["train_loss"]  # as the trainer itself has it
    assert uninterrupted.metrics == pytest.approx({"loss": mean, "steps": 4})


def test_the_notes_have_every_logged_step_and_every_knob_in_force(uninterrupted: Training) -> None:
    history = json.loads((uninterrupted.work / "history.json").read_text())
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3, 4]
    assert json.loads((uninterrupted.work / "arguments.json").read_text())["learning_rate"] == 1e-2


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint_to_the_same_bits(
    uninterrupted: Training, tiny_model: Path, tmp_path: Path
) -> None:
    broken = Training(tiny_model, tmp_path / "work")
    with pytest.raises(Killed):
        broken.fit(dies_after=3)
    again = broken.fit()
    assert again.steps == [3, 4]
    assert _same_weights(again, uninterrupted)


def test_a_checkpoint_cut_short_is_passed_over_and_the_bits_are_the_same(
    uninterrupted: Training, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted.work, tmp_path / "copy")
    again = Training(uninterrupted.base, tmp_path / "work")
    shutil.move(tmp_path / "copy" / "checkpoints", again.work)
    _with_cut_weights(again.checkpoint(4))
    again.fit()
    assert again.steps == [3, 4]
    assert _same_weights(again, uninterrupted)


def test_the_loss_of_a_run_is_the_same_whether_it_was_killed_or_not(
    uninterrupted: Training, tiny_model: Path, tmp_path: Path
) -> None:
    broken = Training(tiny_model, tmp_path / "work")
    with pytest.raises(Killed):
        broken.fit(dies_after=3)
    assert broken.fit().metrics == pytest.approx(uninterrupted.metrics)
    assert broken.fit().metrics == pytest.approx(uninterrupted.metrics)  # killed between its last step and its seal


def test_a_run_that_was_killed_after_its_last_step_takes_no_other_one(tiny_model: Path, tmp_path: Path) -> None:
    inside = {"max_steps": 3, "save_steps": 3, "lr_scheduler_type": "constant"}  # an epoch, where one more would count
    whole = Training(tiny_model, tmp_path / "work").fit(**inside)
    weights, metrics = whole.weights, whole.metrics
    again = whole.fit(**inside)
    assert again.steps == [] and again.metrics == metrics
    assert all((weights[name] == again.weights[name]).all() for name in weights)


def test_a_split_of_another_size_starts_again_and_says_so(uninterrupted: Training, tmp_path: Path) -> None:
    other = Training(uninterrupted.base, tmp_path / "work")
    with pytest.raises(Killed):
        other.fit(dies_after=3)
    with pytest.warns(UserWarning, match=r"used another batch split \(2x1x1\); it starts again"):
        other.fit(micro_batch=1)
    assert other.steps == [1, 2, 3, 4]
    assert other.checkpoint(4).exists()
