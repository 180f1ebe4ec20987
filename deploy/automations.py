"""Close the flow runs whose process was killed: `python -m deploy.automations [--window SECONDS]`, once per server.

A killed process tells nobody, and Prefect shows its run as Running for ever. This sets up the automation that Prefect
documents for it: a run that was heard of before, and then not for a window, is Crashed. Run it again to change the
window. It changes the state of the flow run only: its task runs stay as they were, and nothing is ended.
"""

from __future__ import annotations

import argparse
import sys
from datetime import timedelta
from typing import Any

NAME = "posttrain: crashed runs"
_BEATS = 3
"""Heartbeats that may be missed: a busy machine is late, and a run wrongly called Crashed stays so."""


def crashed_runs(window: int) -> Any:
    """The automation: after a heartbeat, the next word of that run is waited for this many seconds."""
    from prefect.automations import Automation
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification
    from prefect.states import StateType

    trigger = EventTrigger(
        posture=Posture.Proactive,
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        for_each={"prefect.resource.id"},
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.*"},
        threshold=1,
        within=timedelta(seconds=window),
    )
    message = f"Nothing was heard of its process for {window} s: it was killed. The same command goes on from there."
    action = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message)
    words = "A flow run whose process was killed is Crashed instead of Running for ever."
    return Automation(name=NAME, description=words, trigger=trigger, actions=[action], enabled=True)


def apply(window: int) -> str:
    """Create it on the server, or bring it up to date; says what was done."""
    from prefect.automations import Automation

    wanted = crashed_runs(window)
    try:
        wanted.id = Automation.read(name=NAME).id
    except ValueError:
        wanted.create()
        return f"'{NAME}' is set up: Crashed after {window} s of silence."
    wanted.update()
    return f"'{NAME}' was there and is up to date: Crashed after {window} s of silence."


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.automations", description=__doc__)
    parser.add_argument("--window", type=int, help=f"seconds of silence; {_BEATS} heartbeats unless told")
    window = parser.parse_args(words).window
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if not settings.api.url:
        print("Set PREFECT_API_URL to the server's address, as in http://127.0.0.1:4200/api.", file=sys.stderr)
        return 2
    beat = settings.flows.heartbeat_frequency or 0
    window = window or _BEATS * beat
    if not beat < window:
        least = f"PREFECT_FLOWS_HEARTBEAT_FREQUENCY is {beat}"
        print(f"{least}: a window of {window} s would call living runs dead. Give {_BEATS * beat}.", file=sys.stderr)
        return 2
    print(apply(window))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
