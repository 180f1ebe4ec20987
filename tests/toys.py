"""Toy stages, keyed, sealed and isolated like the real ones. A body adds a line to `tally` whenever it truly runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tasks.runtime import Dataset, Metrics, Model, Moving, Run, Tokenizer, Tokens, external, free, stage
from tasks.runtime.session import Session

Open = Callable[..., AbstractContextManager[Session]]
"""Opens a session; keywords are fields of RuntimeConfig."""


def count(tally: str, what: str) -> None:
    if tally:
        with open(tally, "a") as file:
            file.write(f"{what}\n")


@dataclass
class CollectConfig:
    text: str = "a row"
    path: str = external("path", default="")
    tally: str = free("")

    def problems(self) -> Iterator[str]:
        if not self.text:
            yield "text is empty; give a row."


@stage(makes=Dataset, version="1")
def collect(run: Run, cfg: CollectConfig) -> dict[str, float]:
    count(cfg.tally, "collect")
    text = Path(cfg.path).read_text() if cfg.path else cfg.text
    (run.out / "train.jsonl").write_text(text.strip())
    (run.notes / "report.md").write_text(f"{len(text)} characters")
    return {"characters": len(text)}


@dataclass
class TrainConfig:
    rate: float = 0.5
    words: str = "a b c"
    tally: str = free("")


@stage(makes=Model, version="1", device=True)
def train(run: Run, cfg: TrainConfig, rows: Dataset) -> dict[str, float]:
    count(cfg.tally, "train")
    for step in (1, 2, 3):
        run.log({"loss": cfg.rate / step}, step)
        run.progress(step, 3, "steps")
    (run.out / "model.safetensors").write_text(f"{cfg.rate} {(rows.path / 'train.jsonl').read_text()}")
    (run.out / "tokenizer.json").write_text(cfg.words)
    return {"loss": cfg.rate / 3}


@dataclass
class EncodeConfig:
    tally: str = free("")


@stage(makes=Tokens, version="1")
def encode(run: Run, cfg: EncodeConfig, tokenizer: Tokenizer, rows: Dataset) -> dict[str, float]:
    count(cfg.tally, "encode")
    seen = sorted(p.name for p in tokenizer.path.iterdir())
    (run.out / "train.parquet").write_text(f"{seen} {(tokenizer.path / 'tokenizer.json').read_text()}")
    return {"files": len(seen)}


@dataclass
class AdaptConfig:
    rank: int = 8


@stage(makes=Model, version="1")
def adapt(run: Run, cfg: AdaptConfig, base: Model) -> dict[str, float]:
    (run.out / "adapter.json").write_text(str(cfg.rank))
    (run.out / "stands_on.json").write_text(json.dumps({"base": base.digest}))
    return {}


@dataclass
class MeasureConfig:
    deep: bool = True


@stage(makes=Metrics, version="1")
def measure(run: Run, cfg: MeasureConfig, models: list[Model], against: Dataset | None = None) -> dict[str, float]:
    read = [(model.base.path / "model.safetensors").read_text() for model in models]
    (run.out / "metrics.json").write_text(json.dumps({"read": read, "lineage": [a["stage"] for a in run.lineage]}))
    return {"models": len(models)}


def _commit(cfg: PullConfig) -> Moving:
    def ask() -> str:
        count(cfg.tally, "asked")
        return Path(cfg.hub).read_text()  # raises when "the hub" is gone

    return Moving(f"toy@{cfg.revision}", ask)


@dataclass
class PullConfig:
    revision: str = external(_commit, default="main")
    hub: str = free("")
    tally: str = free("")


@stage(makes=Model, version="1")
def pull(run: Run, cfg: PullConfig) -> dict[str, float]:
    (run.out / "model.safetensors").write_text(cfg.revision)
    return {}


@dataclass
class TroubleConfig:
    how: str = "wrong"
    tally: str = free("")
    """Gets the process id of whatever must not be left behind."""
    until: str = free("")
    """A file that `wait` waits for."""


@stage(makes=Dataset, version="1")
def trouble(run: Run, cfg: TroubleConfig) -> dict[str, float]:
    (run.work / "checkpoint").write_text("half way")
    (run.out / "train.jsonl").write_text("half a row")
    if cfg.how == "wrong":
        raise ValueError("The knob is wrong: turn it.")
    if cfg.how == "network":
        raise TimeoutError("The hub does not answer: try again.")
    if cfg.how == "slow":
        run.say("The server is asked again.")
    if cfg.how == "memory":
        left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        count(cfg.tally, str(left.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.how == "wait":
        count(cfg.tally, str(os.getpid()))
        while not os.path.exists(cfg.until):
            time.sleep(0.02)
    return {}
