"""A drawing with a wrong wire is refused before it runs: mypy reads the stages as their callers see them."""

from __future__ import annotations

from pathlib import Path

import pytest
from mypy import api

REPO = Path(__file__).resolve().parent.parent
STAGES = ["tasks/evaluate.py", "tasks/sft.py", *map(str, (REPO / "tasks" / "runtime").glob("*.py"))]
HEAD = """\
from tasks.evaluate import EvaluateConfig, evaluate
from tasks.runtime import GGUF, Dataset, Model, Tokens
from tasks.sft import SFTConfig, sft

model: Model
gguf: GGUF
rows: Dataset
tokens: Tokens
"""
LINES = {
    "a model is measured": "evaluate(EvaluateConfig(), model, rows)",
    "a GGUF is measured": "evaluate(EvaluateConfig(), gguf, rows)",
    "a result is a model": "evaluate(EvaluateConfig(), sft(SFTConfig(), model, tokens), rows)",
    "rows for a model": "sft(SFTConfig(), rows, tokens)",
    "rows to measure": "evaluate(EvaluateConfig(), rows, rows)",
    "a GGUF to train": "sft(SFTConfig(), gguf, tokens)",
    "a result in a wrong seat": "sft(SFTConfig(), evaluate(EvaluateConfig(), model, rows), tokens)",
    "a wrong config": "sft(EvaluateConfig(), model, tokens)",
    "a missing argument": "sft(SFTConfig(), model)",
    "one argument too many": "sft(SFTConfig(), model, tokens, rows)",
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What mypy says of each line, with the repo's own settings; it is run once, and reads no library."""
    folder = tmp_path_factory.mktemp("types")
    (folder / "drawing.py").write_text(HEAD + "\n".join(LINES.values()) + "\n")
    options = [
        "--config-file",
        str(REPO / "pyproject.toml"),
        "--follow-imports=skip",
        "--cache-dir",
        str(folder / "cache"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPO)
        out, trouble, _ = api.run([*options, str(folder / "drawing.py"), *STAGES])
    assert not trouble
    found = dict.fromkeys(LINES, "")
    for line in out.splitlines():
        if "drawing.py:" in line:
            number, message = line.split("drawing.py:")[1].split(": ", 1)
            found[list(LINES)[int(number) - HEAD.count("\n") - 1]] += message
    return found


@pytest.mark.parametrize("line", ["a model is measured", "a GGUF is measured", "a result is a model"])
def test_a_right_wire_is_accepted(said: dict[str, str], line: str) -> None:
    assert said[line] == ""


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("rows for a model", 'has incompatible type "Dataset"; expected "Model"'),
        ("rows to measure", 'has incompatible type "Dataset"; expected "Model | GGUF"'),
        ("a GGUF to train", 'has incompatible type "GGUF"; expected "Model"'),
        ("a result in a wrong seat", 'has incompatible type "Metrics"; expected "Model"'),
        ("a wrong config", 'has incompatible type "EvaluateConfig"; expected "SFTConfig"'),
        ("a missing argument", 'Missing positional argument "tokens"'),
        ("one argument too many", "Too many arguments"),
    ],
)
def test_a_wrong_wire_is_refused(said: dict[str, str], line: str, sentence: str) -> None:
    assert sentence in said[line]
