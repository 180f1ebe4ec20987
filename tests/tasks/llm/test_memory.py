"""Peak memory: the sums by hand on a toy model, and what is read of rows and models before anything runs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.llm import foresight
from tasks.llm.actor import Critic
from tasks.llm.memory import PROCESS, TILE, UNRETURNED, Practice, Shape, Training, Unforeseen
from tasks.llm.rewards import Reward
from tasks.llm.rollouts import Sampling
from tasks.llm.training import LoRA, Method
from tasks.ppo import PPOConfig
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


def test_what_stands_beside_counts_always_and_what_is_only_opened_where_it_is_most() -> None:
    def peak(**more: float) -> float:
        return Training(SHAPE, "bf16", 10, 4, lora=ADAPTER, **more).peak()

    assert peak(beside=1e6) == peak() + 1e6
    assert peak(opening=1) == peak()
    assert peak(opening=1e9) == PROCESS + Training(SHAPE, "bf16", 10, 4, lora=ADAPTER).weights() + 1e9


def practice(**more: Any) -> Practice:
    return Practice(SHAPE, "bf16", 10, 0, lora=ADAPTER, answers=4, drawn=3, length=7, **more)


def test_ppo_holds_every_logit_of_its_answers() -> None:
    plain = Training(SHAPE, "bf16", 10, 0, lora=ADAPTER)
    assert practice().head() == 20 * 4 * 50
    assert practice().activations() == plain.activations() and practice().states() == plain.states()


def test_a_critic_on_a_trunk_of_its_own_is_as_much_again() -> None:
    for part in (Practice.trained, Practice.states, Practice.gradients, Practice.activations):
        assert part(practice(separate=True)) == 2 * part(practice())  # type: ignore[operator]
    assert practice(separate=True).weights() - practice().weights() == 4 * practice().trained()


def test_answers_that_are_drawn_have_keys_and_values_in_every_layer() -> None:
    assert practice().before() == 3 * (7 * 2 * 3 * 6 * 2 + 20 * 50)
    long = Practice(SHAPE, "bf16", 10, 0, lora=ADAPTER, drawn=1000, length=1000)
    rest = long.weights() + long.states() + long.unreturned()
    assert long.peak() == PROCESS + rest + 1000 * (1000 * 2 * 3 * 6 * 2 + 20 * 50)


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
    assert peak(told)[0] < at_most
    assert peak(told, rank=32)[0] > peak(told)[0]


def ppo(**more: Any) -> PPOConfig:
    how = {"minibatch_size": 8, "sampling": Sampling(max_new_tokens=20), "rewards": {"length": Reward()}}
    return PPOConfig(**how | more)


def test_ppo_takes_what_its_longest_prompt_and_answer_ask_for(tiny_model: Path, tmp_path: Path) -> None:
    base, made = Seen("download", path=tiny_model), {"method": "lora", "lora": vars(LoRA())}
    adapter = Seen("sft", made, None, {"base": base})
    asked = [{"prompt": chat["messages"][:-1], "answer": chat["messages"][-1]["content"]} for chat in hand.chats()]
    told = Seen("preprocess", path=hand.dataset(tmp_path / "questions", asked).path)
    shape = Shape.of(json.loads((tiny_model / "config.json").read_text()))

    def peak(policy: Seen = base, judge: bool = False, micro_batch: int = 0, **more: Any) -> float:
        inputs = {"policy": policy, "questions": told}
        inputs |= {"judge": Seen("reward_model", {}, None, {"policy": base})} if judge else {}
        return foresight.of_ppo(ppo(**more), inputs, precision="bf16", micro_batch=micro_batch)[0]

    _, note = foresight.of_ppo(ppo(), {"policy": base, "questions": told}, precision="bf16")
    assert note == "at most, with answers of 20 tokens"
    assert peak(adapter) - peak() == 4 * shape.adapter(vars(LoRA()))[0], "its frozen copy"
    assert peak(judge=True, rewards={"model": Reward()}) - peak() == 2 * shape.parameters
    assert peak(judge=True) == peak(), "which no reward asks"
    assert peak(critic=Critic.separate) > peak() > peak(micro_batch=1)
    assert peak(method=Method.full) > peak() < peak(lora=LoRA(rank=32))
    assert peak(sampling=Sampling(max_new_tokens=60)) > peak()


def test_ppo_waits_for_questions_that_are_not_read_yet(tiny_model: Path) -> None:
    with pytest.raises(Unforeseen, match="unknown until preprocess has run"):
        foresight.of_ppo(ppo(), {"policy": Seen("d", path=tiny_model), "questions": Seen("preprocess")})


def test_a_judge_that_begins_from_an_adapter_is_folded_first(tiny_model: Path) -> None:
    base, made = Seen("d", path=tiny_model), {"method": "lora", "lora": vars(LoRA())}

    def peak(policy: Seen) -> float:
        inputs = {"policy": policy, "pairs": Seen("preprocess")}
        cfg = sft(cutoff=8, batch_size=1, lora=LoRA(rank=1))
        return foresight.of_reward_model(cfg, inputs, precision="bf16")[0]

    assert peak(Seen("sft", made, None, {"base": base})) > peak(base)


def test_a_model_that_is_not_here_yet_is_waited_for(tiny_model: Path, tmp_path: Path) -> None:
    base = Seen("download", {"path": ""})
    tuned = Seen("sft", inputs={"base": base, "tokens": Seen("encode")})
    with pytest.raises(Unforeseen, match="unknown until download has run"):
        foresight.model_folder(tuned)
    base.config["path"] = str(tiny_model)  # a folder on this machine can be read already
    assert foresight.model_folder(tuned) == tiny_model
    base.config["path"] = str(tmp_path)  # an adapter and its base
    (tmp_path / "base").symlink_to(tiny_model)
    assert foresight.model_folder(tuned) == tmp_path / "base"


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
