"""Messages to token ids, through the model's own chat template: the one way for training, evaluation and chat.

The prompt is rendered as the model meets it at inference (generation prompt included) and the answer as what follows,
up to and including the stop token. What a template writes behind the stop token is never generated, so it is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, str]
_BATCH = 512


@dataclass(frozen=True)
class Turn:
    """One exchange in token ids: what the model is given, and what it should answer (ending with the stop token)."""

    prompt: list[int]
    answer: list[int]


class TemplateError(ValueError):
    """The chat template cannot be used for training as it is."""


def turns(tokenizer: Any, chats: Sequence[Sequence[Message]], answers: Sequence[str]) -> Iterator[Turn]:
    """A Turn per (conversation, answer), tokenized in batches.

    Raises TemplateError when the rendered prompt is no prefix of the rendered conversation, or when no stop token
    ends the answer: such a model would be trained on what it never meets, or never learn to stop.
    """
    for start in range(0, len(chats), _BATCH):
        part, said = chats[start : start + _BATCH], answers[start : start + _BATCH]
        opened = [_rendered(tokenizer, chat, True) for chat in part]
        closed = [_rendered(tokenizer, [*c, _answer(a)], False) for c, a in zip(part, said, strict=True)]
        for before, whole in zip(opened, closed, strict=True):
            if not whole.startswith(before):
                raise TemplateError(_not_a_prefix(before, whole))
        tails = [whole[len(before) :] for before, whole in zip(opened, closed, strict=True)]
        prompt_ids, whole_ids, tail_ids = (_tokenized(tokenizer, texts) for texts in (opened, closed, tails))
        for prompt, whole_id, tail in zip(prompt_ids, whole_ids, tail_ids, strict=True):
            # where a token would straddle the border, the answer is tokenized alone: so it is met at inference
            answer = whole_id[len(prompt) :] if whole_id[: len(prompt)] == prompt else tail
            yield Turn(prompt, _until_stop(tokenizer, answer))


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _rendered(tokenizer: Any, chat: Sequence[Message], generation: bool) -> str:
    if not tokenizer.chat_template:
        raise TemplateError("This model has no chat template: choose an instruct model, or give it a template.")
    text: str = tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=generation)
    return text


def _tokenized(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return ids


def _until_stop(tokenizer: Any, answer: list[int]) -> list[int]:
    stop = tokenizer.eos_token_id
    if stop not in answer:
        raise TemplateError(
            f"The chat template does not end an answer with the tokenizer's stop token {tokenizer.eos_token!r}, so the "
            f"model would never learn to stop. The answer ends with {tokenizer.decode(answer[-8:])!r}: set the "
            "tokenizer's eos_token to what the template writes there."
        )
    last = len(answer) - 1 - answer[::-1].index(stop)
    return answer[: last + 1]


def _not_a_prefix(before: str, whole: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(whole))
    return (
        "The chat template renders a prompt differently once its answer follows, so training would show the model what "
        f"it never meets. They part after {before[max(0, same - 30) : same]!r}: the prompt goes on "
        f"{before[same : same + 30]!r}, the conversation {whole[same : same + 30]!r}."
    )
