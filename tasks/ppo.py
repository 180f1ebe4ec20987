"""PPO of a policy against rewards: a trained judge, functions, a server, or several of them with weights.

`tasks/llm/ppo.py` is the algorithm. The reference, from which every step away costs, is the policy as it came. Before
and after, greedy answers to held-out questions get the same rewards, pair by pair: whether it learned, and not only
what it was shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.llm import foresight, ppo_knobs, rewards
from tasks.llm.actor import Critic
from tasks.llm.rewards import Reward
from tasks.llm.training import LoRA, Method
from tasks.llm.trouble import Watch
from tasks.runtime import Dataset, Model, Precision, RewardModel, Run, canonical_as, external, resolved, stage


@dataclass
class PPOConfig(ppo_knobs.Algorithm):
    method: Method = Method.lora
    """lora or full. A policy that is an adapter is continued as it is and wants lora."""
    lora: LoRA = field(default_factory=LoRA)
    """The adapter, when the policy comes in as a full model and method is lora."""
    critic: Critic = Critic.shared
    """shared: a value head on the policy's trunk. separate: on a trunk of its own, which takes as much again."""
    rewards: dict[str, Reward] = external(lambda cfg: rewards.identity(cfg.rewards), default=dict)
    """What an answer is worth: components by name, each with a weight. Ready-made: exact_match, field_match,
    json_valid, regex, length; model is the trained reward model; with a source, a function of yours or a server."""
    watch: Watch = field(default_factory=Watch)
    """When training is in trouble, and what is done then."""
    precision: Precision = canonical_as(lambda cfg: resolved(cfg.precision).value, default=Precision.auto)
    """Number format: auto is bf16 where this machine multiplies it, else fp32. The resolved value is keyed."""
    seed: int = 42
    """Order of the questions, what is drawn, first weights of a fresh adapter."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from rewards.problems(self.rewards, has_model=True)  # whether there is one, the road knows
        if self.precision is Precision.fp16:
            yield "precision=fp16 overflows while training; use bf16, fp32 or auto."


@stage(makes=Model, version="1", device=True, needs=foresight.of_ppo)
def ppo(
    run: Run, cfg: PPOConfig, policy: Model, questions: Dataset, judge: RewardModel | None = None
) -> dict[str, float]:
    from tasks.llm import actor, models, ppo_exam, ppo_loop, rows

    train, held_out = (list(rows.read_split(questions.path, split)) for split in ("train", "eval"))
    full = cfg.method is Method.full
    if full and models.is_adapter(policy.path):
        raise ValueError("The policy is an adapter, so ppo.method=full has no weights of its own: merge it first.")
    tokenizer, precision = models.load_tokenizer(policy.path), resolved(cfg.precision).value
    opening = actor.Opening(
        policy.path, policy.base.path, full, cfg.lora, cfg.critic, precision, cfg.sampling.temperature, cfg.seed
    )
    scorer = Scorer(cfg.rewards, tokenizer, judge, precision, run.say)
    acting, reference = opening()
    trainer = begun(cfg, opening, acting, reference, scorer, tokenizer, train, run.micro_batch)
    exam = ppo_exam.Exam(
        acting.policy, tokenizer, held_out, scorer, cfg.sampling.max_new_tokens, opening.mixed, run.work
    )
    loop = ppo_loop.Loop(trainer, cfg.watch, run.work, run.log, run.progress, run.stopping, exam.look)
    loop.run()

    metrics = exam.result() | summary(loop.history)  # what a report shows of it comes first
    exam.write(run.notes)
    for name, told in (("history", loop.history), ("troubles", loop.troubles)):
        (run.notes / f"{name}.json").write_text(json.dumps(told, indent=1))
    if full:
        acting.policy.to(models.dtype_of(precision))
    models.save(acting.policy, run.out, policy.path, "" if full else policy.base.digest)
    return metrics


@dataclass
class Scorer:
    """What answers to rows are worth."""

    rewards: dict[str, Reward]
    tokenizer: Any
    judge: RewardModel | None
    precision: str
    say: Callable[[str], None] = lambda text: None

    def __post_init__(self) -> None:
        from tasks.llm import reward_models

        model = None
        if self.judge and rewards.of_model(self.rewards):
            told = reward_models.Judge(self.judge.path, self.precision, at_once=16)
            model = lambda asked: told([(one.prompt, one.answer) for one in asked])  # noqa: E731
        self.components = rewards.scorers(self.rewards, model, self.say)

    def __call__(
        self, rows: Sequence[dict[str, Any]], said: Sequence[tuple[str, int, bool]]
    ) -> tuple[list[float], dict[str, list[float]]]:
        """`said`: text, tokens and whether it ended by itself. A total for each row, and the components by name."""
        from tasks.llm.rows import answer_of, prompt_of

        asked = [
            rewards.Asked(prompt_of(row), text, answer_of(row), tokens, finished)
            for row, (text, tokens, finished) in zip(rows, said, strict=True)
        ]
        parts = {name: component(asked) for name, component in self.components.items()}
        return rewards.totals(parts, self.rewards), parts


def begun(
    cfg: PPOConfig,
    opening: Any,
    acting: Any,
    reference: Any,
    scorer: Scorer,
    tokenizer: Any,
    asked: list[dict[str, Any]],
    micro_batch: int = 0,
) -> Any:
    """The trainer before its first update."""
    from tasks.llm import chat, models, ppo, rollouts
    from tasks.llm.rows import answer_of, prompt_of

    if problems := list(rewards.unsuited(cfg.rewards, [answer_of(row) for row in asked])):
        raise ValueError("\n".join(problems))
    turns = chat.turns(tokenizer, [prompt_of(row) for row in asked], [answer_of(row) for row in asked])
    stops = models.stop_ids(acting.policy, tokenizer)
    pad = tokenizer.pad_token_id

    def scores(rows: Sequence[int], drawn: Sequence[Any]) -> Any:
        texts = [tokenizer.decode(one.answer, skip_special_tokens=True) for one in drawn]
        said = [(text, len(one.answer), one.finished) for text, one in zip(texts, drawn, strict=True)]
        total, parts = scorer([asked[i] for i in rows], said)
        cut = [cfg.missing_eos_penalty * (not one.finished) for one in drawn]
        return [score - penalty for score, penalty in zip(total, cut, strict=True)], parts

    return ppo.Trainer(
        cfg,
        acting,
        reference,
        rollouts.Transformers(acting.policy, pad, stops, cfg.sampling, mixed=opening.mixed),
        scores,
        [turn.prompt for turn in turns],
        pad,
        cfg.seed,
        opening.mixed,
        **({"at_once": micro_batch} if micro_batch else {}),
    )


def summary(history: list[dict[str, float]]) -> dict[str, float]:
    """The headline: the last fifth of the updates against the first."""
    few = max(1, len(history) // 5)
    names = ("reward", "kl", "entropy", "length", "finished", "explained_variance", "clip_fraction")
    last = {name: sum(told[name] for told in history[-few:]) / few for name in names}
    first = sum(told["reward"] for told in history[:few]) / few
    speed = len(history) / sum(1 / told["samples_per_second"] for told in history)
    return {"updates": len(history), "first_reward": first, **last, "samples_per_second": speed}
