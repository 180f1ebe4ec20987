"""The loss is held against Rafailov et al. (2023), Eq. 7, with log-probabilities summed by plain code of this file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tasks import dpo as stage
from tasks.dpo import DPOConfig, dpo
from tasks.llm import models, scoring
from tasks.llm.training import LoRA, Method
from tasks.runtime import Model, Precision, Run
from tests import hand, tiny

BETA = 0.3
TRAIN = {"beta": BETA, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "logging_steps": 1, "save_steps": 2}


class Killed(Exception):
    """The moment a training process is lost."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return hand.handle(Model, tiny.build(tmp_path_factory.mktemp("dpo") / "base", says=""), digest="ba5e")


@pytest.fixture(scope="module")
def tuned(base: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """What SFT leaves: an adapter that says something else than its base."""
    return hand.adapter(tmp_path_factory.mktemp("tuned"), base, scale=0.2)


@pytest.fixture(params=["adapter", "full", "full policy, fresh adapter"])
def case(request: pytest.FixtureRequest, base: Model, tuned: Model) -> tuple[DPOConfig, Model]:
    """A config and the policy it starts from: the three ways there are."""
    method = Method.full if request.param == "full" else Method.lora
    return _config(method), tuned if request.param == "adapter" else base


def _config(method: Method = Method.lora, precision: Precision = Precision.fp32, **args: Any) -> DPOConfig:
    return DPOConfig(method, LoRA(rank=4), batch_size=2, precision=precision, args=TRAIN | args)


def _trainer(cfg: DPOConfig, policy: Model, work: Path) -> Any:
    folder = hand.dataset(work / "pairs", hand.pairs()[:2]).path
    train, _ = stage.encoded_pairs(folder, "train", models.load_tokenizer(policy.path), cfg.cutoff)
    return stage.build_trainer(cfg, policy, train, [], models.load_tokenizer(policy.path), work, 0)


def _batch(trainer: Any) -> Any:
    return trainer.data_collator([trainer.train_dataset[i] for i in range(2)])


def _reference(trainer: Any) -> tuple[list[float], list[float]]:
    """What the trainer takes for log pi_ref of the chosen and the rejected answers."""
    chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model or trainer.model, _batch(trainer))
    return chosen.tolist(), rejected.tolist()


