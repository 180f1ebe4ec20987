"""SFT, a reward model, PPO against it, to a measured GGUF: reinforcement learning from human feedback.

python -m flows.rlhf                                       the bundled task, on a laptop's CPU
python -m flows.rlhf -m ppo.kl.coef=0.02,0.05,0.1          a sweep shares everything before PPO
python -m flows.rlhf reward_model=null ppo.rewards.model.weight=0 ppo.rewards.exact_match.weight=1
python -m flows.rlhf sft=null                              from the base as it is, or from what you have trained:
python -m flows.rlhf sft=null download=local download.path=my/model       a folder that transformers loads
python -m flows.store export sft my/sft                                   or an adapter with its base, of an earlier run
python -m flows.rlhf sft=null download=local download.path=my/sft
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from flows import legs, rehearsal
from flows.launch import Road, launch
from tasks.compare import CompareConfig
from tasks.convert import ConvertConfig
from tasks.download import DownloadConfig, download
from tasks.encode import EncodeConfig
from tasks.evaluate import EvaluateConfig
from tasks.fidelity import FidelityConfig
from tasks.llm import rewards
from tasks.merge import MergeConfig
from tasks.ppo import PPOConfig, ppo
from tasks.preprocess import PreprocessConfig
from tasks.quantize import QuantizeConfig
from tasks.reward_model import RewardModelConfig, reward_model
from tasks.runtime import Comparison
from tasks.sft import SFTConfig


@dataclass
class RLHF(Road):
    download: DownloadConfig = field(default_factory=DownloadConfig)
    chats: PreprocessConfig = field(default_factory=PreprocessConfig)
    pairs: PreprocessConfig = field(default_factory=PreprocessConfig)
    questions: PreprocessConfig = field(default_factory=PreprocessConfig)
    """What PPO practises on: prompts, each with a right answer for rewards that compare."""
    prompts: PreprocessConfig = field(default_factory=PreprocessConfig)
    general: PreprocessConfig | None = None
    """Held-out rows that have nothing to do with the task; `general=null` leaves out what is measured on them."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    sft: SFTConfig | None = field(default_factory=SFTConfig)
    """`sft=null` leaves it out, and what it learns from: reward model and PPO begin from the downloaded model."""
    reward_model: RewardModelConfig | None = None
    """`reward_model=null` leaves it out; then every reward is a function or a server."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
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
        if not self.reward_model and (asking := rewards.of_model(self.ppo.rewards)):
            given = " and ".join(f"ppo.rewards.{name}" for name in asking)
            yield f"{given} asks the trained reward model, and reward_model is null: set its weight to 0."
        yield from legs.problems(self, "ppo", self.ppo)


def rlhf(cfg: RLHF) -> Comparison:
    learned = cfg.chats if cfg.sft else None, cfg.pairs if cfg.reward_model else None
    chats, pairs, questions, prompts, general = legs.rows(*learned, cfg.questions, cfg.prompts, cfg.general)
    rehearsal.of_rewards(rlhf, cfg, questions)
    base = download(cfg.download)
    tuned = legs.tuned(cfg, base, chats)
    judge = reward_model(cfg.reward_model, tuned, pairs) if cfg.reward_model and pairs else None
    aligned = ppo(cfg.ppo, tuned, questions, judge)
    return legs.delivered(cfg, base, tuned, aligned, prompts, general)


if __name__ == "__main__":
    launch(rlhf, RLHF)
