"""SFT, then DPO: the shortest road from a base model to an aligned, measured GGUF. No reward model, no rollouts.

python -m flows.sft_then_dpo                                    the bundled task, on a laptop's CPU
python -m flows.sft_then_dpo dpo.args.beta=0.3                  only DPO and what lies below it runs again
python -m flows.sft_then_dpo download=qwen3_0_6b chats.path=mine.jsonl
python -m flows.sft_then_dpo sft=null download=local download.path=my/model     DPO alone, of what you have trained
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from flows import legs
from flows.launch import Road, launch
from tasks.compare import CompareConfig
from tasks.convert import ConvertConfig
from tasks.download import DownloadConfig, download
from tasks.dpo import DPOConfig, dpo
from tasks.encode import EncodeConfig
from tasks.evaluate import EvaluateConfig
from tasks.fidelity import FidelityConfig
from tasks.merge import MergeConfig
from tasks.preprocess import PreprocessConfig
from tasks.quantize import QuantizeConfig
from tasks.reference import ReferenceConfig, reference
from tasks.runtime import Comparison
from tasks.sft import SFTConfig


@dataclass
class SFTThenDPO(Road):
    download: DownloadConfig = field(default_factory=DownloadConfig)
    chats: PreprocessConfig = field(default_factory=PreprocessConfig)
    pairs: PreprocessConfig = field(default_factory=PreprocessConfig)
    prompts: PreprocessConfig = field(default_factory=PreprocessConfig)
    general: PreprocessConfig | None = None
    """Held-out rows that have nothing to do with the task; `general=null` leaves out what is measured on them."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    sft: SFTConfig | None = field(default_factory=SFTConfig)
    """`sft=null` leaves it out, and what it learns from: DPO begins from the downloaded model."""
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    dpo: DPOConfig = field(default_factory=DPOConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    fidelity: FidelityConfig = field(default_factory=FidelityConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    retention: EvaluateConfig = field(default_factory=EvaluateConfig)
    """How the base and the aligned model are measured on the general rows."""
    compare: CompareConfig = field(default_factory=CompareConfig)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from legs.problems(self, "dpo", self.dpo)


def sft_then_dpo(cfg: SFTThenDPO) -> Comparison:
    given = cfg.pairs, cfg.prompts, cfg.general  # what is wrong with rows is told before a long download
    chats, pairs, prompts, general = legs.rows(cfg.chats if cfg.sft else None, *given)
    base = download(cfg.download)
    tuned = legs.tuned(cfg, base, chats)
    known = reference(cfg.reference, tuned, pairs)
    aligned = dpo(cfg.dpo, tuned, known)
    return legs.delivered(cfg, base, tuned, aligned, prompts, general)


if __name__ == "__main__":
    launch(sft_then_dpo, SFTThenDPO)
