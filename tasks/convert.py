"""convert: a full model folder becomes one GGUF file, by llama.cpp's own converter.

The file carries its lineage: every ancestor stage with its recipe, keyed fields and digest (see `gguf.lineage_keys`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from tasks.llm import gguf
from tasks.runtime import GGUF, Model, Run, external, stage


class Outtype(StrEnum):
    """The number format of the converted weights."""

    f16 = "f16"
    bf16 = "bf16"
    f32 = "f32"


def _converter(cfg: ConvertConfig) -> str:
    """A checkout enters the key by its converter's code, not by its builds and history; the packaged one is pinned."""
    if not cfg.llama_cpp:
        return ""
    sources = (path.read_bytes() for path in gguf.converter_code(gguf.converter(cfg.llama_cpp)))
    return hashlib.sha256(b"".join(hashlib.sha256(source).digest() for source in sources)).hexdigest()


@dataclass
class ConvertConfig:
    """How the GGUF file is made."""

    outtype: Outtype = Outtype.f16
    """Number format of the weights: f16 (what quantizers start from), bf16, f32."""
    name: str = "posttrain"
    """The model's name inside the file, as chat programs show it."""
    llama_cpp: str = external(_converter, default="")
    """A local llama.cpp checkout whose converter to use, e.g. for a newer architecture; empty for the packaged one."""

    def problems(self) -> Iterator[str]:
        try:
            gguf.converter(self.llama_cpp)
        except FileNotFoundError as error:
            yield str(error)
        if not self.name.strip():
            yield "name is empty; give the name that chat programs shall show."


@stage(makes=GGUF, version="1")
def convert(run: Run, cfg: ConvertConfig, model: Model) -> dict[str, float]:
    """`model` is a full policy (merge an adapter first); makes `model-<outtype>.gguf`."""
    outtype = cfg.outtype.value
    plain = run.work / "plain.gguf"
    gguf.convert(model.path, plain, run.notes / "converter.log", outtype, cfg.name, cfg.llama_cpp, run.progress)
    made = run.out / f"model-{outtype}.gguf"
    gguf.annotate(plain, made, {**gguf.lineage_keys(run.lineage), **gguf.start_keys(plain)})
    plain.unlink()
    return gguf.measure(made)
