"""`-m`: one command, many trials: every value of a grid (here), or a search for the best (flows/search.py).

All trials are composed and checked before the first one starts. Each is a run of its own, under the sweep's run in
MLflow and against one Prefect server, and what trials have in common is made once: the store sees to that. Hydra's
launchers run them, one after the other or side by side (`hydra/launcher=joblib hydra.launcher.n_jobs=2`).
Exit codes: 0 every trial came to a verdict, 1 one failed, 2 the config is wrong, 130 and 143 stopped.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from flows import search
from flows.compose import CONF, ConfigError, as_meant, compose_all, explain, register

Drawing = Callable[[Any], Any]
Turned = dict[str, str]
"""Knob -> value, as one would type them."""


def through_hydra(drawing: Drawing, schema: type, argv: list[str]) -> int:
    """A command line with options: `-m` is a sweep, `--help`, `--cfg`, `--config-dir` ... are Hydra's own."""
    argv = [as_meant(drawing.__name__, word) for word in argv]
    if {"-m", "--multirun"} & set(argv):
        return sweep(drawing, schema, argv)
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from flows.launch import run_once

    register(drawing.__name__, schema)
    codes: list[int] = []

    def job(_: Any) -> None:
        own = HydraConfig.get()
        folders = [s.path.removeprefix("file://") for s in own.runtime.config_sources if s.provider == "command-line"]
        codes.append(run_once(drawing, schema, list(own.overrides.task), folders))

    sys.argv = [sys.argv[0], *argv]
    hydra.main(version_base="1.3", config_path=str(CONF), config_name=drawing.__name__)(job)()
    return max(codes, default=0)


@dataclass
class Asked:
    """What a command line with `-m` asks for."""

    drawing: Drawing
    schema: type
    search: list[str]
    """Folders with choices of one's own."""
    words: list[str] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)
    """Overrides of every trial."""
    hydra: list[str] = field(default_factory=list)
    """Overrides of Hydra itself: launcher, sweeper."""
    swept: dict[str, Override] = field(default_factory=dict)
    """Knob -> what it is turned to, in the order of the command line."""
    config: Any = None
    """Hydra's own config, composed."""
    loader: Any = None

    def overrides(self, turned: Turned) -> list[str]:
        return [*self.fixed, *(f"{knob}={value}" for knob, value in turned.items())]

    @property
    def sweeper(self) -> str:
        return str(self.config.hydra.runtime.choices["hydra/sweeper"])


def sweep(drawing: Drawing, schema: type, argv: list[str]) -> int:
    """Run every trial that the command line asks for; returns the exit code."""
    drawing, schema = by_name(drawing, schema)
    try:
        asked = ask(drawing, schema, argv)
        space = search.space(asked.swept, asked.config.hydra.sweeper) if asked.sweeper == "optuna" else None
        turned = space.corners() if space else grid(asked.swept)
        configs = checked(asked, turned)
        if space:
            space.objective(configs[0])
    except ConfigError as error:
        Console(stderr=True, highlight=False).print(f"The config is wrong:\n{error}", markup=False, soft_wrap=True)
        return 2
    if configs[0].plan:
        from flows.plan import show_sweep

        if space:
            print("What a search will ask next depends on its scores; this is the plan of one trial.")
        show_sweep(drawing, configs[:1] if space else configs)
        return 0
    from flows.leader import Leader

    leader = Leader(asked, configs[0], len(turned) if space is None else space.n_trials)
    return leader.lead((lambda: space.run(leader.launch, leader.at_once)) if space else (lambda: leader.launch(turned)))


def by_name(drawing: Drawing, schema: type) -> tuple[Drawing, type]:
    """The same two under the name that workers import them by: what belongs to `__main__` here is nobody's there."""
    spec = getattr(sys.modules[drawing.__module__], "__spec__", None)
    module = importlib.import_module(spec.name if spec else drawing.__module__)
    return getattr(module, drawing.__name__), getattr(module, schema.__name__)


