"""Chat templates by name: `<name>.jinja` renders a conversation as a model family was taught, and `<name>.gotmpl`, its
Go twin, does the same for Ollama. Putting a file here is all that a new one needs.

Rules for a template: messages in, prompts that are a prefix of the whole conversation, content as it is (Go cannot
trim), system turns rendered or folded into the first user turn, the stop token behind every answer. What looks like a
control token must be one token of the tokenizer; markers meant as text are named in a comment, `{# plain text: ... #}`.

Rules for a twin: no start token (Ollama puts it in front where the GGUF says so, and `gguf.start_keys` makes it say
what the template does), the last answer left open, the tokenizer's own stop token by `{{- $eos := "</s>" }}`.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from pathlib import Path

FOLDER = Path(__file__).parent
Message = dict[str, str]
START = "<start of the text>"
"""Stands for the start token where a template is rendered without a tokenizer."""


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


def text(choice: str) -> str:
    """The template of a name, or of a path to a `.jinja` file. Raises ValueError as `problem` words it."""
    if said := problem(choice):
        raise ValueError(said)
    return _place(choice).read_text(encoding="utf-8")


def problem(choice: str) -> str:
    """What is wrong with a choice, and what to do; "" for a good one."""
    place = _place(choice)
    if place.is_file():
        return _syntax_problem(place)
    if place.parent != FOLDER:
        return f"template={choice} does not exist; give a .jinja file, or one of {', '.join(names())}."
    near = difflib.get_close_matches(choice.lower(), names(), n=3, cutoff=0.5)
    hint = f"the nearest is {' or '.join(near)}. All names" if near else "choose one of"
    return f"There is no template '{choice}'; {hint}: {', '.join(names())}; or give the path of a .jinja file."


def name_of(template: str) -> str:
    """The name under which exactly this text lies here, "" for any other."""
    return next((name for name in names() if text(name) == template), "")


def twin(template: str, stop: str) -> str:
    """The Go twin of a chat template, "" where none is known. `stop` is the tokenizer's stop token.

    Found by what the template renders, not by its name or its letters, so a model's own template has one as well when
    it says the same as one of ours in every conversation we try.
    """
    for name in names():
        place = FOLDER / f"{name}.gotmpl"
        if place.exists() and _alike(template, text(name), stop):
            return _with_stop(place.read_text(encoding="utf-8").removesuffix("\n"), stop)
    return ""


def rendered(template: str, messages: list[Message], generation: bool, start: str = START, stop: str = "") -> str:
    """A conversation as transformers renders it, with these start and stop tokens."""
    from transformers.utils.chat_template_utils import render_jinja_template

    settings = {"add_generation_prompt": generation, "bos_token": start, "eos_token": stop}
    (said,), _ = render_jinja_template([messages], chat_template=template, **settings)
    return str(said)


def writes_start(template: str) -> bool:
    """Whether a template puts the start token in front. Raises jinja2.TemplateError where it cannot be rendered."""
    return rendered(template, [{"role": "user", "content": "Hello"}], True).startswith(START)


PROBES: list[list[Message]] = [
    [{"role": role, "content": content} for role, content in chat]
    for chat in (
        [("user", "Hello")],
        [("system", "Be brief."), ("user", "Hello")],
        [("user", "Hello"), ("assistant", "Ok."), ("user", "And now?")],
        [("system", "Be\nbrief."), ("user", " {x} "), ("assistant", "<think>\nso\n</think>\n\nOk. "), ("user", "\n")],
    )
]
"""Conversations by which templates are compared: with and without a system turn, spaces, and thoughts to keep."""


def _place(choice: str) -> Path:
    if choice.endswith(".jinja") or "/" in choice or choice.startswith("~"):
        return Path(choice).expanduser()
    return FOLDER / f"{choice}.jinja"


def _syntax_problem(place: Path) -> str:
    import jinja2

    try:
        content = place.read_text(encoding="utf-8")
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(re.sub(_GENERATION, "", content))
    except jinja2.TemplateSyntaxError as error:
        return f"template={place}, line {error.lineno}: {error.message}. Mend the file."
    except UnicodeDecodeError as error:
        return f"template={place} is not UTF-8 text ({error}). Save it as UTF-8."
    return "" if content.strip() else f"template={place} is empty: write a Jinja template that renders `messages`."


_GENERATION = r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}"
"""Tags that transformers adds to Jinja; they render nothing."""


@functools.lru_cache(maxsize=64)
def _alike(one: str, other: str, stop: str) -> bool:
    from jinja2 import TemplateError

    try:
        said = [[rendered(template, chat, True, stop=stop) for chat in PROBES] for template in (one, other)]
    except (TemplateError, TypeError):
        return False
    return said[0] == said[1]


def _with_stop(go: str, stop: str) -> str:
    literal = json.dumps(stop, ensure_ascii=False)  # a Go string as well
    return re.sub(r'(\$eos := )"[^"]*"', lambda found: found[1] + literal, go)
