"""Fold an adapter into the model it stands on: one folder anything can load. A full policy passes through unchanged."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.runtime import Model, Precision, Run, stage


@dataclass
class MergeConfig:
    precision: Precision = Precision.fp32
    """Number format of the folded weights. fp32 keeps the sum as it is; bf16 and fp16 take half the disk and round
    every weight once more; auto is the base's own format."""


@stage(makes=Model, version="1", device=True)
def merge(run: Run, cfg: MergeConfig, policy: Model) -> dict[str, float]:
    from tasks.llm import merging, models

    if models.is_adapter(policy.path):
        merging.fold(policy.path, policy.base.path, run.out, cfg.precision.value)
    else:
        merging.pass_through(policy.path, run.out)
    return {"size_mb": sum(p.stat().st_size for p in run.out.rglob("*") if p.is_file()) / 1e6}
