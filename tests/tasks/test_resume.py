"""Trainings that are killed by signal 9 in a real process end with the very bytes of undisturbed ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.flows.roads import ROOT, overrides
from tests.patience import wait_for

STEPS, SAVE = 24, 5
KNOBS = [
    f"{stage}.args.{knob}"
    for stage in ("sft", "dpo")
    for knob in (f"max_steps={STEPS}", f"save_steps={SAVE}", "logging_steps=3")
]
LORA = ["sft.lora.dropout=0.1", "sft.lora.rank=4"]  # dropout draws from a generator whose state must be kept, too
PPO = [
    *("debug=rlhf/smoke", "sft=null", "reward_model=null", "ppo.rewards.model.weight=0", "ppo.rewards.length.target=9"),
    *("ppo.updates=12", "ppo.kl.target=0.5", "ppo.learning_rate=1e-3", "ppo.watch.then=ignore", "ppo.precision=fp32"),
]  # with a coefficient of the KL that is steered, whose state must be kept, too
FULL = ["sft=full", "dpo=full", "sft.precision=bf16", "dpo.precision=bf16"]


def start(model: Path, root: Path, more: list[str]) -> subprocess.Popen[str]:
    given = ["rlhf", *overrides(model, root, *more)]
    if more is not PPO:
        given = ["sft_then_dpo", *overrides(model, root, *KNOBS, *more)]
    line = [sys.executable, "-m", "tests.trainings", *given]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(model: Path, root: Path, more: list[str]) -> dict[str, Any]:
    out, err = start(model, root, more).communicate(timeout=250)
    assert out, err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def kill_when(true: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    wait_for(lambda: true() or process.poll() is not None, seconds=120)
    assert process.poll() is None, process.communicate()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def checkpoints(root: Path, stage: str) -> list[int]:
    """The steps of the complete checkpoints of unfinished work."""
    found = (root / "store" / "work" / stage).rglob("checkpoint-*/trainer_state.json")
    return sorted(int(place.parent.name.split("-")[1]) for place in found)


def history(root: Path, stage: str) -> list[dict[str, float]]:
    (place,) = (root / "store" / "notes" / stage).rglob("history.json")
    entries: list[dict[str, float]] = json.loads(place.read_text())
    steps = [entry for entry in entries if "train_loss" not in entry]  # the trainer's last word is of one attempt only
    return [{k: v for k, v in e.items() if "runtime" not in k and "second" not in k} for e in steps]


@pytest.mark.parametrize("more", [LORA, FULL], ids=["lora", "full"])
def test_a_killed_training_ends_with_the_bytes_of_an_undisturbed_one(
    more: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    undisturbed = finish(tiny_model, calm, more)

    for stage, at in (("sft", 2 * SAVE), ("dpo", SAVE)):
        kill_when(
            lambda stage=stage, at=at: max(checkpoints(rough, stage), default=0) >= at, start(tiny_model, rough, more)
        )
    half = checkpoints(rough, "dpo")
    last = next((rough / "store" / "work" / "dpo").rglob(f"checkpoint-{half[-1]}"))
    shutil.copytree(last, last.parent / "checkpoint-23")  # the write of a later one, cut in half
    (last.parent / "checkpoint-23" / "trainer_state.json").unlink()

    resumed = finish(tiny_model, rough, more)
    assert (resumed["sft"], resumed["dpo"]) == (undisturbed["sft"], undisturbed["dpo"])
    assert resumed["states"]["sft"] == resumed["states"]["reference"] == "cached"
    assert resumed["states"]["dpo"] == "made"
    for stage in ("sft", "dpo"):  # losses, tokens seen, learning rates: nothing shows where it was cut
        assert history(rough, stage) == history(calm, stage)
        assert [e["num_tokens"] for e in history(calm, stage) if "num_tokens" in e][-1] > 0


def test_a_killed_ppo_draws_and_learns_on_as_an_undisturbed_one(tiny_model: Path, tmp_path: Path) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    undisturbed = finish(tiny_model, calm, PPO)
    for at in (0, 1):  # what it starts from is kept, and the first update after going on; later ones by the clock
        kill_when(
            lambda at=at: max(checkpoints(rough, "ppo"), default=-1) >= at,
            start(tiny_model, rough, PPO),
        )
    assert 1 <= checkpoints(rough, "ppo")[-1] < 12, "it was killed on its way"

    resumed = finish(tiny_model, rough, PPO)
    assert resumed["ppo"] == undisturbed["ppo"]
    assert resumed["states"] == {"download": "cached", "preprocess": "cached", "ppo": "made"}
    told = history(calm, "ppo")
    assert history(rough, "ppo") == told and len(told) == 12
    assert len({update["kl_coef"] for update in told}) > 4
