"""Stopping the real road: from a terminal and by a supervisor (Cancel in Prefect's UI: test_deploy.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.roads import LONG, ROOT, checkpoint, overrides
from tests.patience import alive, below, wait_for


def training(root: Path) -> bool:
    """Whether SFT has taken its first steps and saved them."""
    return checkpoint(root) > 0


@pytest.fixture
def running(tiny_model: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "flows.sft_then_dpo", *overrides(tiny_model, tmp_path / "root", *LONG)]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=log, text=True, start_new_session=True)
    try:
        wait_for(lambda: training(tmp_path / "root"), seconds=120)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(("sign", "to"), [(signal.SIGTERM, "the run"), (signal.SIGINT, "its group")])
def test_a_stopped_road_is_gone_in_ten_seconds_with_a_checkpoint(
    sign: signal.Signals, to: str, running: subprocess.Popen[str], tiny_model: Path, tmp_path: Path
) -> None:
    family, before = [running.pid, *below(running.pid)], checkpoint(tmp_path / "root")
    began = time.monotonic()
    (os.kill if to == "the run" else os.killpg)(running.pid, sign)
    assert running.wait(30) == 128 + sign
    assert time.monotonic() - began < 15  # ten, and five for a busy machine
    wait_for(lambda: not any(alive(pid) for pid in family))
    said = (tmp_path / "log").read_text()
    assert f"Stopped by {sign.name}" in said and "Traceback (most" not in said
    assert checkpoint(tmp_path / "root") > before
