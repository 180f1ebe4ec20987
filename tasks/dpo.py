"""Direct Preference Optimization (Rafailov et al., 2023, Eq. 7): L = -log sigmoid(beta (log-ratio chosen - rejected)).

The reference is what `tasks/reference.py` wrote beside each pair: log pi_ref of its two answers. Given the sums of the
very policy that is trained, every log-ratio is 0 at step 0, KL is 0 and the loss ln 2. No second model is in memory,
neither a frozen copy of the adapter nor, with method full, one of every weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.llm import foresight, knobs
from tasks.llm.training import LoRA, Method
from tasks.runtime import Model, Precision, Preferences, Run, canonical_as, resolved, stage

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps")
"""What TRL reads of a pair, by TRL's names."""


@dataclass
class DPOConfig:
    method: Method = Method.lora
    """lora or full. A policy that is an adapter is continued as it is and wants lora."""
    lora: LoRA = field(default_factory=LoRA)
    """The adapter, when the policy comes in as a full model and method is lora."""
    batch_size: int = 8
    """Pairs per optimizer step; each is two sequences."""
    precision: Precision = canonical_as(lambda cfg: resolved(cfg.precision).value, default=Precision.auto)
    """Number format: auto is bf16 where this machine multiplies it, else fp32. The resolved value is keyed."""
    seed: int = 42
    """Order of the pairs, first weights of a fresh adapter."""
    args: dict[str, Any] = canonical_as(lambda cfg: knobs.keyed("DPOConfig", cfg.args), default=dict)
    """TRL's own DPOConfig knobs, by TRL's names: beta, loss_type, learning_rate, num_train_epochs ..."""

    def problems(self) -> Iterator[str]:
        if self.batch_size < 1:
            yield f"batch_size is {self.batch_size}; give a positive number such as 8."
        if self.precision is Precision.fp16:
            yield "precision=fp16 overflows while training; use bf16, fp32 or auto."
        if self.args.get("ld_alpha") is not None:
            yield "args.ld_alpha weighs the reference token by token, and only its sums are kept: leave it out."
        yield from knobs.problems("DPOConfig", self.args)


@stage(makes=Model, version="2", device=True, ranks=True, needs=foresight.of_dpo)
def dpo(run: Run, cfg: DPOConfig, policy: Model, pairs: Preferences) -> dict[str, float]:
    from tasks.llm import models, training

    train, held_out = known_pairs(pairs.path, "train"), known_pairs(pairs.path, "eval")
    trainer = build_trainer(cfg, policy, train, held_out, run.work, run.micro_batch, run.ranks)
    metrics = training.fit(trainer, run.work, run.log, run.progress, run.stopping)
    if len(held_out):
        with training.head_on_labels_only():
            measured = trainer.evaluate()
        metrics["eval_loss"] = measured["eval_loss"]
        metrics["eval_accuracy"] = measured["eval_rewards/accuracies"]
    metrics["pairs"] = len(train)
    training.history(trainer, run.notes)
    if run.rank:
        return metrics  # one rank writes what all of them trained

    full = cfg.method is Method.full
    if full:
        trainer.model.to(models.dtype_of(resolved(cfg.precision).value))
    models.save(trainer.model, run.out, policy.path, "" if full else policy.base.digest)
    return metrics


def known_pairs(folder: Path, split: str) -> Any:
    """A split of the pairs with the reference's sums, as rows for TRL."""
    import pyarrow.parquet as pq
    from datasets import Dataset

    return Dataset(pq.read_table(folder / f"{split}.parquet", columns=list(COLUMNS)))


def build_trainer(
    cfg: DPOConfig, policy: Model, train: Any, held_out: Any, work: Path, micro_batch: int, ranks: int = 1
) -> Any:
    """TRL's DPOTrainer over pairs that are token ids already and bring their reference along."""
    import trl

    from tasks.llm import models, training

    class PairsTrainer(trl.DPOTrainer):
        """TRL would tokenize pairs and run a reference model; ours went through the one chat module and through
        `reference`."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return dataset

    precision, full = resolved(cfg.precision).value, cfg.method is Method.full
    adapter = models.is_adapter(policy.path)
    if full and adapter:
        raise ValueError("The policy is an adapter, so dpo.method=full has no weights of its own: merge it first.")
    model = models.load(policy.path, policy.base.path, "fp32" if full else precision, trainable=True)
    if not full and not adapter:
        model = training.adapt(model, cfg.lora, cfg.seed)
    trainer = PairsTrainer(
        model=model,
        args=training.arguments(
            trl.DPOConfig,
            {**cfg.args, "precompute_ref_log_probs": full},  # else TRL loads a second model to ask
            work,
            batch_size=cfg.batch_size,
            at_once=training.rows_at_once(cfg.batch_size, micro_batch, sequences_per_row=2, ranks=ranks),
            autocast=full and precision == "bf16",
            seed=cfg.seed,
            ranks=ranks,
        ),
        train_dataset=train,
        eval_dataset=held_out if len(held_out) else None,
        processing_class=models.load_tokenizer(policy.path),
    )
    trainer.precompute_ref_logps = True  # for an adapter only here: before, TRL would hash every weight for its cache
    if not full:
        trainer.model.delete_adapter("ref")  # TRL's frozen copy, which nothing reads
    return trainer
