"""Prefect, MLflow and a worker on this machine: `python -m deploy.services up` and `down` (`make up`, `make down`).

`up` starts them in the background, behind 127.0.0.1 only, on PostgreSQL where it is installed and else on SQLite, and
comes back when all are well. `down` ends what it started; data and logs stay in data/services. A keeper holds the
lock there while they are up, starts again what dies, and takes them with it when it ends. Settings: deploy/.env.
Exit codes: 0 done, 1 a service does not start or is not well, 2 something has to be changed first.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from deploy import postgres
from deploy.keeper import Died, Keeper, Service, Stopping, last_words, listen_no_more, log_of, tell
from deploy.settings import ROOT, Refused, Settings, settings
from deploy.worker import POOL, heard
from flows.surroundings import answers, services_file
from tasks.runtime.uses import hold, is_held

READY = "Ready."
_PATIENCE = 150.0
"""Seconds for `down`: a run gets its time to leave a checkpoint."""


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.services", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["up", "down", "keep"], help="keep: what up leaves in the background")
    parser.add_argument("--settings", type=Path, default=ROOT / "deploy" / ".env", help="instead of deploy/.env")
    asked = parser.parse_args(words)
    folder = services_file().parent.resolve()
    try:
        if asked.what == "down":
            return down(folder)
        return (up if asked.what == "up" else keep)(folder, settings(asked.settings.resolve()))
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 2


def up(folder: Path, now: Settings) -> int:
    if keeper_of(folder):
        return already_up(folder, now)
    if taken := list(taken_ports(now)):
        raise Refused("\n".join(taken))
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "deploy.services", "keep", "--settings", str(now.place)]
    with open(log_of(folder, "keeper"), "wb") as log:
        keeper = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    try:
        for line in keeper.stdout or ():
            if line.strip() == READY:
                print(addresses(folder, now))
                return 0
            print(line, end="", flush=True)
    except KeyboardInterrupt:
        print("Stopping what was started.")
        keeper.terminate()
    if code := keeper.wait():
        unforeseen = log_of(folder, "keeper").stat().st_size
        print(last_words(folder, "keeper") if unforeseen else "Nothing is up.", file=sys.stderr)
    return code or 130


def already_up(folder: Path, now: Settings) -> int:
    cluster, _ = postgres.found(folder / "postgres", now.postgres_password)
    ill = [service.name for group in described(folder, now, cluster) for service in group if not service.well()]
    if not ill:
        print(addresses(folder, now).replace("Up.", "Up already."))
        return 0
    print("\n".join(last_words(folder, name) for name in ill), file=sys.stderr)
    print("It is still being started, or died and is started again in a moment; `make down` ends all.", file=sys.stderr)
    return 1


def down(folder: Path) -> int:
    pid = keeper_of(folder)
    if not pid:
        print("Nothing is up.")
        return 0
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + _PATIENCE
    while is_held(folder / "lock"):
        if time.monotonic() > until:
            print(f"It takes long; see the logs in {folder}. The process that ends them all is {pid}.", file=sys.stderr)
            return 1
        time.sleep(0.05)
    print(f"Down. The data stays in {folder}.")
    return 0


def keep(folder: Path, now: Settings) -> int:
    """The keeper's life: start, say so, watch, end."""
    lock, draft = folder / "lock", folder / f"lock.{os.getpid()}"
    if is_held(lock):
        raise Refused("Another `make up` is at work here.")
    draft.write_text(str(os.getpid()))
    hold(draft)  # until our very end; it has our number and is ours before others can see it
    draft.rename(lock)
    keeper = Keeper(folder)
    try:
        begin(keeper, now)
        services_file().touch(mode=0o600)
        services_file().write_text("".join(f"{name}={value}\n" for name, value in now.client.items()))
        tell(READY)
        listen_no_more(folder)
        keeper.watch()
    except Stopping:
        return 130
    except (Died, Refused) as trouble:
        tell(str(trouble))
        return 2 if isinstance(trouble, Refused) else 1
    finally:
        keeper.stop()
    return 0


def begin(keeper: Keeper, now: Settings) -> None:
    cluster, why = postgres.found(keeper.folder / "postgres", now.postgres_password)
    if cluster:
        cluster.make(log_of(keeper.folder, "PostgreSQL"))
    else:
        tell(f"  SQLite: {why}.")
    for group in described(keeper.folder, now, cluster, time.time()):
        keeper.start(group)
    python = [sys.executable, "-m"]
    deployed = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "deploy/prefect.yaml"]
    keeper.once("Deployments", [[*python, *deployed], [*python, "deploy.automations"]], worker_env(keeper.folder, now))


