from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.runtime import fingerprint
from tasks.runtime.fingerprint import Code

STAGE = '''
"""What the stage does."""
import torch
from toyllm import models
from toyllm.rows import read

LIMIT = 3

def train(rate: float) -> dict[str, float]:
    """Train."""
    from toyllm import losses as how  # late, because heavy

    return {"loss": torch.tanh(how.mean(models.load(rate), read(LIMIT)))}
'''
OURS = {
    "__init__": "",
    "models": """
import yaml
from toyllm.loading import open_weights as load

def save(x): return x
""",
    "loading": """
SCALE = {"a": 1}

def open_weights(x): return _scaled(x)

def _scaled(x): return x * SCALE["a"]

class Unreached:
    size = 1
""",
    "rows": "import json\ndef read(n): return json.loads(n)\ndef write(n): return n\n",
    "losses": "def mean(*x): return sum(x) / len(x)\n",
}
Print = Callable[..., Code]


@pytest.fixture
def print_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Print]:
    """The fingerprint of a stage `toystage` over a package `toyllm`; keywords replace the text of a module."""
    monkeypatch.syspath_prepend(tmp_path)

    def forget() -> None:
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.partition(".")[0] in ("toystage", "toyllm")]:
            del sys.modules[name]
        for remembered in (fingerprint.of_stage, fingerprint._parse, fingerprint._is_module):
            remembered.cache_clear()

    def print_of(stage: str = STAGE, **modules: str) -> Code:
        (tmp_path / "toyllm").mkdir(exist_ok=True)
        (tmp_path / "toystage.py").write_text(stage)
        for name, text in {**OURS, **modules}.items():
            (tmp_path / "toyllm" / f"{name}.py").write_text(text)
        forget()
        return fingerprint.of_stage("toystage", ours="toyllm")

    yield print_of
    forget()


def edited(module: str, old: str, new: str) -> dict[str, str]:
    text = STAGE if module == "stage" else OURS[module]
    assert old in text
    return {module: text.replace(old, new)}


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("stage", '"""What the stage does."""', '"""Something else."""'),
        ("stage", '    """Train."""\n', ""),
        ("stage", "  # late, because heavy", ""),
        ("stage", "rate: float", "rate: int"),
        ("stage", "rate: float", "rate"),
        ("stage", " -> dict[str, float]:", " -> models.Unseen:"),
        ("stage", "rate: float", "rate: read | models.save"),
        ("stage", "LIMIT = 3", "\n\nLIMIT = (\n    3\n)\n"),
        ("stage", '{"loss":', "{'loss' :"),
        ("loading", "def _scaled(x)", "def _scaled(x: float)"),
    ],
)
def test_what_only_a_reader_sees_changes_nothing(print_of: Print, module: str, old: str, new: str) -> None:
    assert print_of() == print_of(**edited(module, old, new))


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("stage", "LIMIT = 3", "LIMIT = 4"),
        ("stage", "read(LIMIT)", "read(LIMIT, 1)"),
        ("rows", "return json.loads(n)", "return json.loads(n[:9])"),
        ("losses", "sum(x) / len(x)", "max(x)"),
        ("loading", "return _scaled(x)", "return _scaled(2 * x)"),
        ("loading", "x * SCALE", "x - SCALE"),
        ("loading", '{"a": 1}', '{"a": 2}'),
        ("models", "open_weights as load", "Unreached as load"),
    ],
)
def test_a_constant_a_call_or_reached_code_changes_it(print_of: Print, module: str, old: str, new: str) -> None:
    assert print_of().digest != print_of(**edited(module, old, new)).digest


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("rows", "def write(n): return n", "def write(n): return [n]"),
        ("models", "def save(x): return x", "def save(x): return [x]"),
        ("loading", "size = 1", "size = 2"),
    ],
)
def test_code_that_is_not_reached_changes_nothing(print_of: Print, module: str, old: str, new: str) -> None:
    assert print_of() == print_of(**edited(module, old, new))


def test_what_only_estimates_is_no_part_of_it(print_of: Print) -> None:
    one = "from toyllm import losses\n@stage(makes=int)\ndef train(x): return x\n"
    assert print_of(one) == print_of(one.replace("makes=int", "makes=int, needs=losses.mean"))
    assert print_of(one) != print_of(one.replace("makes=int", "makes=losses.mean"))


def test_the_order_of_definitions_changes_nothing(print_of: Print) -> None:
    assert print_of().digest == print_of(losses="def other(): return 0\n" + OURS["losses"]).digest


def test_functions_that_call_each_other_are_followed_to_an_end(print_of: Print) -> None:
    around = {
        "rows": "from toyllm import losses\ndef read(n): return losses.mean(n)\n",
        "losses": "def mean(*x):\n    from toyllm.rows import read\n    return read(x)\n",
    }
    assert print_of(**around).digest != print_of().digest


def test_the_libraries_that_are_reached_are_listed_with_their_versions(print_of: Print) -> None:
    assert print_of().libraries == {"torch": importlib.metadata.version("torch")}
    reached = print_of(
        **edited("models", "open_weights as load", "open_weights as load\ndef load(x): return yaml.load(x)")
    )
    assert reached.libraries["yaml"] == importlib.metadata.version("PyYAML")


def test_a_name_that_ours_passes_on_from_a_library_counts_as_that_library(print_of: Print) -> None:
    passed_on = print_of(models="from numpy import load\n")
    assert passed_on.libraries["numpy"] == importlib.metadata.version("numpy")


def test_a_fingerprint_of_today_is_the_fingerprint_of_tomorrow(print_of: Print) -> None:
    assert print_of().digest == "de36fccae0577c43e1b293b501893b2a7c125f605641c90062c9736ac03e281f"
