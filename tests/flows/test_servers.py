"""The road against a real Prefect server and a real MLflow server: what they show is what happened."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.runtime.tracking import Tracker
from tests import servers
from tests.fake_hub import FakeHub
from tests.flows import roads

STAGES = 20
"""Stage calls of flows.sft_then_dpo."""


@dataclass
class Servers:
    prefect: str
    mlflow: str
    model: Path
    root: Path

    def run(self, *more: str) -> int:
        """The exit code of the road, run as a person does; nothing outside of this machine can be reached."""
        nowhere = "http://127.0.0.1:9"
        env = {
            **{"PREFECT_API_URL": self.prefect, "MLFLOW_TRACKING_URI": self.mlflow},
            **{"HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "NO_PROXY": "127.0.0.1,localhost"},
        }
        done = roads.command(self.model, self.root, "runtime.register=posttrain", *more, env=env)
        print(done.stdout, done.stderr)
        return done.returncode


@pytest.fixture(scope="module")
def up(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("servers")
    with servers.prefect(folder / "prefect") as prefect, servers.mlflow(folder / "mlflow") as mlflow:
        up = Servers(prefect, mlflow, tiny_model, folder / "data")
        assert up.run() == 0
        yield up


def newest_flow_run(url: str) -> tuple[Any, list[Any]]:
    """The last flow run of a server, and its task runs in order."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort, TaskRunSort

    with SyncPrefectClient(url) as client:
        run = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
        mine = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
        return run, client.read_task_runs(flow_run_filter=mine, sort=TaskRunSort.END_TIME_DESC)


def parents(up: Servers) -> list[Any]:
    """MLflow's runs of the road itself, newest first."""
    return [run for run in runs(up) if "mlflow.parentRunId" not in run.data.tags]


def runs(up: Servers) -> list[Any]:
    client = mlflow_client(up)
    experiment = client.get_experiment_by_name("posttrain")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


def mlflow_client(up: Servers) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(up.mlflow, registry_uri=up.mlflow)


def test_each_stage_is_a_completed_task_and_then_a_cached_one(up: Servers) -> None:
    run, tasks = servers.settled(lambda: newest_flow_run(up.prefect), lambda seen: len(seen[1]) == STAGES)
    assert run.state.is_completed()
    assert {task.state.name for task in tasks} == {"Completed"}

    assert up.run() == 0
    run, tasks = servers.settled(lambda: newest_flow_run(up.prefect), lambda seen: len(seen[1]) == STAGES)
    assert run.state.is_completed()
    assert {task.state.name for task in tasks} == {"Cached"}
    assert all(task.state.message.startswith("hit ") for task in tasks)


def test_a_failed_gate_is_exit_code_3_and_a_failed_flow_run_also_when_cached(up: Servers) -> None:
    for _ in range(2):
        assert up.run("compare.gates.f16_kl_max=0.0") == 3
        run, _tasks = newest_flow_run(up.prefect)
        assert run.state.is_failed()
        assert run.state.name == "VerdictFailed"
        assert parents(up)[0].data.tags["verdict"] == "failed"


def test_a_wrong_config_is_exit_code_2_and_no_flow_run(up: Servers) -> None:
    before, _ = newest_flow_run(up.prefect)
    assert up.run("sft.lora.rnk=3") == 2
    assert newest_flow_run(up.prefect)[0].id == before.id


def test_metrics_are_logged_while_training_under_a_child_run_of_the_stage(up: Servers) -> None:
    (sft,) = (run for run in runs(up) if run.data.tags.get("stage", "").startswith("sft"))
    parent = sft.data.tags["mlflow.parentRunId"]
    assert parent in {run.info.run_id for run in parents(up)}
    assert "loss" in sft.data.metrics
    assert sft.data.params["lora.rank"] == "16"
    assert sft.info.status == "FINISHED"


def test_the_registered_gguf_leads_back_to_the_data(up: Servers) -> None:
    """Along MLflow alone: from the registered version to the run that made it, and from each run to its inputs."""
    (version,) = mlflow_client(up).search_model_versions("name = 'posttrain'")
    makers = {run.data.tags["digest"]: run for run in runs(up) if "digest" in run.data.tags}
    assert makers[version.tags["digest"]].data.tags["stage"].startswith("quantize")

    seen, waiting = set(), [version.tags["digest"]]
    while waiting:
        run = makers.get(waiting.pop())
        for item in run.inputs.dataset_inputs if run else []:
            digest = next(tag.value for tag in item.tags if tag.key == "digest")
            if digest not in seen:
                seen.add(digest)
                waiting.append(digest)
    manifests = [json.loads(p.read_text()) for p in (up.root / "store/manifests/preprocess").glob("*.json")]
    learned_from = {m["digest"] for m in manifests if m["config"]["kind"] in ("chats", "pairs")}
    assert learned_from <= seen


def test_a_rerun_is_a_new_parent_that_names_what_it_continues(up: Servers) -> None:
    found = [run for run in parents(up) if run.data.tags.get("verdict") == "passed"]
    newer, older = found[0], found[1]
    assert newer.data.tags["road"] == older.data.tags["road"]
    assert newer.data.tags["continues"] == older.info.run_id
    assert "hit.dpo of sft" in newer.data.tags


KILLED = """
import os, signal, sys
from pathlib import Path
from tasks.runtime.tracking import Tracker
Tracker(Path(sys.argv[1]), "killed", {}).child("its stage", {}, {})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_runs_that_a_kill_left_open_are_closed_at_the_next_start(
    up: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", up.mlflow)
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=roads.ROOT).returncode == -9
    left = [run for run in runs(up) if run.info.status == "RUNNING"]
    assert {run.info.run_name for run in left} == {"killed", "its stage"}
    Tracker(tmp_path, "next", {}).end("FINISHED")
    closed = [run for run in runs(up) if "crashed" in run.data.tags]
    assert {(run.info.run_id, run.info.status) for run in closed} == {(run.info.run_id, "KILLED") for run in left}


def test_a_download_that_fails_twice_is_retried_and_works(
    up: Servers, hub: FakeHub, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect import flow
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.download import DownloadConfig, Source, download
    from tasks.runtime import RuntimeConfig, session

    hub.push("acme/tiny", {place.name: place.read_bytes() for place in tiny_model.iterdir()})
    hub.fail(503, times=2)

    @flow(name="only-download")
    def only_download() -> str:
        with session(RuntimeConfig(root=str(tmp_path))):
            return download(DownloadConfig(source=Source.hub, repo="acme/tiny")).digest

    with temporary_settings({PREFECT_API_URL: up.prefect}):
        only_download()
    run, tasks = servers.settled(lambda: newest_flow_run(up.prefect), lambda seen: seen[0].state.is_completed())
    assert run.state.is_completed()
    assert [task.run_count for task in tasks] == [3]
    assert capsys.readouterr().err.count("(tried up to 4 times)") == 2
