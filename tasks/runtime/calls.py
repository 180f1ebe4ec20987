"""One call of a stage: found or made, sealed, and told to Prefect's task, MLflow and the screen."""

from __future__ import annotations

import functools
import inspect
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.runtime import devices, durable, fingerprint, keys, processes, room
from tasks.runtime.artifacts import Artifact
from tasks.runtime.session import Drift, Isolation, Record, Session
from tasks.runtime.store import Manifest
from tasks.runtime.tracking import Attempt

if TYPE_CHECKING:
    from tasks.runtime.stage import Stage

Metrics = dict[str, float]


class Drifted(RuntimeError):
    """A hit was made by other code or libraries, and `runtime.drift=refuse` says to stop."""


@dataclass
class Call:
    """One call of a stage in one session."""

    stage: Stage[Any, Any]
    session: Session
    config: Any
    inputs: list[Any]
    began: float = field(default_factory=time.monotonic)

    def perform(self, announce: Callable[[str], None] = lambda message: None) -> dict[str, Any]:
        """The reference of the result, made or found; `announce` is told why it was a hit."""
        with room.told(self.session.store.root.parent):
            return self._perform(announce)

    def _perform(self, announce: Callable[[str], None]) -> dict[str, Any]:
        fields = keys.keyed_fields(self.config, self.session)
        recipe = self.key("recipe", fields)
        key = self.key("content", fields)
        found, note = self._hit(key)
        if found is None:
            with self.session.store.lock(key, self.stage.name):
                found, note = self._hit(key)
                if found is None:
                    return self._record("made", self._made(recipe, key, fields), recipe, note)
        announce(f"hit {key[:12]} -> {found['digest'][:12]}{note}")
        if self.session.tracker:
            source = f"{found['digest'][:12]} from run {found['mlflow_run'] or 'none'}"
            self.session.tracker.tag(f"hit.{self.label}", source)
        return self._record("cached", found, recipe, note)

    def key(self, kind: str, fields: dict[str, Any]) -> str:
        return keys.key_of(kind, self.stage.name, self.stage.version, fields, self.identities(kind))

    def identities(self, kind: str) -> dict[str, Any]:
        """How the inputs enter a key, by the names of the body's parameters."""

        def of(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return [of(item) for item in value]
            if value is None:
                return None
            return value.recipe_identity() if kind == "recipe" else value.identity()

        names = list(inspect.signature(self.stage.body).parameters)[2:]
        return {name: of(value) for name, value in zip(names, self.inputs, strict=False)}

    # Hit or not

    def _hit(self, key: str) -> tuple[Manifest | None, str]:
        """A usable manifest, and what to say of it."""
        found = self.session.using("cached", self.label, lambda: self.session.store.find(self.stage.name, key))
        differs = "" if found is None else self.drift(found)
        if not differs:
            return found, ""
        if self.session.config.drift is Drift.refuse:
            raise Drifted(f"{self.label}: {differs} since it was made. Use runtime.drift=warn to keep it, or =rerun.")
        return (None, "") if self.session.config.drift is Drift.rerun else (found, f" ({differs} since)")

    def drift(self, found: Manifest) -> str:
        code = fingerprint.of_stage(self.stage.body.__module__)
        differs = ["code changed"] if found["code"] != code.digest else []
        for name, version in code.libraries.items():
            before = found["libraries"].get(name)
            if before != version:
                differs.append(f"{name} {before} -> {version}")
        return ", ".join(differs)

    # Making

    def _made(self, recipe: str, key: str, fields: dict[str, Any]) -> Manifest:
        """Make it; after signal 9 once more, since a training goes on from its last complete checkpoint."""
        try:
            return self._attempt(recipe, key, fields)
        except processes.ChildKilled as error:
            say = "Killed, and tried once more (2 of 2) from what it had saved."
            self.session.screen.say(f"{error}\n{self.label}: {say}")
        try:
            return self._attempt(recipe, key, fields)
        except processes.ChildKilled as error:
            say = "Killed again (2 of 2). Make room for it; the same command goes on from what it had saved."
            raise processes.ChildKilled(f"{error}\n{self.label}: {say}") from None

    def _attempt(self, recipe: str, key: str, fields: dict[str, Any]) -> Manifest:
        """Make it, as one run of MLflow and one line on the screen."""
        tracker, screen = self.session.tracker, self.session.screen
        attempt = tracker.child(self.label, fields, {"key": key, "recipe": recipe}) if tracker else None
        screen.begin(self.label)
        try:
            manifest = self._make(recipe, key, fields, attempt)
        except BaseException as error:
            if attempt:
                attempt.tag("error", f"{type(error).__name__}: {error}"[:4000])
                attempt.end("FAILED" if isinstance(error, Exception) else "KILLED")
            became = "failed" if isinstance(error, Exception) else "stopped"
            screen.done(f"  {self.label:<28} {became} {time.monotonic() - self.began:7.1f} s")
            raise
        if attempt:
            attempt.log({f"result.{name}": value for name, value in manifest["metrics"].items()}, 0)
            attempt.tag("digest", manifest["digest"])
            attempt.end("FINISHED")
        return manifest

    def _make(self, recipe: str, key: str, fields: dict[str, Any], attempt: Attempt | None) -> Manifest:
        store, code = self.session.store, fingerprint.of_stage(self.stage.body.__module__)
        standing = store.manifest(self.stage.name, key) is not None  # damaged or drifted, since we are here
        work = self._workplace(key, code.digest)
        if attempt:
            attempt.inputs([self._as_input(item) for item in self.flat_inputs()])
        with store.draft() as draft, room.told(store.root.parent, draft, work):
            started, clock = time.time(), time.monotonic()
            metrics = self._execute(self._job(draft, work), lambda event: self._report(event, attempt))
            if attempt:
                attempt.files(draft / "notes")
            facts = {
                "stage": self.stage.name,
                "version": self.stage.version,
                "kind": self.stage.makes.kind,
                "key": key,
                "recipe": recipe,
                "fields": fields,
                "preimage": {"fields": fields, "inputs": self.identities("content")},
                "config": keys.plain(self.config),
                "parents": [item.ref() for item in self.flat_inputs()],
                "metrics": metrics,
                "code": code.digest,
                "libraries": code.libraries,
                "mlflow_run": attempt.run if attempt else "",
                "git": git_state(),
                "machine": machine(),
                "started": started,
                "seconds": time.monotonic() - clock,
            }
            sealed = self.session.using("made", self.label, lambda: store.publish(draft, facts, replaces=standing))
            assert sealed is not None
            return sealed

    def _workplace(self, key: str, code: str) -> Path:
        """The scratch folder of this key; what other code left there is ruled by `runtime.drift` like a hit."""
        work = self.session.store.workplace(self.stage.name, key)
        mark = work / "code"
        if mark.exists() and mark.read_text() != code:
            if self.session.config.drift is Drift.refuse:
                raise Drifted(f"{self.label}: other code began the unfinished work in {work}. Remove that folder.")
            if self.session.config.drift is Drift.rerun:
                shutil.rmtree(work)
                work.mkdir()
            else:
                self.session.screen.say(f"{self.label}: goes on with work that other code began ({work.name[:12]}).")
        if saved := self.session.store.checkpoint(self.stage.name, key):
            self.session.screen.say(f"{self.label}: goes on from {saved}.")
        durable.write(mark, code)
        return work

    def _job(self, draft: Path, work: Path) -> processes.Job:
        lineage = {m["key"]: m for item in self.flat_inputs() for m in self.session.store.lineage(item.ref())}

        def ref(value: Any) -> Any:
            return [ref(item) for item in value] if isinstance(value, list | tuple) else value and value.ref()

        return {
            "module": self.stage.body.__module__,
            "name": self.stage.name,
            "config": keys.settled(self.config, self.session),
            "inputs": [ref(value) for value in self.inputs],
            "out": str(draft / "content"),
            "notes": str(draft / "notes"),
            "work": str(work),
            "micro_batch": self.session.config.micro_batch,
            "lineage": [
                {"stage": m["stage"], "recipe": m["recipe"], "digest": m["digest"], "config": m["fields"]}
                for m in lineage.values()
            ],
        }

    def _execute(self, job: processes.Job, report: processes.Report) -> Metrics:
        where, config = (self.session.store, report, self.session.stop), self.session.config
        if self._isolated():
            with devices.leased(self._ranks() if self.stage.device else 0, self.label, self.session.screen.say) as gpus:
                return processes.execute_in_child(job, *where, self._ranks(), config.strategy, gpus)
        return processes.execute(job, *where)

    def _ranks(self) -> int:
        return self.session.config.ranks if self.stage.ranks else 1

    def _isolated(self) -> bool:
        if self._ranks() > 1:
            return True
        if self.session.config.isolation is not Isolation.auto:
            return self.session.config.isolation is Isolation.process
        native = self.stage.makes.native or any(item.native for item in self.flat_inputs())
        return native or (self.stage.device and bool(devices.gpus()))

    def _report(self, event: dict[str, Any], attempt: Any) -> None:
        if "metrics" in event:
            if attempt:
                attempt.log(event["metrics"], event["step"])
        elif "say" in event:
            self.session.screen.say(f"{self.label}: {event['say']}")
        else:
            self.session.screen.advance(event["done"], event["total"], event["what"])

    # Telling

    @property
    def label(self) -> str:
        """The stage, its seat in the drawing where that has another name, and what it works on."""
        seat = self.session.seats.get(id(self.config), self.stage.name)
        name = self.stage.name if seat == self.stage.name else f"{self.stage.name} {seat}"
        above = self.flat_inputs()
        return f"{name} of {above[0].stage}" if above else name

    def flat_inputs(self) -> list[Artifact]:
        nested = [item if isinstance(item, list | tuple) else [item] for item in self.inputs]
        return [item for items in nested for item in items if item is not None]

    def _as_input(self, item: Artifact) -> dict[str, str]:
        source = str(self.session.store.root / "objects" / (item.whole or item.digest))
        return {"name": item.stage, "digest": item.digest, "source": source, "kind": item.kind}

    def _record(self, state: str, manifest: Manifest, recipe: str, note: str) -> dict[str, Any]:
        """Tell it, and return the reference; its recipe is how we came here, whoever made these bytes first."""
        seconds = time.monotonic() - self.began
        above = [item.stage for item in self.flat_inputs()]
        seat = self.session.seats.get(id(self.config), self.stage.name)
        self.session.records.append(Record(self.stage.name, seat, above, state, seconds, manifest, note))
        self.session.screen.done(f"  {self.label:<28} {state:<7} {seconds:7.1f} s  {headline(manifest)}{note}")
        return {
            "kind": manifest["kind"],
            "whole": "",
            "part_digests": manifest["parts"],
            "recipe": recipe,
            **{name: manifest[name] for name in ("stage", "key", "digest")},
        }


def headline(manifest: Manifest) -> str:
    """The first few metrics of a result, as a reader wants them."""
    shown = list(manifest["metrics"].items())[:4]
    return "  ".join(f"{name} {value:,.4g}" if value < 1e4 else f"{name} {value:,.0f}" for name, value in shown)


def machine() -> dict[str, str]:
    return {"node": platform.node(), "python": platform.python_version(), "os": platform.platform()}


@functools.cache
def git_state() -> dict[str, str]:
    """Commit of the code that runs, and whether it was edited since."""

    def ask(*words: str) -> str:
        try:
            where = Path(__file__).parent
            return subprocess.run(["git", *words], cwd=where, capture_output=True, text=True, timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""

    return {"commit": ask("rev-parse", "HEAD"), "dirty": "yes" if ask("status", "--porcelain") else "no"}
