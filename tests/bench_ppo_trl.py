"""TRL 1.12.0's PPO as a worker of tests.bench_ppo, which starts it where `trl` is that version.

python -m tests.bench_ppo_trl WORK full|lora DRAWS LEARNS       sequences at once to draw and look at, and to learn
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any

from tests import bench_ppo


def policy(work: bench_ppo.Work, lora: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The policy, and what TRL's trainer and its config must be told of its adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.bfloat16)
    if not work.adapter:
        return model, {"peft_config": lora}, {}
    model = PeftModel.from_pretrained(model, work.adapter, is_trainable=True)
    model.load_adapter(work.adapter, "reference")
    return model, {}, {"model_adapter_name": "default", "ref_adapter_name": "reference"}


def classifier(work: bench_ppo.Work) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(work.judge, num_labels=1, dtype=torch.bfloat16)


def adapted(value_model: Any, lora: Any) -> Any:
    """Train an adapter and the head only: the critic as our separate one is. Adapters are fp32, as peft has them."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(lora, value_model)
    for name, weight in value_model.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
    value_model.score.requires_grad_(True)
    return value_model


def main(work: bench_ppo.Work, critic: str, draws: int, learns: int) -> None:
    worker = bench_ppo.Worker()
    import torch
    import trl
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    if trl.__version__ != "1.12.0":
        raise SystemExit(f"This is trl {trl.__version__}: give --trl the folder that 1.12.0 was installed into.")

    def lora(task: str) -> Any:
        return LoraConfig(r=work.rank, lora_alpha=work.alpha, target_modules="all-linear", task_type=task)

    tokenizer = AutoTokenizer.from_pretrained(work.model, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # a token that is never drawn: TRL looks away from padding
    acting, trained, named = policy(work, lora("CAUSAL_LM"))
    value_model, judge, batch = classifier(work), classifier(work), len(work.prompts)
    trainer = PPOTrainer(
        PPOConfig(
            output_dir=f"{work.judge}-trl",
            per_device_train_batch_size=learns,
            gradient_accumulation_steps=batch // learns,
            local_rollout_forward_batch_size=draws,
            num_mini_batches=1,
            num_ppo_epochs=work.epochs,
            total_episodes=1000 * batch,
            response_length=work.tokens,
            temperature=1.0,
            gradient_checkpointing=False,
            num_sample_generations=0,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            **named,
        ),
        tokenizer,
        acting,
        None,
        judge,
        Dataset.from_list([{"input_ids": prompt} for prompt in work.prompts]),
        adapted(value_model, lora("SEQ_CLS")) if critic == "lora" else value_model,
        **trained,
    )
    draw, accumulate = ppo_trainer.batch_generation, trainer.accelerator.accumulate

    def drawn(*given: Any) -> Any:
        found = draw(*given)
        assert found[1].shape[:2] == (batch, work.tokens), found[1].shape
        return found

    def learning(*given: Any) -> AbstractContextManager[Any]:
        worker.phase("learning")
        return accumulate(*given)

    class Turns(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            worker.wait()
            worker.phase("looking")

        def on_step_end(self, *given: Any, **named: Any) -> None:
            worker.tell()
            self.on_train_begin()

    ppo_trainer.batch_generation, trainer.accelerator.accumulate = drawn, learning
    worker.watch(ppo_trainer, "batch_generation", "generation")
    worker.watch(getattr(judge, judge.base_model_prefix), "forward", "scoring")
    trainer.add_callback(Turns())
    trainer.train()


if __name__ == "__main__":
    main(bench_ppo.read(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
