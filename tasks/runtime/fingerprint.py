"""The fingerprint of a stage's code: the stage file and what it reaches in our own libraries, as normal-form AST.

Comments, docstrings, bare strings, annotations and layout change nothing; a changed constant or call does. Reached
code is followed by name, function by function, so an edit to one `llm` function touches only the stages that call it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path

_HERE = "<this module>"
_DISTRIBUTIONS = {"llama_cpp": "llama-cpp-python", "yaml": "PyYAML", "PIL": "pillow"}


@dataclass(frozen=True)
class Code:
    """What produced an artifact: a digest of our code, and the versions of the libraries that code imports."""

    digest: str
    libraries: dict[str, str]


@dataclass
class _Module:
    """One source file: its top-level definitions, and what its names are imported from."""

    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    loose: list[ast.stmt] = field(default_factory=list)


@functools.lru_cache(maxsize=256)
def of_stage(module: str, ours: str = "tasks.llm") -> Code:
    """The fingerprint of the stage in `module`; code under the package `ours` is followed."""
    reached: dict[tuple[str, str], str] = {}
    seen: set[tuple[str, str]] = set()
    libraries: set[str] = set()
    waiting = [(module, name) for name in (*_parse(_source(module)).definitions, "")]
    while waiting:
        place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        parsed = _parse(_source(place[0]))
        statements = parsed.definitions.get(place[1], []) if place[1] else parsed.loose
        if statements or place[1] not in parsed.imports:
            reached[place] = "\n".join(ast.unparse(statement) for statement in statements)
            mentioned = _references(statements, parsed, ours)
        else:
            mentioned = [parsed.imports[place[1]]]  # re-exported: the definition stands elsewhere
        for owner, name in mentioned:
            if owner == _HERE:
                waiting.append((place[0], name))
            elif _within(owner, ours):
                waiting.append((f"{owner}.{name}", "") if name and _is_module(f"{owner}.{name}") else (owner, name))
            elif not _within(owner, "tasks") and owner.split(".")[0] not in sys.stdlib_module_names:
                libraries.add(owner.split(".")[0])
    text = "\n".join(f"{owner}:{name}\n{code}" for (owner, name), code in sorted(reached.items()))
    return Code(hashlib.sha256(text.encode()).hexdigest(), versions(libraries))


def _within(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


def _source(module: str) -> Path:
    loaded = sys.modules.get(module)
    origin = getattr(loaded, "__file__", None)
    if origin is None:
        spec = importlib.util.find_spec(module)
        origin = spec.origin if spec else None
    if origin is None:
        raise ModuleNotFoundError(f"No source file for module {module}.")
    return Path(origin)


@functools.cache
def _is_module(name: str) -> bool:
    """Asked of our own names only: to look for a library's module imports the library."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@functools.lru_cache(maxsize=256)
def _parse(path: Path) -> _Module:
    module = _Module()
    tree = _Plain().visit(ast.parse(path.read_text(encoding="utf-8")))
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        names = _defined(statement)
        for name in names:
            module.definitions.setdefault(name, []).append(statement)
        if not names:
            module.loose.append(statement)
    for node in ast.walk(tree):  # imports inside functions count as well
        if isinstance(node, ast.Import):
            module.imports |= {(a.asname or a.name).split(".")[0]: (a.name, "") for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            module.imports |= {a.asname or a.name: (node.module, a.name) for a in node.names}
    return module


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [t.id for t in targets if isinstance(t, ast.Name)]


def _references(statements: list[ast.stmt], module: _Module, ours: str) -> list[tuple[str, str]]:
    """The (module, name) pairs that some statements mention; `("transformers", "")` for a whole library."""
    found: list[tuple[str, str]] = []
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in module.imports:
                owner, name = module.imports[node.value.id]
                whole = f"{owner}.{name}" if name else owner
                known = not name or (_within(whole, ours) and _is_module(whole))
                found.append((whole, node.attr) if known else (owner, name))
            elif isinstance(node, ast.Name) and node.id in module.imports:
                found.append(module.imports[node.id])
            elif isinstance(node, ast.Name) and node.id in module.definitions:
                found.append((_HERE, node.id))
            elif isinstance(node, ast.ImportFrom) and node.module:
                found += [(node.module, a.name) for a in node.names]
            elif isinstance(node, ast.Import):
                found += [(a.name, "") for a in node.names]
    return found


class _Plain(ast.NodeTransformer):
    """Strip what a reader sees and the machine does not."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        bare = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if bare else self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        for call in (decorator for decorator in node.decorator_list if isinstance(decorator, ast.Call)):
            call.keywords = [word for word in call.keywords if word.arg != "needs"]  # an estimate makes nothing
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def versions(libraries: set[str]) -> dict[str, str]:
    """The installed version of each, as far as it is installed."""
    found = {}
    for library in sorted(libraries):
        try:
            found[library] = importlib.metadata.version(_DISTRIBUTIONS.get(library, library))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
