"""Direct Preference Optimization (Rafailov et al., 2023, Eq. 7): L = -log sigmoid(beta (log-ratio chosen - rejected)).

The reference is the policy the stage was given, frozen: at step 0 every log-ratio is 0, KL is 0 and the loss ln 2. An
adapter goes on being trained with a frozen copy of itself as reference; "adapter off" is the reference only where the
policy came in as a full model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.llm import knobs
from tasks.llm.training import LoRA, Method
from tasks.runtime import Dataset, Model, Precision, Run, canonical_as, resolved, stage


@dataclass
class DPOConfig:
    method: Method = Method.lora
    """lora or full. A policy that is an adapter is continued as it is and wants lora."""
    lora: LoRA = field(default_factory=LoRA)
    """The adapter, when the policy comes in as a full model and method is lora."""
    batch_size: int = 8
    """Pairs per optimizer step; each is two sequences."""
    cutoff: int = 1024
    """Tokens of prompt and answer together; longer pairs are dropped and counted."""
    precision: Precision = canonical_as(lambda cfg: resolved(cfg.precision).value, default=Precision.auto)
    """Number format: auto is bf16 where this machine multiplies it, else fp32. The resolved value is keyed."""
    seed: int = 42
    """Order of the pairs, first weights of a fresh adapter."""
    args: dict[str, Any] = canonical_as(lambda cfg: knobs.keyed("DPOConfig", cfg.args), default=dict)
    """TRL's own DPOConfig knobs, by TRL's names: beta, loss_type, learning_rate, num_train_epochs ..."""

    def problems(self) -> Iterator[str]:
        if self.batch_size < 1:
            yield f"batch_size is {self.batch_size}; give a positive number such as 8."
        if self.cutoff < 8:
            yield f"cutoff is {self.cutoff} tokens; give at least 8, usually 512 to 4096."
        if self.precision is Precision.fp16:
            yield "precision=fp16 overflows while training; use bf16, fp32 or auto."
        yield from knobs.problems("DPOConfig", self.args)


@stage(makes=Model, version="1", device=True)
def dpo(run: Run, cfg: DPOConfig, policy: Model, pairs: Dataset) -> dict[str, float]:
    from tasks.llm import models, training

    tokenizer = models.load_tokenizer(policy.path)
    train, dropped = encoded_pairs(pairs.path, "train", tokenizer, cfg.cutoff)
    held_out, dropped_held_out = encoded_pairs(pairs.path, "eval", tokenizer, cfg.cutoff)
    if not train:
        raise ValueError(f"All {dropped} pairs are longer than cutoff={cfg.cutoff} tokens: raise dpo.cutoff.")

    trainer = build_trainer(cfg, policy, train, held_out, tokenizer, run.work, run.micro_batch)
    metrics = training.fit(trainer, run.work, run.log, run.progress)
    if held_out:
        measured = trainer.evaluate()
        metrics["eval_loss"] = measured["eval_loss"]
        metrics["eval_accuracy"] = measured["eval_rewards/accuracies"]

    full = cfg.method is Method.full
    if full:
        trainer.model.to(models.dtype_of(resolved(cfg.precision).value))
    models.save(trainer.model, run.out, policy.path, "" if full else policy.base.digest)
    training.history(trainer, run.notes)
    return metrics | {"pairs": len(train), "too_long": dropped + dropped_held_out}


def encoded_pairs(folder: Path, split: str, tokenizer: Any, cutoff: int) -> tuple[list[dict[str, Any]], int]:
    """Pairs as token ids (`prompt_ids`, `chosen_ids`, `rejected_ids`), and how many were too long."""
    from tasks.llm import chat, rows

    read = list(rows.read_split(folder, split))
    prompts = [row["prompt"] for row in read]
    chosen = chat.turns(tokenizer, prompts, [row["chosen"] for row in read])
    rejected = chat.turns(tokenizer, prompts, [row["rejected"] for row in read])
    encoded = [
        {"prompt_ids": good.prompt, "chosen_ids": good.answer, "rejected_ids": bad.answer}
        for good, bad in zip(chosen, rejected, strict=True)
        if len(good.prompt) + max(len(good.answer), len(bad.answer)) <= cutoff
    ]
    return encoded, len(read) - len(encoded)


def build_trainer(
    cfg: DPOConfig, policy: Model, train: list[Any], held_out: list[Any], tokenizer: Any, work: Path, micro_batch: int
) -> Any:
    """TRL's DPOTrainer over pairs that are token ids already, with the policy's own frozen copy as reference."""
    import trl
    from datasets import Dataset as Rows

    from tasks.llm import models, training

    class PairsTrainer(trl.DPOTrainer):
        """TRL tokenizes pairs by itself; ours went through the one chat module that every stage uses."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    precision, full = resolved(cfg.precision).value, cfg.method is Method.full
    adapter = models.is_adapter(policy.path)
    if full and adapter:
        raise ValueError("The policy is an adapter, so dpo.method=full has no weights of its own: merge it first.")
    weights = "fp32" if full else precision
    model = models.load(policy.path, policy.base.path, weights, trainable=True)
    if not full and not adapter:
        model = training.adapt(model, cfg.lora, cfg.seed)
    return PairsTrainer(
        model=model,
        ref_model=models.load(policy.path, policy.base.path, weights) if full else None,
        args=training.arguments(
            trl.DPOConfig,
            cfg.args,
            work,
            batch_size=cfg.batch_size,
            at_once=training.rows_at_once(cfg.batch_size, micro_batch, sequences_per_row=2),
            autocast=full and precision == "bf16",
            seed=cfg.seed,
        ),
        train_dataset=Rows.from_list(train),
        eval_dataset=Rows.from_list(held_out) if held_out else None,
        processing_class=tokenizer,
    )
