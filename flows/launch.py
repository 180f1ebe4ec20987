"""The front door: compose -> check -> provenance -> MLflow parent -> the drawing -> report.

`front_door(drawing, Schema)` is one Prefect flow whose parameters are the named choices and `overrides`, so a run from
the command line and a run from the Prefect UI are the same run. Exit codes: 0 done, 1 a stage failed, 2 the config is
wrong, 3 the verdict failed (every artifact and the report are kept), 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import mimetypes
import platform
import shlex
import signal
import sys
import time
import traceback
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from flows import arrival, form, report, trials
from flows.compose import ConfigError, choices, compose, dashed
from flows.server import prefect_server
from flows.surroundings import prepare_environment
from tasks.llm.training import rows_at_once
from tasks.runtime import RuntimeConfig, keys, room, session
from tasks.runtime.calls import git_state
from tasks.runtime.session import Session
from tasks.runtime.stopping import Stop, Stopped
from tasks.runtime.tracking import Tracker

Drawing = Callable[[Any], Any]


_KINDS = {"chats": "chats", "pairs": "pairs", "questions": "questions", "prompts": "prompts", "general": "prompts"}
"""Seat -> the rows that a road needs there."""


@dataclass
class Road:
    """What every road has besides its stages."""

    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    plan: bool = False
    """Only say what would run and why, how long it would take, and how much memory and disk: nothing is started."""

    def problems(self) -> Iterator[str]:
        for name, stage in vars(self).items():
            if hasattr(stage, "args") and stage.batch_size > 0:
                try:
                    rows_at_once(stage.batch_size, self.runtime.micro_batch, ranks=max(1, self.runtime.ranks))
                except ValueError as error:
                    yield f"{name}: {error}"
            wanted = _KINDS.get(name)
            if stage and wanted and stage.kind != wanted:
                yield f"{name}.kind is {stage.kind}, and this road needs {wanted} there: choose other data, or set it."


def launch(drawing: Drawing, schema: type, argv: list[str] | None = None) -> None:
    """Run a drawing from the command line and leave the process with its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv in (["--help"], ["-h"]):
        from flows.guide import text

        print(text(drawing, schema))
        return
    if wrong := dashed(schema, argv):
        print("\n".join(wrong), file=sys.stderr)
        sys.exit(2)
    if any(word.startswith("-") for word in argv):
        from flows.sweeps import through_hydra

        sys.exit(through_hydra(drawing, schema, argv))
    sys.exit(run_once(drawing, schema, argv, []))


def run_once(drawing: Drawing, schema: type, overrides: list[str], search: list[str]) -> int:
    """Compose, check and run; returns the exit code."""
    console = Console(stderr=True, highlight=False)
    try:
        config = compose(drawing.__name__, schema, overrides, search)  # before anything starts
    except ConfigError as error:
        trials.failed(error)
        console.print(f"The config is wrong:\n{error}", markup=False, soft_wrap=True)
        return 2
    if config.plan:
        from flows.plan import show

        show(drawing, config)
        return 0
    try:
        with Stop(config.runtime.grace).listening(), prefect_server(config.runtime) as up:
            flow = front_door(drawing, schema)
            up()
            state = flow(overrides=overrides, config_dirs=search, return_state=True)
    except Stopped as stop:  # before its first stage, or after its last
        console.print(f"\n{stop}.")
        return stop.code
    code = _exit_code(state)
    if code == 1:
        trials.failed(state.message)
    return code


def _exit_code(state: Any) -> int:
    if state.is_cancelled():
        return 128 + (signal.SIGINT if "SIGINT" in state.message else signal.SIGTERM)
    if state.is_completed():
        return 0
    return 3 if state.name == "VerdictFailed" else 1


def front_door(drawing: Drawing, schema: type, served: bool = False) -> Any:
    """The drawing as a Prefect flow. Parameters: each named choice, `overrides`; where it is not served, `config_dirs`.

    Served, it is open to everybody who sees the form, and refuses what is for the owner of the machine to say.
    """
    from prefect import flow, get_run_logger
    from prefect.states import Cancelled, Completed, Failed

    name = drawing.__name__
    seats = choices(name)

    def run(**given: Any) -> Any:
        asked = form.asked(seats, given)
        try:
            config = form.read(name, schema, asked) if served else compose(name, schema, asked, given["config_dirs"])
        except ConfigError as error:
            said = f"Nothing was started, for the config is wrong:\n{error}"
            get_run_logger().error(said)  # a page of Prefect's opens at its logs
            return Failed(name="Refused", message=said)
        prepare_environment(config.runtime)
        if config.plan:
            from flows.plan import text

            _tell_prefect(text(drawing, config))
            return Completed(message="a plan: nothing was run")
        try:
            failed = travel(drawing, config, asked + form.owners() if served else asked)
        except Stopped as stop:
            again = "Run again with the same choices" if served else "The same command"
            return Cancelled(message=f"{stop}. {again} goes on from here.")
        if not failed:
            return Completed(message="verdict passed")
        return Failed(name="VerdictFailed", message=f"{failed}: every artifact is kept, the report says what to try")

    parameters = form.parameters(name, served)
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    about = inspect.getdoc(drawing) or inspect.getdoc(sys.modules[drawing.__module__]) or name
    run.__doc__ = form.explained(name, about) if served else about
    words = form.described(name, about) if served else about
    return flow(name=name, description=words, flow_run_name=lambda: _run_name(name), persist_result=False)(run)


