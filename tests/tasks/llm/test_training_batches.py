"""Training on packed rows and on rows grouped by length: the same lesson, gone on with where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.dpo import DPOConfig, build_trainer, known_pairs
from tasks.encode import EncodeConfig, encode
from tasks.llm import batches, training
from tasks.llm.training import LoRA
from tasks.reference import ReferenceConfig, reference
from tasks.runtime import Model, Precision, Run, Tokenizer, Tokens
from tasks.sft import SFTConfig, sft
from tests import hand

TOLD = [{"done": f"count to {n}" + " and on" * (n % 5), "said": f"{n}: " + "ab" * (n % 3 + 1)} for n in range(12)]
CUTOFF = 160
GROUPED = {"train_sampling_strategy": "group_by_length"}


class Killed(Exception):
    """The moment a training process is lost."""


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Model:
    return hand.handle(Model, tiny_model, digest="ba5e")


def tokens(folder: Path, base: Model, packing: bool = False) -> tuple[Tokens, dict[str, float]]:
    run = hand.run(folder)
    rows = hand.dataset(folder / "rows", hand.chats(TOLD), hand.chats(TOLD[:3]))
    metrics = encode.body(run, EncodeConfig(CUTOFF, packing=packing), hand.handle(Tokenizer, base.path), rows)
    return hand.handle(Tokens, run.out), metrics


def config(batch_size: int = 4, dropout: float = 0.0, **args: Any) -> SFTConfig:
    given = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "logging_steps": 1, **args}
    return SFTConfig(lora=LoRA(rank=4, dropout=dropout), batch_size=batch_size, precision=Precision.fp32, args=given)


def losses(run: Run) -> list[float]:
    return [entry["loss"] for entry in json.loads((run.notes / "history.json").read_text()) if "loss" in entry]


def test_a_step_on_packed_rows_is_the_step_on_the_same_rows_unpacked(base: Model, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    rows, _ = tokens(tmp_path / "rows", base)
    packed, proof = tokens(tmp_path / "packed", base, packing=True)
    count = int(proof["packed_rows"])
    assert 1 < count < len(TOLD) / 2
    runs = {}
    for name, given, size in (("rows", rows, len(TOLD)), ("packed", packed, count)):
        runs[name] = hand.run(tmp_path / name / "sft")
        sft.body(runs[name], config(size, max_steps=3), base, given)
    assert losses(runs["packed"]) == pytest.approx(losses(runs["rows"]), rel=1e-5)
    one, other = (load_file(run.out / "adapter_model.safetensors") for run in runs.values())
    moved = max(weight.abs().max().item() for name, weight in one.items() if "lora_B" in name)
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-3 * moved


def test_held_out_rows_stay_one_by_one_so_that_their_loss_can_be_compared(base: Model, tmp_path: Path) -> None:
    found = []
    for packing in (False, True):
        given, _ = tokens(tmp_path / str(packing), base, packing)
        run = hand.run(tmp_path / f"sft{packing}")
        found.append(sft.body(run, config(1, max_steps=1, learning_rate=1e-9), base, given)["eval_loss"])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_grouped_by_length_a_training_that_was_killed_ends_in_the_same_bytes(
    base: Model, tmp_path: Path, packing: bool
) -> None:
    def die(done: int, total: int, what: str) -> None:
        if done == 8:  # in the second epoch
            raise Killed

    given, _ = tokens(tmp_path / "tokens", base, packing)
    cfg = config(1 if packing else 2, dropout=0.1, max_steps=10, save_steps=1, **GROUPED)
    whole, cut = hand.run(tmp_path / "whole"), tmp_path / "cut"
    sft.body(whole, cfg, base, given)
    with pytest.raises(Killed):
        sft.body(hand.run(cut, progress=die), cfg, base, given)
    again = hand.run(cut)
    sft.body(again, cfg, base, given)
    assert hand.content(again.out) == hand.content(whole.out)


def test_pairs_are_grouped_by_their_whole_length_as_well(base: Model, tmp_path: Path) -> None:
    known = hand.run(tmp_path / "known")
    reference.body(
        known, ReferenceConfig(precision=Precision.fp32), base, hand.dataset(tmp_path / "pairs", hand.pairs(TOLD))
    )
    train = known_pairs(known.out, "train")
    cfg = DPOConfig(lora=LoRA(rank=4), batch_size=4, precision=Precision.fp32, args={"max_steps": 3, **GROUPED})
    trainer = build_trainer(cfg, base, train, [], tmp_path / "work", 0)
    training.fit(trainer, tmp_path / "work", lambda *_: None, lambda *_: None)
    lengths = [sum(len(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")) for row in train]
    order = list(trainer._get_train_sampler())
    assert sorted(order) == list(range(len(TOLD)))
    assert order == list(batches.Grouped(lengths, 4, cfg.seed))
