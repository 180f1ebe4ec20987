"""A policy small enough to train in a second: sixteen tokens, one layer, random weights; and a trainer around it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from tasks.llm.actor import Actor, Reference
from tasks.llm.ppo import Trainer
from tasks.llm.ppo_knobs import Algorithm
from tasks.llm.rollouts import Drawn, Transformers

PAD, STOP, VOCABULARY, HIDDEN = 0, 1, 16, 32
PROMPTS = [[2, 3], [4], [5, 6, 7], [8, 9, 10, 11]]


def model(seed: int = 0) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=STOP,
    )
    made: Any = LlamaForCausalLM(config)
    return made.eval()


def trainer(
    how: Algorithm, score: Callable[[Drawn], float], seed: int = 0, separate: bool = False, **more: Any
) -> Trainer:
    """`score`: of one drawn answer."""
    import torch

    policy = model(seed)
    trunk = copy.deepcopy(policy).get_decoder() if separate else None
    head = torch.nn.Linear(HIDDEN, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)

    def scores(_: Sequence[int], drawn: Sequence[Drawn]) -> Any:
        found = [score(one) for one in drawn]
        return found, {"toy": found}

    return Trainer(
        how,
        Actor(policy, head, trunk),
        Reference(copy.deepcopy(policy).requires_grad_(False)),
        Transformers(policy, PAD, [STOP], how.sampling),
        scores,
        PROMPTS,
        PAD,
        seed,
        nullcontext,
        **more,
    )
