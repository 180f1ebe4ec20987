"""Plan: what the stage calls of a drawing would do, without doing any of it.

A call is noted instead of made, and answered with the reference of its result; where the result is not there yet, the
reference has an empty digest and goes on to the calls below. Nothing is written but what saves asking again: digests of
files, and what moving names mean.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import time
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from tasks.runtime import devices, fingerprint, keys
from tasks.runtime.calls import Call
from tasks.runtime.effort import effort, scale, size
from tasks.runtime.session import Drift, Session
from tasks.runtime.store import Manifest
from tasks.runtime.why import Past, Ref, differences, inputs_of

_ENOUGH = 5
"""Earlier runs that an estimate is taken from, at most."""


class State(StrEnum):
    """What a call would come to."""

    cached = "cached"
    runs = "runs"
    depends = "depends"
    """An input is not there yet, so it shows only later whether this is a hit."""
    unknown = "unknown"
    """Something outside, such as a hub, cannot be asked now."""
    stops = "stops"
    """The run would end here: the reason says what to mend."""


@dataclass(frozen=True)
class Foreseen:
    """An input as a stage's `needs` is shown it: its files where they are there, else how it will be made."""

    stage: str
    config: dict[str, Any]
    path: Path | None
    inputs: dict[str, Foreseen]


@dataclass
class Step:
    """One piece of work of the plan."""

    name: str
    """Of the stage."""
    seat: str
    label: str
    recipe: str
    state: State
    device: bool
    work: Manifest
    """What is known of it, in the shape of a manifest; of a hit, the manifest."""
    ref: Ref
    why: list[str] = field(default_factory=list)
    seconds: float | None = None
    """As earlier runs on this machine took; None where there are none."""
    disk: float | None = None
    """Bytes, as earlier results take."""
    peak: float | None = None
    """Bytes of memory; None where that is not told, `peak_note` saying why."""
    peak_note: str = ""
    peak_least: float | None = None
    """The same with one row at a time, where the peak is more than there is."""
    trials: int = 0
    """How many calls come to this work."""
    near: list[tuple[int, Manifest]] = field(default_factory=list)
    """Earlier runs of the stage after the number of their differences, the closest first."""


