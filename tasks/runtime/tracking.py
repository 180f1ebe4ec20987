"""MLflow: one parent run per flow run, one child per stage attempt, ids passed explicitly.

The fluent API is thread-local and re-opens the wrong run, so only `MlflowClient` is used here.
"""

from __future__ import annotations

import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from tasks.runtime import durable, keys
from tasks.runtime.signs import Sign, left

EXPERIMENT = "posttrain"
_EVERY = 2.0
"""Seconds between two batches of live metrics."""
_EVERY_UNHEARD = 60.0
"""The same once a batch was lost: asking a dead server takes time from the training."""


class Tracker:
    """The runs of one flow run. Once it stands, losing the server is said once and never stops the work."""

    def __init__(self, root: Path, name: str, tags: dict[str, str]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its own 7 hold a training up for minutes
        from mlflow import MlflowClient

        root.mkdir(parents=True, exist_ok=True)
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_database(root.resolve())}"
        self.client = MlflowClient(self.uri, registry_uri=self.uri)
        self.experiment = self._experiment() or self._new_experiment(root) or self._experiment()
        self.unheard = False
        kind = keys.digest(self.uri)[:8]
        self._close_left(root / "alive", kind)
        self._sign = Sign(root / "alive", kind)
        self.parent = self._open(name, tags)

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        return str(found.experiment_id) if found else ""

    def _new_experiment(self, root: Path) -> str:
        """The id of the experiment; empty when another process has made it at this moment."""
        from mlflow.exceptions import MlflowException

        place = None if self.uri.startswith("http") else (root / "mlflow-files").resolve().as_uri()
        try:
            return str(self.client.create_experiment(EXPERIMENT, artifact_location=place))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return ""

    def send(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[bool, Any]:
        """Tell MLflow something: (whether it heard, its answer)."""
        try:
            return True, call(*args, **kwargs)
        except Exception as error:
            if not self.unheard:
                short = (str(error) or type(error).__name__).splitlines()[0]
                warnings.warn(f"MLflow does not take what it is told ({short}); the work goes on.", stacklevel=3)
            self.unheard = True
            return False, None

    def _open(self, name: str, tags: dict[str, str]) -> str:
        run = self.client.create_run(self.experiment, run_name=name, tags={**tags, "alive": self._sign.name})
        return str(run.info.run_id)

    def _close_left(self, folder: Path, kind: str) -> None:
        """End the runs whose process was killed under this root: nobody else would. Asks only if there are any."""
        for place in left(folder, kind):
            with suppress(FileNotFoundError):  # another run closes them at this moment
                self._close(place.name, place.read_text() or "KILLED")
                if not self.unheard:
                    place.unlink()

    def _close(self, sign: str, status: str) -> None:
        ours = f"tags.alive = '{sign}' and attributes.status = 'RUNNING'"
        found = self.send(self.client.search_runs, [self.experiment], ours)[1] or []
        for run in found:  # children come before their parent: the newest first
            if status == "KILLED":
                self.send(self.client.set_tag, run.info.run_id, "crashed", "its process was gone at a later start")
            self.send(self.client.set_terminated, run.info.run_id, status)
        if found and status == "KILLED":
            gone = f"{found[-1].info.run_name} was left open by a process that is gone"
            print(f"MLflow: {gone}; closed as crashed.", file=sys.stderr)

    def child(self, stage: str, params: dict[str, Any], tags: dict[str, str]) -> Attempt:
        _, run = self.send(self._open, stage, {"mlflow.parentRunId": self.parent, "stage": stage, **tags})
        attempt = Attempt(self, run or "")
        attempt.params(params)
        return attempt

    def tag(self, name: str, value: str) -> None:
        self.send(self.client.set_tag, self.parent, name, value)

    def asked(self, overrides: list[str]) -> None:
        """What somebody changed for this run, as the parent's params: runs can be set beside each other by them."""
        from mlflow.entities import Param

        told = [Param(_allowed(name), value[:6000]) for name, _, value in (o.partition("=") for o in overrides)]
        if told:
            self.send(self.client.log_batch, self.parent, params=list({p.key: p for p in told}.values())[:100])

    def scores(self, scores: dict[str, float]) -> None:
        """What the run came to, as the parent's metrics."""
        for name, value in scores.items():
            self.send(self.client.log_metric, self.parent, _allowed(name), value)

    def continues(self, road: str) -> None:
        """Tag the parent with its road's key, and with the last run of the same road."""
        if not road:
            return
        known = f"tags.road = '{road}'"
        _, before = self.send(self.client.search_runs, [self.experiment], known, max_results=1)
        self.tag("road", road)
        if before:
            self.tag("continues", str(before[0].info.run_id))

    def file(self, path: Path, folder: str = "") -> None:
        """Keep a file with the run, in a folder among its artifacts."""
        self.send(self.client.log_artifact, self.parent, str(path), None if folder in ("", ".") else folder)

    def end(self, status: str) -> None:
        heard, _ = self.send(self.client.set_terminated, self.parent, status)
        self._sign.down("" if heard else status)

    def register(self, name: str, artifact: dict[str, str], source: Path, run_id: str) -> str:
        """A pointer (path and digest) in the model registry, once per digest; the version, empty when unheard."""
        return self.send(self._register, name, artifact, source, run_id)[1] or ""

    def _register(self, name: str, artifact: dict[str, str], source: Path, run_id: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for known in self.client.search_model_versions(f"name = '{name}'"):
            if known.tags.get("digest") == artifact["digest"]:
                return str(known.version)
        pointer = f"posttrain://objects/{artifact['digest']}"  # a server takes no local path that it does not hold
        tags = {**artifact, "path": str(source)}
        made = self.client.create_model_version(name, pointer, run_id or None, tags=tags, await_creation_for=0)
        return str(made.version)


class Attempt:
    """One attempt at one stage, as an MLflow run; `run` is empty when MLflow could not open one."""

    def __init__(self, tracker: Tracker, run: str) -> None:
        self.tracker, self.client, self.run = tracker, tracker.client, run
        self._waiting: list[Any] = []
        self._flushed = time.monotonic()

    def _send(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
        return bool(self.run) and self.tracker.send(call, self.run, *args, **kwargs)[0]

    def params(self, params: dict[str, Any]) -> None:
        from mlflow.entities import Param

        told = [Param(name, str(value)[:6000]) for name, value in _flat(params).items()]
        for start in range(0, len(told), 100):  # the server takes 100 a batch
            self._send(self.client.log_batch, params=told[start : start + 100])

    def inputs(self, inputs: list[dict[str, str]]) -> None:
        """Each input artifact as an MLflow data set, named by stage and known by digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        found = [
            DatasetInput(
                Dataset(item["name"], item["digest"][:36], "local", item["source"]),
                [InputTag("mlflow.data.context", item["kind"]), InputTag("digest", item["digest"])],
            )
            for item in inputs
        ]
        if found:
            self._send(self.client.log_inputs, found)

    def log(self, metrics: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(_allowed(name), float(value), now, step) for name, value in metrics.items()]
        if time.monotonic() - self._flushed > (_EVERY_UNHEARD if self.tracker.unheard else _EVERY):
            self.flush()

    def flush(self) -> None:
        metrics, self._waiting = self._waiting, []
        for start in range(0, len(metrics), 900):  # the server takes 1,000 a batch
            if not self._send(self.client.log_batch, metrics=metrics[start : start + 900]):
                self._waiting = metrics[start:]  # for the next time: the server may come back
                break
        self._flushed = time.monotonic()

    def tag(self, name: str, value: str) -> None:
        self._send(self.client.set_tag, name, value)

    def files(self, folder: Path) -> None:
        """The pictures and reports of an attempt, so that they are seen where its curves are."""
        for path in sorted(folder.glob("*")):
            if path.suffix in {".png", ".json", ".md", ".html"}:
                self._send(self.client.log_artifact, str(path))

    def end(self, status: str) -> None:
        self.flush()
        self._send(self.client.set_terminated, status)


def _database(root: Path) -> Path:
    """MLflow's own database under a root, made whole: begun by two at once, or half made by one that is killed, it
    could never be opened again."""
    place, draft = root / "mlflow.db", root / ".mlflow.db"
    if place.exists():
        return place
    with FileLock(root / ".mlflow.lock"):
        if not place.exists():
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            for left in root.glob(f"{draft.name}*"):
                left.unlink()
            SqlAlchemyStore(f"sqlite:///{draft}", (root / "mlflow-files").as_uri()).engine.dispose()
            durable.sync(draft)
            os.replace(draft, place)
    return place


def _allowed(name: str) -> str:
    """MLflow refuses a whole batch for one odd character in a name."""
    return re.sub(r"[^\w.\-/ ]", "_", name)


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested names joined by dots; of a folder of files one digest says enough."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        known = _allowed(f"{prefix}{name}")
        if isinstance(item, dict) and list(item) == ["files"]:
            flat[known] = f"{len(item['files'])} files {keys.digest(item)[:12]}"
        else:
            flat |= _flat(item, f"{known}.") if isinstance(item, dict) else {known: item}
    return flat
