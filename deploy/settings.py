"""deploy/.env: ports, passwords and what runs read. Made with random passwords where there is none.

Docker Compose reads the same file, and as there what is set in the shell wins.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dotenv import dotenv_values

ROOT = Path(__file__).resolve().parent.parent
_EXAMPLE = Path(__file__).with_name(".env.example")
_PASSWORDS = ("POSTGRES_PASSWORD", "PREFECT_PASSWORD")
_NUMBERS = {"PREFECT_PORT": 4200, "MLFLOW_PORT": 5000, "WORKER_LIMIT": 1}


class Refused(RuntimeError):
    """The services cannot be as asked; the text says why and what to do."""


@dataclass(frozen=True)
class Settings:
    place: Path
    postgres_password: str = field(repr=False)
    prefect_password: str = field(repr=False)
    prefect_port: int
    mlflow_port: int
    worker_limit: int
    others: dict[str, str] = field(repr=False)
    """What else the file says: the environment of runs."""

    @property
    def prefect(self) -> str:
        return f"http://127.0.0.1:{self.prefect_port}"

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def client(self) -> dict[str, str]:
        """What a run needs to speak with the servers."""
        return {
            "PREFECT_API_URL": f"{self.prefect}/api",
            "PREFECT_API_AUTH_STRING": f"posttrain:{self.prefect_password}",
            "MLFLOW_TRACKING_URI": self.mlflow,
        }


def settings(place: Path) -> Settings:
    """Read the file, or make it. Raises Refused with everything that is wrong."""
    if not place.exists():
        _make(place)
    place.chmod(0o600)
    ours = (*_PASSWORDS, *_NUMBERS)
    found = {name: value for name, value in dotenv_values(place, interpolate=False).items() if value is not None}
    found |= {name: os.environ[name] for name in ours if os.environ.get(name)}
    if problems := [f"{place}: {problem}" for problem in _problems(found)]:
        raise Refused("\n".join(problems))
    prefect_port, mlflow_port, worker_limit = (int(found.get(name) or usual) for name, usual in _NUMBERS.items())
    others = {name: value for name, value in found.items() if name not in ours}
    postgres_password, prefect_password = (found[name] for name in _PASSWORDS)
    return Settings(place, postgres_password, prefect_password, prefect_port, mlflow_port, worker_limit, others)


def _problems(found: dict[str, str]) -> Iterator[str]:
    for name in _PASSWORDS:
        if not found.get(name):
            yield f"{name} is missing: add the line {name}=<a long random word>."
    for name, usual in _NUMBERS.items():
        said = found.get(name) or str(usual)
        if not said.isdigit() or not 0 < int(said) < 65536:
            yield f"{name}={said}: give a number such as {usual}."


def _make(place: Path) -> None:
    """The example with random passwords, for nobody else to read."""
    text = _EXAMPLE.read_text()
    for name in _PASSWORDS:
        text = re.sub(rf"^{name}=", f"{name}={secrets.token_urlsafe(24)}", text, flags=re.MULTILINE)
    with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
