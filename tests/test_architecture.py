"""The import law: flows -> tasks/<stage> -> {tasks/runtime, tasks/llm}; the last two do not know each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
FILES = sorted(path for room in ("flows", "tasks") for path in (REPO / room).rglob("*.py"))
LEARNING = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "llama_cpp", "deepspeed"}
ORCHESTRATION = {"prefect", "mlflow"}
CONFIG = {"hydra", "omegaconf"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function; `from a import b` counts as `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: fingerprints follow absolute imports only, so write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def in_room(module: str, *rooms: str) -> bool:
    return any(f"{module}.".startswith(f"{room}.") for room in rooms)


def strangers(room: str, *known: str) -> list[str]:
    """Imports of our own modules by files in `room` that are not in the rooms it may know."""
    found = [(name_of(path), module) for path in FILES if in_room(name_of(path), room) for module in imports(path)]
    ours = [(file, module) for file, module in found if in_room(module, "flows", "tasks", "tests", "conf", "deploy")]
    return [f"{file} imports {module}" for file, module in ours if not in_room(module, *known)]


def users(libraries: set[str], *rooms: str) -> list[str]:
    """Imports of some libraries by files in some rooms."""
    found = [(name_of(path), module) for path in FILES if in_room(name_of(path), *rooms) for module in imports(path)]
    return [f"{file} imports {module}" for file, module in found if in_room(module, *libraries)]


STAGES = [
    name for name in map(name_of, FILES) if in_room(name, "tasks") and not in_room(name, "tasks.runtime", "tasks.llm")
]


def test_a_flow_knows_flows_and_tasks() -> None:
    assert strangers("flows", "flows", "tasks") == []


@pytest.mark.parametrize("stage", [name for name in STAGES if name != "tasks"])
def test_a_stage_knows_runtime_and_llm_and_no_other_stage(stage: str) -> None:
    own = ".".join(stage.split(".")[:2])
    assert strangers(stage, "tasks.runtime", "tasks.llm", own) == []


def test_runtime_knows_only_itself_and_has_never_heard_of_a_tensor() -> None:
    assert strangers("tasks.runtime", "tasks.runtime") == []
    assert users(LEARNING | {"numpy", "pyarrow", "safetensors", "tokenizers"}, "tasks.runtime") == []


def test_llm_knows_only_itself_and_has_never_heard_of_orchestration() -> None:
    assert strangers("tasks.llm", "tasks.llm") == []
    assert users(ORCHESTRATION | CONFIG, "tasks.llm") == []


def test_hydra_stops_at_the_door() -> None:
    assert users(CONFIG, "tasks") == []
    assert users(CONFIG, "flows") != []


def test_a_stage_leaves_orchestration_to_the_runtime() -> None:
    assert [user for user in users(ORCHESTRATION, "tasks") if not user.startswith("tasks.runtime.")] == []


def test_importing_what_is_ours_is_cheap() -> None:
    ours = [name for name in map(name_of, FILES) if not name.endswith("__main__")]
    heavy = sorted(LEARNING | ORCHESTRATION | {"huggingface_hub", "matplotlib", "pyarrow"})
    code = f"""
import importlib, sys
for name in {ours}: importlib.import_module(name)
print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_outgrows_its_name(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, (
        "it holds something that has no name of its own yet"
    )


def test_there_is_no_room_without_a_law() -> None:
    assert [name for name in map(name_of, FILES) if {"utils", "util", "common", "helpers"} & set(name.split("."))] == []
