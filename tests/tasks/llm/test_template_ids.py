"""One chat template for encode, evaluate, chat and GGUF: the same token ids in transformers and in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.llm import chat, gguf, models, templates
from tasks.llm.templates import fit
from tests.spoken import CHATS, SPELLED, downloaded

NAMES = templates.names()


@pytest.fixture(scope="module")
def converted(spoken_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model that was downloaded with Gemma's template, and the GGUF that llama.cpp's converter makes of it."""
    folder = tmp_path_factory.mktemp("converted")
    model = downloaded(folder / "run", spoken_model, "gemma")
    gguf.convert(model, folder / "plain.gguf", folder / "log")
    gguf.annotate(folder / "plain.gguf", folder / "model.gguf", gguf.start_keys(folder / "plain.gguf"))
    return model, folder / "model.gguf"


def test_the_gguf_carries_the_template_byte_for_byte(converted: tuple[Path, Path]) -> None:
    said = gguf.metadata(converted[1])["tokenizer.chat_template"]
    assert said.encode() == (templates.FOLDER / "gemma.jinja").read_bytes()


@pytest.fixture(scope="module", params=NAMES)
def both(
    request: pytest.FixtureRequest, converted: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, gguf.Engine]]:
    """transformers' tokenizer and llama.cpp's engine under one named template."""
    tokenizer, template = models.load_tokenizer(converted[0]), templates.text(request.param)
    place = tmp_path_factory.mktemp("both") / "model.gguf"
    gguf.annotate(converted[1], place, {"tokenizer.chat_template": template})
    tokenizer.chat_template = template
    with gguf.Engine(place, context=512) as engine:
        yield tokenizer, engine


def test_transformers_and_llama_cpp_read_the_same_prompt(both: tuple[Any, gguf.Engine]) -> None:
    tokenizer, engine = both
    starts = templates.writes_start(tokenizer.chat_template)
    for messages in CHATS:
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert engine.prompt(messages) == expected
        assert expected.count(tokenizer.bos_token_id) == int(starts)


def test_prompt_and_answer_are_the_same_where_they_are_trained_and_where_the_gguf_is_measured(
    both: tuple[Any, gguf.Engine],
) -> None:
    tokenizer, engine = both
    tokenizer.eos_token = fit.settle(tokenizer, tokenizer.chat_template)
    chats, answers = [*CHATS, SPELLED], ["Ok.", " Ok \n", '{"ü": 1}', "two\nlines", "x", "It says <|im_end|>."]
    for messages, answer, turn in zip(chats, answers, chat.turns(tokenizer, chats, answers), strict=True):
        assert engine.prompt(messages) == turn.prompt
        if tokenizer.eos_token == "<end_of_turn>":  # the stop token of the file
            assert engine.turn(messages, answer).answer == turn.answer


def test_llama_cpp_answers_also_who_spells_control_tokens(tmp_path: Path, converted: tuple[Path, Path]) -> None:
    gguf.annotate(converted[1], tmp_path / "m.gguf", {"tokenizer.chat_template": templates.text("smollm2")})
    with gguf.Engine(tmp_path / "m.gguf", context=512) as engine:
        assert [engine.chat(messages) for messages in [*CHATS, SPELLED]] == [("Ok.", "stop")] * 6


# The start token of a GGUF


def test_a_gguf_asks_for_a_start_token_where_its_template_writes_one(
    converted: tuple[Path, Path], tmp_path: Path
) -> None:
    key = "tokenizer.ggml.add_bos_token"
    assert gguf.metadata(converted[1])[key] is True
    assert gguf.start_keys(converted[1]) == {}
    for name in NAMES:
        gguf.annotate(converted[1], tmp_path / "m.gguf", {"tokenizer.chat_template": templates.text(name)})
        starts = templates.text(name).count("{{- bos_token -}}") == 1
        assert gguf.start_keys(tmp_path / "m.gguf") == ({} if starts else {key: False})


@pytest.mark.parametrize("template", ["", "{{ raise_exception('no') }}"])
def test_a_gguf_whose_template_says_nothing_of_it_keeps_what_it_has(
    converted: tuple[Path, Path], tmp_path: Path, template: str
) -> None:
    gguf.annotate(converted[1], tmp_path / "m.gguf", {"tokenizer.chat_template": template})
    assert gguf.start_keys(tmp_path / "m.gguf") == {}
