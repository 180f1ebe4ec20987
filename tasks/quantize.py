"""quantize: a GGUF file at full precision becomes a smaller one, at one of llama.cpp's levels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tasks.llm import gguf
from tasks.runtime import GGUF, Run, stage


@dataclass
class QuantizeConfig:
    """How small the file becomes."""

    level: str = "q8_0"
    """llama.cpp's name of the level: q8_0 (near lossless), q6_k, q5_k_m, q4_k_m (half of q8_0), ...; f16 keeps f16."""

    def problems(self) -> Iterator[str]:
        if problem := gguf.level_problem(self.level):
            yield f"level: {problem}"


@stage(makes=GGUF, version="1")
def quantize(run: Run, cfg: QuantizeConfig, source: GGUF) -> dict[str, float]:
    """`source` holds f32, f16 or bf16 weights, as `convert` makes them; makes `model-<level>.gguf`."""
    whole = gguf.file_in(source.path)
    plain = run.work / "plain.gguf"
    gguf.quantize(whole, plain, cfg.level, run.notes / "quantize.log", run.progress)
    made = run.out / f"model-{cfg.level}.gguf"
    gguf.annotate(plain, made, gguf.lineage_keys(run.lineage))
    plain.unlink()
    return gguf.measure(made) | {"times_smaller": whole.stat().st_size / made.stat().st_size}
