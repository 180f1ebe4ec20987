"""What a run needs of its process before the heavy libraries are imported: they read their settings once."""

from __future__ import annotations

import logging
import os
import urllib.request
import warnings
from pathlib import Path

from tasks.runtime import RuntimeConfig, devices

SERVER = "http://127.0.0.1:4200"


def prepare_environment(runtime: RuntimeConfig) -> None:
    """Telemetry off, one home for Prefect, its console quiet, and a server that runs on this machine preferred.

    Before Prefect is imported: it reads its settings once.
    """
    quiet = {
        "DO_NOT_TRACK": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what goes wrong there is told once, by us
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "true",
        "GOMP_SPINCOUNT": "1000",  # threads that spin for long are four times slower once anything else wants a core
        "TQDM_DISABLE": "1",  # one progress line, ours
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    if not devices.gpus():
        quiet["DS_ACCELERATOR"] = "cpu"  # DeepSpeed, where installed, says at length that it found nothing else
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    for library in ("transformers", "peft", "trl", "torch", "accelerate"):  # about their own future, not about the run
        warnings.filterwarnings("ignore", module=rf"{library}\b")
    if not (Path.home() / ".prefect" / "profiles.toml").exists():
        home = Path(os.environ.setdefault("PREFECT_HOME", str((Path(runtime.root) / "prefect").resolve())))
        home.mkdir(parents=True, exist_ok=True)  # Prefect makes the last folder only, and then fails much later
    use_services()
    if "PREFECT_API_URL" not in os.environ and answers(f"{SERVER}/api/admin/version"):  # one that asks for no password
        os.environ["PREFECT_API_URL"] = f"{SERVER}/api"


def services_file() -> Path:
    """Where `make up` writes down how to reach its servers."""
    usual = Path(__file__).resolve().parent.parent / "data" / "services"
    return Path(os.environ.get("POSTTRAIN_SERVICES") or usual) / "client.env"


def services() -> dict[str, str]:
    """How the servers of `make up` are reached, whether or not they are up now; nothing where there never were any."""
    try:
        return dict(line.split("=", 1) for line in services_file().read_text().splitlines())
    except OSError:
        return {}


def use_services() -> None:
    """Use the servers of `make up` while they answer, unless the environment names others."""
    if not (told := services()):
        return
    if "PREFECT_API_URL" not in os.environ and answers(f"{told['PREFECT_API_URL']}/health"):
        os.environ |= {name: told[name] for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")}
    if not os.environ.get("MLFLOW_TRACKING_URI") and answers(f"{told['MLFLOW_TRACKING_URI']}/health"):
        os.environ["MLFLOW_TRACKING_URI"] = told["MLFLOW_TRACKING_URI"]


def answers(url: str) -> bool:
    """Whether a server is up there and well."""
    try:
        with urllib.request.urlopen(url, timeout=1) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
