from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.llm import chat, masks, models
from tasks.llm.masks import IGNORED, Mask
from tests import thinking
from tests.hand import asked

STOP = "<|im_end|>"
TALK = [
    *asked("Hi"),
    {"role": "assistant", "content": "Yes?"},
    *asked("Tea"),
    {"role": "assistant", "content": "Here."},
]
THOUGHT = [
    {**m, "content": f"<think>\nso\n</think>\n\n{m['content']}"} if m["role"] == "assistant" else m for m in TALK
]
SHORT = [*asked("Hi"), {"role": "assistant", "content": "Ok."}]


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return models.load_tokenizer(tiny_model)


def trained(tokenizer: Any, row: masks.Encoded) -> list[str]:
    """The stretches of a row that bear loss, as text."""
    found, before = [], IGNORED
    for token, label in zip(row.ids, row.labels, strict=True):
        assert label in (IGNORED, token)
        if label != IGNORED:
            found = [*found, []] if before == IGNORED else found
            found[-1].append(token)
        before = label
    return [tokenizer.decode(part) for part in found]


@pytest.mark.parametrize("mask", [Mask.completion, Mask.last_turn])
def test_the_completion_is_the_last_answer_and_the_last_turn_is_the_same(tokenizer: Any, mask: Mask) -> None:
    (row,) = masks.encoded(tokenizer, [TALK], mask)
    assert trained(tokenizer, row) == [f"Here.{STOP}"]
    (turn,) = chat.turns(tokenizer, [TALK[:-1]], ["Here."])
    assert (row.ids, row.labels) == (turn.prompt + turn.answer, [IGNORED] * len(turn.prompt) + turn.answer)


def test_every_answer_bears_loss_in_one_row_where_the_template_lets_it(tokenizer: Any) -> None:
    (row,) = masks.encoded(tokenizer, [TALK], Mask.assistant)
    (last,) = masks.encoded(tokenizer, [TALK], Mask.completion)
    assert trained(tokenizer, row) == [f"Yes?{STOP}", f"Here.{STOP}"]
    assert (row.ids, row.parts) == (last.ids, 1)


def test_everything_bears_loss_but_the_first_token_which_nothing_foretells(tokenizer: Any) -> None:
    (row,) = masks.encoded(tokenizer, [TALK], Mask.everything)
    assert row.labels == [IGNORED, *row.ids[1:]]
    assert tokenizer.decode(row.ids).endswith(f"Here.{STOP}")


def test_where_earlier_turns_lose_their_thinking_each_answer_has_a_row_as_the_model_meets_it(tiny_model: Path) -> None:
    tokenizer = thinking.tokenizer(tiny_model)
    rows = list(masks.encoded(tokenizer, [SHORT, THOUGHT, SHORT], Mask.assistant))
    assert [(row.row, row.part, row.parts) for row in rows] == [(0, 0, 1), (1, 0, 2), (1, 1, 2), (2, 0, 1)]
    first, second = rows[1:3]
    assert trained(tokenizer, first) == [f"<think>\nso\n</think>\n\nYes?{STOP}"]
    assert trained(tokenizer, second) == [f"<think>\nso\n</think>\n\nHere.{STOP}"]
    for row, prompt in ((first, THOUGHT[:1]), (second, THOUGHT[:3])):
        met = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        assert row.ids[: len(met)] == met
        assert row.labels[: len(met)] == [IGNORED] * len(met)
    assert "so" not in tokenizer.decode(second.ids[: second.labels.count(IGNORED)])


def test_an_answer_without_thinking_learns_the_empty_thinking_that_the_template_gives_it(tiny_model: Path) -> None:
    tokenizer = thinking.tokenizer(tiny_model)
    (row,) = masks.encoded(tokenizer, [TALK], Mask.completion)
    assert trained(tokenizer, row) == [f"<think>\n\n</think>\n\nHere.{STOP}"]


def test_a_prompt_that_begins_the_thinking_itself_is_refused_with_what_to_choose(tiny_model: Path) -> None:
    tokenizer = thinking.tokenizer(tiny_model, thinking.OPENED)
    with pytest.raises(chat.TemplateError, match=r"Choose a template that says both alike, such as download.template="):
        list(
            masks.encoded(tokenizer, [[*asked("Hi"), {"role": "assistant", "content": "</think>Ok."}]], Mask.completion)
        )


def test_tokens_across_a_border_in_the_history_take_rows_of_their_own(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':b' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:b{% endif %}"
    )
    talk = [*asked("Hi"), {"role": "assistant", "content": "an"}, *asked("Oh"), {"role": "assistant", "content": "so"}]
    first, second = masks.encoded(tokenizer, [talk], Mask.assistant)
    assert trained(tokenizer, first) == [f"an{STOP}"]
    assert trained(tokenizer, second) == [f"so{STOP}"]
    assert tokenizer.convert_tokens_to_ids("ba") in second.ids  # as the model meets its own answer, one turn later
    assert tokenizer.convert_tokens_to_ids("ba") not in first.ids


def test_what_rows_spell_is_told_with_each(tokenizer: Any) -> None:
    talk = [*asked(f"What is {STOP}?"), *TALK[1:]]
    plain, spelled = masks.encoded(tokenizer, [TALK, talk], Mask.assistant)
    assert [(row.spelled, row.kept) for row in (plain, spelled)] == [(0, True), (1, True)]
    assert trained(tokenizer, spelled) == trained(tokenizer, plain)
