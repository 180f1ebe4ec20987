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

from flows.launch import Road, launch
from tasks.compare import CompareConfig, compare
from tasks.convert import ConvertConfig, convert
from tasks.download import DownloadConfig, download
from tasks.encode import EncodeConfig, encode
from tasks.evaluate import EvaluateConfig, evaluate
from tasks.fidelity import FidelityConfig, fidelity
from tasks.llm import rewards
from tasks.llm.training import LoRA, Method
from tasks.merge import MergeConfig, merge
from tasks.ppo import PPOConfig, ppo
from tasks.preprocess import PreprocessConfig, preprocess
from tasks.quantize import QuantizeConfig, quantize
from tasks.reward_model import RewardModelConfig, reward_model
from tasks.runtime import Comparison
from tasks.sft import SFTConfig, sft


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
        adapter = self.sft is not None and self.sft.method is Method.lora
        if adapter and self.ppo.method is Method.full:
            yield "ppo.method is full, but SFT makes an adapter, which has no weights of its own: use sft=full too."
        if adapter and self.ppo.lora != LoRA():
            yield "ppo.lora has no effect: PPO goes on with the adapter that SFT made. Set sft.lora instead."
        if self.evaluate.max_new_tokens == 0:
            yield "evaluate.max_new_tokens is 0, and this road scores answers: give 96. Only retention may do without."


def rlhf(cfg: RLHF) -> Comparison:
    chats = preprocess(cfg.chats) if cfg.sft else None
    pairs = preprocess(cfg.pairs) if cfg.reward_model else None
    questions, prompts = preprocess(cfg.questions), preprocess(cfg.prompts)
    general = preprocess(cfg.general) if cfg.general else None
    base = download(cfg.download)
    tuned = sft(cfg.sft, base, encode(cfg.encode, base.tokenizer, chats)) if cfg.sft and chats else base
    judge = reward_model(cfg.reward_model, tuned, pairs) if cfg.reward_model and pairs else None
    aligned = ppo(cfg.ppo, tuned, questions, judge)
    merged = merge(cfg.merge, aligned)
    f16 = convert(cfg.convert, merged)
    gguf = quantize(cfg.quantize, f16)
    trust = fidelity(cfg.fidelity, aligned, merged, f16, gguf, prompts)
    models = (base, tuned, aligned, gguf) if cfg.sft else (base, aligned, gguf)
    scores = [evaluate(cfg.evaluate, model, prompts) for model in models]
    retained = [evaluate(cfg.retention, model, general) for model in (base, aligned)] if general else []
    return compare(cfg.compare, scores, trust, retained)


if __name__ == "__main__":
    launch(rlhf, RLHF)
