"""A Prefect server for the runs of this process, where none is up: `python -m flows.server FD PARENT`.

Prefect's own temporary server is left behind by a SIGTERM and dies too early of a Ctrl-C. This one is out of reach of
the terminal's signals and ends when the process that started it ends, however that ends.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.surroundings import answers, prepare_environment
from tasks.runtime import RuntimeConfig
from tasks.runtime.child import die_with

_PATIENCE = 120.0
"""Seconds a server may take to answer: an empty database is migrated first, on a machine that may be busy."""

TEMPORARY = "POSTTRAIN_TEMPORARY_SERVER"
"""Set while the server is ours: its address is of no use to anybody once we are done."""


@contextmanager
def prefect_server(runtime: RuntimeConfig) -> Iterator[Callable[[], None]]:
    """Prepare the process, and see that there is a Prefect server while the context is open.

    Yields what waits until the server answers: it boots while the heavy libraries are imported. Where it never does,
    the process ends with words on what to do.
    """
    prepare_environment(runtime)
    if "PREFECT_API_URL" in os.environ:
        yield lambda: None
        return
    log = Path(runtime.root, "prefect", "server.log").resolve()
    log.parent.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as door:  # ours from here on: nobody else can take the port
        url = f"http://127.0.0.1:{door.getsockname()[1]}/api"
        command = [sys.executable, "-m", "flows.server", str(door.fileno()), str(os.getpid())]
        lean = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        lean["PREFECT_LOGGING_TO_API_ENABLED"] = "false"
        with open(log, "w") as output:
            server = subprocess.Popen(
                command,
                env={**os.environ, **lean},
                cwd=Path(__file__).parent.parent,
                pass_fds=[door.fileno()],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    os.environ |= {"PREFECT_API_URL": url, TEMPORARY: url}
    try:
        yield lambda: _wait(server, url, log)
    finally:
        send_what_waits()
        del os.environ["PREFECT_API_URL"], os.environ[TEMPORARY]
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while not answers(f"{url}/health"):
        if (code := server.poll()) is not None or time.monotonic() > until:
            became = f"did not answer within {_PATIENCE:.0f} s" if code is None else f"ended with code {code}"
            way = "Run again when the machine is less busy, or leave `prefect server start` running: it is used then"
            raise SystemExit(f"The Prefect server of this run {became}. {way}. What it said: {log}")
        time.sleep(0.05)


def send_what_waits() -> None:
    """Prefect sends logs and events in batches, the last ones when Python exits: its server must still be there."""
    if "prefect.flow_engine" in sys.modules:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all(timeout=3)
        EventsWorker.drain_all(timeout=3)


def _serve(door: int) -> None:
    import uvicorn

    config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=door)])


if __name__ == "__main__":
    die_with(int(sys.argv[2]))
    _serve(int(sys.argv[1]))