class Plan:
    """Takes the stage calls of one drawing, or of many: the same work is one step."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.steps: list[Step] = []
        self._known: dict[str, Step] = {}
        self._past = Past(session.store)
        self._manifests: dict[tuple[str, str], Manifest | None] = {}

    def add(self, call: Call) -> Ref:
        """Note a call; the reference of its result."""
        trouble = None
        try:
            fields = keys.keyed_fields(call.config, self.session)
            recipe = call.key("recipe", fields)
        except Exception as error:  # a missing file, a hub that does not answer: each says what to do
            trouble, fields = error, keys.plain(call.config)
            recipe = "unclear " + call.key("recipe", fields)
        if recipe not in self._known:
            self._note(call, self._step(call, fields, recipe, trouble))
        step = self._known[recipe]
        step.trials += 1
        return step.ref

    def _note(self, call: Call, step: Step) -> None:
        same = self._known.get(step.work["key"]) if step.state is State.runs else None
        if same:  # another recipe whose inputs come out the same
            self._known[step.recipe] = same
            return
        self._known[step.recipe] = step
        self.steps.append(step)
        if step.state is State.runs:
            self._known[step.work["key"]] = step
        if step.state in (State.runs, State.depends):
            self._estimate(step)
            self._foresee(step, call)

    def _step(self, call: Call, fields: dict[str, Any], recipe: str, trouble: Exception | None) -> Step:
        code, stage = fingerprint.of_stage(call.stage.body.__module__), call.stage
        work: Manifest = {
            "stage": stage.name,
            "version": stage.version,
            "recipe": recipe,
            "key": "" if trouble or self._waits(call) else call.key("content", fields),
            "fields": fields,
            "preimage": {"inputs": call.identities("content")},
            "config": keys.plain(call.config),
            "parents": [item.ref() for item in call.flat_inputs()],
            "code": code.digest,
            "libraries": code.libraries,
        }
        nothing = {
            "kind": stage.makes.kind,
            "whole": "",
            "stage": stage.name,
            "key": "",
            "digest": "",
            "recipe": recipe,
        }
        ref = {**nothing, "part_digests": dict.fromkeys(stage.makes.parts, "")}
        seat = self.session.seats.get(id(call.config), stage.name)
        step = Step(stage.name, seat, call.label, recipe, State.runs, stage.device, work, ref)
        step.near = self._past.nearest(stage.name, work)
        self._judge(step, call, trouble)
        step.why += self._asked(call.config)
        return step

    def _waits(self, call: Call) -> list[str]:
        return list(dict.fromkeys(item.stage for item in call.flat_inputs() if not item.digest))

    # Hit or not, and why

    def _judge(self, step: Step, call: Call, trouble: Exception | None) -> None:
        if trouble:
            passing = isinstance(trouble, ConnectionError | TimeoutError)
            step.state, step.why = State.unknown if passing else State.stops, [str(trouble) or type(trouble).__name__]
        elif waits := self._waits(call):
            made = any(run["recipe"] == step.recipe for _, run in step.near)
            before = ["made before from inputs made so: a hit if they come out as they did"] if made else []
            step.state, step.why = State.depends, [f"waits for {', '.join(waits)}", *before, *self._since(step, call)]
        else:
            self._look(step, call)

    def _look(self, step: Step, call: Call) -> None:
        store, drift = self.session.store, self.session.config.drift
        found = store.manifest(step.name, step.work["key"])
        if found is None:
            step.why = self._since(step, call) + self._unfinished(step)
        elif damage := store.damage(found):
            step.why = [f"{damage}; it is made again", *self._unfinished(step)]
        elif (differs := call.drift(found)) and drift is Drift.rerun:
            step.why = [f"{differs} since it was made"]
        else:
            step.state, step.work = State.cached, found
            step.ref = {name: found[name] for name in ("kind", "stage", "key", "digest")} | {
                **{"whole": "", "part_digests": found["parts"], "recipe": step.recipe}
            }
            step.why = [f"{differs} since it was made"] if differs else []
            if differs and drift is Drift.refuse:
                step.state = State.stops
                step.why[0] += ", and runtime.drift=refuse stops there: use warn to keep it, or rerun"

    def _since(self, step: Step, call: Call) -> list[str]:
        """What differs from the closest earlier run of the stage."""
        if not step.near:
            return ["never run before"]
        found = differences(self.session.store, step.work, step.near[0][1], self._behind)
        return found or ([] if self._waits(call) else ["made before, and gone from the store"])

    def _behind(self, ref: Ref) -> Manifest | None:
        if not ref["key"]:
            return self._known[ref["recipe"]].work if ref["recipe"] in self._known else None
        place = ref["stage"], ref["key"]
        if place not in self._manifests:
            self._manifests[place] = self.session.store.manifest(*place)
        return self._manifests[place]

    def _unfinished(self, step: Step) -> list[str]:
        last = self.session.store.checkpoint(step.name, step.work["key"])
        return [f"goes on from {last}"] if last else []

    def _asked(self, config: Any) -> list[str]:
        """The moving names among the settings, and how old their meanings are."""
        found, place = [], self.session.store.root / "names.json"
        for item in dataclasses.fields(config):
            mark = item.metadata.get("key")
            if callable(mark) and isinstance(said := mark(config), keys.Moving):
                names = json.loads(place.read_text()) if place.exists() else {}
                if said.name in names:
                    age = spoken(time.time() - names[said.name]["asked"])
                    found.append(f"{said.name} was asked {age} ago (runtime.refresh=true asks again)")
        return found

    # Estimates

    def _estimate(self, step: Step) -> None:
        """Time and disk of the nearest earlier runs: the middle of them, scaled by the rows they had."""
        if not step.near:
            return
        near = [run for differ, run in step.near if differ <= step.near[0][0] + 1]
        ours = effort(step.work, self._behind)
        here = [run for run in near if run["machine"]["node"] == platform.node()]
        alike = [run for run in here if effort(run, self._behind) == ours][:_ENOUGH]
        if alike:
            step.seconds = statistics.median(run["seconds"] * scale(step.work, run, self._behind) for run in alike)
        step.disk = statistics.median(size(run) for run in near[:_ENOUGH])

    def _foresee(self, step: Step, call: Call) -> None:
        """Peak memory, as the stage itself tells it."""
        if call.stage.needs is None:
            step.peak_note = "not estimated"
            return
        inputs = {name: self._foreseen(ref) for name, ref in inputs_of(step.work).items()}
        try:
            step.peak, step.peak_note = call.stage.needs(call.config, inputs, **self._how(call))
            if step.peak > devices.memory():
                step.peak_least, _ = call.stage.needs(call.config, inputs, **self._how(call) | {"micro_batch": 1})
        except LookupError as error:
            step.peak_note = f"unknown, for {error!r}" if isinstance(error, KeyError | IndexError) else str(error)

    def _how(self, call: Call) -> dict[str, Any]:
        config, asked = self.session.config, getattr(call.config, "precision", devices.Precision.fp32)
        how = {"precision": devices.resolved(asked).value, "micro_batch": config.micro_batch}
        return {**how, "ranks": config.ranks if call.stage.ranks else 1, "gpu": bool(devices.gpus())}

    def _foreseen(self, ref: Ref) -> Foreseen:
        step = self._known.get(ref["recipe"])
        work = step.work if step else self._behind(ref)  # the same bytes, first made in another way
        path = self.session.store.root / "objects" / (ref["whole"] or ref["digest"]) if ref["digest"] else None
        above = {name: self._foreseen(parent) for name, parent in inputs_of(work).items()} if work else {}
        return Foreseen(ref["stage"], work["config"] if work else {}, path, above)


def spoken(seconds: float) -> str:
    """A length of time as one says it: `40 s`, `4 min`, `2.5 h`, `3 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days"
