"""How long a fully cached run takes, beside a floor that does as little as such a run can.

    python -m tests.bench_rerun ROOT [overrides]        ROOT: where the road was travelled before (runtime.root)

The floor imports the same libraries, opens a Prefect flow of as many empty tasks and one MLflow run. Both are timed as
whole processes, in turn, with and without a running Prefect server; the ratio is that of the medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests import servers

ROUNDS = 3
FLOOR = """
import hydra, omegaconf, mlflow, prefect
from mlflow import MlflowClient
from prefect.cache_policies import NO_CACHE

@prefect.task(cache_policy=NO_CACHE, persist_result=False)
def nothing(): pass

@prefect.flow(persist_result=False)
def floor():
    client = MlflowClient("sqlite:///{root}/floor.db")
    experiment = client.get_experiment_by_name("floor")
    number = experiment.experiment_id if experiment else client.create_experiment("floor")
    run = client.create_run(number)
    for _ in range({stages}): nothing()
    client.set_terminated(run.info.run_id)
floor()
"""
STAGES = 17


def seconds(command: list[str], env: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def compare(name: str, root: Path, overrides: list[str], more: dict[str, str]) -> None:
    env = {
        **os.environ,
        **servers.QUIET,
        "PREFECT_HOME": str(root / "prefect"),
        "PREFECT_LOGGING_LEVEL": "ERROR",
        **more,
    }
    road = [sys.executable, "-m", "flows.sft_then_dpo", f"runtime.root={root}", *overrides]
    floor = [sys.executable, "-c", FLOOR.format(root=root, stages=STAGES)]
    seconds(floor, env)
    seconds(road, env)
    pairs = [(seconds(road, env), seconds(floor, env)) for _ in range(ROUNDS)]
    roads, floors = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"{name:<16} cached run {roads:6.1f} s   floor {floors:6.1f} s   ratio {roads / floors:.2f}")


def main(root: Path, overrides: list[str]) -> None:
    compare("no server", root, overrides, {})
    with servers.prefect(root / "bench-server") as url:
        compare("running server", root, overrides, {"PREFECT_API_URL": url})


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
