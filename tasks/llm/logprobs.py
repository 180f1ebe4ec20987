"""How likely a model finds given answers: log pi(answer | prompt), summed over the answer's tokens, in nats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tasks.llm.pairs import tokens
from tasks.llm.training import head_on_labels_only

_PAIRS_AT_ONCE = 4
"""Per forward pass, where nobody said otherwise: without gradients twice what a training step takes."""


def of_pairs(
    model: Any,
    pad: int,
    pairs: Sequence[dict[str, Any]],
    at_once: int = 0,
    autocast: bool = False,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> list[tuple[float, float]]:
    """(log pi(chosen), log pi(rejected)) of every pair of token ids, in the pairs' order.

    By the collator and the fused head of TRL's own DPO step, so that the same weights give the same numbers there.
    In bf16 they differ by tenths of a nat from batch to batch, since attention rounds by its width; in fp32 by nothing
    one would see. Pairs of like length share a forward pass, the longest first: what does not fit says so at once.

    `at_once`: pairs per forward pass, 0 for ours. `autocast`: the weights are fp32 and the arithmetic bf16.
    """
    import torch
    from peft import PeftModel
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.utils import add_fused_lm_head

    model.eval()
    add_fused_lm_head(model.get_base_model() if isinstance(model, PeftModel) else model)
    collate, at_once = DataCollatorForPreference(pad_token_id=pad), at_once or _PAIRS_AT_ONCE
    order = sorted(range(len(pairs)), key=lambda i: -tokens(pairs[i]))
    found: dict[int, tuple[float, float]] = {}
    mixed = torch.autocast(model.device.type, torch.bfloat16, enabled=autocast)
    with torch.no_grad(), mixed, head_on_labels_only():
        for start in range(0, len(order), at_once):
            some = order[start : start + at_once]
            batch = {name: value.to(model.device) for name, value in collate([pairs[i] for i in some]).items()}
            labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
            sums = model(**batch, labels=labels, use_cache=False, fused_lm_head=True).log_probs.sum(dim=1).tolist()
            found |= {i: (sums[at], sums[at + len(some)]) for at, i in enumerate(some)}
            progress(len(found), len(pairs), "pairs")
    return [found[i] for i in range(len(pairs))]
