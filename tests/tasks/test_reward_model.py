"""The loss is TRL's; held here against the sum by hand, with the scores given."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tasks import reward_model as stage
from tasks.llm import reward_models, reward_training
from tasks.llm.training import LoRA, Method
from tasks.reward_model import RewardModelConfig, reward_model
from tasks.runtime import Model, Precision, Run
from tests import hand, tiny

TRAIN = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "logging_steps": 1, "save_steps": 2, "max_steps": 8}
FILES = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
PAIRS = hand.pairs()
SAME = [
    {**row, "id": f"{row['id']}m", "chosen": f'{{"{i}": 1}}', "rejected": f'{{"{i}": 2}}'}
    for i, row in enumerate(PAIRS)
]
"""Pairs of two valid objects of one length."""


class Killed(Exception):
    """The moment a training process is lost."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return hand.handle(Model, tiny.build(tmp_path_factory.mktemp("judged") / "base", says=""), digest="ba5e")


@pytest.fixture(scope="module")
def tuned(base: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """What SFT leaves: an adapter that says something else than its base."""
    return hand.adapter(tmp_path_factory.mktemp("tuned"), base, scale=0.2)


@pytest.fixture(params=["lora on an adapter", "lora on a full model", "full from an adapter", "full from a full model"])
def case(request: pytest.FixtureRequest, base: Model, tuned: Model) -> tuple[RewardModelConfig, Model]:
    method, policy = request.param.split(" ", 1)
    return _config(Method(method)), tuned if policy.endswith("an adapter") else base


def _config(method: Method = Method.lora, precision: Precision = Precision.fp32, **args: Any) -> RewardModelConfig:
    return RewardModelConfig(method, LoRA(rank=4), batch_size=2, precision=precision, args=TRAIN | args)


def _trainer(cfg: RewardModelConfig, policy: Model, folder: Path, rows: list[dict[str, Any]]) -> Any:
    tokenizer = reward_models.load_tokenizer(policy.path)
    pairs, _ = stage.encoded_pairs(hand.dataset(folder / "rows", rows).path, "train", tokenizer, 1000)
    return stage.build_trainer(cfg, policy, pairs, [], tokenizer, folder, 0)


def _loss(trainer: Any, scores: list[float]) -> float:
    """Of the first pairs, were these the scores of their chosen answers, then of their rejected ones."""
    import torch

    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(scores) // 2)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_training, "of_pairs", lambda *_: (torch.ones(1), torch.tensor(scores)[:, None]))
        return float(trainer.compute_loss(trainer.model, batch))


def _log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def _history(run: Run) -> list[dict[str, float]]:
    return [entry for entry in json.loads((run.notes / "history.json").read_text()) if "loss" in entry]


def test_the_loss_of_given_scores_is_the_sum_by_hand(base: Model, tmp_path: Path) -> None:
    trainer = _trainer(_config(), base, tmp_path, PAIRS)
    assert _loss(trainer, [0.3, -2.0, 0.3, -2.0]) == pytest.approx(math.log(2))
    by_hand = -(_log_sigmoid(1.0 - 0.5) + _log_sigmoid(-1.0 - 2.0)) / 2
    assert _loss(trainer, [1.0, -1.0, 0.5, 2.0]) == pytest.approx(by_hand)


def test_a_margin_is_taken_off_and_is_nothing_where_no_row_states_it(base: Model, tmp_path: Path) -> None:
    trainer = _trainer(_config(), base, tmp_path, [PAIRS[0] | {"margin": 0.7}, *PAIRS[1:]])
    by_hand = -(_log_sigmoid(1.0 - 0.5 - 0.7) + _log_sigmoid(-1.0 - 2.0)) / 2
    assert _loss(trainer, [1.0, -1.0, 0.5, 2.0]) == pytest.approx(by_hand)


def test_centering_adds_the_square_of_what_a_pair_scores_together(base: Model, tmp_path: Path) -> None:
    trainer = _trainer(_config(center_rewards_coefficient=0.1), base, tmp_path, PAIRS)
    by_hand = -(_log_sigmoid(0.5) + _log_sigmoid(-3.0)) / 2 + 0.1 * ((1.0 + 0.5) ** 2 + (-1.0 + 2.0) ** 2) / 2
    assert _loss(trainer, [1.0, -1.0, 0.5, 2.0]) == pytest.approx(by_hand)


@pytest.mark.parametrize("shared", [False, True])
def test_training_scores_the_stop_token_of_every_answer(base: Model, tmp_path: Path, shared: bool) -> None:
    """Also where pairs share a prompt and answers, which are then read once."""
    import torch

    more = [PAIRS[0] | {"rejected": PAIRS[0]["rejected"] + " indeed"}, *PAIRS]
    trainer = _trainer(_config(Method.full), base, tmp_path, more)
    trainer.model.score.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    pairs = trainer.data_collator([trainer.train_dataset[i] for i in range(5)])["pairs"]
    asked = [pair["prompt_ids"] + pair[which] for which in ("chosen_ids", "rejected_ids") for pair in pairs]
    assert {ids[-1] for ids in asked} == {tiny.STOP} and len({len(ids) for ids in asked}) > 1
    with torch.no_grad():
        read, found = reward_training.of_pairs(trainer.model.eval(), pairs, 0, "cpu", shared)
        hidden = [trainer.model.model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in asked]
    assert int(read.sum()) < sum(map(len, asked)) if shared else True
    by_hand = [float(end @ trainer.model.score.weight[0]) for end in hidden]
    assert found[:, 0].tolist() == pytest.approx(by_hand, abs=1e-5)


def test_pairs_of_one_prompt_are_learned_from_together_in_an_order_that_is_another_every_epoch() -> None:
    order = reward_training.Together([[1], [2], [1], [3], [2], [1]], seed=0)
    epochs = []
    for epoch in range(4):
        order.set_epoch(epoch)
        epochs.append(tuple(order))
        assert sorted(epochs[-1]) == list(range(len(order))) == [0, 1, 2, 3, 4, 5]
        assert {"".join(map(str, epochs[-1])).find(some) >= 0 for some in ("025", "14", "3")} == {True}
    assert len(set(epochs)) > 1
    assert epochs[-1] == tuple(order)


def test_it_learns_pairs_by_heart_and_publishes_one_folder_that_anybody_loads(
    case: tuple[RewardModelConfig, Model], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    cfg, policy = case
    run = hand.run(tmp_path / "run")
    metrics = reward_model.body(run, cfg, policy, hand.dataset(tmp_path / "rows", PAIRS, PAIRS))
    assert _history(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert (metrics["eval_accuracy"], metrics["pairs"], metrics["eval_pairs"], metrics["steps"]) == (1, 4, 4, 8)
    assert metrics["eval_loss"] < 0.1

    assert sorted(hand.content(run.out)) == FILES
    assert not any(str(tmp_path).encode() in body for body in hand.content(run.out).values())
    assert not any(str(policy.path).encode() in body for body in hand.content(run.out).values())
    model = AutoModelForSequenceClassification.from_pretrained(run.out).eval()
    assert (model.config.num_labels, model.config.architectures) == (1, ["LlamaForSequenceClassification"])
    tokenizer = reward_models.load_tokenizer(run.out)
    for line, pair in zip((run.notes / "held_out.jsonl").read_text().splitlines(), PAIRS, strict=True):
        for which in ("chosen", "rejected"):
            chat = [*pair["prompt"], {"role": "assistant", "content": pair[which]}]
            text = tokenizer.apply_chat_template(chat, tokenize=False).rstrip("\n")
            with torch.inference_mode():
                found = model(torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])).logits.item()
            assert json.loads(line)[f"{which}_score"] == pytest.approx(found, abs=1e-3)


def test_it_begins_as_the_policy_and_not_as_the_model_below_it(tuned: Model, base: Model) -> None:
    import torch

    from tasks.llm import models

    ids = torch.tensor([[5, 9, 40, 2]])
    with torch.inference_mode():
        judge = reward_models.begun(tuned.path, base.path, "fp32", 0).model(ids).last_hidden_state
        policy = models.load(tuned.path, base.path, "fp32")(ids, output_hidden_states=True).hidden_states[-1]
        below = models.load(base.path, base.path, "fp32")(ids, output_hidden_states=True).hidden_states[-1]
    assert (judge - policy).abs().max() < 1e-4
    assert (judge - below).abs().max() > 0.1


@pytest.mark.parametrize("method", Method)
def test_two_folders_give_the_same_bytes_and_so_does_a_run_that_was_killed(
    tuned: Model, tmp_path: Path, method: Method
) -> None:
    def die(done: int, total: int, what: str) -> None:
        if done == 3:
            raise Killed

    told: list[int] = []
    cfg, rows = _config(method, max_steps=4), hand.dataset(tmp_path / "rows", PAIRS)
    whole = hand.run(tmp_path / "whole")
    reward_model.body(whole, cfg, tuned, rows)
    with pytest.raises(Killed):
        reward_model.body(hand.run(tmp_path / "else" / "where", progress=die), cfg, tuned, rows)
    again = hand.run(tmp_path / "else" / "where", progress=lambda done, *_: told.append(done))
    reward_model.body(again, cfg, tuned, rows)
    assert told == [3, 4]
    assert hand.content(again.out) == hand.content(whole.out)


def test_what_length_and_validity_alone_explain_stands_beside_and_matched_pairs_apart(
    base: Model, tmp_path: Path
) -> None:
    run = hand.run(tmp_path / "run")
    metrics = reward_model.body(run, _config(), base, hand.dataset(tmp_path / "rows", PAIRS, [*PAIRS, *SAME]))
    assert metrics["eval_length_alone"] == 0.75  # the shorter one is chosen, and half of the pairs are matched
    assert metrics["eval_validity_alone"] == 0.5
    assert (metrics["matched_pairs"], metrics["matched_length_alone"], metrics["matched_validity_alone"]) == (
        4,
        0.5,
        0.5,
    )
    assert metrics["matched_accuracy_low"] <= metrics["matched_accuracy"] <= metrics["matched_accuracy_high"]
    report = json.loads((run.notes / "report.json").read_text())
    assert (report["length_says"], report["matched"]["pairs"]) == ("shorter", 4)
    assert all(math.isfinite(value) for value in metrics.values())


def test_figures_that_would_rest_on_no_pair_are_left_out(base: Model, tmp_path: Path) -> None:
    run, cfg = hand.run(tmp_path / "run"), _config(max_steps=1)
    metrics = reward_model.body(run, cfg, base, hand.dataset(tmp_path / "some", PAIRS, PAIRS[:1]))
    assert not [name for name in metrics if name.startswith("matched")]
    metrics = reward_model.body(hand.run(tmp_path / "none"), cfg, base, hand.dataset(tmp_path / "rows", PAIRS))
    assert metrics.keys() == {"loss", "steps", "pairs", "eval_pairs", "too_long"}


def test_in_bf16_all_of_it_is_published_in_bf16(case: tuple[RewardModelConfig, Model], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    cfg, policy = case
    cfg.precision, cfg.args["max_steps"] = Precision.bf16, 2
    run = hand.run(tmp_path / "run")
    metrics = reward_model.body(run, cfg, policy, hand.dataset(tmp_path / "rows", PAIRS))
    assert {str(weight.dtype) for weight in load_file(run.out / "model.safetensors").values()} == {"torch.bfloat16"}
    assert metrics["loss"] == pytest.approx(math.log(2), abs=0.3)


def test_pairs_over_the_cutoff_are_counted_and_nothing_but_these_is_an_error(base: Model, tmp_path: Path) -> None:
    rows, cfg = hand.dataset(tmp_path / "rows", PAIRS, PAIRS), _config(max_steps=1)
    lengths = [
        stage.encoded_pairs(rows.path, "train", reward_models.load_tokenizer(base.path), n)[1] for n in range(20, 90)
    ]
    cfg.cutoff = 20 + lengths.index(1)  # the longest pair is left out
    metrics = reward_model.body(hand.run(tmp_path / "run"), cfg, base, rows)
    assert (metrics["pairs"], metrics["eval_pairs"], metrics["too_long"]) == (3, 3, 2)
    cfg.cutoff = 8
    with pytest.raises(ValueError, match=r"No pair to train on is within cutoff=8 tokens: raise reward_model.cutoff"):
        reward_model.body(hand.run(tmp_path / "run"), cfg, base, rows)


def test_problems_are_those_of_cutoff_batch_precision_and_the_trainers_knobs() -> None:
    assert list(RewardModelConfig().problems()) == []
    bad = RewardModelConfig(
        cutoff=1, batch_size=0, precision=Precision.fp16, args={"center_reward": 1, "max_length": 9}
    )
    cutoff, batch, precision, knob, owned = bad.problems()
    assert ("at least 8" in cutoff, "positive" in batch, "use bf16" in precision) == (True, True, True)
    assert "Did you mean center_rewards_coefficient" in knob
    assert "the cutoff of the stage that encodes" in owned
