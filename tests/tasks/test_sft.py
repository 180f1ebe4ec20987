from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tasks.encode import EncodeConfig, encode
from tasks.llm import models, scoring, training
from tasks.llm.training import LoRA, Method
from tasks.runtime import Model, Precision, Run, Tokenizer, Tokens
from tasks.sft import SFTConfig, sft
from tests import hand

LEARN = {"max_steps": 12, "learning_rate": 2e-2, "lr_scheduler_type": "constant", "logging_steps": 1, "save_steps": 4}


class Killed(Exception):
    """The moment a training process is lost."""


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Model:
    return hand.handle(Model, tiny_model, digest="ba5e")


def _tokens(folder: Path, base: Model, held_out: list[dict[str, Any]]) -> Tokens:
    run = hand.run(folder)
    tokenizer = hand.handle(Tokenizer, base.path)
    encode.body(run, EncodeConfig(), tokenizer, hand.dataset(folder / "rows", hand.chats(), held_out))
    return hand.handle(Tokens, run.out)


@pytest.fixture(scope="module")
def tokens(base: Model, tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return _tokens(tmp_path_factory.mktemp("tokens"), base, hand.chats())


def _config(method: Method, **args: Any) -> SFTConfig:
    return SFTConfig(method, LoRA(rank=8, dropout=0.1), batch_size=4, precision=Precision.fp32, args=LEARN | args)


def _mean_loss(policy: Model) -> float:
    """Of the told answers, token by token."""
    model = models.load(policy.path, policy.base.path, "fp32").eval()
    turns = hand.turns(policy.path)
    losses = [scoring.answer_loss(scoring.answer_logits(model, turn), turn.answer) for turn in turns]
    lengths = [len(turn.answer) for turn in turns]
    return sum(loss * length for loss, length in zip(losses, lengths, strict=True)) / sum(lengths)


def _losses(run: Run) -> list[float]:
    return [entry["loss"] for entry in json.loads((run.notes / "history.json").read_text()) if "loss" in entry]


@pytest.mark.parametrize("method", Method)
def test_it_learns_a_few_rows_by_heart(base: Model, tokens: Tokens, tmp_path: Path, method: Method) -> None:
    logged: dict[int, float] = {}
    run = hand.run(tmp_path, log=lambda metrics, step: logged.setdefault(step, metrics.get("loss", 0.0)))
    metrics = sft.body(run, _config(method), base, tokens)
    losses = _losses(run)
    assert list(logged.values())[:12] == losses
    assert losses[-1] < losses[0] / 2
    assert metrics["loss"] == pytest.approx(sum(losses) / 12)
    tuned = hand.handle(Model, run.out, base if method is Method.lora else None)
    assert _mean_loss(tuned) < _mean_loss(base) / 2
    assert metrics["eval_loss"] == pytest.approx(_mean_loss(tuned), rel=1e-3)
    assert metrics["steps"] == 12


def test_the_first_loss_is_that_of_the_answers_alone(base: Model, tokens: Tokens, tmp_path: Path) -> None:
    run = hand.run(tmp_path)
    sft.body(run, _config(Method.full, max_steps=1), base, tokens)
    assert _losses(run)[0] == pytest.approx(_mean_loss(base), rel=1e-4)


@pytest.mark.parametrize("method", Method)
def test_two_folders_give_the_same_bytes_and_so_does_a_run_that_was_killed(
    base: Model, tokens: Tokens, tmp_path: Path, method: Method
) -> None:
    def die(done: int, total: int, what: str) -> None:
        if done == 7:
            raise Killed

    told: list[int] = []
    cfg = _config(method, max_steps=8)
    whole = hand.run(tmp_path / "whole")
    sft.body(whole, cfg, base, tokens)
    with pytest.raises(Killed):
        sft.body(hand.run(tmp_path / "else" / "where", progress=die), cfg, base, tokens)
    again = hand.run(tmp_path / "else" / "where", progress=lambda done, *_: told.append(done))
    sft.body(again, cfg, base, tokens)
    assert told == [5, 6, 7, 8]
    assert hand.content(again.out) == hand.content(whole.out)


@pytest.mark.parametrize("method", Method)
def test_the_content_names_no_path(base: Model, tokens: Tokens, tmp_path: Path, method: Method) -> None:
    run = hand.run(tmp_path)
    sft.body(run, _config(method, max_steps=1), base, tokens)
    names = {
        Method.lora: ["adapter_config.json", "adapter_model.safetensors", "stands_on.json"],
        Method.full: ["config.json", "generation_config.json", "model.safetensors"],
    }[method]
    assert sorted(hand.content(run.out)) == sorted(
        [*names, "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    )
    for body in hand.content(run.out).values():
        assert str(tmp_path).encode() not in body
        assert str(base.path).encode() not in body


def test_an_adapter_names_its_base_by_digest_and_has_its_tokenizer_beside_it(
    base: Model, tokens: Tokens, tmp_path: Path
) -> None:
    run = hand.run(tmp_path)
    sft.body(run, _config(Method.lora, max_steps=1), base, tokens)
    assert json.loads((run.out / "adapter_config.json").read_text())["base_model_name_or_path"] == "ba5e"
    assert json.loads((run.out / "stands_on.json").read_text()) == {"base": "ba5e"}
    assert (run.out / "tokenizer.json").read_bytes() == (base.path / "tokenizer.json").read_bytes()


def test_an_adapter_is_gone_on_with_as_it_is(base: Model, tokens: Tokens, tmp_path: Path) -> None:
    first = hand.adapter(tmp_path / "first", base)
    run = hand.run(tmp_path / "run")
    sft.body(run, _config(Method.lora), first, tokens)
    tuned = hand.handle(Model, run.out, base)
    assert json.loads((run.out / "adapter_config.json").read_text())["r"] == 4  # the first one's, not the config's
    assert json.loads((run.out / "stands_on.json").read_text()) == {"base": "ba5e"}
    assert _losses(run)[0] == pytest.approx(_mean_loss(first), rel=0.05)
    assert _mean_loss(tuned) < _mean_loss(first) / 2


def test_every_weight_of_an_adapter_cannot_be_trained(base: Model, tokens: Tokens, tmp_path: Path) -> None:
    first = hand.adapter(tmp_path / "first", base)
    with pytest.raises(ValueError, match=r"sft.method=full has no weights of its own: merge it first"):
        sft.body(hand.run(tmp_path / "run"), _config(Method.full), first, tokens)


def test_held_out_rows_are_not_a_must(base: Model, tmp_path: Path) -> None:
    metrics = sft.body(
        hand.run(tmp_path / "run"), _config(Method.lora, max_steps=1), base, _tokens(tmp_path / "tokens", base, [])
    )
    assert "eval_loss" not in metrics


def test_full_weights_are_kept_in_the_format_asked_for(base: Model, tokens: Tokens, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = hand.run(tmp_path)
    cfg = _config(Method.full, max_steps=1)
    cfg.precision = Precision.bf16
    sft.body(run, cfg, base, tokens)
    assert {str(weight.dtype) for weight in load_file(run.out / "model.safetensors").values()} == {"torch.bfloat16"}


@pytest.mark.parametrize(
    ("rate", "steps", "says"),
    [
        (1e30, 4, "(loss|grad_norm) is (nan|inf) at step [234]"),
        (1e38, 1, "the trained weights are not finite"),
        (3.0, 4, r"it ended at a loss of \d+.* guessing gives 6\.\d"),
    ],
)
def test_a_training_that_diverged_is_an_error_that_names_the_rate(
    base: Model, tokens: Tokens, tmp_path: Path, rate: float, steps: int, says: str
) -> None:
    with pytest.raises(training.Diverged, match=f"{says}.*lower args.learning_rate, which is {re.escape(f'{rate:g}')}"):
        sft.body(hand.run(tmp_path), _config(Method.full, learning_rate=rate, max_steps=steps), base, tokens)
    assert not list((tmp_path / "out").iterdir())


def test_problems_are_those_of_the_batch_and_of_the_trainers_knobs() -> None:
    assert list(SFTConfig().problems()) == []
    batch, knob = SFTConfig(batch_size=0, args={"learning_rat": 1}).problems()
    assert "give a positive number" in batch
    assert "Did you mean learning_rate" in knob
