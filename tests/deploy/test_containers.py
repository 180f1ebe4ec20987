"""What the compose files, the Dockerfile and prefect.yaml promise, read as data: no container engine is needed."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import services, settings
from deploy.postgres import Cluster
from flows.deploy import roads

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy" / "compose.yaml"
VARIABLE = r"\$\{(\w+)(?::([-?])([^}]*))?\}"
"""`${NAME}`, `${NAME:-usual}`, `${NAME:?what to do}`: (name, sign, rest)."""


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return found


@pytest.fixture
def now(tmp_path: Path) -> settings.Settings:
    return settings.settings(tmp_path / ".env")


def variables() -> list[tuple[str, str, str]]:
    lines = [line for line in COMPOSE.read_text().splitlines() if not line.lstrip().startswith("#")]
    return re.findall(VARIABLE, "\n".join(lines))


def test_only_this_machine_reaches_the_servers(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert "ports" not in compose["services"]["postgres"]


def test_every_password_has_to_be_given(compose: dict[str, Any]) -> None:
    passwords = [(name, sign, words) for name, sign, words in variables() if "PASSWORD" in name]
    assert {name for name, _, _ in passwords} == {"POSTGRES_PASSWORD", "PREFECT_PASSWORD"}
    assert all((sign, words) == ("?", f"write {name} into deploy/.env") for name, sign, words in passwords)
    prefect = compose["services"]["prefect"]["environment"]
    assert "PREFECT_SERVER_API_AUTH_STRING" in prefect and "@" in prefect["PREFECT_API_DATABASE_CONNECTION_URL"]


def test_no_address_and_no_command_holds_a_password(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        held = {**service["environment"], "command": " ".join(service.get("command", []))}
        assert [name for name, value in held.items() if "PASSWORD" in str(value)] in (
            ["POSTGRES_PASSWORD"],
            ["PGPASSWORD", "PREFECT_SERVER_API_AUTH_STRING"],
            ["PGPASSWORD"],
            ["PREFECT_API_AUTH_STRING"],
        )


def test_containers_and_processes_read_the_same_settings(now: settings.Settings) -> None:
    example = (ROOT / "deploy" / ".env.example").read_text()
    assert [name for name, _, _ in variables() if f"{name}=" not in example] == []
    usual = {name: rest for name, sign, rest in variables() if sign == "-" and rest}
    assert usual == {"PREFECT_PORT": "4200", "MLFLOW_PORT": "5000", "WORKER_LIMIT": "1"}
    assert (now.prefect_port, now.mlflow_port, now.worker_limit) == tuple(int(number) for number in usual.values())


def test_a_container_runs_what_its_process_runs(
    compose: dict[str, Any], now: settings.Settings, tmp_path: Path
) -> None:
    cluster = Cluster(tmp_path, tmp_path, now.postgres_password)
    groups = services.described(tmp_path, now, cluster)
    processes = {service.name.lower(): service for group in groups for service in group}
    containers = compose["services"]
    assert {*processes, "deployments"} == {name.replace("postgres", "postgresql") for name in containers}
    only_there = {"PREFECT_SERVER_UI_API_URL", "MLFLOW_SERVER_ALLOWED_HOSTS", "POSTTRAIN_ROOT"}
    for name in ("prefect", "mlflow", "worker"):
        told = {key for key, value in containers[name]["environment"].items() if value is not None}
        assert told - only_there <= set(processes[name].env)
    for name in ("prefect", "mlflow"):
        there = [word for word in containers[name]["command"] if word.startswith("--") or word.isalpha()]
        here = [word for word in processes[name].command[2:] if word.startswith("--") or word.isalpha()]
        assert sorted(there) == sorted(here)


def test_every_service_says_whether_it_is_well_and_keeps_its_data_in_a_named_volume(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert name == "deployments" or service["healthcheck"]["test"][0] == "CMD"
        named = [volume.split(":")[0] for volume in service.get("volumes", [])]
        assert all(volume in compose["volumes"] or volume == "./databases.sql" for volume in named)
        assert "no-new-privileges:true" in service["security_opt"]
    waits = {name: set(service.get("depends_on", ())) for name, service in compose["services"].items()}
    assert waits["worker"] == {"prefect", "mlflow"} and waits["prefect"] == waits["mlflow"] == {"postgres"}


def test_the_gpu_file_changes_the_worker_only_by_arguments_that_the_dockerfile_has(compose: dict[str, Any]) -> None:
    gpu = yaml.safe_load((ROOT / "deploy" / "compose.gpu.yaml").read_text())["services"]
    assert set(gpu) == {"worker"}
    known = re.findall(r"^ARG (\w+)", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert set(gpu["worker"]["build"]["args"]) <= set(known)
    assert set(compose["x-ours"]["build"]["args"]) <= set(known)
    assert "-DGGML_CUDA=ON" in gpu["worker"]["build"]["args"]["CMAKE_ARGS"]


def test_images_stand_on_named_versions_and_do_not_run_as_root(compose: dict[str, Any]) -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    bases = [*re.findall(r"^ARG \w+_BASE=(\S+)", text, re.MULTILINE), compose["services"]["postgres"]["image"]]
    assert all(re.search(r":\d+\.\d+", base) for base in bases)
    assert re.findall(r"^USER (.*)", text, re.MULTILINE) == ["10001:10001"]


@pytest.mark.parametrize("secret", ["deploy/.env", ".env", ".git/config", "data/services/client.env"])
def test_no_secret_gets_into_an_image(secret: str) -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    let_in = [line[1:] for line in lines if line.startswith("!")]
    assert not any(fnmatch.fnmatch(secret, f"{place}*" if place.endswith("/") else place) for place in let_in)


def test_every_flow_is_deployed_and_nothing_names_a_place_or_starts_by_itself() -> None:
    told = yaml.safe_load((ROOT / "deploy" / "prefect.yaml").read_text())
    assert {deployment["entrypoint"] for deployment in told["deployments"]} == {f"flows.deploy.{n}" for n in roads()}
    for deployment in told["deployments"]:
        assert deployment["work_pool"] == {"name": services.POOL, "job_variables": {"working_dir": "."}}
        assert [schedule["active"] for schedule in deployment["schedules"]] == [False]
    assert told["pull"] == []
