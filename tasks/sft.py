"""Supervised fine-tuning: maximise the likelihood of the answers, with TRL's SFTTrainer on encoded rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tasks.llm import foresight, knobs
from tasks.llm.training import LoRA, Method
from tasks.runtime import Model, Precision, Run, Tokens, canonical_as, resolved, stage


@dataclass
class SFTConfig:
    method: Method = Method.lora
    """lora (adapters beside frozen weights) or full (every weight)."""
    lora: LoRA = field(default_factory=LoRA)
    """The adapter, when method is lora."""
    batch_size: int = 8
    """Sequences per optimizer step, whatever the number of devices; runtime.micro_batch says how many at once."""
    precision: Precision = canonical_as(lambda cfg: resolved(cfg.precision).value, default=Precision.auto)
    """Number format: auto is bf16 where this machine multiplies it, else fp32. The resolved value is keyed."""
    seed: int = 42
    """Order of the rows, first weights of the adapter, dropout."""
    args: dict[str, Any] = canonical_as(lambda cfg: knobs.keyed("SFTConfig", cfg.args), default=dict)
    """TRL's own SFTConfig knobs, by TRL's names: learning_rate, num_train_epochs, max_steps, warmup_steps ..."""

    def problems(self) -> Iterator[str]:
        if self.batch_size < 1:
            yield f"batch_size is {self.batch_size}; give a positive number such as 8."
        if self.precision is Precision.fp16:
            yield "precision=fp16 overflows while training; use bf16, fp32 or auto."
        yield from knobs.problems("SFTConfig", self.args)


@stage(makes=Model, version="1", device=True, ranks=True, needs=foresight.of_sft)
def sft(run: Run, cfg: SFTConfig, base: Model, tokens: Tokens) -> dict[str, float]:
    import pyarrow.parquet as pq
    import trl
    from datasets import Dataset

    from tasks.llm import batches, models, training

    precision = resolved(cfg.precision).value
    full, adapter = cfg.method is Method.full, models.is_adapter(base.path)
    if full and adapter:
        raise ValueError("The base is an adapter, so sft.method=full has no weights of its own: merge it first.")
    model = models.load(base.path, base.base.path, "fp32" if full else precision, trainable=True)
    if not full and not adapter:
        model = training.adapt(model, cfg.lora, cfg.seed)

    train, held_out = (
        Dataset(pq.read_table(tokens.path / f"{split}.parquet").drop_columns("id")) for split in ("train", "eval")
    )
    packed = "seq_lengths" in train.column_names
    if packed:
        batches.keep_apart(model, train)
    tokenizer = models.load_tokenizer(base.path)
    trainer = trl.SFTTrainer(
        model=model,
        args=training.arguments(
            trl.SFTConfig,
            {**cfg.args, "dataset_kwargs": {"skip_prepare_dataset": True}},
            run.work,
            batch_size=cfg.batch_size,
            at_once=training.rows_at_once(cfg.batch_size, run.micro_batch, ranks=run.ranks),
            autocast=full and precision == "bf16",
            seed=cfg.seed,
            ranks=run.ranks,
        ),
        train_dataset=train,
        eval_dataset=held_out if len(held_out) else None,
        processing_class=tokenizer,
        data_collator=batches.PackedCollator(tokenizer.pad_token_id) if packed else None,
    )
    metrics = training.fit(trainer, run.work, run.log, run.progress, run.stopping)
    if len(held_out):
        metrics["eval_loss"] = trainer.evaluate()["eval_loss"]
    training.worse_than_chance(metrics.get("eval_loss", metrics["loss"]), trainer)
    training.history(trainer, run.notes)
    if run.rank:
        return metrics  # one rank writes what all of them trained

    if full:
        trainer.model.to(models.dtype_of(precision))
    models.save(trainer.model, run.out, base.path, "" if full else base.base.digest)
    return metrics
