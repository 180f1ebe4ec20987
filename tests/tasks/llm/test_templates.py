"""Chat templates by name or by path: found, checked, and put on a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.download import DownloadConfig, Source
from tasks.llm import chat, models, templates
from tasks.runtime import keys
from tests import hand, tiny
from tests.spoken import CHATS, downloaded

FAMILIES = {"alpaca", "chatml", "deepseek", "gemma", "llama3", "mistral", "phi", "qwen", "vicuna", "zephyr"}
NAMES = templates.names()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A template of one's own."""
    (tmp_path / "mine.jinja").write_text(
        tiny.TEMPLATE.replace("'<|im_start|>' +", "'<|im_start|>my ' +").replace("start|>a", "start|>my a")
    )
    return tmp_path / "mine.jinja"


def _problems(template: str) -> list[str]:
    return list(DownloadConfig(Source.hub, repo="acme/tiny", template=template).problems())


def _key(template: Path | str) -> Any:
    cfg = DownloadConfig(Source.wheel, template=str(template))
    return keys.keyed_fields(cfg, None)["template"]  # type: ignore[arg-type]  # no other field asks the world


# Choosing


def test_the_families_that_people_ask_for_are_there() -> None:
    assert set(NAMES) >= FAMILIES
    assert [_problems(name) for name in NAMES] == [[]] * len(NAMES)


def test_a_file_put_into_the_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(templates.FOLDER, tmp_path / "templates")
    monkeypatch.setattr(templates, "FOLDER", tmp_path / "templates")
    (tmp_path / "templates" / "house.jinja").write_text(tiny.TEMPLATE)
    (tmp_path / "templates" / "house.gotmpl").write_text("{{ .Prompt }} as the house has it\n")
    assert _problems("house") == []
    assert templates.text("house") == tiny.TEMPLATE
    (tmp_path / "templates" / "chatml.gotmpl").unlink()  # the same in other words
    assert templates.twin(tiny.TEMPLATE, "<|im_end|>") == "{{ .Prompt }} as the house has it"


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ("chat-ml", "no template 'chat-ml'; the nearest is chatml. All names: alpaca, chatml,"),
        ("Lama3", "no template 'Lama3'; the nearest is llama3. All"),
        ("xyz", "no template 'xyz'; choose one of: alpaca, chatml, "),
        ("no/such.jinja", "template=no/such.jinja does not exist; give a .jinja file, or one of alpaca, chatml"),
        ("~/such.jinja", "does not exist"),
    ],
)
def test_a_template_that_is_not_there_gets_the_nearest_names_before_anything_runs(choice: str, told: str) -> None:
    (problem,) = _problems(choice)
    assert told in problem
    with pytest.raises(ValueError, match="template"):
        templates.text(choice)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{% for m in messages %}\n{{ m['content'] }}\n{% endif %}", "line 3: Encountered unknown tag 'endif'"),
        (b"a\n{{ messages[0] ", "line 2: "),
        (b" \n", "is empty: write a Jinja template"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_template_that_does_not_parse_names_file_and_line(mine: Path, content: bytes, told: str) -> None:
    mine.write_bytes(content)
    (problem,) = _problems(str(mine))
    assert str(mine) in problem and told in problem


def test_what_transformers_adds_to_jinja_is_no_mistake(mine: Path) -> None:
    mine.write_text(
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}"
        "{% generation %}{{ m['content'] }}{%- endgeneration -%}{% endfor %}"
    )
    assert _problems(str(mine)) == []


# Its content is the key


def test_editing_a_template_is_a_miss_and_moving_it_is_none(mine: Path) -> None:
    first = _key(mine)
    moved = mine.rename(mine.with_name("moved.jinja"))
    assert _key(moved) == first
    moved.write_text(moved.read_text() + " ")
    assert _key(moved) != first


def test_a_copy_of_a_named_template_is_that_template(mine: Path) -> None:
    mine.write_text(templates.text("qwen"))
    assert _key(mine) == _key("qwen") != _key("chatml")
    assert _key("") == ""


# Putting it on


def test_the_chosen_template_becomes_the_models_only_one(spoken_model: Path, mine: Path, tmp_path: Path) -> None:
    model = shutil.copytree(spoken_model, tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ 'another' }}"}))
    (model / "chat_template.json").write_text('{"chat_template": "yet another"}')
    out = downloaded(tmp_path / "run", model, mine)
    assert (out / "chat_template.jinja").read_bytes() == mine.read_bytes()
    assert json.loads((out / "tokenizer_config.json").read_text()) == settings
    assert not (out / "chat_template.json").exists()
    assert models.origin(out)["template"] == "a file of one's own"
    assert models.load_tokenizer(out).chat_template == mine.read_text()
    (turn,) = hand.turns(out)[:1]
    assert models.load_tokenizer(out).decode(turn.prompt).startswith("<|im_start|>my user\n")


