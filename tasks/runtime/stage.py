"""The stage decorator: what every stage gets without asking.

`@stage(makes=Model, version="1")` over `def dpo(run: Run, cfg: DPOConfig, policy: Model) -> dict[str, float]` gives
callers `dpo(cfg, policy) -> Model`: keys, look-up, lock, work folder, the place to run, an MLflow run per attempt,
retries, progress, publishing, and its state in Prefect.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, Generic, ParamSpec, TypeVar

from tasks.runtime import prefects
from tasks.runtime.artifacts import Artifact
from tasks.runtime.calls import Call, Metrics
from tasks.runtime.processes import Run
from tasks.runtime.session import current

P = ParamSpec("P")
A = TypeVar("A", bound=Artifact)
Needs = Callable[..., tuple[float, str]]
"""`needs(cfg, inputs, precision=, micro_batch=, ranks=, gpu=)`: bytes of memory at the peak and a word on what the
figure rests on; `inputs` are `plan.Foreseen` by name. Raises LookupError where it cannot be told, saying why."""


@dataclass(frozen=True)
class Stage(Generic[P, A]):
    """A stage as its callers see it."""

    name: str
    version: str
    makes: type[A]
    body: Callable[..., Metrics]
    config: type
    device: bool
    ranks: bool
    needs: Needs | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> A:
        bound = inspect.signature(self.body).bind(None, *args, **kwargs)
        bound.apply_defaults()
        _, config, *inputs = bound.args
        now = current()
        call = Call(self, now, config, inputs)
        if now.plan is not None:
            return self.makes.of(now.plan.add(call))
        if prefects.in_flow():
            ref = prefects.as_task(call.perform, self.name, call.label, now.config.retries, now.screen.say)
            return self.makes.of(ref)
        return self.makes.of(call.perform())


def stage(
    makes: type[A], version: str, device: bool = False, ranks: bool = False, needs: Needs | None = None
) -> Callable[[Callable[Concatenate[Run, P], Metrics]], Stage[P, A]]:
    """Make a stage of a body. Raise `version` when its results change meaning. `device`: it computes on a GPU.
    `ranks`: several processes may run the body together, as `runtime.ranks` says. `needs`: tells a plan how much memory
    it takes; no part of the code that makes a result."""

    def decorate(body: Callable[Concatenate[Run, P], Metrics]) -> Stage[P, A]:
        config = list(typing.get_type_hints(body).values())[1]
        return Stage(body.__name__, version, makes, body, config, device, ranks, needs)

    return decorate
