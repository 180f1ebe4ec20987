"""The shipped automation against a real server: a killed flow run is Crashed, a living and a finished one are not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import automations
from tests import servers
from tests.patience import wait_for

REPO = Path(__file__).resolve().parents[2]
WINDOW = 45
"""Seconds; Prefect sends heartbeats every 30 s at most."""

FLOWS = """
import os, sys, time
from prefect import flow
@flow(flow_run_name="finished")
def short(): pass
@flow(flow_run_name=sys.argv[1])
def long():
    open(sys.argv[2], "w").close()
    while not os.path.exists(sys.argv[3]):
        time.sleep(0.1)
if sys.argv[1] == "living":
    short()
long()
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What a process needs to speak with the server."""
    with servers.prefect(tmp_path_factory.mktemp("prefect")) as url:
        yield {**os.environ, **servers.QUIET, "PREFECT_API_URL": url, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}


def script(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.automations", *words]
    return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=120)


def states(url: str) -> dict[str, Any]:
    """Name of a flow run -> its state."""
    from prefect.client.orchestration import SyncPrefectClient

    with SyncPrefectClient(url) as client:
        return {run.name: run.state for run in client.read_flow_runs()}


def automations_of(url: str) -> list[Any]:
    from prefect.client.orchestration import SyncPrefectClient

    with SyncPrefectClient(url) as client:
        return list(client.read_automations_by_name(automations.NAME))


def heard_of(url: str) -> set[str]:
    """The flow runs whose heartbeat the server has."""
    from prefect.client.orchestration import SyncPrefectClient

    asked = {"filter": {"event": {"name": ["prefect.flow-run.heartbeat"]}}}
    with SyncPrefectClient(url) as client:
        names = {f"prefect.flow-run.{run.id}": run.name for run in client.read_flow_runs()}
        told = client._client.post("/events/filter", json=asked).json()["events"]
    return {names[event["resource"]["prefect.resource.id"]] for event in told}


def test_a_killed_flow_run_is_crashed_and_others_are_not(environment: dict[str, str], tmp_path: Path) -> None:
    assert "is set up: Crashed after 60 s" in script(environment, "--window", "60").stdout
    # before the runs: what the server heard under the window of before is forgotten
    assert "up to date" in script(environment, "--window", str(WINDOW)).stdout
    assert len(automations_of(environment["PREFECT_API_URL"])) == 1  # changed, not doubled
    runs = {}
    try:
        for name in ("killed", "living"):
            words = [sys.executable, "-c", FLOWS, name, tmp_path / f"{name} began", tmp_path / "end"]
            runs[name] = subprocess.Popen([str(word) for word in words], env=environment, cwd=tmp_path)
        for name in runs:
            wait_for((tmp_path / f"{name} began").exists, seconds=120)
        url = environment["PREFECT_API_URL"]
        wait_for(lambda: heard_of(url) >= {"killed", "living"}, seconds=120)  # what was never heard of is not missed
        runs["killed"].kill()
        wait_for(lambda: states(url)["killed"].is_crashed(), seconds=WINDOW + 120)
        found = states(url)
        assert f"Nothing was heard of its process for {WINDOW} s" in found["killed"].message
        assert "The same command goes on from there." in found["killed"].message
        assert (found["living"].name, found["finished"].name) == ("Running", "Completed")
        (tmp_path / "end").touch()
        assert runs["living"].wait(60) == 0
        assert states(url)["living"].name == "Completed"
    finally:
        for process in runs.values():
            process.kill()
            process.wait()


def test_a_window_shorter_than_a_heartbeat_is_refused(environment: dict[str, str]) -> None:
    done = script({**environment, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "180"}, "--window", "90")
    assert done.returncode == 2
    assert "HEARTBEAT_FREQUENCY is 180: a window of 90 s would call living runs dead. Give 540." in done.stderr
