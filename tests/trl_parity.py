"""What the last PPO that TRL shipped makes of fixed rollouts, written to tests/data/trl_ppo.json.

    pip install --no-deps --target /somewhere/else trl==1.12.0
    PYTHONPATH=/somewhere/else python -m tests.trl_parity

The suite compares ours with these figures (tests/tasks/llm/test_ppo_parity.py); it needs no TRL of that age.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tests import toy_policy
from tests.toy_policy import HIDDEN, PAD

PLACE = Path(__file__).parent / "data" / "trl_ppo.json"
PROMPTS = [[2, 3], [4], [5, 6, 7], [8, 9, 10, 11]]
ANSWERS = [[3, 9, 12, 4, 6], [5, 5, 2, 14, 13], [12, 11, 10, 9, 8], [7, 2, 15, 3, 3]]
"""All of one length: where an answer ends early, TRL puts its score one token later than we do."""
SCORES = [1.0, -0.5, 2.0, 0.25]
EPOCHS, RATE, COEF, GAMMA, LAM, VALUE_COEF = 3, 1e-3, 0.1, 0.98, 0.9, 0.3


def filled(module: Any, phase: float) -> Any:
    """Weights that are the same everywhere, without a random number."""
    import torch

    with torch.no_grad():
        for number, (name, weight) in enumerate(sorted(module.named_parameters())):
            wave = torch.sin(torch.arange(weight.numel(), dtype=torch.float64) * 0.7 + phase + number)
            weight.copy_((wave * (0.1 if "norm" in name else 0.3) + ("norm" in name)).view_as(weight))
    return module


def policies() -> tuple[Any, Any, Any]:
    """Policy, reference and critic (a model with a head of one number)."""
    from transformers import LlamaForSequenceClassification

    policy, reference = filled(toy_policy.model(), 0.0), filled(toy_policy.model(), 0.02)
    config = toy_policy.model().config
    config.num_labels = 1
    return policy, reference, filled(LlamaForSequenceClassification(config), 0.5).eval()


def fingerprint(weights: dict[str, Any]) -> dict[str, list[float]]:
    """Of each gradient its length and its product with a wave: two that agree in both are one."""
    import torch

    found = {}
    for name, weight in weights.items():
        grad = weight.grad if weight.grad is not None else torch.zeros_like(weight)
        wave = torch.cos(torch.arange(grad.numel(), dtype=grad.dtype) * 0.3).view_as(grad)
        found[name] = [float(grad.norm()), float((grad * wave).sum())]
    return found


def main() -> None:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    policy, reference, critic = policies()
    real_reward, steps = ppo_trainer.get_reward, []
    by_prompt = {tuple(prompt): number for number, prompt in enumerate(PROMPTS)}

    def row(query: Any) -> int:
        return by_prompt[tuple(int(token) for token in query if token != PAD)]

    def generated(model: Any, queries: Any, *_: Any) -> Any:
        both = torch.cat([queries, torch.tensor([ANSWERS[row(query)] for query in queries])], dim=1)
        logits = ppo_trainer.forward(model, both, PAD).logits[:, queries.shape[1] - 1 : -1]
        return both, logits.detach()

    class Judge(torch.nn.Module):
        pass

    judge = Judge()

    def rewarded(model: Any, both: Any, pad: int, context: int) -> Any:
        if model is not judge:
            return real_reward(model, both, pad, context)
        return None, torch.tensor([SCORES[row(query)] for query in both[:, :context]]), None

    ppo_trainer.batch_generation, ppo_trainer.get_reward = generated, rewarded

    class Tokenizer:
        pad_token_id, eos_token_id, padding_side = PAD, -1, "left"

        def save_pretrained(self, *_: Any, **__: Any) -> None: ...

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        width = max(len(one["input_ids"]) for one in rows)
        return {"input_ids": torch.tensor([[PAD] * (width - len(r["input_ids"])) + r["input_ids"] for r in rows])}

    weights = [*policy.parameters(), *critic.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    trainer = PPOTrainer(
        PPOConfig(
            output_dir="data/parity",
            per_device_train_batch_size=len(PROMPTS),
            gradient_accumulation_steps=1,
            num_mini_batches=1,
            num_ppo_epochs=EPOCHS,
            total_episodes=len(PROMPTS),
            response_length=len(ANSWERS[0]),
            temperature=1.0,
            kl_coef=COEF,
            gamma=GAMMA,
            lam=LAM,
            vf_coef=VALUE_COEF,
            num_sample_generations=0,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        Tokenizer(),
        policy,
        reference,
        judge,
        Dataset.from_list([{"input_ids": prompt} for prompt in PROMPTS]),
        critic,
        collate,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
    )
    backward = trainer.accelerator.backward

    def watched(loss: Any, *more: Any, **named: Any) -> None:
        backward(loss, *more, **named)
        parts = {"policy": dict(policy.named_parameters()), "critic": dict(critic.named_parameters())}
        steps.append({"loss": float(loss), **{part: fingerprint(named) for part, named in parts.items()}})

    trainer.accelerator.backward = watched
    logged: list[dict[str, float]] = []

    class Log(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            logged.append(logs)

    trainer.add_callback(Log())
    trainer.train()
    assert len(steps) == EPOCHS and not any(math.isnan(step["loss"]) for step in steps)
    kept = ("objective/kl", "objective/rlhf_reward", "loss/policy_avg", "loss/value_avg", "policy/clipfrac_avg")
    told = {name: logged[0][name] for name in kept}
    PLACE.write_text(json.dumps({"logged": told, "steps": steps, "hidden": HIDDEN}, indent=1) + "\n")
    print(json.dumps(told, indent=1), [step["loss"] for step in steps])


if __name__ == "__main__":
    main()
