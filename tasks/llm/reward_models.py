"""Reward models: a language model whose head gives one number, the score of an answer, as transformers' format has it.

The score is read at the stop token that ends the answer. transformers looks for the last token that is no padding; many
models pad with their stop token, and then that place is the token before, so ours pad with another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.llm import chat, merging, models
from tasks.llm.forks import Forks, forks, possible
from tasks.llm.messages import Message

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

HEAD = "score"
"""Of every language model that transformers can make a classifier of, the module that gives the number."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, with a pad token that is not the stop token."""
    tokenizer = models.load_tokenizer(folder)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        others = [tokenizer.unk_token, tokenizer.bos_token, *tokenizer.all_special_tokens]
        others += tokenizer.convert_ids_to_tokens([0, 1])  # any will do: where there is padding, nobody looks
        tokenizer.pad_token = next(token for token in others if token and token != tokenizer.eos_token)
    return tokenizer


def begun(policy: Path, base: Path, precision: str, pad: int) -> Any:
    """A policy with a fresh head instead of its own; an adapter is folded into its base before.

    The head begins at zero: every answer scores 0, and the loss of a pair is ln 2.
    """
    import torch

    adapter = models.is_adapter(policy)
    model = load(base if adapter else policy, precision)
    if adapter:
        model.base_model.load_state_dict(merging.folded(policy, base).base_model.state_dict())
    torch.nn.init.zeros_(model.score.weight)
    model.config.get_text_config().pad_token_id = pad
    return model


def load(folder: Path, precision: str) -> Any:
    """A model folder as a judge, on the best device. The head computes in fp32: a score of 3 in bf16 would come in
    steps of 1/64, and a head in bf16 would not see an optimizer's small steps."""
    from transformers import AutoModelForSequenceClassification
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    with suppress_seqcls_warning():  # that a language model has no such head yet
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=1,
            dtype=models.dtype_of(precision),
            trust_remote_code=models.trusts(folder),
            attn_implementation="sdpa",
        )
    if not hasattr(model, HEAD):
        raise ValueError(
            f"{type(model).__name__} has no head named {HEAD!r}: start from a decoder such as Llama or Qwen."
        )
    model.score = _exact(model.score)
    return model.to(models.best_device())


def _exact(head: Any) -> Any:
    import torch

    class Exact(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            with torch.autocast(hidden.device.type, enabled=False):
                return torch.nn.functional.linear(hidden.float(), self.weight.float())

    exact = Exact(head.in_features, 1, bias=False)
    exact.weight = torch.nn.Parameter(head.weight.detach().float())
    return exact


def finished(model: Any, precision: str) -> Any:
    """A trained model as it is published: its adapter folded in, all of it rounded once to `precision`."""
    from peft import PeftModel

    whole = model.float().merge_and_unload() if isinstance(model, PeftModel) else model
    return whole.to(models.dtype_of(precision))


def save(model: Any, out: Path, tokenizer_from: Path, pad_token: str) -> None:
    """Write a judge and its tokenizer, which pads as the model's config says."""
    models.save(model, out, tokenizer_from)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        place = out / name
        if place.exists():
            told = json.loads(place.read_text(encoding="utf-8")) | {"pad_token": pad_token}
            place.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def scored(model: Any, given: Forks) -> Tensor:
    """The score of each answer, (answers,), read at its last token."""
    kept: list[Tensor] = []
    head = next(module for name, module in model.named_modules() if name.split(".")[-1] == HEAD)
    hook = head.register_forward_hook(lambda _, inputs, said: kept.append(said))
    try:
        model(**given.inputs())
    finally:
        hook.remove()
    return given.last(kept[0]).squeeze(1)


def scores(
    model: Any,
    asked: Sequence[tuple[list[int], list[int]]],
    at_once: int,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> list[float]:
    """The score of each prompt with its answer, in their order. Equal prompts share a forward pass, and so do those of
    like length, longest first."""
    import torch

    pad, shared = model.config.get_text_config().pad_token_id, possible(model.config)
    order = sorted(range(len(asked)), key=lambda i: (-len(asked[i][0]), asked[i][0], -len(asked[i][1])))
    found: dict[int, float] = {}
    model.eval()
    for start in range(0, len(order), at_once):
        some = order[start : start + at_once]
        prompts, answers = zip(*(asked[i] for i in some), strict=True)
        with torch.inference_mode():
            said = scored(model, forks(prompts, answers, pad, model.device, shared))
        found |= dict(zip(some, said.tolist(), strict=True))
        progress(len(found), len(order), "answers")
    return [found[i] for i in range(len(order))]


class Judge:
    """A published reward model that scores answers, as its own chat template writes them."""

    def __init__(self, folder: Path, precision: str, at_once: int) -> None:
        self.tokenizer, self.model, self.at_once = load_tokenizer(folder), load(folder, precision).eval(), at_once

    def __call__(self, chats: Sequence[tuple[list[Message], str]]) -> list[float]:
        """One score for each (prompt, answer), whatever it is asked about together with."""
        turns = chat.turns(self.tokenizer, [prompt for prompt, _ in chats], [answer for _, answer in chats])
        return scores(self.model, [(turn.prompt, turn.answer) for turn in turns], self.at_once)
