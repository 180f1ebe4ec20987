"""Killed after each file operation, what it was writing whole or cut in half: a miss or a hit, never half of one."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: on a busy disk each fsync takes long, and no power is really cut."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


def died(scenario: str, folder: Path) -> list[list[str]]:
    """The operations of each death of a scenario, and of the undisturbed end; fails where something was wrong."""
    command = [sys.executable, "-m", "tests.dying", scenario, str(folder)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=280)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(operations[-1:], wrong) for operations, wrong in lines if wrong] == [], done.stderr[-3000:]
    return [operations for operations, _ in lines]


@pytest.mark.parametrize(
    ("scenario", "least"),
    [
        ("Publish", 45),
        ("OverDamage", 45),
        ("OverRubbish", 45),
        ("OverDrift", 45),
        ("Shared", 40),
        ("Part", 15),
        ("DamagedPart", 20),
        ("Call", 50),
    ],
)
def test_death_after_any_file_operation_leaves_a_miss_or_a_hit(scenario: str, least: int, memory: Path) -> None:
    runs = died(scenario, memory)
    assert [len(operations) for operations in runs[:-1]] == list(range(len(runs) - 1))  # each moment once
    assert len(runs) > least


def test_what_has_a_name_is_on_the_disk_before_it_is_sealed(memory: Path) -> None:
    """A power cut keeps only what was synced: files before their folder is renamed, folders before the manifest."""
    done = died("Publish", memory)[-1]

    def at(event: str, *words: str) -> list[int]:
        return [n for n, line in enumerate(done) if line.startswith(event) and all(word in line for word in words)]

    (kept,) = at("os.rename", "/content", "/objects/")
    (noted,) = at("os.rename", "/notes ", "/notes/toy/")
    (sealed,) = at("os.link", "manifest.json", "/manifests/toy/k1.json")
    for name in ("model.safetensors", "tokenizer.json", "extra/x.tiktoken"):
        assert max(at("fsync", f"/content/{name}")) < kept
    assert max(at("fsync", "/notes/report.md")) < noted
    assert all(line < kept for line in at("fsync", "/content"))
    assert {done[line].rsplit("/", 1)[1] for line in at("fsync", "/content")} >= {"content", "extra"}
    assert any(kept < line < sealed for line in at("fsync", "/objects"))
    assert any(noted < line < sealed for line in at("fsync", "/notes/toy"))
    assert any(line < sealed for line in at("fsync", "/manifests"))
    assert max(at("fsync", "manifest.json")) < sealed < max(at("fsync", "/manifests/toy"))