def travel(drawing: Drawing, config: Any, overrides: list[str]) -> str:
    """Run the drawing inside a session, with its MLflow parent, and report; returns which gates failed, in words.

    Whatever goes wrong is said on the screen, in `error.txt` and in MLflow before it is raised.
    """
    runtime: RuntimeConfig = config.runtime
    folder = Path(runtime.root) / "runs" / _run_name(drawing.__name__)
    seats = {id(getattr(config, f.name)): f.name for f in dataclasses.fields(config)}
    tracker = None
    try:
        folder.mkdir(parents=True)
        written = _provenance(folder, drawing.__name__, config, overrides)
        tags = {"flow": drawing.__name__, "git": git_state()["commit"], **trials.joined(folder.name)}
        tracker = Tracker(Path(runtime.root), folder.name, tags)
        tracker.asked(overrides)
        with room.told(Path(runtime.root)), session(runtime, tracker, seats, folder.name) as now:
            trials.opened(now)
            tracker.continues(_road_key(config, now))
            for place in written:
                tracker.file(place)
            drawing(config)
            return _arrived(now, folder)
    except BaseException as error:
        trials.failed(error)
        _failed(tracker, folder, error)
        raise


def _run_name(flow: str) -> str:
    """One name for a run, the same in Prefect, in MLflow and on disk: Prefect calls this when it opens the flow run."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None and f"-{flow}-" in context.flow_run.name:
        return str(context.flow_run.name)
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{flow}-{uuid.uuid4().hex[:4]}"


def _road_key(config: Any, now: Session) -> str:
    """The key of the whole road; empty where the world cannot be asked yet: the stage that asks has the retries."""
    try:
        return keys.digest({f.name: keys.keyed_fields(getattr(config, f.name), now) for f in stage_fields(config)})
    except Exception:
        return ""


def stage_fields(config: Any) -> list[Any]:
    """The fields of a road that are a stage's config: the others say how to run it."""
    found = (f for f in dataclasses.fields(config) if f.name != "runtime")
    return [f for f in found if dataclasses.is_dataclass(getattr(config, f.name))]


def _provenance(folder: Path, name: str, config: Any, overrides: list[str]) -> list[Path]:
    """Config, command and code of this run, the same files for both doors."""
    facts = {
        "command": shlex.join(["python", "-m", f"flows.{name}", *overrides]),
        "overrides": overrides,
        "git": git_state(),
        "python": platform.python_version(),
        "machine": platform.node(),
    }
    (folder / "config.json").write_text(json.dumps(keys.plain(config), indent=1))
    (folder / "provenance.json").write_text(json.dumps(facts, indent=1))
    return [folder / "config.json", folder / "provenance.json"]


def _failed(tracker: Tracker | None, folder: Path, error: BaseException) -> None:
    place = folder / "error.txt"
    with suppress(OSError):  # on a full disk the words on the screen are all there is
        place.write_text("".join(traceback.format_exception(error)))
    if tracker:
        tracker.end("FAILED" if isinstance(error, Exception) else "KILLED")
    console = Console(stderr=True, highlight=False)
    said = str(error) or type(error).__name__
    console.print(f"\n{said}", markup=False, soft_wrap=True)
    console.print(f"  What is done is kept, and the next run goes on from it. Traceback: {place}", soft_wrap=True)


def _arrived(now: Session, folder: Path) -> str:
    left = arrival.leave(now, folder)
    verdict = left.told.verdict
    passed = verdict is None or bool(verdict["passed"])
    if passed and verdict:
        _register(now, verdict["candidate"]["digest"])
    report.show(Console(highlight=False), now, left.told, left.where)
    _tell_prefect(report.markdown(now, left.told, left.where, _embedded(left.pictures)))
    if now.tracker:
        now.tracker.scores(report.scores(verdict))
        now.tracker.tag("verdict", "passed" if passed else "failed")
        for place in [folder / "report.md", *left.pictures, *left.card]:
            now.tracker.file(place, place.parent.relative_to(folder).as_posix())
        now.tracker.end("FINISHED" if passed else "FAILED")
    return "" if passed or not verdict else report.failed(verdict)


def _register(now: Session, digest: str) -> None:
    """A pointer to the candidate in MLflow's registry, once per digest."""
    manifest = next((r.manifest for r in now.records if r.manifest["digest"] == digest), None)
    if manifest and now.tracker and now.config.register and not trials.seated.get():  # one of many is no choice yet
        tags = {name: str(manifest[name]) for name in ("digest", "key", "recipe", "stage")}
        source = now.store.root / "objects" / digest
        now.tracker.register(now.config.register, tags, source, manifest["mlflow_run"])


def _embedded(pictures: list[Path]) -> dict[str, str]:
    """Pictures as links that hold them: Prefect keeps no files, and its page shows nothing of our disk."""
    kinds = {place: mimetypes.guess_type(place.name)[0] for place in pictures}
    return {p.stem: f"data:{kind};base64,{b64encode(p.read_bytes()).decode()}" for p, kind in kinds.items()}


def _tell_prefect(text: str) -> None:
    from prefect.artifacts import create_markdown_artifact
    from prefect.context import FlowRunContext

    if FlowRunContext.get() is not None:
        create_markdown_artifact(text, description="**The report** of this run")
