"""What this machine can compute on, asked without importing a deep-learning library."""

from __future__ import annotations

import functools
import os
import subprocess
from enum import StrEnum
from pathlib import Path


class Precision(StrEnum):
    """Number format of weights and arithmetic. `auto`: bf16 where the processor or GPU multiplies it, else fp32."""

    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


@functools.cache
def gpus() -> tuple[float, ...]:
    """The compute capability of each NVIDIA GPU, e.g. (9.0,); empty without one."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return ()
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        text = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(float(line) for line in text.split())


@functools.cache
def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def resolved(precision: Precision) -> Precision:
    """`auto` as what it means on this machine."""
    if precision is not Precision.auto:
        return precision
    fast = gpus()[0] >= 8.0 if gpus() else bool(_cpu_flags() & {"avx512_bf16", "amx_bf16"})
    return Precision.bf16 if fast else Precision.fp32
