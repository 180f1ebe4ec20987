"""The loss is held against Rafailov et al. (2023), Eq. 7, with log-probabilities summed by plain code, and TRL."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tasks import dpo as stage
from tasks.dpo import DPOConfig, dpo
from tasks.llm import models, training
from tasks.llm.training import LoRA, Method
from tasks.reference import ReferenceConfig, reference
from tasks.runtime import Model, Precision, Preferences, Run
from tests import hand, tiny

BETA = 0.3
TRAIN = {"beta": BETA, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "logging_steps": 1, "save_steps": 2}

EVERY_LOSS = [
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
]


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


def _known(cfg: DPOConfig, policy: Model, folder: Path, held_out: int = 0) -> Preferences:
    """The four pairs with their reference, as the stage before leaves them."""
    run, rows = hand.run(folder), hand.dataset(folder / "rows", hand.pairs(), hand.pairs()[:held_out])
    reference.body(run, ReferenceConfig(precision=cfg.precision, method=cfg.method), policy, rows)
    return hand.handle(Preferences, run.out)


def _trainer(cfg: DPOConfig, policy: Model, work: Path, held_out: int = 0) -> Any:
    known = _known(cfg, policy, work / "known", held_out)
    splits = [stage.known_pairs(known.path, split) for split in ("train", "eval")]
    return stage.build_trainer(cfg, policy, *splits, work, 0)


def _trainer_of_trl(cfg: DPOConfig, policy: Model, work: Path) -> Any:
    """TRL as it is, which asks a reference model, or its copy of the adapter, at every step."""
    import trl

    class Plain(trl.DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    full = cfg.method is Method.full
    model = models.load(policy.path, policy.base.path, "fp32", trainable=True)
    if not full and policy is policy.base:
        model = training.adapt(model, cfg.lora, cfg.seed)
    split: dict[str, Any] = {"batch_size": 2, "at_once": 2, "autocast": False, "seed": cfg.seed}
    return Plain(
        model=model,
        ref_model=models.load(policy.path, policy.base.path, "fp32") if full else None,
        args=training.arguments(trl.DPOConfig, cfg.args, work, **split),
        train_dataset=stage.known_pairs(_known(cfg, policy, work / "known").path, "train").select_columns(
            ["prompt_ids", "chosen_ids", "rejected_ids"]
        ),
        processing_class=models.load_tokenizer(policy.path),
    )


def _batch(trainer: Any) -> Any:
    return trainer.data_collator([trainer.train_dataset[i] for i in range(2)])


def _change(trainer: Any) -> None:
    """Move the policy away from its reference."""
    import torch

    noise = torch.Generator().manual_seed(7)
    for weight in trainer.model.parameters():
        if weight.requires_grad:
            weight.data += torch.randn(weight.shape, generator=noise) * 0.05


def _first_two(policy: Model, which: str) -> list[float]:
    return hand.log_p(policy, hand.pairs()[:2], which)


def _history(run: Run) -> list[dict[str, float]]:
    return [entry for entry in json.loads((run.notes / "history.json").read_text()) if "loss" in entry]


def test_before_the_first_step_the_loss_is_ln_2_and_no_margin(case: tuple[DPOConfig, Model], tmp_path: Path) -> None:
    trainer = _trainer(*case, tmp_path)
    assert trainer.compute_loss(trainer.model.train(), _batch(trainer)).item() == pytest.approx(math.log(2), abs=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert trainer._metrics["train"][name] == pytest.approx([0], abs=1e-5)


def test_it_begins_at_ln_2_in_bf16_too(case: tuple[DPOConfig, Model], tmp_path: Path) -> None:
    cfg, policy = case
    cfg.precision = Precision.bf16
    trainer = _trainer(cfg, policy, tmp_path)
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, _batch(trainer)).item()
    assert loss == pytest.approx(math.log(2), abs=2e-2)


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"loss_type": EVERY_LOSS, "label_smoothing": 0.1},
        {"f_divergence_type": "js_divergence", "use_weighting": True},
    ],
    ids=["sigmoid", "every loss", "another divergence, weighted"],
)
def test_losses_and_gradients_are_those_of_a_reference_asked_at_every_step(
    case: tuple[DPOConfig, Model], args: dict[str, Any], tmp_path: Path
) -> None:
    cfg, policy = case
    cfg.args |= args
    found = []
    for make in (_trainer, _trainer_of_trl):
        trainer = make(cfg, policy, tmp_path / make.__name__)
        _change(trainer)
        loss = trainer.compute_loss(trainer.model, _batch(trainer))
        loss.backward()
        gradients = {n: p.grad.numpy() for n, p in trainer.model.named_parameters() if p.grad is not None}
        found.append((loss.item(), gradients))
    (ours, our_gradients), (theirs, their_gradients) = found
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    assert max(abs(gradient).max() for gradient in our_gradients.values()) > 1e-3
    for name, gradient in our_gradients.items():
        assert gradient == pytest.approx(their_gradients[name], rel=1e-3, abs=1e-5), name


def test_nothing_is_asked_for_the_reference_and_no_copy_is_kept(case: tuple[DPOConfig, Model], tmp_path: Path) -> None:
    asked: list[int] = []
    cfg, policy = case
    cfg.args["max_steps"] = 2
    trainer = _trainer(cfg, policy, tmp_path, held_out=4)
    trainer.model.register_forward_hook(lambda *_: asked.append(1))
    trainer.train()
    assert len(asked) == 2
    trainer.evaluate()
    assert len(asked) == 4  # four held-out pairs, two at once
    assert trainer.ref_model is None
    assert not [name for name, _ in trainer.model.named_parameters() if ".ref." in name]
    assert list(getattr(trainer.model, "peft_config", {"default": 0})) == ["default"]


def test_the_loss_of_a_changed_policy_is_the_sum_by_hand(case: tuple[DPOConfig, Model], tmp_path: Path) -> None:
    cfg, policy = case
    trainer = _trainer(cfg, policy, tmp_path)
    _change(trainer)
    loss = trainer.compute_loss(trainer.model, _batch(trainer)).item()

    (tmp_path / "changed").mkdir()
    digest = "" if cfg.method is Method.full else "ba5e"
    models.save(trainer.model, tmp_path / "changed", policy.path, digest)
    changed = hand.handle(Model, tmp_path / "changed", policy.base if digest else None)
    now = zip(_first_two(changed, "chosen"), _first_two(changed, "rejected"), strict=True)
    before = zip(_first_two(policy, "chosen"), _first_two(policy, "rejected"), strict=True)
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
    metrics = dpo.body(run, cfg, policy, _known(cfg, policy, tmp_path / "known", held_out=4))
    history = _history(run)
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert history[0]["rewards/chosen"] == pytest.approx(0, abs=1e-5)
    assert history[0]["rewards/rejected"] == pytest.approx(0, abs=1e-5)
    assert history[-1]["rewards/margins"] > 0.2
    assert metrics["eval_loss"] < math.log(2) - 0.1
    assert metrics["eval_accuracy"] == 1
    assert (metrics["pairs"], metrics["steps"]) == (4, 6)
    aligned = hand.handle(Model, run.out, None if cfg.method is Method.full else policy.base)
    gains = [
        sum(after - before for before, after in zip(_first_two(policy, which), _first_two(aligned, which), strict=True))
        for which in ("chosen", "rejected")
    ]
    assert gains[0] > gains[1]


def test_only_the_adapter_is_saved_and_not_its_reference(tuned: Model, tmp_path: Path) -> None:
    from safetensors import safe_open

    run = hand.run(tmp_path / "run")
    cfg = _config(max_steps=1)
    dpo.body(run, cfg, tuned, _known(cfg, tuned, tmp_path / "known"))
    names = ["adapter_config.json", "adapter_model.safetensors", "stands_on.json"]
    tokenizer = ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(hand.content(run.out)) == sorted([*names, *tokenizer])
    with safe_open(run.out / names[1], "pt") as made, safe_open(tuned.path / names[1], "pt") as before:
        assert sorted(made.keys()) == sorted(before.keys())
    assert json.loads((run.out / "stands_on.json").read_text()) == {"base": "ba5e"}
    assert json.loads((run.out / "adapter_config.json").read_text())["base_model_name_or_path"] == "ba5e"


def test_a_fresh_adapter_stands_on_the_full_policy(base: Model, tmp_path: Path) -> None:
    run = hand.run(tmp_path / "run")
    cfg = _config(max_steps=1)
    dpo.body(run, cfg, base, _known(cfg, base, tmp_path / "known"))
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
    rows = _known(cfg, policy, tmp_path / "known")
    whole = hand.run(tmp_path / "whole")
    dpo.body(whole, cfg, policy, rows)
    with pytest.raises(Killed):
        dpo.body(hand.run(tmp_path / "else" / "where", progress=die), cfg, policy, rows)
    again = hand.run(tmp_path / "else" / "where", progress=lambda done, *_: told.append(done))
    dpo.body(again, cfg, policy, rows)
    assert told == [3, 4]
    assert hand.content(again.out) == hand.content(whole.out)
    assert not any(str(tmp_path).encode() in body for body in hand.content(whole.out).values())


def test_every_weight_of_an_adapter_cannot_be_trained(tuned: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dpo.method=full has no weights of its own: merge it first"):
        dpo.body(hand.run(tmp_path / "run"), _config(Method.full), tuned, _known(_config(), tuned, tmp_path / "known"))


def test_what_needs_more_than_two_sums_is_refused() -> None:
    (problem,) = _config(ld_alpha=0.5).problems()
    assert problem.startswith("args.ld_alpha weighs the reference token by token")
    (problem,) = _config(sync_ref_model=True).problems()
    assert "the reference stage, whose policy stays as it is" in problem


def test_problems_are_those_of_batch_precision_and_the_trainers_knobs() -> None:
    assert list(DPOConfig().problems()) == []
    batch, precision, knob = DPOConfig(batch_size=0, precision=Precision.fp16, args={"bta": 1}).problems()
    assert ("positive" in batch, "use bf16" in precision, "Did you mean beta" in knob) == (True, True, True)