def test_without_a_choice_the_model_stays_byte_for_byte_as_it_came(spoken_model: Path, tmp_path: Path) -> None:
    out = downloaded(tmp_path / "run", spoken_model, "")
    kept = hand.content(out)
    kept.pop(models.ORIGIN)
    assert kept == hand.content(spoken_model)


@pytest.mark.parametrize(("name", "stop"), [("llama3", "<|eot_id|>"), ("phi", "<|end|>"), ("alpaca", "<|im_end|>")])
def test_the_token_that_ends_an_answer_becomes_the_models_stop_token(
    spoken_model: Path, tmp_path: Path, name: str, stop: str
) -> None:
    out = downloaded(tmp_path / "run", spoken_model, name)
    assert models.origin(out)["template"] == name
    tokenizer = models.load_tokenizer(out)
    assert (tokenizer.eos_token, tokenizer.pad_token) == (stop, "<|im_end|>")
    told = tmp_path / "run" / "notes" / "stop.md"
    assert told.exists() == (stop != "<|im_end|>")
    assert not told.exists() or f"with {stop}: now the stop token, in place of <|im_end|>" in told.read_text()
    (turn,) = chat.turns(tokenizer, CHATS[:1], ["Ok."])
    assert turn.answer[-1] == tokenizer.eos_token_id
    assert set(models.stop_ids(models.load(out, out, "fp32"), tokenizer)) == {tokenizer.eos_token_id, tiny.STOP}


def test_a_models_own_template_may_end_answers_with_another_token_than_its_tokenizer_says(
    spoken_model: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(spoken_model, tmp_path / "model")
    (model / "chat_template.jinja").write_text(templates.text("gemma"))  # as Gemma comes: its tokenizer stops at <eos>
    out = downloaded(tmp_path / "run", model, "")
    assert models.load_tokenizer(out).eos_token == "<end_of_turn>"


@pytest.mark.parametrize("own", ["{{ messages", "{% for m in messages %}{{ m['content'] }}{% endfor %}", None])
def test_a_models_own_template_that_cannot_be_trained_does_not_stop_its_download(
    tiny_model: Path, tmp_path: Path, own: str | None
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "chat_template.jinja").unlink() if own is None else (model / "chat_template.jinja").write_text(own)
    assert hand.content(downloaded(tmp_path / "run", model, "")).items() >= hand.content(model).items()


# What does not fit is refused


def test_a_template_of_another_family_names_the_tokens_that_lack_and_the_templates_that_fit(
    tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="does not fit this model's tokenizer") as failure:
        downloaded(tmp_path / "run", tiny_model, "llama3")
    said = str(failure.value)
    assert "nothing would end an answer: behind it the template writes '<|eot_id|>', no special token" in said
    assert "it writes <|end_header_id|>, <|eot_id|>, <|start_header_id|>, for which the tokenizer has no single" in said
    assert (
        "Mend it, or choose by download.template=<name> one that fits: alpaca, chatml, mistral, qwen, smollm2, vic"
        in said
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{% for m in messages %}{{ m.content }}</s>{% endfor %}", "behind it the template writes '</s>', no special"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "writes '', no special token"),
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}", "differently once the answer"),
        ("{{ messages[0].content }}", "leaves out what the assistant says"),
        ("{{ raise_exception('Not today.') }}", "cannot render a question and its answer: Not today"),
    ],
)
def test_a_template_that_could_not_be_trained_is_refused_when_it_is_chosen(
    tiny_model: Path, mine: Path, tmp_path: Path, content: str, told: str
) -> None:
    mine.write_text(content)
    with pytest.raises(ValueError, match="does not fit") as failure:
        downloaded(tmp_path / "run", tiny_model, mine)
    assert told in str(failure.value)


def test_a_base_model_without_a_template_gets_one(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("chat_template.jinja"))
    with pytest.raises(chat.TemplateError):
        hand.turns(downloaded(tmp_path / "bare", model, ""))
    assert hand.turns(downloaded(tmp_path / "run", model, "chatml")) == hand.turns(tiny_model)


def test_markers_that_are_meant_as_text_are_named_in_a_comment(tiny_model: Path, mine: Path, tmp_path: Path) -> None:
    mine.write_text("{#- plain text: <|note|> -#}" + tiny.TEMPLATE.replace("'<|im_start|>", "'<|note|><|im_start|>"))
    assert "<|note|>" in templates.rendered(mine.read_text(), CHATS[0], True)
    downloaded(tmp_path / "run", tiny_model, mine)
    mine.write_text(mine.read_text().replace("plain text", "whatever"))
    with pytest.raises(ValueError, match=r"it writes <\|note\|>, for which the tokenizer has no single token"):
        downloaded(tmp_path / "again", tiny_model, mine)
