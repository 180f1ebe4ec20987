from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.llm import chat, models
from tests.hand import asked

STOP = "<|im_end|>"
LONG = [*asked("Hi there"), {"role": "assistant", "content": "Yes?"}, *asked("naïve 😁\n\tagain")]
CHATS = [asked("How are you?"), [{"role": "system", "content": "Be brief. "}, *LONG], asked("  ")]
ANSWERS = ["Ok.", ' {"a": [1, 2]}\n', "two\nlines, ünusual"]


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return models.load_tokenizer(tiny_model)


def test_prompt_and_answer_are_the_ids_of_the_whole_conversation_up_to_its_stop_token(tokenizer: Any) -> None:
    for turn, prompt, answer in zip(chat.turns(tokenizer, CHATS, ANSWERS), CHATS, ANSWERS, strict=True):
        assert turn.prompt == tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}])["input_ids"]
        last_stop = len(whole) - 1 - whole[::-1].index(tokenizer.eos_token_id)
        assert turn.prompt + turn.answer == whole[: last_stop + 1]


def test_the_stop_token_is_the_last_label_and_the_tail_behind_it_is_left_out(tokenizer: Any) -> None:
    rendered = tokenizer.apply_chat_template([*CHATS[0], {"role": "assistant", "content": "Ok."}], tokenize=False)
    assert rendered.endswith(f"{STOP}\n")
    (turn,) = chat.turns(tokenizer, CHATS[:1], ["Ok."])
    assert turn.answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(turn.answer) == f"Ok.{STOP}"


def test_an_answer_that_speaks_of_the_stop_token_ends_with_the_templates_own(tokenizer: Any) -> None:
    (turn,) = chat.turns(tokenizer, CHATS[:1], [f"It ends with {STOP} there."])
    assert tokenizer.decode(turn.answer) == f"It ends with {STOP} there.{STOP}"


def test_a_token_across_the_border_is_split_as_it_is_at_inference(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':b' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:b{% endif %}"
    )
    ids = tokenizer.convert_tokens_to_ids
    (turn,) = chat.turns(tokenizer, [asked("Hi")], ["an"])
    assert turn.prompt[-2:] == [ids(":"), ids("b")]  # and not ":", "ba", as the whole text would be cut
    assert turn.answer == [ids("a"), ids("n"), ids(STOP)]


def test_a_template_that_renders_the_prompt_differently_says_where_they_part(tokenizer: Any) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\\n", "assistant\\n<think>\\n")
    with pytest.raises(chat.TemplateError) as raised:
        list(chat.turns(tokenizer, CHATS[:1], ["Ok."]))
    assert "They part after" in str(raised.value)
    assert r"assistant\n': the prompt goes on '<think>\n', the conversation 'Ok.<|im_end|>\n'" in str(raised.value)


def test_a_prompt_longer_than_its_conversation_is_refused_as_well(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{% endfor %}x{% if add_generation_prompt %}y{% endif %}"
    with pytest.raises(chat.TemplateError, match="the prompt goes on 'y', the conversation ''"):
        list(chat.turns(tokenizer, CHATS[:1], ["Ok."]))


def test_a_missing_template_says_what_to_choose(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(chat.TemplateError, match="no chat template: choose an instruct model"):
        list(chat.turns(tokenizer, CHATS[:1], ["Ok."]))


def test_an_answer_without_stop_token_is_refused_and_shows_its_end(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '<s>' }}{% endfor %}"
    with pytest.raises(chat.TemplateError, match=r"stop token '<\|im_end\|>'.*ends with 'Ok.<s>': set the"):
        list(chat.turns(tokenizer, CHATS[:1], ["Ok."]))


def test_more_rows_than_a_batch_come_in_order_and_none_is_lost(tokenizer: Any) -> None:
    questions, answers = [asked(f"Question {i}") for i in range(1030)], [f"Answer {i}" for i in range(1030)]
    found = list(chat.turns(tokenizer, questions, answers))
    assert len(found) == 1030
    for i in (0, 511, 512, 1023, 1024, 1029):
        assert tokenizer.decode(found[i].answer) == f"Answer {i}{STOP}"
        assert f"Question {i}{STOP}" in tokenizer.decode(found[i].prompt)
