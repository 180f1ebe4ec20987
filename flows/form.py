"""The front door as a form: its drop-downs, the words that explain them, and what a form may not say.

Prefect makes the form of a flow's parameters. The server refuses what does not fit their schema; what is right in form
and wrong in meaning is refused by the flow run itself, before anything starts.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from flows.compose import CONF, ConfigError, choices, compose

SHAPE = r"^(~|[\w.@/+]+=)"
"""What an override looks like; the server refuses everything else while the form is still open."""

ROOT = "POSTTRAIN_ROOT"
"""Names, in the environment of served runs, the folder under which everything generated lies."""

_IN_A_FILE = "that is for the owner of this machine to say, in a file of conf/ or on the command line."
_OWNERS = {
    "runtime.root": f"where artifacts lie is for the server to say: {ROOT} in deploy/.env, or flows.deploy --root.",
    "trust_remote_code": f"it lets code run that comes with a model; {_IN_A_FILE}",
    "llama_cpp": f"it names a program to run; {_IN_A_FILE}",
    "hydra": "Hydra's own settings are for the command line.",
}
_BRIEF = 250
"""Characters about the choices of one field that are read; what is longer stands on the deployment's page."""
_CODE = re.compile(r"[\w.]+:[A-Za-z_]\w*|.*\.py:\w+")
"""`module:function`, `file.py:function`: how a config names code."""


def read(name: str, schema: type, overrides: list[str]) -> Any:
    """The config of a filled-in form. Raises ConfigError with everything that is wrong or not for a form to say."""
    problems = refused(overrides)
    try:
        config = compose(name, schema, [word for word in overrides if not refused([word])] + owners())
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return config


def owners() -> list[str]:
    """What the server adds to every form."""
    return [f"runtime.root={os.environ[ROOT]}"] if ROOT in os.environ else []


def refused(overrides: list[str]) -> list[str]:
    """What a form may not say, each with the reason: everybody who sees the form can send it."""
    return [f"{key}: {why}" for override in overrides for key, value in _said(override) if (why := _why(key, value))]


def _why(key: str, value: Any) -> str:
    for name, why in _OWNERS.items():
        if name == key or name in re.split("[./@]", key):
            return why
    if not isinstance(value, str):
        return ""
    if "${" in value:  # what it becomes is not seen here
        return f"{value} is put together from other values; give the value itself, or do so on the command line."
    if re.fullmatch(r"(.+\.)?rewards\..+\.source", key) and "://" in value:
        return f"it names a server that is sent the answers, and a token of this machine; {_IN_A_FILE}"
    return f"{value} names code to run; {_IN_A_FILE}" if _CODE.fullmatch(value) else ""


def _said(override: str) -> Iterator[tuple[str, Any]]:
    """The keys that an override sets with their values, also those inside `{...}`; nothing if it cannot be read."""
    try:
        parsed = OverridesParser.create().parse_override(override)
        yield from _leaves(parsed.get_key_element().lstrip("+~"), parsed.value())
    except HydraException:
        return  # composing says what is wrong with it


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def filled(name: str, overrides: list[str]) -> dict[str, Any]:
    """Overrides as a filled-in form."""
    seats = {seat for seat, (_, options) in choices(name).items() if len(options) > 1}
    picks = {parameter(k): v for k, _, v in (o.partition("=") for o in overrides) if k in seats}
    return picks | {"overrides": [o for o in overrides if o.partition("=")[0] not in seats]}


def asked(seats: dict[str, tuple[str, list[str]]], given: dict[str, Any]) -> list[str]:
    """A filled-in form as the overrides one would type."""
    picked = {seat: given.get(parameter(seat), seats[seat][0]) for seat in seats}
    return [f"{seat}={choice}" for seat, choice in picked.items() if choice != seats[seat][0]] + given["overrides"]


def parameter(seat: str) -> str:
    return seat.split("@")[-1]


def parameters(name: str, served: bool) -> list[inspect.Parameter]:
    """A drop-down for every seat that has more than one choice, then free overrides."""
    from pydantic import Field

    override = Annotated[str, Field(pattern=SHAPE)]
    offered = {seat: found for seat, found in choices(name).items() if len(found[1]) > 1}
    found = [_one(parameter(seat), default, Literal[tuple(options)]) for seat, (default, options) in offered.items()]
    found.append(_one("overrides", [], list[override]))
    return found if served else [*found, _one("config_dirs", [], list[str])]


def _one(name: str, default: Any, kind: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def explained(name: str, about: str) -> str:
    """A docstring whose arguments are the form's: Prefect shows what is said of each above its field."""
    asks, lines = _questions(name), [about, "", "Args:"]
    for seat, options in ((seat, options) for seat, (_, options) in choices(name).items() if len(options) > 1):
        lines.append(f"    {parameter(seat)}: {asks.get(seat, seat)}.{_briefly(seat, options)}")
    lines.append("    overrides: Any knob as key=value, one in each item: dpo.args.beta=0.3. plan=true only says what")
    lines.append(f"        would run. All knobs: python -m flows.{name} --help")
    return "\n".join(lines)


def described(name: str, about: str) -> str:
    """The page of the deployment, in Markdown: what the flow does, and what each choice of the form means."""
    parts, asks = [about.partition("\n\n")[0]], _questions(name)
    for seat, (_, options) in choices(name).items():
        if len(options) > 1:
            parts.append(f"**{parameter(seat)}**: {asks.get(seat, seat)}")
            parts.append("\n".join(f"* `{option}` {_words(seat, option)}" for option in options))
    return "\n\n".join(parts)


def _briefly(seat: str, options: list[str]) -> str:
    """What each choice is, where that is a line or two: a form shows it as one paragraph."""
    said = ((option, re.split(r"[.;](?: |$)", _words(seat, option))[0]) for option in options)
    brief = "".join(f" {option}: {words}." for option, words in said if words)
    return brief if len(brief) < _BRIEF else " What each choice means: see the deployment's Description."


def _questions(name: str) -> dict[str, str]:
    """Seat -> the comment beside it in the primary config's defaults list."""
    text = (CONF / f"{name}.yaml").read_text()
    found = re.findall(r"^ +- ([\w@ ]+): \S+ +# (.+)$", text, re.M)
    return {seat: words[0].upper() + words[1:].rstrip() for seat, words in found}


def _words(seat: str, option: str) -> str:
    """The head comment of a choice's file, up to the command that runs it."""
    place = CONF / seat.split("@")[0] / f"{option}.yaml"
    if not place.exists():
        return ""
    head = re.match(r"(?:#.*\n)*", place.read_text())[0]  # type: ignore[index]
    lines = [line.lstrip("# ") for line in head.splitlines() if "@package" not in line]
    return re.split(r"\s(?:python -m|make )", " ".join(" ".join(lines).split()))[0].strip()
