"""Messages to token ids, through the model's own chat template: the one way for training, evaluation and chat.

The prompt is rendered as the model meets it at inference (generation prompt included) and the answer as what follows,
up to and including the stop token. What a template writes behind the stop token is never generated, so it is left out.
Control tokens that a message spells out stay text (control.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.llm.control import Control, plain

Message = dict[str, str]
_BATCH = 512


@dataclass(frozen=True)
class Turn:
    """One exchange in token ids: what the model is given, and what it should answer (ending with the stop token)."""

    prompt: list[int]
    answer: list[int]
    spelled: int = 0
    """How often its messages spell a control token."""
    kept: bool = True
    """Whether these stayed text."""


class TemplateError(ValueError):
    """The chat template cannot be used for training as it is."""


def turns(tokenizer: Any, chats: Sequence[Sequence[Message]], answers: Sequence[str]) -> Iterator[Turn]:
    """A Turn per (conversation, answer), tokenized in batches.

    Raises TemplateError when the rendered prompt is no prefix of the rendered conversation, or when no stop token
    ends the answer: such a model would be trained on what it never meets, or never learn to stop.
    """
    control = Control(tokenizer)
    for start in range(0, len(chats), _BATCH):
        both = zip(chats[start : start + _BATCH], answers[start : start + _BATCH], strict=True)
        texts = [_texts(tokenizer, control, [*chat, _answer(said)]) for chat, said in both]
        parts = ([t.before for t in texts], [t.whole for t in texts], [t.whole[len(t.before) :] for t in texts])
        marked = [t.marked for t in texts]
        ids = [_tokenized(tokenizer, control, part, marked) for part in parts]
        for text, prompt, whole, tail in zip(texts, *ids, strict=True):
            # where a token would straddle the border, the answer is tokenized alone: so it is met at inference
            answer = whole[len(prompt) :] if whole[: len(prompt)] == prompt else tail
            kept = not text.spelled or (text.marked and control.kept(text.whole, whole))
            yield Turn(prompt, _until_stop(tokenizer, answer), text.spelled, kept)


@dataclass(frozen=True)
class _Texts:
    """A conversation rendered up to its last answer and with it; `marked` as control.py has it."""

    before: str
    whole: str
    spelled: int = 0
    marked: bool = False


def _texts(tokenizer: Any, control: Control, chat: list[Message]) -> _Texts:
    before, whole = _rendered(tokenizer, chat[:-1], True), _rendered(tokenizer, chat, False)
    if not whole.startswith(before):
        raise TemplateError(_not_a_prefix(before, whole))
    spelled = control.spelled(chat)
    if spelled and control.guards:
        broken = control.broken(chat)
        opened, closed = (control.owned(_rendered(tokenizer, *how)) for how in ((broken[:-1], True), (broken, False)))
        if (plain(opened), plain(closed)) == (before, whole) and closed.startswith(opened):
            return _Texts(opened, closed, spelled, True)
    return _Texts(before, whole, spelled)


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _rendered(tokenizer: Any, chat: Sequence[Message], generation: bool) -> str:
    if not tokenizer.chat_template:
        said = "choose an instruct model, or give it one with download.template=chatml."
        raise TemplateError(f"This model has no chat template: {said}")
    text: str = tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=generation)
    return text


def _tokenized(tokenizer: Any, control: Control, texts: list[str], marked: list[bool]) -> list[list[int]]:
    unmarked = [text for text, mark in zip(texts, marked, strict=True) if not mark]
    ids = iter(tokenizer(unmarked, add_special_tokens=False)["input_ids"] if unmarked else [])
    return [control.tokenized(text) if mark else next(ids) for text, mark in zip(texts, marked, strict=True)]


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
        f"{before[same : same + 30]!r}, the conversation {whole[same : same + 30]!r}. Choose a template that says both "
        "alike, such as download.template=chatml."
    )
