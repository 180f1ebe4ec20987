"""`make up` and `make down` for real: Prefect, MLflow, a worker, on SQLite and, where it is installed, PostgreSQL."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy import postgres, services
from flows import store, surroundings
from tests import servers
from tests.patience import wait_for

REPO = Path(__file__).resolve().parents[2]
ENGINES = ["SQLite", "PostgreSQL"] if postgres._programs() else ["SQLite"]


class FakeServer:
    """It answers everything with 200."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    def __enter__(self) -> str:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.Handler)
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()


@dataclass
class Machine:
    """A folder for the services, and free ports."""

    folder: Path
    env: dict[str, str]
    engine: str

    def run(self, what: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "deploy.services", what, "--settings", str(self.folder.parent / ".env")]
        return subprocess.run(command, cwd=REPO, env=self.env, capture_output=True, text=True, timeout=280)

    def family(self) -> list[psutil.Process]:
        """The keeper and everything below it."""
        keeper = psutil.Process(int((self.folder / "lock").read_text()))
        return [keeper, *keeper.children(recursive=True)]

    def passwords(self) -> list[str]:
        lines = (self.folder.parent / ".env").read_text().splitlines()
        return [line.split("=")[1].split()[0] for line in lines if "PASSWORD=" in line]


@pytest.fixture(params=ENGINES)
def machine(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Machine]:
    base = tmp_path_factory.getbasetemp()
    deeper = [base.parent.parent] if base.name.startswith("popen-") else []  # several processes test
    for place in (tmp_path, base, base.parent, *deeper):
        place.chmod(0o711)  # PostgreSQL does not run as root: its user has to get there
    folder = tmp_path / "services"
    folder.mkdir()
    if request.param == "SQLite":
        (folder / "prefect.db").touch()  # what was begun on SQLite stays there
    monkeypatch.setenv("POSTTRAIN_SERVICES", str(folder))
    for name in ("PREFECT_PORT", "MLFLOW_PORT"):
        monkeypatch.setenv(name, str(servers.free_port()))
    made = Machine(folder, {**os.environ, "PREFECT_WORKER_QUERY_SECONDS": "1"}, request.param)
    try:
        yield made
    finally:
        made.run("down")


def test_up_brings_everything_and_down_takes_it_away(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    done = machine.run("up")
    assert done.returncode == 0, done.stdout + done.stderr
    family = machine.family()
    assert (machine.folder / "postgres").exists() == (machine.engine == "PostgreSQL")

    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")  # so that what is set now is taken back
        monkeypatch.delenv(name)
    surroundings.use_services()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{os.environ['PREFECT_API_URL']}/admin/version")
    assert surroundings.answers(f"{os.environ['MLFLOW_TRACKING_URI']}/health")
    only_here(family)
    if machine.engine == ENGINES[-1]:  # what the database has no part in once is enough
        assert planned_by_the_worker() == "a plan: nothing was run"
        again = machine.run("up")
        assert (again.returncode, again.stdout.split(".")[0]) == (0, "Up already")
    said = "\n".join(" ".join(one.cmdline()) for one in family if one.is_running())  # all users see that
    assert [word for word in machine.passwords() if word in said] == []

    ended = machine.run("down")
    assert (ended.returncode, ended.stdout.split(".")[0]) == (0, "Down")
    wait_for(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family))
    assert machine.run("down").stdout == "Nothing is up.\n"
    only_where_they_belong(machine.passwords(), machine.folder)
    assert surroundings.services()  # a clean-up of the store still knows whom to ask


def planned_by_the_worker() -> str:
    """What the state of a run says that the worker takes, of the deployment that prefect.yaml describes."""
    from prefect.client.orchestration import SyncPrefectClient

    url, auth = os.environ["PREFECT_API_URL"], os.environ["PREFECT_API_AUTH_STRING"]
    with SyncPrefectClient(url, auth_string=auth) as client:
        assert [a.name for a in client.read_automations()] == ["posttrain: crashed runs"]
        door: Any = client.read_deployment_by_name("sft_then_dpo/posttrain")
        run = client.create_flow_run_from_deployment(door.id, parameters={"overrides": ["plan=true"]})
        wait_for(lambda: client.read_flow_run(run.id).state.is_final(), seconds=120)
        return str(client.read_flow_run(run.id).state.message)


def only_here(family: list[psutil.Process]) -> None:
    """Whatever listens, listens on this machine alone."""
    doors = [door.laddr.ip for one in family for door in one.net_connections("tcp") if door.status == "LISTEN"]
    assert doors and set(doors) == {"127.0.0.1"}


def only_where_they_belong(passwords: list[str], folder: Path) -> None:
    """In no log and no database, but in the file that tells runs how to reach the servers."""
    assert len(passwords) == 2
    files = [place for place in folder.rglob("*") if place.is_file()]
    assert {place.name for place in files for word in passwords if word.encode() in place.read_bytes()} == {
        "client.env"
    }
    assert stat.S_IMODE((folder / "client.env").stat().st_mode) == 0o600


def test_a_taken_port_is_named_with_the_setting_that_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POSTTRAIN_SERVICES", str(tmp_path / "services"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("MLFLOW_PORT", str(port))
        monkeypatch.setenv("PREFECT_PORT", str(servers.free_port()))
        assert services.main(["up", "--settings", str(tmp_path / ".env")]) == 2
    said = capsys.readouterr().err
    assert f"Port {port} of this machine cannot be taken" in said and "give MLFLOW_PORT in" in said
    assert not (tmp_path / "services").exists()


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that is well, written down as both of `make up`'s; the environment names none."""
    with FakeServer() as url:
        monkeypatch.setenv("POSTTRAIN_SERVICES", str(tmp_path))
        lines = [f"PREFECT_API_URL={url}/api", "PREFECT_API_AUTH_STRING=us:word=1", f"MLFLOW_TRACKING_URI={url}"]
        (tmp_path / "client.env").write_text("\n".join(lines) + "\n")
        for line in lines:
            monkeypatch.setenv(line.split("=")[0], "")
            monkeypatch.delenv(line.split("=")[0])
        yield url


def test_a_run_uses_the_servers_of_make_up(told: str) -> None:
    surroundings.use_services()
    assert os.environ["PREFECT_API_AUTH_STRING"] == "us:word=1"
    assert (os.environ["PREFECT_API_URL"], os.environ["MLFLOW_TRACKING_URI"]) == (f"{told}/api", told)


def test_another_server_that_is_named_is_not_told_our_password(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    surroundings.use_services()
    assert "PREFECT_API_AUTH_STRING" not in os.environ and os.environ["MLFLOW_TRACKING_URI"] == told


@pytest.fixture
def gone(told: str, tmp_path: Path) -> None:
    """They were put down, and what was written down about them stayed."""
    text = (tmp_path / "client.env").read_text()
    (tmp_path / "client.env").write_text(text.replace(told, f"http://127.0.0.1:{servers.free_port()}"))


def test_servers_that_are_down_are_not_used(gone: None) -> None:
    surroundings.use_services()
    assert "PREFECT_API_URL" not in os.environ and "MLFLOW_TRACKING_URI" not in os.environ


def test_a_clean_up_takes_nothing_while_the_registry_of_make_up_is_down(
    gone: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store" / "manifests").mkdir(parents=True)
    assert store.main(["gc", "--root", str(tmp_path), "--yes"]) == 1
    assert "does not say what is registered" in capfd.readouterr().err
