"""MLflow: one parent run per flow run, one child per stage attempt, ids passed explicitly.

The fluent API is thread-local and re-opens the wrong run, so only `MlflowClient` is used here.
"""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Any

EXPERIMENT = "posttrain"
_EVERY = 2.0
"""Seconds between two batches of live metrics."""


class Tracker:
    """The runs of one flow run. Losing the server mid-way is said once and never stops a training."""

    def __init__(self, root: Path, name: str, tags: dict[str, str]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient

        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(root / 'mlflow.db').resolve()}"
        root.mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(self.uri, registry_uri=self.uri)
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            place = None if self.uri.startswith("http") else (root / "mlflow-files").resolve().as_uri()
            self.experiment = self.client.create_experiment(EXPERIMENT, artifact_location=place)
        else:
            self.experiment = experiment.experiment_id
        self.parent = self._open(name, tags)

    def _open(self, name: str, tags: dict[str, str]) -> str:
        run = self.client.create_run(self.experiment, run_name=name, tags=tags)
        return str(run.info.run_id)

    def child(self, stage: str, params: dict[str, Any], tags: dict[str, str]) -> Attempt:
        run = self._open(stage, {"mlflow.parentRunId": self.parent, "stage": stage, **tags})
        attempt = Attempt(self, run)
        attempt.params(params)
        return attempt

    def tag(self, name: str, value: str) -> None:
        self.client.set_tag(self.parent, name, value)

    def continues(self, road: str) -> None:
        """Tag the parent with its road's key, and with the last run of the same road."""
        before = self.client.search_runs([self.experiment], f"tags.road = '{road}'", max_results=1)
        self.tag("road", road)
        if before:
            self.tag("continues", str(before[0].info.run_id))

    def file(self, path: Path) -> None:
        self.client.log_artifact(self.parent, str(path))

    def end(self, status: str) -> None:
        self.client.set_terminated(self.parent, status)

    def register(self, name: str, artifact: dict[str, str], source: Path, run_id: str) -> str:
        """A pointer (path and digest) in the model registry, once per digest; returns the version."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for known in self.client.search_model_versions(f"name = '{name}'"):
            if known.tags.get("digest") == artifact["digest"]:
                return str(known.version)
        made = self.client.create_model_version(name, source.resolve().as_uri(), run_id=run_id or None, tags=artifact)
        return str(made.version)


class Attempt:
    """One attempt at one stage, as an MLflow run."""

    def __init__(self, tracker: Tracker, run: str) -> None:
        self.client, self.run = tracker.client, run
        self._waiting: list[Any] = []
        self._flushed = time.monotonic()
        self._broken = False

    def params(self, params: dict[str, Any]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(self.run, params=[Param(k, str(v)[:6000]) for k, v in _flat(params).items()])

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
            self.client.log_inputs(self.run, found)

    def log(self, metrics: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, float(value), now, step) for name, value in metrics.items()]
        if time.monotonic() - self._flushed > _EVERY:
            self.flush()

    def flush(self) -> None:
        metrics, self._waiting, self._flushed = self._waiting, [], time.monotonic()
        try:
            for start in range(0, len(metrics), 900):  # the server takes 1,000 a batch
                self.client.log_batch(self.run, metrics=metrics[start : start + 900])
        except Exception as error:
            if not self._broken:
                warnings.warn(f"MLflow does not answer ({error}); training goes on without live metrics.", stacklevel=2)
            self._broken = True

    def tag(self, name: str, value: str) -> None:
        self.client.set_tag(self.run, name, value)

    def files(self, folder: Path) -> None:
        """The pictures and reports of an attempt, so that they are seen where its curves are."""
        for path in sorted(folder.glob("*")):
            if path.suffix in {".png", ".json", ".md", ".html"}:
                self.client.log_artifact(self.run, str(path))

    def end(self, status: str) -> None:
        self.flush()
        self.client.set_terminated(self.run, status)


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {f"{prefix}{name}": item}
    return flat
