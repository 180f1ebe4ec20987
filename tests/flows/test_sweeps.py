"""Sweeps: known before they start, each distinct piece of work made once, and an end that tells all of it."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows import job, leaderboard, sweeps, trials
from flows.compose import ConfigError
from flows.sft_then_dpo import SFTThenDPO, sft_then_dpo
from flows.trials import State, Trial
from tests import servers
from tests.flows import roads
from tests.patience import alive, wait_for

PARALLEL = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def asked(*words: str) -> sweeps.Asked:
    return sweeps.ask(sft_then_dpo, SFTThenDPO, ["-m", *words])


def wrong(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        found = asked(*words)
        sweeps.checked(found, sweeps.grid(found.swept))
    return error.value.problems


# Known before it starts


def test_a_grid_is_every_combination_the_last_knob_fastest() -> None:
    found = sweeps.grid(asked("dpo.args.beta=0.1,0.3", "sft.seed=range(1,3)", "debug=smoke").swept)
    assert [tuple(turned.values()) for turned in found] == [("0.1", "1"), ("0.1", "2"), ("0.3", "1"), ("0.3", "2")]


def test_of_two_overrides_of_one_knob_the_later_one_holds() -> None:
    assert sweeps.grid(asked("dpo.args.beta=0.1,0.3", "dpo.args.beta=0.7,0.8,0.9").swept)[0] == {"dpo.args.beta": "0.7"}


def test_choices_and_globs_are_swept_like_values() -> None:
    found = sweeps.grid(asked("quantize=glob(q*)").swept)
    assert [turned["quantize"] for turned in found] == ["q4_k_m", "q8_0"]


def test_a_mistake_in_any_trial_refuses_the_whole_sweep_and_all_are_told() -> None:
    problems = wrong("dpo.args.beta=0.1,-1,-2", "sft.batch_size=0", "dpo.args.bta=3")
    assert [problem.split(":")[0].split(" is")[0] for problem in problems] == [
        "sft.batch_size",
        "dpo.args.bta",
        "dpo.args.beta",
        "dpo.args.beta",
    ]
    assert problems[-1].endswith("(1 of 3 trials)")


def test_mistakes_that_hydra_finds_are_told_at_once_too() -> None:
    problems = wrong("sft.lora.rnk=8", "quantize=q9,q8_0", "dpo.sed=1,2")
    assert len(problems) == 3
    assert "sft.lora.rank" in problems[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dpo.args.beta=interval(0.1,1)"], "hydra/sweeper=optuna"),
        (["hydra.launcher.n_jobs=1,2"], "hydra.launcher.n_jobs"),
        (["hydra/launcher=joblb"], "joblib"),
        (["compare.objective=loss,exact_match"], "give it one metric"),
        (["--config-dir", "nowhere"], "no such folder"),
    ],
)
def test_what_cannot_be_swept_says_what_to_do(words: list[str], said: str) -> None:
    assert said in " ".join(wrong(*words))


def test_a_wrong_sweep_starts_nothing_and_is_exit_code_2(tiny_model: Path, tmp_path: Path) -> None:
    done = roads.command(tiny_model, tmp_path / "data", "-m", "dpo.args.beta=0.1,-1")
    assert done.returncode == 2
    assert "dpo.args.beta is -1" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_plan_of_a_sweep_runs_nothing(tiny_model: Path, tmp_path: Path) -> None:
    done = roads.command(tiny_model, tmp_path / "data", "-m", "plan=true", "dpo.args.beta=0.1,0.2,0.3")
    assert done.returncode == 0, done.stderr
    assert "3 trials: 4 preprocess, 1 download" in done.stdout
    assert not (tmp_path / "data" / "runs").exists()


# Real ones


@dataclass
class Swept:
    """A finished sweep of the smoke road."""

    code: int
    said: str
    root: Path

    @property
    def folder(self) -> Path:
        return max((self.root / "sweeps").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)

    @property
    def trials(self) -> list[Trial]:
        return trials.load_all(self.folder)

    def rows(self) -> list[dict[str, str]]:
        with open(self.folder / "leaderboard.csv", newline="") as file:
            return list(csv.DictReader(file))


def sweep(model: Path, root: Path, *words: str, env: dict[str, str] | None = None) -> Swept:
    done = roads.command(model, root, "-m", *words, env=env)
    print(done.stdout, done.stderr)
    return Swept(done.returncode, done.stderr, root)


@pytest.fixture(scope="module")
def one_by_one(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Six trials: three whose pairs are all too long, one that breaks a gate, two that pass."""
    gates = "compare.gates.f16_kl_max=0.0,0.1,0.2"
    return sweep(tiny_model, tmp_path_factory.mktemp("one") / "data", "reference.cutoff=8,1024", gates)


def test_a_failed_trial_stops_no_other_and_the_sweep_says_so(one_by_one: Swept) -> None:
    states = [trial.state for trial in one_by_one.trials]
    assert states == [State.failed] * 3 + [State.refused] + [State.passed] * 2
    assert one_by_one.code == 1
    assert "cutoff" in one_by_one.trials[0].error


def test_each_distinct_recipe_runs_once(one_by_one: Swept) -> None:
    found = one_by_one.trials
    assert leaderboard.executions(found) == roads.distinct(found)
    assert leaderboard.executions(found)["compare"] == 3
    assert leaderboard.executions(found)["dpo"] == 1


