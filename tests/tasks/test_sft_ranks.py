"""Two ranks on a CPU, with and without DeepSpeed, against one process: the same rows, loss and recipe, and kills."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.dpo import DPOConfig, dpo
from tasks.encode import EncodeConfig, encode
from tasks.llm.training import LoRA, Method, last_complete
from tasks.reference import ReferenceConfig, reference
from tasks.runtime import Dataset, Model, Precision, Run, RuntimeConfig, external, keys, session, stage
from tasks.runtime.processes import ChildKilled
from tasks.runtime.session import Record
from tasks.sft import SFTConfig, sft
from tests import hand
from tests.patience import alive, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")

ROWS, BATCH, STEPS = 16, 4, 24
EPOCH = ROWS // 2
"""Rows of one epoch that each of two ranks draws."""
STRATEGIES = ["ddp", "zero2"]


@dataclass
class FolderConfig:
    path: str = external("path", default="")


@stage(makes=Model, version="1")
def model_in(run: Run, cfg: FolderConfig) -> dict[str, float]:
    shutil.copytree(cfg.path, run.out, dirs_exist_ok=True)
    return {}


@stage(makes=Dataset, version="1")
def rows_in(run: Run, cfg: FolderConfig) -> dict[str, float]:
    shutil.copytree(cfg.path, run.out, dirs_exist_ok=True)
    return {}


def _told(number: int) -> list[dict[str, str]]:
    return [{"done": f"count to {n}", "said": f"{n}: " + "ab" * (n % 3 + 1)} for n in range(number)]


@dataclass
class Bench:
    """The tiny model, rows for it, and a root for every way to train on them."""

    model: Path
    folder: Path

    def train(self, root: str, method: Method = Method.lora, precision: str = "fp32", **runtime: Any) -> Record:
        """The adapter for some epochs with dropout, every weight for a few steps on packed rows, grouped by length."""
        hand.dataset(self.folder / "chats", hand.chats(_told(ROWS)), hand.chats(_told(5)[1:]))
        full = method is Method.full
        given = {"max_steps": 4 if full else STEPS, "learning_rate": 1e-3, "logging_steps": 1, "save_steps": 2}
        given |= {"train_sampling_strategy": "group_by_length"} if full else {}
        cfg = SFTConfig(method, LoRA(rank=4, dropout=0.1), BATCH, Precision(precision), args=given)
        with self._session(root, runtime) as now:
            base = model_in(FolderConfig(str(self.model)))
            rows = rows_in(FolderConfig(str(self.folder / "chats")))
            sft(cfg, base, encode(EncodeConfig(cutoff=80, packing=full), base.tokenizer, rows))
        return now.records[-1]

    def prefer(self, root: str, method: Method, precision: str, **runtime: Any) -> Record:
        hand.dataset(self.folder / "pairs", hand.pairs(_told(ROWS)), hand.pairs(_told(4)))
        given = {"max_steps": 4, "learning_rate": 1e-3, "logging_steps": 1}
        cfg = DPOConfig(method, LoRA(rank=4), BATCH, precision=Precision(precision), args=given)
        with self._session(root, runtime) as now:
            policy = model_in(FolderConfig(str(self.model)))
            pairs = rows_in(FolderConfig(str(self.folder / "pairs")))
            known = reference(ReferenceConfig(precision=Precision(precision), method=method), policy, pairs)
            dpo(cfg, policy, known)
        return now.records[-1]

    def _session(self, root: str, runtime: dict[str, Any]) -> Any:
        return session(keys.restore(RuntimeConfig, {"root": str(self.folder / root), "register": "", **runtime}))

    def note(self, root: str, record: Record, name: str) -> Any:
        return json.loads((self.folder / root / "store" / record.manifest["notes"] / name).read_text())

    def losses(self, root: str, record: Record) -> list[float]:
        return [entry["loss"] for entry in self.note(root, record, "history.json") if "loss" in entry]


@pytest.fixture(scope="module")
def bench(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tiny_model, tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def one(bench: Bench) -> Record:
    return bench.train("one")


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Callable[[str], Record]:
    made: dict[str, Record] = {}

    def undisturbed(strategy: str) -> Record:
        if strategy not in made:
            made[strategy] = bench.train(strategy, ranks=2, strategy=strategy, micro_batch=1)
        return made[strategy]

    return undisturbed


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_end_where_one_does(
    one: Record, undisturbed: Callable[[str], Record], bench: Bench, strategy: str
) -> None:
    two = undisturbed(strategy)
    assert (two.state, two.manifest["recipe"], two.manifest["key"]) == (
        "made",
        one.manifest["recipe"],
        one.manifest["key"],
    )
    for name in ("loss", "eval_loss"):
        assert two.manifest["metrics"][name] == pytest.approx(one.manifest["metrics"][name], rel=0.01)
    losses = bench.losses(strategy, two)
    assert two.manifest["metrics"]["loss"] == pytest.approx(sum(losses) / STEPS) and len(losses) == STEPS


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_notes_prove_two_ranks_with_disjoint_rows_and_deepspeed_where_it_was_asked_for(
    undisturbed: Callable[[str], Record], bench: Bench, strategy: str
) -> None:
    first, last = bench.note(strategy, undisturbed(strategy), "ranks.json")
    assert [(r["rank"], r["world_size"], r["deepspeed"]) for r in (first, last)] == [
        (0, 2, strategy == "zero2"),
        (1, 2, strategy == "zero2"),
    ]
    assert first["drawn"] == last["drawn"] == len(first["rows"]) == STEPS * BATCH // 2
    for begin in range(0, STEPS * BATCH // 2, EPOCH):
        drawn = [set(rank["rows"][begin : begin + EPOCH]) for rank in (first, last)]
        assert not drawn[0] & drawn[1]
        assert drawn[0] | drawn[1] == set(range(ROWS))
    knobs = bench.note(strategy, undisturbed(strategy), "arguments.json")
    assert (knobs["per_device_train_batch_size"], knobs["gradient_accumulation_steps"]) == (1, 2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_full_weights_on_packed_rows_under_bf16_arithmetic_learn_the_same_and_are_measured_in_it(
    bench: Bench, strategy: str
) -> None:
    alone = bench.train("full", Method.full, "bf16")
    two = bench.train(f"full {strategy}", Method.full, "bf16", ranks=2, strategy=strategy)
    for name in ("loss", "eval_loss"):
        assert two.manifest["metrics"][name] == pytest.approx(alone.manifest["metrics"][name], rel=0.01)
    assert bench.losses(f"full {strategy}", two) == pytest.approx(bench.losses("full", alone), rel=0.002)


@pytest.mark.parametrize(
    ("strategy", "method", "precision"), [("ddp", Method.lora, "fp32"), ("zero2", Method.full, "bf16")]
)
def test_preferences_are_learned_by_two_ranks_as_by_one(
    bench: Bench, strategy: str, method: Method, precision: str
) -> None:
    alone = bench.prefer("one", method, precision)
    two = bench.prefer(strategy, method, precision, ranks=2, strategy=strategy)
    assert two.manifest["key"] == alone.manifest["key"]
    for name in ("loss", "eval_loss", "eval_accuracy"):
        assert two.manifest["metrics"][name] == pytest.approx(alone.manifest["metrics"][name], rel=0.01)
    assert [rank["deepspeed"] for rank in bench.note(strategy, two, "ranks.json")] == [strategy == "zero2"] * 2


# Kills


def _rank(number: int) -> int:
    """The process of a rank among our children; 0 where there is none."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == os.getpid() and f"RANK={number}".encode() in (place / "environ").read_bytes().split(b"\0"):
                return int(place.name)
        except OSError:
            continue
    return 0


