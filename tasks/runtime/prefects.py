"""A stage call as a Prefect task: its state and its retries. Prefect is imported only where a Prefect flow runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tasks.runtime.stopping import Stopped

_PASSING = (ConnectionError, TimeoutError)
Perform = Callable[[Callable[[str], None]], dict[str, Any]]
"""Does the work and returns the reference of its result; what it is given is told why it was a hit."""


def in_flow() -> bool:
    if "prefect.context" not in sys.modules:
        return False
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


def note(text: str) -> None:
    """A line in the log of the run that is going on; its page in the browser shows it."""
    if in_flow():
        from prefect.logging import get_run_logger

        get_run_logger().info(text)


def as_task(perform: Perform, name: str, label: str, retries: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The call as a task in this thread; a hit shows as the state `Cached`, our store stays the only cache."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE
    from prefect.states import Cancelled, Completed

    stops: list[Stopped] = []

    def performed() -> Any:
        hits: list[str] = []
        try:
            ref = perform(hits.append)
        except Stopped as stop:
            stops.append(stop)
            return Cancelled(message=str(stop))
        except _PASSING as error:
            say(f"{label}: {error} (tried up to {retries + 1} times)")
            raise
        return Completed(name="Cached", message=hits[0], data=ref) if hits else ref

    run = task(
        name=name,
        task_run_name=label,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=retries,
        retry_delay_seconds=[1.0, 4.0, 16.0],
        retry_condition_fn=_transient,
    )(performed)
    state = run(return_state=True)
    if stops:
        raise stops[0]
    ref: dict[str, Any] = state.result()
    return ref


def _transient(task: Any, run: Any, state: Any) -> bool:
    """Only what can pass by itself is tried again: network trouble, never a wrong config or a bug."""
    try:
        state.result()
    except _PASSING:
        return True
    except BaseException:
        return False
    return False