def _log_p(policy: Model, which: str) -> list[float]:
    """log pi(answer | prompt) of the two pairs' "chosen" or "rejected" answers, one sequence at a time."""
    import torch

    model = models.load(policy.path, policy.base.path, "fp32").eval()
    tokenizer = models.load_tokenizer(policy.path)
    found = []
    for row in hand.pairs()[:2]:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        answer = [*tokenizer(row[which], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
        steps = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        found.append(sum(steps[at, token].item() for at, token in enumerate(answer)))
    return found


def _history(run: Run) -> list[dict[str, float]]:
    return [entry for entry in json.loads((run.notes / "history.json").read_text()) if "loss" in entry]


def test_before_the_first_step_the_loss_is_ln_2(case: tuple[DPOConfig, Model], tmp_path: Path) -> None:
    trainer = _trainer(*case, tmp_path)
    assert trainer.compute_loss(trainer.model, _batch(trainer)).item() == pytest.approx(math.log(2), abs=1e-6)


def test_before_the_first_step_policy_and_reference_say_the_same(case: tuple[DPOConfig, Model], tmp_path: Path) -> None:
    trainer = _trainer(*case, tmp_path)
    turns = hand.turns(case[1].path)
    policy = [scoring.answer_logits(trainer.model.eval(), turn) for turn in turns]
    if trainer.ref_model is None:
        trainer.model.set_adapter("ref")
    apart = scoring.Divergence()
    for turn, logits in zip(turns, policy, strict=True):
        apart.add(logits, scoring.answer_logits(trainer.ref_model or trainer.model, turn))
    assert apart.result() == {"kl": 0.0, "same_top1": 1.0}


def test_the_reference_is_the_policy_that_came_in(case: tuple[DPOConfig, Model], tmp_path: Path) -> None:
    policy = case[1]
    chosen, rejected = _reference(_trainer(*case, tmp_path))
    assert chosen == pytest.approx(_log_p(policy, "chosen"), abs=1e-3)
    assert rejected == pytest.approx(_log_p(policy, "rejected"), abs=1e-3)


def test_the_reference_of_an_adapter_is_not_the_model_below_it(tuned: Model, base: Model, tmp_path: Path) -> None:
    chosen, _ = _reference(_trainer(_config(), tuned, tmp_path))
    apart = [abs(ref - below) for ref, below in zip(chosen, _log_p(base, "chosen"), strict=True)]
    assert max(apart) > 1


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_an_adapter_begins_at_ln_2_in_either_number_format(tuned: Model, tmp_path: Path, precision: Precision) -> None:
    trainer = _trainer(_config(precision=precision), tuned, tmp_path)
    assert trainer.compute_loss(trainer.model, _batch(trainer)).item() == pytest.approx(math.log(2), abs=1e-6)


def test_the_loss_of_a_changed_policy_is_the_sum_by_hand(case: tuple[DPOConfig, Model], tmp_path: Path) -> None:
    import torch

    cfg, policy = case
    trainer = _trainer(cfg, policy, tmp_path)
    noise = torch.Generator().manual_seed(7)
    for weight in trainer.model.parameters():
        if weight.requires_grad:
            weight.data += torch.randn(weight.shape, generator=noise) * 0.05
    loss = trainer.compute_loss(trainer.model, _batch(trainer)).item()

    (tmp_path / "changed").mkdir()
    digest = "" if cfg.method is Method.full else "ba5e"
    models.save(trainer.model, tmp_path / "changed", policy.path, digest)
    changed = hand.handle(Model, tmp_path / "changed", policy.base if digest else None)
    now = zip(_log_p(changed, "chosen"), _log_p(changed, "rejected"), strict=True)
    before = zip(_log_p(policy, "chosen"), _log_p(policy, "rejected"), strict=True)
    margins = [(c - ref_c) - (r - ref_r) for (c, r), (ref_c, ref_r) in zip(now, before, strict=True)]
    by_hand = sum(-math.log(1 / (1 + math.exp(-BETA * margin))) for margin in margins) / 2
    assert max(abs(margin) for margin in margins) > 0.3
    assert loss == pytest.approx(by_hand, rel=1e-3)


def test_training_widens_the_margin_and_leaves_the_reference_alone(
    case: tuple[DPOConfig, Model], tmp_path: Path
) -> None:
    cfg, policy = case
    run = hand.run(tmp_path / "run")
    cfg.args["max_steps"] = 6
    metrics = dpo.body(run, cfg, policy, hand.dataset(tmp_path / "rows", hand.pairs(), hand.pairs()))
    history = _history(run)
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert history[0]["rewards/chosen"] == history[0]["rewards/rejected"] == 0
    assert history[-1]["rewards/margins"] > 0.2
    assert metrics["eval_loss"] < math.log(2) - 0.1
    assert metrics["eval_accuracy"] == 1
    assert (metrics["pairs"], metrics["too_long"], metrics["steps"]) == (4, 0, 6)
    aligned = hand.handle(Model, run.out, None if cfg.method is Method.full else policy.base)
    gains = [
        sum(after - before for before, after in zip(_log_p(policy, which), _log_p(aligned, which), strict=True))
        for which in ("chosen", "rejected")
    ]
    assert gains[0] > gains[1]


def test_only_the_adapter_is_saved_and_not_its_reference(tuned: Model, tmp_path: Path) -> None:
    from safetensors import safe_open

    run = hand.run(tmp_path / "run")
    dpo.body(run, _config(max_steps=1), tuned, hand.dataset(tmp_path / "rows", hand.pairs()))
    names = ["adapter_config.json", "adapter_model.safetensors", "stands_on.json"]
    tokenizer = ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(hand.content(run.out)) == sorted([*names, *tokenizer])
    with safe_open(run.out / names[1], "pt") as made, safe_open(tuned.path / names[1], "pt") as before:
        assert sorted(made.keys()) == sorted(before.keys())
    assert json.loads((run.out / "stands_on.json").read_text()) == {"base": "ba5e"}
    assert json.loads((run.out / "adapter_config.json").read_text())["base_model_name_or_path"] == "ba5e"


def test_a_fresh_adapter_stands_on_the_full_policy(base: Model, tmp_path: Path) -> None:
    run = hand.run(tmp_path / "run")
    dpo.body(run, _config(max_steps=1), base, hand.dataset(tmp_path / "rows", hand.pairs()))
    assert json.loads((run.out / "stands_on.json").read_text()) == {"base": "ba5e"}
    assert json.loads((run.out / "adapter_config.json").read_text())["r"] == 4


def test_two_folders_give_the_same_bytes_and_so_does_a_run_that_was_killed(
    case: tuple[DPOConfig, Model], tmp_path: Path
) -> None:
    def die(done: int, total: int, what: str) -> None:
        if done == 3:
            raise Killed

    told: list[int] = []
    cfg, policy = case
    cfg.args["max_steps"] = 4
    rows = hand.dataset(tmp_path / "rows", hand.pairs())
    whole = hand.run(tmp_path / "whole")
    dpo.body(whole, cfg, policy, rows)
    with pytest.raises(Killed):
        dpo.body(hand.run(tmp_path / "else" / "where", progress=die), cfg, policy, rows)
    again = hand.run(tmp_path / "else" / "where", progress=lambda done, *_: told.append(done))
    dpo.body(again, cfg, policy, rows)
    assert told == [3, 4]
    assert hand.content(again.out) == hand.content(whole.out)
    assert not any(str(tmp_path).encode() in body for body in hand.content(whole.out).values())


def test_pairs_over_the_cutoff_are_dropped_whole_and_counted(tuned: Model, tmp_path: Path) -> None:
    tokenizer = models.load_tokenizer(tuned.path)
    rows = hand.dataset(tmp_path / "rows", hand.pairs())
    encoded, dropped = stage.encoded_pairs(rows.path, "train", tokenizer, 1000)
    assert (len(encoded), dropped) == (4, 0)
    longest = max(len(p["prompt_ids"]) + max(len(p["chosen_ids"]), len(p["rejected_ids"])) for p in encoded)
    kept, dropped = stage.encoded_pairs(rows.path, "train", tokenizer, longest - 1)
    assert (len(kept), dropped) == (3, 1)
    assert stage.encoded_pairs(rows.path, "train", tokenizer, longest)[1] == 0

    cfg = _config(max_steps=1)
    cfg.cutoff = longest - 1
    metrics = dpo.body(hand.run(tmp_path / "run"), cfg, tuned, rows)
    assert (metrics["pairs"], metrics["too_long"]) == (3, 1)


def test_a_pair_is_a_prompt_and_two_answers_that_stop(tuned: Model, tmp_path: Path) -> None:
    tokenizer = models.load_tokenizer(tuned.path)
    rows = hand.dataset(tmp_path / "rows", hand.pairs())
    pair = stage.encoded_pairs(rows.path, "train", tokenizer, 1000)[0][0]
    assert tokenizer.decode(pair["chosen_ids"]) == "bake: 3 loaves<|im_end|>"
    assert tokenizer.decode(pair["rejected_ids"]) == "sevaol 3 :ekab!<|im_end|>"
    assert tokenizer.decode(pair["prompt_ids"]).endswith("bake bread<|im_end|>\n<|im_start|>assistant\n")


def test_nothing_but_too_long_pairs_is_an_error_that_names_the_knob(tuned: Model, tmp_path: Path) -> None:
    cfg = _config()
    cfg.cutoff = 8
    with pytest.raises(ValueError, match=r"All 4 pairs are longer than cutoff=8 tokens: raise dpo.cutoff."):
        dpo.body(hand.run(tmp_path / "run"), cfg, tuned, hand.dataset(tmp_path / "rows", hand.pairs()))


def test_every_weight_of_an_adapter_cannot_be_trained(tuned: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dpo.method=full has no weights of its own: merge it first"):
        dpo.body(hand.run(tmp_path / "run"), _config(Method.full), tuned, hand.dataset(tmp_path / "rows", hand.pairs()))


def test_problems_are_those_of_batch_cutoff_and_the_trainers_knobs() -> None:
    assert list(DPOConfig().problems()) == []
    batch, cutoff, knob = DPOConfig(batch_size=0, cutoff=1, args={"bta": 1}).problems()
    assert ("positive" in batch, "at least 8" in cutoff, "Did you mean beta" in knob) == (True, True, True)
