"""A chat template and a tokenizer: do they belong together, and what is changed so that they do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tasks.llm import templates
from tasks.llm.templates import Message

_ANSWER = "Ok."
_CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}]
_CONTROL = re.compile(r"<\|[^<>\s]+\|>|<\uff5c[^<>\s]+\uff5c>|<(?:start|end)_of_\w+>|</?s>|<[be]os>")
"""What is a control token by its looks. Other tags may as well be words that somebody teaches their model."""


def put_on(folder: Path, template: str) -> None:
    """Make `template` the only chat template of a model folder, as `chat_template.jinja`."""
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")
    (folder / "chat_template.json").unlink(missing_ok=True)
    _edit(folder / "tokenizer_config.json", lambda config: config.pop("chat_template", None))


def works(tokenizer: Any) -> bool:
    """Whether the template that came with a tokenizer can be used as it is, but perhaps for the stop token."""
    own = tokenizer.chat_template
    return isinstance(own, str) and not list(misfits(tokenizer, own))


def settle(tokenizer: Any, template: str) -> str:
    """The token that shall end an answer under this template: the tokenizer's own stop token, or the special token that
    the template writes instead. Raises ValueError, with all that is wrong and what would fit, where neither is so."""
    if wrong := list(misfits(tokenizer, template)):
        good = ", ".join(name for name in templates.names() if not list(misfits(tokenizer, templates.text(name))))
        other = f"choose by download.template=<name> one that fits: {good}" if good else "choose another model"
        listed = "".join(f"  * {said}\n" for said in wrong)
        raise ValueError(f"The chat template does not fit this model's tokenizer:\n{listed}Mend it, or {other}.")
    return _stop(tokenizer, _behind_the_answer(tokenizer, template))


def misfits(tokenizer: Any, template: str) -> Iterator[str]:
    """What is wrong between a template and a tokenizer, a sentence each."""
    from jinja2 import TemplateError

    try:
        behind = _behind_the_answer(tokenizer, template)
        lacking = _lacking(tokenizer, template)
    except (TemplateError, TypeError) as error:
        yield f"it cannot render a question and its answer: {error}."
        return
    except ValueError as error:
        yield str(error)
        return
    if not _stop(tokenizer, behind):
        yield (
            f"nothing would end an answer: behind it the template writes {behind.strip()[:40]!r}, no special token of "
            f"this tokenizer. Its stop token is {tokenizer.eos_token!r}; a template writes it as {{{{ eos_token }}}}."
        )
    if lacking:
        yield f"it writes {', '.join(lacking)}, for which the tokenizer has no single token."


def adopt(folder: Path, stop: str, stop_id: int) -> None:
    """Make `stop` the stop token of a model folder: of its tokenizer, and one of those that end a generation."""

    def extend(config: dict[str, Any]) -> None:
        old = config.get("eos_token_id")
        more = old if isinstance(old, list) else [old]
        config["eos_token_id"] = [stop_id, *(i for i in more if i is not None and i != stop_id)]

    _edit(folder / "tokenizer_config.json", lambda config: config.update(eos_token=stop))
    _edit(folder / "special_tokens_map.json", lambda config: config.update(eos_token=stop))
    _edit(folder / "generation_config.json", extend)
    _edit(folder / "config.json", extend)


def _render(tokenizer: Any, template: str, messages: list[Message], generation: bool) -> str:
    start, stop = tokenizer.bos_token or "", tokenizer.eos_token or ""
    return templates.rendered(template, messages, generation, start, stop)


def _behind_the_answer(tokenizer: Any, template: str) -> str:
    """What a template writes behind an answer."""
    asked, whole = (_render(tokenizer, template, _CHAT[:n], n == 1) for n in (1, 2))
    if not whole.startswith(asked):
        raise ValueError("it renders a question differently once the answer follows, so no answer can be trained.")
    told = whole[len(asked) :]
    if _ANSWER not in told:
        raise ValueError("it leaves out what the assistant says.")
    return told.rpartition(_ANSWER)[2]


def _stop(tokenizer: Any, behind: str) -> str:
    """The stop token among what is written behind an answer, "" where there is none."""
    if tokenizer.eos_token and tokenizer.eos_token in behind:
        return str(tokenizer.eos_token)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return max((token for token in special if behind.lstrip().startswith(token)), key=len, default="")


def _lacking(tokenizer: Any, template: str) -> list[str]:
    """Control tokens that the template writes of itself and the tokenizer spells in pieces."""
    meant = " ".join(re.findall(r"\{#-?\s*plain text:(.*?)#\}", template, re.DOTALL))
    written = _CONTROL.findall(_render(tokenizer, template, [*_CHAT, *_CHAT[:1]], True))
    vocabulary = tokenizer.get_vocab()
    return sorted({marker for marker in written if marker not in vocabulary and marker not in meant})


def _edit(place: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file where there is one; one that says so already keeps its bytes."""
    if not place.exists():
        return
    before, config = (json.loads(place.read_text(encoding="utf-8")) for _ in range(2))
    change(config)
    if config != before:
        place.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
