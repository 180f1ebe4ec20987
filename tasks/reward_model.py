"""A judge learnt from pairs (Bradley and Terry, 1952): L = -log sigmoid(r(chosen) - r(rejected) - margin).

It begins as the policy, with a head of one number in place of the vocabulary's. A row's `margin` says by how much the
chosen answer should win; `args.center_rewards_coefficient` pulls r(chosen) + r(rejected) towards 0. What is published
is one folder in transformers' standard format, whatever was trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tasks.llm import foresight, judging, knobs
from tasks.llm.pairs import encoded_pairs
from tasks.llm.training import LoRA, Method
from tasks.runtime import Dataset, Model, Precision, RewardModel, Run, canonical_as, resolved, stage

_SCORED_AT_ONCE = 16
"""Sequences per forward pass while measuring, where nobody said otherwise."""


@dataclass
class RewardModelConfig:
    method: Method = Method.lora
    """lora (adapters beside frozen weights, folded in at the end) or full (every weight); the head in either case."""
    lora: LoRA = field(default_factory=LoRA)
    """The adapter, when method is lora: a fresh one. A policy that is an adapter is folded into its base before."""
    cutoff: int = 1024
    """Tokens of prompt and answer together; longer pairs are dropped and counted."""
    batch_size: int = 8
    """Pairs per optimizer step; each is two sequences."""
    precision: Precision = canonical_as(lambda cfg: resolved(cfg.precision).value, default=Precision.auto)
    """Number format: auto is bf16 where this machine multiplies it, else fp32. The resolved value is keyed."""
    seed: int = 42
    """Order of the pairs, first weights of the adapter."""
    args: dict[str, Any] = canonical_as(lambda cfg: knobs.keyed("RewardConfig", cfg.args), default=dict)
    """TRL's own RewardConfig knobs, by TRL's names: learning_rate, num_train_epochs, center_rewards_coefficient ..."""

    def problems(self) -> Iterator[str]:
        if self.cutoff < 8:
            yield f"cutoff is {self.cutoff} tokens; give at least 8, usually 512 to 4096."
        if self.batch_size < 1:
            yield f"batch_size is {self.batch_size}; give a positive number such as 8."
        if self.precision is Precision.fp16:
            yield "precision=fp16 overflows while training; use bf16, fp32 or auto."
        yield from knobs.problems("RewardConfig", self.args)


@stage(makes=RewardModel, version="1", device=True, ranks=True, needs=foresight.of_reward_model)
def reward_model(run: Run, cfg: RewardModelConfig, policy: Model, pairs: Dataset) -> dict[str, float]:
    from tasks.llm import reward_models, training

    tokenizer = reward_models.load_tokenizer(policy.path)
    train, lost = encoded_pairs(pairs.path, "train", tokenizer, cfg.cutoff)
    held_out, lost_too = encoded_pairs(pairs.path, "eval", tokenizer, cfg.cutoff)
    if not train:
        raise ValueError(f"No pair to train on is within cutoff={cfg.cutoff} tokens: raise reward_model.cutoff.")
    trainer = build_trainer(cfg, policy, train, held_out, tokenizer, run.work, run.micro_batch, run.ranks)
    metrics = training.fit(trainer, run.work, run.log, run.progress, run.stopping)
    metrics |= {"pairs": len(train), "eval_pairs": len(held_out), "too_long": lost + lost_too}
    training.history(trainer, run.notes)
    if run.rank:
        return metrics  # one rank measures and writes what all of them trained

    model = reward_models.finished(trainer.model, resolved(cfg.precision).value)
    if held_out:
        asked = [(pair["prompt_ids"], pair[which]) for which in ("chosen_ids", "rejected_ids") for pair in held_out]
        scores = reward_models.scores(model, asked, run.micro_batch or _SCORED_AT_ONCE, run.progress)
        metrics = measured(train, held_out, scores, run.notes) | metrics  # what a report shows comes first
    reward_models.save(model, run.out, policy.path, tokenizer.pad_token)
    return metrics


def build_trainer(
    cfg: RewardModelConfig,
    policy: Model,
    train: list[dict[str, Any]],
    held_out: list[dict[str, Any]],
    tokenizer: Any,
    work: Path,
    micro_batch: int,
    ranks: int = 1,
) -> Any:
    """TRL's RewardTrainer over pairs that are token ids already."""
    import trl
    from datasets import Dataset as Rows

    from tasks.llm import models, reward_models, reward_training, training

    precision, full = resolved(cfg.precision).value, cfg.method is Method.full
    prompts = len({tuple(pair["prompt_ids"]) for pair in train})
    weights = "fp32" if full else precision
    model = reward_models.begun(policy.path, policy.base.path, weights, tokenizer.pad_token_id)
    if not full:
        model = training.adapt(model, cfg.lora, cfg.seed, head=reward_models.HEAD)
    if precision == "bf16":
        models.multiply_in_bf16(model)
    return reward_training.trainer(
        model=model,
        args=training.arguments(
            trl.RewardConfig,
            cfg.args,
            work,
            batch_size=cfg.batch_size,
            at_once=training.rows_at_once(
                cfg.batch_size, micro_batch, sequences_per_row=prompts / len(train), ranks=ranks
            ),
            autocast=precision == "bf16",
            seed=cfg.seed,
            ranks=ranks,
        ),
        train_dataset=Rows.from_list(rows_of(train)),
        eval_dataset=Rows.from_list(rows_of(held_out)) if held_out else None,
        processing_class=tokenizer,
    )


def rows_of(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the trainer reads of pairs. Where no margin was given it is 0."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [{name: pair[name] for name in names} | {"margin": pair.get("margin", 0.0)} for pair in pairs]


def measured(
    train: list[dict[str, Any]], held_out: list[dict[str, Any]], scores: list[float], notes: Path
) -> dict[str, float]:
    """The headline of the held-out pairs, whose scores are those of the chosen answers, then of the rejected ones. The
    whole report and every pair go to the notes."""
    import numpy as np

    good, bad = scores[: len(held_out)], scores[len(held_out) :]
    judged = [
        judging.Judged(pair["chosen"], pair["rejected"], above, below, pair.get("margin", 0.0))
        for pair, above, below in zip(held_out, good, bad, strict=True)
    ]
    report = judging.report([judging.Judged(pair["chosen"], pair["rejected"]) for pair in train], judged)
    report |= {"score_mean": float(np.mean(scores)), "score_std": float(np.std(scores))}
    (notes / "report.json").write_text(json.dumps(report, indent=1))
    lines = [json.dumps({"id": row["id"], **asdict(pair)}) for row, pair in zip(held_out, judged, strict=True)]
    (notes / "held_out.jsonl").write_text("".join(f"{line}\n" for line in lines))
    told = {"eval": _headline(report), "matched": _headline(report.get("matched", {}))}
    named = {f"{part}_{name}": value for part, figures in told.items() for name, value in figures.items()}
    first = {name: named[name] for name in ("eval_accuracy", "matched_accuracy", "matched_pairs") if name in named}
    return first | named | {f"eval_{name}": report[name] for name in ("loss", "score_mean", "score_std")}


def _headline(figures: dict[str, Any]) -> dict[str, float]:
    """Of a part of the report; nothing where there is none."""
    if not figures:
        return {}
    low, high = figures["interval"]
    told = {name: figures[name] for name in ("pairs", "accuracy", "length_alone", "validity_alone")}
    return told | {"accuracy_low": low, "accuracy_high": high}