class Killer(threading.Thread):
    """Kills a rank by signal 9 each time a further checkpoint is complete, so many times; `steps` says at which."""

    def __init__(self, root: Path, rank: int, times: int) -> None:
        super().__init__(daemon=True)
        self.work, self.rank, self.times = root / "store" / "work", rank, times
        self.steps: list[int] = []

    def run(self) -> None:
        for _ in range(self.times):
            step = wait_for(self._further, seconds=120)
            victims = [_rank(number) for number in (self.rank, 1 - self.rank)]
            os.kill(victims[0], signal.SIGKILL)
            self.steps.append(step)
            wait_for(lambda those=tuple(victims): not any(map(alive, those)), seconds=10)  # type: ignore[misc]

    def _further(self) -> int:
        """The step of a complete checkpoint that is newer than the one of the last kill."""
        folders = self.work.glob("*/*/checkpoints")
        found = itertools.chain.from_iterable([last_complete(folder, 2)] for folder in folders)
        newest = max((int(place.rsplit("-", 1)[1]) for place in found if place), default=0)
        return newest if newest > (self.steps or [0])[-1] else 0


def test_a_rank_that_is_killed_costs_no_more_than_the_steps_since_the_last_checkpoint(
    undisturbed: Callable[[str], Record], bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    killer = Killer(bench.folder / "killed", rank=1, times=1)
    killer.start()
    two = bench.train("killed", ranks=2, strategy="ddp", micro_batch=1)
    killer.join()
    assert len(killer.steps) == 1 and killer.steps[0] < STEPS
    said = capfd.readouterr().err
    assert "rank 1 of 2 ended with code -9" in said and "tried once more (2 of 2)" in said
    assert two.manifest["digest"] == undisturbed("ddp").manifest["digest"]  # bit for bit
    drawn = bench.note("killed", two, "ranks.json")[0]["drawn"]
    assert 0 < drawn <= (STEPS - killer.steps[0]) * BATCH // 2


def test_a_rank_that_is_killed_twice_fails_the_stage_and_the_same_command_goes_on(
    undisturbed: Callable[[str], Record], bench: Bench
) -> None:
    killer = Killer(bench.folder / "again", rank=0, times=2)
    killer.start()
    with pytest.raises(ChildKilled, match=r"Killed again \(2 of 2\)"):
        bench.train("again", ranks=2, strategy="zero2", micro_batch=1)
    killer.join()
    assert 0 < killer.steps[0] < killer.steps[1] < STEPS
    two = bench.train("again", ranks=2, strategy="zero2", micro_batch=1)
    assert two.manifest["digest"] == undisturbed("zero2").manifest["digest"]  # bit for bit
    assert bench.note("again", two, "ranks.json")[0]["drawn"] <= (STEPS - killer.steps[1]) * BATCH // 2
