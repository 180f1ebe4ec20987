"""`--help`: what a flow does, the choices it offers, and every knob with the words written under it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator
from typing import Any

from flows.compose import choices, compose
from tasks.runtime import keys


def text(drawing: Callable[..., Any], schema: type) -> str:
    """The whole help page of a flow."""
    name = drawing.__name__
    seats = choices(name)
    lines = [inspect.getdoc(sys.modules[drawing.__module__]) or name, "", "CHOICES (seat=choice)"]
    several = {seat: found for seat, found in seats.items() if len(found[1]) > 1}
    lines += [f"  {f'{seat} = {default}':<40} of {', '.join(options)}" for seat, (default, options) in several.items()]
    lines += ["", "KNOBS (key=value), with what the default choices give them"]
    lines += _knobs(compose(name, schema, []), "")
    lines += [
        "",
        "-m sweeps over comma-separated values, --cfg job prints the config, --config-dir DIR adds your own choices.",
    ]
    return "\n".join(lines)


def _knobs(config: Any, prefix: str) -> Iterator[str]:
    words, kinds = documented(type(config)), typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        value, key = getattr(config, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            yield from _knobs(value, f"{key}.")
        else:
            yield f"  {key} = {keys.plain(value)}"
            if words.get(item.name):
                yield textwrap.fill(words[item.name], 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
            for kind in typing.get_args(kinds[item.name]):
                if isinstance(value, dict) and dataclasses.is_dataclass(kind):  # entries of any name
                    yield from _knobs(typing.cast(type, kind)(), f"{key}.NAME.")


def documented(config: type) -> dict[str, str]:
    """Field -> the string that stands under it in the source; inherited fields included."""
    found: dict[str, str] = {}
    for cls in reversed([c for c in config.__mro__ if dataclasses.is_dataclass(c)]):
        body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]).body
        for field, after in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                says = (
                    after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
                )
                found[field.target.id] = " ".join(str(says).split())
    return found