def described(folder: Path, now: Settings, cluster: postgres.Cluster | None, since: float = 0.0) -> list[list[Service]]:
    """The services in the order of their start, those of a group side by side; a worker was heard `since` then."""
    python, here = [sys.executable, "-m"], ["--host", "127.0.0.1", "--port"]
    (prefects, mlflows), access = databases(folder, cluster)
    api, auth = now.client["PREFECT_API_URL"], now.client["PREFECT_API_AUTH_STRING"]
    env = base(folder, now)
    prefect = Service(
        "Prefect",
        [*python, "prefect", "server", "start", *here, str(now.prefect_port)],
        {**env, **access, "PREFECT_API_DATABASE_CONNECTION_URL": prefects, "PREFECT_SERVER_API_AUTH_STRING": auth},
        lambda: answers(f"{api}/health"),
    )
    files = ["--artifacts-destination", str(folder / "mlflow-files"), "--workers", "1"]
    mlflow = Service(
        "MLflow",
        [*python, "mlflow", "server", *here, str(now.mlflow_port), *files],
        {**env, **access, "MLFLOW_BACKEND_STORE_URI": mlflows, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        lambda: answers(f"{now.mlflow}/health"),
    )
    worker = Service(
        "Worker",
        [*python, "deploy.worker"],
        {**worker_env(folder, now), "WORKER_LIMIT": str(now.worker_limit)},
        lambda: heard(api, auth, since),
    )
    above = [[prefect, mlflow], [worker]]
    if not cluster:
        return above
    below = Service("PostgreSQL", cluster.command, env, cluster.healthy, cluster.end, postgres.as_owner())
    return [[below], *above]


def databases(folder: Path, cluster: postgres.Cluster | None) -> tuple[tuple[str, str], dict[str, str]]:
    """The addresses of Prefect's and MLflow's databases, and what opens them; no address holds a password."""
    if cluster:
        return (cluster.address("asyncpg", "prefect"), cluster.address("psycopg2", "mlflow")), cluster.env
    return (f"sqlite+aiosqlite:///{folder}/prefect.db", f"sqlite:///{folder}/mlflow.db"), {}


def base(folder: Path, now: Settings) -> dict[str, str]:
    """The environment of every service: ours without what would send it elsewhere, and without passwords."""
    strange = {*now.client, "MLFLOW_BACKEND_STORE_URI", "POSTGRES_PASSWORD", "PREFECT_PASSWORD", "PREFECT_PROFILE"}
    kept = {name: value for name, value in os.environ.items() if name not in strange}
    quiet = {"DO_NOT_TRACK": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return kept | quiet | {"HF_HUB_DISABLE_TELEMETRY": "1", "PREFECT_HOME": str(folder / "prefect")}


def worker_env(folder: Path, now: Settings) -> dict[str, str]:
    return now.others | base(folder, now) | now.client


def keeper_of(folder: Path) -> int:
    """The process that keeps the services; 0 when nothing is up."""
    place = folder / "lock"
    return int(place.read_text() or 0) if is_held(place) else 0


def taken_ports(now: Settings) -> Iterator[str]:
    for name, port in (("PREFECT_PORT", now.prefect_port), ("MLFLOW_PORT", now.mlflow_port)):
        with socket.socket() as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                door.bind(("127.0.0.1", port))
            except OSError as error:
                yield (
                    f"Port {port} of this machine cannot be taken ({error.strerror}): end the program that has it "
                    f"(`lsof -i :{port}` names it), or give {name} in {now.place} another number."
                )


def addresses(folder: Path, now: Settings) -> str:
    return "\n".join(
        [
            "Up.",
            f"  Prefect  {now.prefect}   asks for posttrain:<PREFECT_PASSWORD in {now.place}>",
            f"  MLflow   {now.mlflow}",
            f"  Worker   takes runs of the pool {POOL}, {now.worker_limit} at a time",
            "Runs on this machine find them by themselves. For Prefect's and MLflow's own commands:",
            f"  set -a; . {services_file()}; set +a",
            f"Logs: {folder}/*.log",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
