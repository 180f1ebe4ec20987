"""What the policy says before alignment: the reference log-probabilities of DPO (Rafailov et al., 2023, Eq. 7).

log pi_ref of every chosen and rejected answer depends on the policy, the pairs and the number format, on no beta,
learning rate or seed: it is computed once, and every training that tries another of those reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.llm.pairs import encoded_pairs
from tasks.llm.training import Method
from tasks.runtime import Dataset, Model, Precision, Preferences, Run, canonical_as, resolved, stage


@dataclass
class ReferenceConfig:
    cutoff: int = 1024
    """Tokens of prompt and answer together; longer pairs are dropped and counted."""
    precision: Precision = canonical_as(lambda cfg: resolved(cfg.precision).value, default=Precision.auto)
    """Number format of the training that reads it: auto is bf16 where this machine multiplies it, else fp32."""
    method: Method = canonical_as(lambda cfg: "autocast" if cfg.autocast else "plain", default=Method.lora)
    """Method of the training that reads it: in bf16, full keeps fp32 weights under its arithmetic. Else not keyed."""

    @property
    def autocast(self) -> bool:
        return self.method is Method.full and resolved(self.precision) is Precision.bf16

    def problems(self) -> Iterator[str]:
        if self.cutoff < 8:
            yield f"cutoff is {self.cutoff} tokens; give at least 8, usually 512 to 4096."
        if self.precision is Precision.fp16:
            yield "precision=fp16 is no format to train in, so none for its reference; use bf16, fp32 or auto."


@stage(makes=Preferences, version="1", device=True)
def reference(run: Run, cfg: ReferenceConfig, policy: Model, pairs: Dataset) -> dict[str, float]:
    from tasks.llm import logprobs, models

    tokenizer = models.load_tokenizer(policy.path)
    splits, dropped = {}, 0
    for split in ("train", "eval"):
        splits[split], lost = encoded_pairs(pairs.path, split, tokenizer, cfg.cutoff)
        dropped += lost
    train, held_out = splits["train"], splits["eval"]
    if not train:
        raise ValueError(f"No pair to train on is within cutoff={cfg.cutoff} tokens: raise reference.cutoff.")

    weights = "fp32" if cfg.autocast else resolved(cfg.precision).value
    model = models.load(policy.path, policy.base.path, weights, trainable=True)  # an adapter stays fp32, as in DPO
    pad = tokenizer.pad_token_id
    sums = logprobs.of_pairs(model, pad, train + held_out, run.micro_batch, cfg.autocast, run.progress)

    for split, known in (("train", sums[: len(train)]), ("eval", sums[len(train) :])):
        _write(splits[split], known, run.out / f"{split}.parquet")
    headline: dict[str, float] = {"pairs": len(train), "eval_pairs": len(held_out), "too_long": dropped}
    return headline | {"accuracy": sum(chosen > rejected for chosen, rejected in sums) / len(sums)}


def _write(pairs: list[dict[str, Any]], sums: list[tuple[float, float]], place: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {**pair, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
        for pair, (chosen, rejected) in zip(pairs, sums, strict=True)
    ]
    ids, log_p = pa.list_(pa.int32()), pa.float32()
    names = [(name, ids) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    known = [(name, log_p) for name in ("ref_chosen_logps", "ref_rejected_logps")]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([("id", pa.string()), *names, *known])), place)
