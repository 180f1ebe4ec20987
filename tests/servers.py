"""A real Prefect server and a real MLflow server on loopback, booted once per test run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from flows.surroundings import answers
from tests.patience import wait_for

T = TypeVar("T")
QUIET = {
    **{"DO_NOT_TRACK": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes for jobs that nobody gives it
}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(command: list[str], health: str, log: Path, env: dict[str, str]) -> Iterator[None]:
    with open(log, "w") as output:
        server = subprocess.Popen(
            command, env={**os.environ, **QUIET, **env}, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_for(lambda: answers(health) or server.poll() is not None, seconds=120)
            assert server.poll() is None, log.read_text()[-3000:]
            yield
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


@contextmanager
def prefect(folder: Path) -> Iterator[str]:
    """The address of a Prefect server's API."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}/api"
    with serving(command, f"{url}/health", folder / "prefect.log", {"PREFECT_HOME": str(folder)}):
        yield url


@contextmanager
def mlflow(folder: Path) -> Iterator[str]:
    """The address of an MLflow server."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "files")),
    ]
    url = f"http://127.0.0.1:{port}"
    with serving(command, f"{url}/health", folder / "mlflow.log", {}):
        yield url


def settled(look: Callable[[], T], enough: Callable[[T], bool]) -> T:
    """What a server shows once it shows enough: records arrive a moment after the run."""
    wait_for(lambda: enough(look()), seconds=20)
    return look()