def test_the_leaderboard_ranks_who_passed_and_marks_who_did_not(one_by_one: Swept) -> None:
    rows = one_by_one.rows()
    assert [(row["rank"], row["state"]) for row in rows[:3]] == [
        ("1", "passed"),
        ("2", "passed"),
        ("", "verdict failed"),
    ]
    assert rows[2]["exact_match"] != ""
    assert {row["run"] for row in rows if row["run"]} == {
        folder.name for folder in (one_by_one.root / "runs").iterdir()
    }


def test_a_search_goes_on_from_what_the_store_holds(tiny_model: Path, one_by_one: Swept) -> None:
    words = ("hydra/sweeper=optuna", "compare.objective=loss", "compare.gates.f16_kl_max=tag(log,interval(0.01,1))")
    first = sweep(tiny_model, one_by_one.root, *words, "hydra.sweeper.n_trials=2")
    again = sweep(tiny_model, one_by_one.root, *words, "hydra.sweeper.n_trials=3")
    assert (first.code, again.code) == (0, 0)
    assert leaderboard.executions(again.trials) == {"compare": 1}  # two were asked again and found
    assert (again.folder / "score.png").exists()
    assert all(row["loss"] for row in again.rows())


@dataclass
class Servers:
    prefect: str
    mlflow: str
    swept: Swept


@pytest.fixture(scope="module")
def side_by_side(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Six trials in two workers, from nothing, against one Prefect and one MLflow server."""
    folder = tmp_path_factory.mktemp("two")
    knobs = ("dpo.args.beta=0.1,0.3", "compare.gates.f16_kl_max=0.1,0.2,0.3", *PARALLEL)
    with servers.prefect(folder / "prefect") as prefect, servers.mlflow(folder / "mlflow") as mlflow:
        env = {"PREFECT_API_URL": prefect, "MLFLOW_TRACKING_URI": mlflow}
        yield Servers(prefect, mlflow, sweep(tiny_model, folder / "data", *knobs, env=env))


def test_side_by_side_too_each_distinct_recipe_runs_once(side_by_side: Servers) -> None:
    found = side_by_side.swept.trials
    assert side_by_side.swept.code == 0
    assert [trial.state for trial in found] == [State.passed] * 6
    assert leaderboard.executions(found) == roads.distinct(found)
    assert leaderboard.executions(found)["dpo"] == 2
    assert len({trial.pid for trial in found}) >= 2


def test_side_by_side_one_waits_and_says_for_whom(side_by_side: Servers) -> None:
    lines = side_by_side.swept.said.splitlines()
    assert any(line.startswith(("[1/6] ", "[2/6] ")) and "is at the same work; waiting" in line for line in lines)


def test_mlflow_nests_the_trials_under_the_sweep_and_keeps_its_leaderboard(side_by_side: Servers) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(side_by_side.mlflow, registry_uri=side_by_side.mlflow)
    runs = client.search_runs([client.get_experiment_by_name("posttrain").experiment_id], max_results=1000)
    (top,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    below = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == top.info.run_id]
    assert top.info.run_name == side_by_side.swept.folder.name
    assert sorted(run.info.run_name for run in below) == sorted(trial.run for trial in side_by_side.swept.trials)
    assert {run.data.tags["verdict"] for run in below} == {"passed"}
    assert {file.path for file in client.list_artifacts(top.info.run_id)} >= {
        "leaderboard.csv",
        "leaderboard.md",
        "score.png",
    }
    assert "best.exact_match" in top.data.metrics


def test_prefect_has_a_flow_run_per_trial_and_the_leaderboard_as_a_table(side_by_side: Servers) -> None:
    from prefect.client.orchestration import SyncPrefectClient

    with SyncPrefectClient(side_by_side.prefect) as client:
        artifacts = client._client.post("/artifacts/filter", json={}).json()
        runs = servers.settled(client.read_flow_runs, lambda found: len(found) == 7)
    (table,) = (artifact for artifact in artifacts if artifact["type"] == "table")
    assert table["key"] == "sweep-leaderboard"
    assert {run.name for run in runs} == {side_by_side.swept.folder.name, *(t.run for t in side_by_side.swept.trials)}
    assert all(run.state.is_completed() for run in runs if run.state)


def test_a_stopped_sweep_leaves_no_worker_and_a_leaderboard(
    tiny_model: Path, one_by_one: Swept, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(one_by_one.root, tmp_path / "data"))
    shutil.rmtree(root / "sweeps")
    words = ("-m", "dpo.args.beta=0.11,0.12,0.13", "dpo.args.max_steps=100000", *PARALLEL)
    command = [sys.executable, "-m", "flows.sft_then_dpo", *roads.overrides(tiny_model, root, *words)]
    with open(tmp_path / "said", "w") as said:
        leader = subprocess.Popen(command, cwd=roads.ROOT, stderr=said, stdout=said, start_new_session=True)

    def at_dpo() -> set[int]:
        begun = sum(1 for _ in (root / "store/work/dpo").glob("*/*"))
        found: set[int] = job.running(next((root / "sweeps").iterdir())) if (root / "sweeps").exists() else set()
        return found if len(found) == 2 and begun >= 2 else set()

    try:
        workers = wait_for(at_dpo, seconds=200)
        leader.send_signal(signal.SIGTERM)
        assert leader.wait(60) == 143, (tmp_path / "said").read_text()
    finally:
        if leader.poll() is None:
            os.killpg(leader.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, workers)), seconds=10)
    states = [trial.state for trial in Swept(143, "", root).trials]
    assert states == [State.stopped, State.stopped, State.waiting]
    assert [row["state"] for row in Swept(143, "", root).rows()] == ["stopped", "stopped", "not run"]
