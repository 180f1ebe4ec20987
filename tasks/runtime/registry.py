"""What MLflow's model registry points at: a clean-up keeps it."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


class Unheard(RuntimeError):
    """MLflow could not say what is registered."""


def registered(root: Path, known_run: str = "") -> dict[str, list[str]]:
    """Digest -> versions ("posttrain 3") of all registered models, of this folder's MLflow and of a server that is set.

    `known_run`: the id of a run that MLflow must know; otherwise we ask a wrong one, whose silence would mean nothing.
    """
    addresses = _addresses(root)
    found: dict[str, list[str]] = {}
    heard = not known_run
    for address in addresses:
        try:
            heard = _ask(address, found, known_run) or heard
        except Exception as error:
            raise Unheard(f"MLflow at {address} does not say what is registered: {error}") from error
    if not heard:
        asked = " and ".join(addresses) or "no MLflow (there is no mlflow.db, and MLFLOW_TRACKING_URI is not set)"
        raise Unheard(f"Runs of this store are tracked elsewhere: asked was {asked}. Set MLFLOW_TRACKING_URI.")
    return found


def run_name(root: Path, run_id: str) -> str:
    """The name of a run of MLflow, which is our name for it; nothing where no MLflow knows it."""
    for address in _addresses(root):
        with suppress(Exception):
            from mlflow import MlflowClient

            return str(MlflowClient(address).get_run(run_id).info.run_name)
    return ""


def _addresses(root: Path) -> list[str]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    logging.getLogger("alembic").setLevel(logging.ERROR)
    local, server = (root / "mlflow.db").resolve(), os.environ.get("MLFLOW_TRACKING_URI", "")
    return [address for address in (f"sqlite:///{local}" if local.exists() else "", server) if address]


def _ask(address: str, found: dict[str, list[str]], known_run: str) -> bool:
    """Add what one MLflow has registered; whether it knows a run."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client: Any = MlflowClient(address, registry_uri=address)
    token = None
    while True:
        page = client.search_model_versions(max_results=1000, page_token=token)
        for version in page:
            found.setdefault(version.tags.get("digest", ""), []).append(f"{version.name} {version.version}")
        if not (token := page.token):
            break
    try:
        return bool(known_run and client.get_run(known_run))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
