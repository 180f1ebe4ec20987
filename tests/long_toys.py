"""Toy stages that take long, or much room: one trains with checkpoints, one fills a disk."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

from tasks.runtime import Dataset, Model, Run, free, stage
from tests.toys import count


@dataclass
class StudyConfig:
    steps: int = 10
    seed: str = "seed"
    nap: float = free(0.0)
    """Seconds a step takes."""
    files: int = 3
    """How many files the result has; each is fsynced when it is published."""
    tally: str = free("")
    """Gets a line for each step that is done."""


@stage(makes=Model, version="1", device=True)
def study(run: Run, cfg: StudyConfig, rows: Dataset) -> dict[str, float]:
    """Each step depends on the one before. Checkpoints are written as trainers do: in place, their state last."""
    step, weights = _last_checkpoint(run.work)
    weights = weights or cfg.seed + (rows.path / "train.jsonl").read_text()
    while step < cfg.steps:
        step += 1
        weights = hashlib.sha256(f"{weights} {step}".encode()).hexdigest()
        time.sleep(cfg.nap)
        count(cfg.tally, f"step {step}")
        _save(run.work / f"checkpoint-{step}", step, weights)
        run.log({"loss": 1 / step}, step)
    for number in range(cfg.files):
        (run.out / f"model-{number}.safetensors").write_text(f"{weights} {number}\n" * 200)
    (run.out / "tokenizer.json").write_text("words")
    return {"steps": step}


def _save(folder: Path, step: int, weights: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_text(weights)
    (folder / "state.json").write_text(json.dumps({"step": step}))


def _last_checkpoint(work: Path) -> tuple[int, str]:
    """The newest complete one; what was cut off by a death is passed over."""
    for folder in sorted(work.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1])):
        try:
            return json.loads((folder / "state.json").read_text())["step"], (folder / "weights").read_text()
        except (OSError, ValueError):
            continue
    return 0, ""


@dataclass
class FillConfig:
    where: str = "out"
    """`out`: the result is too large. `work`: a checkpoint is. `rest`: both fit, and then not a byte more."""
    size: int = 4 << 20
    rest: bool = free(False)
    """Whether to leave no room."""


@stage(makes=Dataset, version="1")
def fill(run: Run, cfg: FillConfig, rows: Dataset) -> dict[str, float]:
    (run.work / "begun").touch()
    (run.out / "train.jsonl").write_text((rows.path / "train.jsonl").read_text())
    if cfg.where in ("out", "work"):
        (getattr(run, cfg.where) / "large").write_bytes(bytes(cfg.size))
    elif cfg.rest:
        _take_all(run.work / "ballast")
    return {}


def _take_all(place: Path) -> None:
    try:
        with open(place, "wb", buffering=0) as ballast:
            while ballast.write(bytes(1024)):
                pass
    except OSError:
        return