def ask(drawing: Drawing, schema: type, argv: list[str]) -> Asked:
    """Read the command line and compose Hydra's part of the config. Raises ConfigError."""
    reader = argparse.ArgumentParser(prog=f"python -m flows.{drawing.__name__}", add_help=False)
    reader.add_argument("-m", "--multirun", action="store_true")
    reader.add_argument("-cd", "--config-dir")
    reader.add_argument("words", nargs="*", metavar="key=value")
    read = reader.parse_intermixed_args(argv)
    if read.config_dir and not Path(read.config_dir).is_dir():
        raise ConfigError([f"--config-dir {read.config_dir}: there is no such folder."])
    asked = Asked(drawing, schema, [read.config_dir] if read.config_dir else [], read.words)
    register(drawing.__name__, schema)
    ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=search.SearchConfig)
    try:
        _sort(asked, read.words)
        _compose(asked)
        _sort(asked, [f"{knob}={values}" for knob, values in (asked.config.hydra.sweeper.params or {}).items()])
    except (HydraException, OmegaConfBaseException) as error:
        checked(asked, search.corners(asked.swept))  # tells the trials' own mistakes all at once
        raise ConfigError([explain(schema, error, "")]) from None
    if asked.sweeper not in ("basic", "optuna"):
        raise ConfigError([f"hydra/sweeper={asked.sweeper}: a sweep is a grid (basic) or a search (optuna)."])
    return asked


def _sort(asked: Asked, words: list[str]) -> None:
    """Of two overrides of one knob the later one holds, as in Hydra."""
    parsed = OverridesParser.create().parse_overrides(words)
    for override in {override.get_key_element(): override for override in parsed}.values():
        line = str(override.input_line)
        if override.is_hydra_override() and override.is_sweep_override():
            raise ConfigError([f"{line}: what is Hydra's holds for the whole sweep; give it one value."])
        if override.is_hydra_override():
            asked.hydra.append(line)
        elif override.is_sweep_override():
            asked.swept[override.get_key_element()] = override
        else:
            asked.fixed.append(line)


def _compose(asked: Asked) -> None:
    where = [f"hydra.searchpath=[{','.join(f'file://{Path(p).resolve()}' for p in asked.search)}]"]
    overrides = [*asked.fixed, *asked.hydra, *(where if asked.search else []), "hydra.mode=MULTIRUN"]
    Plugins.instance()  # finds the launchers
    with initialize_config_dir(str(CONF), version_base="1.3"):
        asked.config = hydra_compose(asked.drawing.__name__, overrides, return_hydra_config=True)
        asked.loader = GlobalHydra.instance().config_loader()
    for override in asked.swept.values():
        override.config_loader = asked.loader  # `glob(*)` asks it what there is


def grid(swept: dict[str, Override]) -> list[Turned]:
    """Every combination, the last knob fastest, as Hydra's own sweeper has them."""
    if endless := [o.input_line for o in swept.values() if not o.is_discrete_sweep()]:
        advice = "a grid wants values, such as 0.1,0.2; to search, add hydra/sweeper=optuna hydra.sweeper.n_trials=20."
        raise ConfigError([f"{line}: {advice}" for line in endless])
    values = [list(override.sweep_string_iterator()) for override in swept.values()]
    return [dict(zip(swept, combination, strict=True)) for combination in itertools.product(*values)]


def checked(asked: Asked, turned: list[Turned]) -> list[Any]:
    """The config of every trial, or everything that is wrong with any of them at once."""
    trials = [asked.overrides(values) for values in turned]
    configs = compose_all(asked.drawing.__name__, asked.schema, trials, asked.search)
    wrong = Counter(problem for config in configs if isinstance(config, ConfigError) for problem in config.problems)
    if not wrong and len({(c.compare.objective, c.compare.maximize) for c in configs if hasattr(c, "compare")}) > 1:
        raise ConfigError(["compare.objective: scores of one sweep are set beside each other; give it one metric."])
    if wrong:
        every = len(trials)
        raise ConfigError([f"{p}{f' ({n} of {every} trials)' if n < every else ''}" for p, n in wrong.items()])
    return configs
