"""Peak memory: the sums by hand on a toy model, and what is read of rows and models before anything runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.llm import foresight
from tasks.llm.memory import PROCESS, TILE, UNRETURNED, Shape, Training, Unforeseen
from tasks.llm.training import LoRA, Method
from tests import hand

CONFIG = {
    "hidden_size": 8,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "vocab_size": 50,
    "tie_word_embeddings": False,
}
SHAPE = Shape.of(CONFIG)
LAYER = 8 * 12 + 8 * 6 + 8 * 6 + 12 * 8 + 3 * 8 * 20
"""Weights of one layer: q, k, v, o; gate, up, down."""
ADAPTER = {"rank": 2, "targets": ["all-linear"], "dropout": 0.0}
TILE_OF_FOUR = 33 * 50 * 4 + 4 * 50 * 8
"""Four scored positions on all 50 columns, and the tile's weights in fp32."""


def test_parameters_are_counted_exactly() -> None:
    assert SHAPE.parameters == 3 * (LAYER + 2 * 8) + 8 + 2 * 50 * 8
    assert Shape.of(CONFIG | {"tie_word_embeddings": True}).parameters == SHAPE.parameters - 50 * 8


def test_a_model_of_the_library_has_as_many_parameters(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    shape = Shape.of(json.loads((tiny_model / "config.json").read_text()))
    assert shape.parameters == AutoModelForCausalLM.from_pretrained(tiny_model).num_parameters()


def test_an_adapter_is_counted_by_its_targets() -> None:
    ends = (8 + 12) + (8 + 6) + (8 + 6) + (12 + 8) + 3 * (8 + 20)
    assert SHAPE.adapter(ADAPTER) == (3 * 2 * ends, 3 * (8 + 8 + 8 + 12 + 8 + 8 + 20))
    assert SHAPE.adapter(ADAPTER | {"targets": ["q_proj", "v_proj"]}) == (3 * 2 * (20 + 14), 3 * 16)


def test_full_training_under_autocast_by_hand() -> None:
    training = Training(SHAPE, "bf16", tokens=10, scored=4)
    p = SHAPE.parameters
    assert (training.weights(), training.gradients(), training.states()) == (4 * p, 4 * p, 8 * p)
    assert training.casts() == 2 * 3 * LAYER
    kept = 10 * 3 * (26 * 8 + 8 * 12 + 8 * 20)
    assert training.activations() == training.kept() == kept
    begin = kept + training.casts() + TILE_OF_FOUR + 4 * 50 * 8
    end = training.casts() + 4 * p
    assert training.peak() == PROCESS + 12 * p + UNRETURNED["full"] * kept + max(begin, end)


def test_gradients_are_there_from_the_begin_where_a_step_takes_several_passes() -> None:
    once, several = (Training(SHAPE, "bf16", 1000, 4, accumulates=more) for more in (False, True))
    assert several.peak() - once.peak() == 4 * SHAPE.parameters


def test_lora_in_bf16_by_hand() -> None:
    training = Training(SHAPE, "bf16", tokens=10, scored=4, lora=ADAPTER)
    n, wide = SHAPE.adapter(ADAPTER)
    assert (training.weights(), training.states(), training.casts()) == (2 * SHAPE.parameters + 4 * n, 8 * n, 0)
    assert training.activations() == 10 * (3 * (8 * 8 + 8 * 12 + 6 * 20) + 4 * wide)
    assert training.head() == TILE_OF_FOUR


def test_fp32_keeps_fp32() -> None:
    full, lora = (Training(SHAPE, "fp32", tokens=10, scored=4, lora=given) for given in (None, ADAPTER))
    assert full.activations() == 10 * 3 * (24 * 8 + 16 * 12 + 16 * 20) and full.casts() == 0
    assert lora.activations() == 10 * 3 * (16 * 8 + 16 * 12 + 16 * 20)
    assert lora.weights() == 4 * SHAPE.parameters + 4 * lora.trained()


def test_dropout_keeps_what_it_dropped_from() -> None:
    without, with_it = (Training(SHAPE, "bf16", 10, 4, lora=ADAPTER | {"dropout": share}) for share in (0.0, 0.1))
    assert with_it.activations() - without.activations() == 10 * 4 * SHAPE.adapter(ADAPTER)[1]


def test_checkpointing_keeps_the_inputs_of_all_layers_and_one_layer() -> None:
    training = Training(SHAPE, "bf16", tokens=10, scored=4, checkpointing=True)
    assert training.kept() == 10 * 3 * 8 * 4 + training.activations() / 3


@pytest.mark.parametrize(
    ("optimizer", "each"),
    [("adamw_torch_fused", 8), ("adamw_8bit", 2), ("paged_lion_8bit", 1), ("sgd", 0), ("adafactor", 0.1)],
)
def test_an_optimizer_holds_its_states(optimizer: str, each: float) -> None:
    assert Training(SHAPE, "bf16", 10, 4, optimizer=optimizer).states() == pytest.approx(each * SHAPE.parameters)


def test_the_head_scores_a_tile_of_a_large_vocabulary() -> None:
    large = Shape.of(CONFIG | {"vocab_size": 150_000})
    assert Training(large, "bf16", 10, 4, lora=ADAPTER).head() == 33 * TILE * 4 + 4 * TILE * 8


def test_what_is_not_estimated_says_why() -> None:
    with pytest.raises(Unforeseen, match="mixture of experts"):
        Shape.of(CONFIG | {"num_local_experts": 8})
    with pytest.raises(Unforeseen, match=r"config\.json has no 'hidden_size'"):
        Shape.of({"n_embd": 8})
    assert Shape.of({"text_config": CONFIG}) == SHAPE


# What is read before anything runs


@dataclass
class Seen:
    stage: str
    config: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    inputs: dict[str, Any] = field(default_factory=dict)


def sft(**more: Any) -> Any:
    told = {"method": Method.lora, "lora": LoRA(), "batch_size": 8, "args": {"gradient_checkpointing": False}}
    return SimpleNamespace(**told | more)


def encoded(folder: Path, lengths: list[int], scored: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    labels = [[-100] * (length - scored) + [1] * scored for length in lengths]
    for split in ("train", "eval"):
        pq.write_table(pa.table({"input_ids": labels, "labels": labels}), folder / f"{split}.parquet")
    return folder


def test_rows_are_measured_where_they_are_encoded(tiny_model: Path, tmp_path: Path) -> None:
    tokens = Seen("encode", {"cutoff": 100}, encoded(tmp_path / "rows", [20, 30, 10], scored=5))
    assert foresight.rows_of(tokens, Seen("download", path=tiny_model)) == foresight.Rows(30, 5, 30, 5)


def test_rows_that_are_text_still_are_counted_by_the_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    chats = Seen("preprocess", path=hand.dataset(tmp_path / "chats", hand.chats(), hand.chats()[:1]).path)
    tokens = Seen("encode", {"cutoff": 100}, inputs={"chats": chats})
    rows = foresight.rows_of(tokens, Seen("download", path=tiny_model))
    assert rows.scored < rows.longest <= 100 and rows.held_out <= rows.longest
    assert rows.note == "about, from the longest texts: encode has not run"


def test_without_rows_the_cutoff_is_the_bound(tiny_model: Path) -> None:
    rows = foresight.rows_of(Seen("encode", {"cutoff": 100}), Seen("download", path=tiny_model))
    assert rows == foresight.Rows(100, 100, 100, 100, "at most, with rows of 100 tokens: encode has not run")


def test_the_micro_batch_is_what_one_pass_takes(tiny_model: Path) -> None:
    inputs = {"base": Seen("download", path=tiny_model), "tokens": Seen("encode", {"cutoff": 400})}
    four, one = (foresight.of_sft(sft(), inputs, precision="bf16", micro_batch=n)[0] - PROCESS for n in (0, 1))
    assert 3 < four / one < 4
    two_ranks = foresight.of_sft(sft(), inputs, precision="bf16", ranks=2)[0]
    assert two_ranks == pytest.approx(2 * (four + PROCESS), rel=0.01)


def test_a_pair_is_two_sequences(tiny_model: Path) -> None:
    told = {"policy": Seen("sft", path=tiny_model), "pairs": Seen("reference", {"cutoff": 400})}
    pairs = foresight.of_dpo(sft(), told, precision="bf16")
    rows = foresight.of_sft(sft(), {"base": told["policy"], "tokens": told["pairs"]}, precision="bf16")
    assert pairs == rows


def test_a_judge_takes_what_its_longest_pair_asks_for_and_a_fresh_adapter(tiny_model: Path, tmp_path: Path) -> None:
    def peak(pairs: Seen, rank: int = 16) -> tuple[float, str]:
        made = Seen("sft", {"method": "lora", "lora": vars(LoRA(rank=64))}, None, {"base": Seen("d", path=tiny_model)})
        cfg = sft(cutoff=400, lora=LoRA(rank=rank))
        return foresight.of_reward_model(cfg, {"policy": made, "pairs": pairs}, precision="bf16")

    told = Seen("preprocess", path=hand.dataset(tmp_path / "pairs", hand.pairs()).path)
    at_most, note = peak(Seen("preprocess"))
    assert note == "at most, with rows of 400 tokens: preprocess has not run"
    assert (
        peak(told)[0]
        < at_most
        < foresight.of_dpo(
            sft(), {"policy": Seen("d", path=tiny_model), "pairs": Seen("reference", {"cutoff": 400})}, precision="bf16"
        )[0]
    )  # which has a vocabulary to score
    assert peak(told, rank=32)[0] > peak(told)[0]


def test_a_model_that_is_not_here_yet_is_waited_for(tiny_model: Path) -> None:
    base = Seen("download", {"path": ""})
    tuned = Seen("sft", inputs={"base": base, "tokens": Seen("encode")})
    with pytest.raises(Unforeseen, match="unknown until download has run"):
        foresight.model_folder(tuned)
    base.config["path"] = str(tiny_model)  # a folder on this machine can be read already
    assert foresight.model_folder(tuned) == tiny_model


def test_dpo_continues_the_adapter_that_sft_was_told_to_make(tiny_model: Path) -> None:
    def peak(rank: int) -> float:
        made = Seen(
            "sft", {"method": "lora", "lora": vars(LoRA(rank=rank))}, None, {"base": Seen("d", path=tiny_model)}
        )
        return foresight.of_dpo(sft(), {"policy": made, "pairs": Seen("reference", {"cutoff": 50})})[0]

    assert (
        peak(64)
        > peak(16)
        == foresight.of_dpo(sft(), {"policy": Seen("d", path=tiny_model), "pairs": Seen("reference", {"cutoff": 50})})[
            0
        ]
    )
