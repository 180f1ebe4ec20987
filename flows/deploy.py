"""The second door: serve every flow to Prefect, whose UI then offers a form for each: `python -m flows.deploy`.

python -m flows.deploy                                                       every flow, until Ctrl-C
python -m flows.deploy --schedule "0 3 * * *" sft_then_dpo quantize=q4_k_m   and one of them every night at 3

A run from the form is the run that the command line makes: the same folder, the same store, a process of its own.
Exit codes: 0 stopped, 1 the server does not answer, 2 what was asked for is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import re
import signal
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from flows import form
from flows.compose import CONF, ConfigError
from flows.surroundings import SERVER, answers, prepare_environment
from tasks.runtime import RuntimeConfig

Drawing = Callable[[Any], Any]
_HOME = Path(__file__).resolve().parent.parent


def roads() -> dict[str, tuple[Drawing, type]]:
    """Every flow: a file of flows/ with a primary config of its name, whose drawing takes a Road."""
    found = {}
    for place in sorted(CONF.glob("*.yaml")):
        if (Path(__file__).parent / place.name).with_suffix(".py").exists():
            drawing = getattr(importlib.import_module(f"flows.{place.stem}"), place.stem)
            (schema,) = (kind for name, kind in typing.get_type_hints(drawing).items() if name != "return")
            found[place.stem] = drawing, schema
    return found


def __getattr__(name: str) -> Any:
    """`flows.deploy.<flow>` is the flow as it is served: how Prefect's processes find it."""
    if not (CONF / f"{name}.yaml").exists():
        raise AttributeError(name)
    from flows.launch import front_door

    for logger in ("prefect.flow_runs", "prefect.engine"):
        logging.getLogger(logger).addFilter(_not_told_yet)
    return front_door(*roads()[name], served=True)


def _not_told_yet(record: logging.LogRecord) -> bool:
    """A run that failed or was stopped with a state of ours has said why; the engine would add its own traceback."""
    from prefect.exceptions import CancelledRun, FailedRun

    return not (record.exc_info and isinstance(record.exc_info[1], FailedRun | CancelledRun))


def main(words: list[str]) -> int:
    asked = _parser().parse_args(words)
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    root = asked.root.resolve() if asked.root else _HOME / "data"
    try:
        begins = {name: _begin(name, road, asked.words) for name, road in _named(asked.words).items()}
        if asked.root:
            os.environ[form.ROOT] = str(root)
        os.chdir(_HOME)  # a served run starts where its command would
        prepare_environment(RuntimeConfig(root=str(root)))
        _check(asked)
    except ConfigError as error:
        console.print(f"Nothing is served, for this is wrong:\n{error}")
        return 2
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url or not answers(f"{url}/health"):
        where = f"The Prefect server at {url} does not answer" if url else f"There is no Prefect server at {SERVER}"
        start = f"`make up`, or `{Path(sys.executable).parent / 'prefect'} server start`"
        console.print(f"{where}. Start one ({start}), or name one: PREFECT_API_URL=http://host:4200/api")
        return 1
    _serve(begins, asked, url.removesuffix("/api"), console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.deploy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = "which flows (all unless named), and the choices and overrides that forms and scheduled runs begin with"
    parser.add_argument("words", nargs="*", metavar="FLOW|key=value", help=words)
    when = parser.add_mutually_exclusive_group()
    when.add_argument(
        "--schedule", metavar="CRON", help='start runs by the clock: "0 3 * * *" is every night at 3, UTC'
    )
    when.add_argument("--every", metavar="SECONDS", type=float, help="start a run every so many seconds")
    parser.add_argument("--at-once", metavar="N", type=int, default=1, help="runs at a time (1); the others wait")
    parser.add_argument("--root", metavar="DIR", type=Path, help="where everything generated lies: the project's data/")
    return parser


def _named(words: list[str]) -> dict[str, tuple[Drawing, type]]:
    known, names = roads(), [word for word in words if not _is_override(word)]
    if wrong := [name for name in names if name not in known]:
        raise ConfigError([f"{name}: no such flow. There are: {', '.join(known)}." for name in wrong])
    return {name: known[name] for name in names or known}


def _is_override(word: str) -> bool:
    return bool(re.match(form.SHAPE, word))


def _begin(name: str, road: tuple[Drawing, type], words: list[str]) -> dict[str, Any]:
    """What the form of a flow begins with, checked as a run would be."""
    given = [word for word in words if _is_override(word)]
    form.read(name, road[1], given)
    return form.filled(name, given)


def _check(asked: argparse.Namespace) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    problems = []
    try:
        _ = CronSchedule(cron=asked.schedule) if asked.schedule else None
    except ValueError:
        problems.append(f"--schedule '{asked.schedule}': minute, hour, day, month, weekday, as in '0 3 * * *'.")
    if asked.every is not None and asked.every < 1:
        problems.append(f"--every {asked.every:g}: give seconds, 1 or more.")
    if asked.at_once < 1:
        problems.append(f"--at-once {asked.at_once}: give 1 or more.")
    if problems:
        raise ConfigError(problems)


def _serve(begins: dict[str, dict[str, Any]], asked: argparse.Namespace, ui: str, console: Console) -> None:
    """Serve until Ctrl-C or SIGTERM: each run becomes a process of its own."""
    from prefect.runner import Runner

    runner = Runner(name="posttrain", limit=asked.at_once)
    for name, begin in begins.items():
        flow = __getattr__(name).from_source(str(_HOME), f"flows.deploy.{name}")
        deployment = flow.to_deployment(name, cron=asked.schedule, interval=asked.every, parameters=begin)
        runner.add_deployment(deployment)
    console.print(f"Serving {', '.join(begins)} until Ctrl-C, {asked.at_once} at a time.")
    console.print(f"The form: {ui}, Deployments, the flow's name, Run, Custom run.")
    asyncio.run(_until_stopped(runner))


async def _until_stopped(runner: Any) -> None:
    """Prefect's own handler of SIGTERM leaves its runs Running for ever; this one cancels them and waits for them."""
    loop = asyncio.get_running_loop()
    leaving: list[Any] = []

    def leave(*_: Any) -> None:
        if not leaving:
            leaving.append(asyncio.run_coroutine_threadsafe(runner.astop(), loop))

    runner.handle_sigterm = leave  # installed by start()
    signal.signal(signal.SIGINT, leave)
    await runner.start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
