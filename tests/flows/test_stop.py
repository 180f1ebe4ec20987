"""Stopping the real road: from a terminal, by a supervisor, and by Cancel in Prefect's UI."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import servers
from tests.flows.roads import ROOT, overrides
from tests.patience import alive, wait_for

LONG = ["sft.args.max_steps=4000", "sft.args.save_steps=7"]


def below(pid: int) -> list[int]:
    """The processes under a process, however deep."""
    own = Path(f"/proc/{pid}/task/{pid}/children")
    found = [int(child) for child in own.read_text().split()] if own.exists() else []
    return found + [deeper for child in found for deeper in below(child)]


def training(root: Path) -> bool:
    """Whether SFT has taken its first steps and saved them."""
    return newest(root) > 0


def newest(root: Path) -> int:
    """The step of the last complete checkpoint of SFT, 0 without one."""
    whole = (root / "store" / "work" / "sft").rglob("checkpoint-*/trainer_state.json")
    return max((int(place.parent.name.split("-")[1]) for place in whole), default=0)


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
    family, before = [running.pid, *below(running.pid)], newest(tmp_path / "root")
    began = time.monotonic()
    (os.kill if to == "the run" else os.killpg)(running.pid, sign)
    assert running.wait(30) == 128 + sign
    assert time.monotonic() - began < 15  # ten, and five for a busy machine
    wait_for(lambda: not any(alive(pid) for pid in family))
    said = (tmp_path / "log").read_text()
    assert f"Stopped by {sign.name}" in said and "Traceback (most" not in said
    assert newest(tmp_path / "root") > before


def test_a_road_cancelled_in_the_ui_is_cancelled_everywhere(tiny_model: Path, tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Cancelling

    serve = "from flows.launch import front_door\nfrom flows.sft_then_dpo import SFTThenDPO, sft_then_dpo\n"
    serve += "door = front_door(sft_then_dpo, SFTThenDPO)\nif __name__ == '__main__':\n"
    serve += f"    door.from_source({str(tmp_path)!r}, 'door.py:door').serve(name='served')\n"
    (tmp_path / "door.py").write_text(serve)
    root = tmp_path / "root"
    with servers.prefect(tmp_path / "prefect") as url:
        env = {**os.environ, **servers.QUIET, "PREFECT_API_URL": url, "PYTHONPATH": str(ROOT)}
        with open(tmp_path / "log", "w") as log:
            server = subprocess.Popen(
                [sys.executable, "door.py"], cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True
            )
        try:
            with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
                name = "sft_then_dpo/served"
                door: Any = wait_for(lambda: _deployment(client, name), seconds=60)
                data = [f"{seat}.path={ROOT}/data/tickets/{seat}.jsonl" for seat in ("chats", "pairs", "prompts")]
                given = {"overrides": overrides(tiny_model, root, *LONG, *data)}
                run = client.create_flow_run_from_deployment(door.id, parameters=given)
                wait_for(lambda: training(root), seconds=120)
                family, before = below(server.pid), newest(root)
                client.set_flow_run_state(run.id, Cancelling())
                began = time.monotonic()
                wait_for(lambda: client.read_flow_run(run.id).state.is_cancelled(), seconds=40)
                assert time.monotonic() - began < 25  # the server polls for what is to be cancelled
                wait_for(lambda: not any(alive(pid) for pid in family))
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(20)
    assert newest(root) > before


def _deployment(client: Any, name: str) -> Any:
    try:
        return client.read_deployment_by_name(name)
    except Exception:
        return None
