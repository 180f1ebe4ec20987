"""A function that a config names: `module:function` or `path/file.py:function`.

To look it up imports nothing and runs nothing, so a whole config can be checked and keyed in milliseconds.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMED = re.compile(r"[\w.]+:[A-Za-z_]\w*|.*\.py:\w+")
"""What names code. A served form refuses exactly this."""


class CodeError(ValueError):
    """There is no such function. The message says what is missing and what to do."""


def locate(named: str) -> tuple[Path, str]:
    """The source file and the name of the function. Raises CodeError when no such function can be called there."""
    place, function = source_file(named)
    try:
        tree = ast.parse(place.read_bytes(), place.name)
    except (SyntaxError, ValueError, OSError) as error:
        raise CodeError(f"{place} cannot be read as Python: {error}; mend it") from None
    defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if function not in defined:
        others = ", ".join(name for name in defined if not name.startswith("_")) or "none"
        raise CodeError(f"no `def {function}` stands in {place}; functions there: {others}")
    if not _takes_three(defined[function]):
        raise CodeError(f"{function} in {place} must be written `def {function}(prompts, answers, wanted)`")
    return place, function


def source_file(named: str) -> tuple[Path, str]:
    """Where the code must stand, and the name of the function in it."""
    where, _, function = named.rpartition(":")
    if not where.endswith(".py"):
        return _of_module(where), function
    place = Path(where).expanduser()
    if not place.is_file():
        raise CodeError(f"there is no file {where}; a path is relative to {Path.cwd()}, where the run starts")
    return place, function


def _of_module(module: str) -> Path:
    """The source of a module. `importlib.util.find_spec` would import the packages around it."""
    top, *inner = module.split(".")
    specs = (finder.find_spec(top, None) for finder in sys.meta_path)
    spec = next((spec for spec in specs if spec is not None), None) if all((top, *inner)) else None
    found, folders = (spec.origin, spec.submodule_search_locations or []) if spec else (None, [])
    for name in inner:
        places = [Path(folder, name) for folder in folders]
        files = (file for place in places for file in (place / "__init__.py", place.with_suffix(".py")))
        found, folders = next((str(file) for file in files if file.is_file()), None), [str(place) for place in places]
    if not found or not found.endswith(".py"):
        raise CodeError(
            f"no Python source of module {module} is found; install it, or name a file: path/file.py:function"
        )
    return Path(found)


def _takes_three(function: ast.FunctionDef) -> bool:
    """Whether three positional arguments fit. What a decorator makes of them cannot be told from here."""
    takes = function.args
    most = len(takes.posonlyargs) + len(takes.args)
    fits = most - len(takes.defaults) <= 3 and (most >= 3 or takes.vararg is not None) and None not in takes.kw_defaults
    return fits or bool(function.decorator_list)


def identity(named: str) -> dict[str, str]:
    """What the function enters a key as: its name and the SHA-256 of its file, wherever that lies.

    Code that the file imports is not followed: a change there does not change the key.
    """
    place, function = locate(named)
    return {"function": function, "sha256": hashlib.sha256(place.read_bytes()).hexdigest()}


def load(named: str) -> Callable[..., Any]:
    """The function itself; this runs the file."""
    place, function = locate(named)
    where = named.rpartition(":")[0]
    try:
        module = _run(place) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:
        alone = " (a file finds what is installed, not what lies beside it)" if _beside(error, place) else ""
        raise CodeError(f"{named} cannot be imported: {told(error, named)}{alone}") from error
    found: Callable[..., Any] = getattr(module, function)
    return found


def _beside(error: Exception, place: Path) -> bool:
    """Whether what it did not find to import lies in the same folder. That would be no part of the key."""
    lost = isinstance(error, ModuleNotFoundError) and error.name
    return bool(lost) and any((place.parent / f"{lost}{end}").exists() for end in (".py", ""))


def told(error: Exception, named: str) -> str:
    """What an error says, and the line of the user's file in which it happened."""
    place = source_file(named)[0].resolve()
    at = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).resolve() == place]
    where = f" (line {at[-1].lineno}: {at[-1].line})" if at else ""
    return f"{type(error).__name__}: {error}{where}"


def _run(place: Path) -> Any:
    """A file as a module of its own name, known to Python as dataclasses and pickle want it."""
    name = "reward_" + hashlib.sha256(str(place.resolve()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec and spec.loader  # it ends in .py and is there
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
