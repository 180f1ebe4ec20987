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
    libraries: set[str] = set()
    stage = _parse(_source(module))
    waiting = [(module, name) for name in (*stage.definitions, "")]
    while waiting:
        place = waiting.pop()
        if place in reached:
            continue
        parsed = _parse(_source(place[0]))
        if place[1] in parsed.imports and place[1] not in parsed.definitions:
            waiting.append(parsed.imports[place[1]])  # re-exported: the definition stands elsewhere
            continue
        statements = parsed.loose if not place[1] else parsed.definitions.get(place[1], [])
        reached[place] = "\n".join(_normal(statement) for statement in statements)
        for owner, name in _references(statements, parsed):
            if owner == _HERE:
                waiting.append((place[0], name))
            elif owner == ours or owner.startswith(ours + "."):
                whole = f"{owner}.{name}"
                waiting.append((whole, "") if name and _is_module(whole) else (owner, name))
            elif owner.split(".")[0] not in sys.stdlib_module_names and not owner.startswith("tasks"):
                libraries.add(owner.split(".")[0])
    text = "\n".join(f"{owner}:{name}\n{code}" for (owner, name), code in sorted(reached.items()))
    return Code(hashlib.sha256(text.encode()).hexdigest(), _versions(libraries))


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
    try:
        return name.startswith("tasks.") and importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@functools.lru_cache(maxsize=256)
def _parse(path: Path) -> _Module:
    module = _Module()
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        names = _defined(statement)
        for name in names:
            module.definitions.setdefault(name, []).append(statement)
        if not names:
            module.loose.append(statement)
    for node in ast.walk(ast.parse(path.read_text())):  # imports inside functions count as well
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


def _references(statements: list[ast.stmt], module: _Module) -> list[tuple[str, str]]:
    """The (module, name) pairs that some statements mention; `("transformers", "")` for a whole library."""
    found: list[tuple[str, str]] = []
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in module.imports:
                owner, name = module.imports[node.value.id]
                whole = f"{owner}.{name}" if name else owner
                found.append((whole, node.attr) if not name or _is_module(whole) else (owner, name))
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
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def _normal(statement: ast.stmt) -> str:
    return ast.unparse(_Plain().visit(ast.parse(ast.unparse(statement))))


def _versions(libraries: set[str]) -> dict[str, str]:
    found = {}
    for library in sorted(libraries):
        try:
            found[library] = importlib.metadata.version(_DISTRIBUTIONS.get(library, library))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
