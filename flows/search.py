"""A search instead of a grid: Optuna asks, trials answer.

    -m hydra/sweeper=optuna hydra.sweeper.n_trials=20 'dpo.args.beta=tag(log,interval(0.01,0.5))' sft.lora.rank=8,16,32

The sampler is seeded and hears only scores, so the same command asks the same questions again: what a stopped or
killed search had finished is found in the store, and it goes on from there. A failed trial is told as failed. One
whose verdict failed tells its score and that it breaks a constraint: TPE turns away from it, and it is never the best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from flows.compose import ConfigError
from flows.trials import State, Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

Turned = dict[str, str]
_TAGS = {"log", "int", "float"}


class Sampler(StrEnum):
    """Who chooses the next values: a model of the scores so far (TPE), or chance."""

    tpe = "tpe"
    random = "random"


@dataclass
class SearchConfig:
    """`hydra/sweeper=optuna`."""

    n_trials: int = 20
    """Trials in all."""
    sampler: Sampler = Sampler.tpe
    """tpe or random; TPE's first ten trials are random, too."""
    seed: int = 0
    """Of the sampler. The same seed asks the same questions."""
    params: dict[str, Any] | None = None
    """Knobs to search over, for a search that is written down in a file: knob -> what one would type."""


@dataclass
class Space:
    """What is searched, and for what."""

    swept: dict[str, Override]
    config: SearchConfig
    maximize: bool = True

    def objective(self, config: Any) -> None:
        """Take the direction from a trial's config. Raises ConfigError where the flow measures nothing."""
        if not hasattr(config, "compare"):
            raise ConfigError(["this flow has no `compare`, so there is no score to search by: sweep over a grid."])
        self.maximize = config.compare.maximize

    @property
    def n_trials(self) -> int:
        return self.config.n_trials

    def corners(self) -> list[Turned]:
        return corners(self.swept)

    def run(self, launch: Callable[[list[Turned]], list[Trial]], at_once: int) -> None:
        """Ask for as many trials as run at once, hear what they came to, ask again."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        better = optuna.study.StudyDirection.MAXIMIZE if self.maximize else optuna.study.StudyDirection.MINIMIZE
        study = optuna.create_study(direction=better, sampler=self._sampler(at_once))
        distributions = {knob: _distribution(override) for knob, override in self.swept.items()}
        for begun in range(0, self.n_trials, at_once):
            asked = [study.ask(distributions) for _ in range(min(at_once, self.n_trials - begun))]
            answers = launch([{knob: _text(value) for knob, value in question.params.items()} for question in asked])
            for question, trial in zip(asked, answers, strict=True):
                if trial.score is None:
                    study.tell(question, state=optuna.trial.TrialState.FAIL)
                else:
                    question.set_user_attr("unfit", trial.state is not State.passed)
                    study.tell(question, trial.score)

    def _sampler(self, at_once: int) -> BaseSampler:
        import warnings

        import optuna

        if self.config.sampler is Sampler.random:
            return optuna.samplers.RandomSampler(self.config.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that constraints are experimental
            return optuna.samplers.TPESampler(
                seed=self.config.seed,
                constant_liar=at_once > 1,  # of those that run side by side each keeps away from the others
                constraints_func=lambda trial: (1.0 if trial.user_attrs.get("unfit") else 0.0,),
            )


def space(swept: dict[str, Override], config: Any) -> Space:
    """What an override for each knob and `hydra.sweeper` ask for. Raises ConfigError."""
    problems = [problem for override in swept.values() if (problem := _problem(override))]
    if not swept:
        problems.append("nothing to search over: give a knob as key=interval(low,high), key=choice(a,b) or key=a,b.")
    if config.n_trials < 1:
        problems.append(f"hydra.sweeper.n_trials is {config.n_trials}; give a positive number such as 20.")
    if problems:
        raise ConfigError(problems)
    return Space(swept, SearchConfig(config.n_trials, config.sampler, config.seed))


def corners(swept: dict[str, Override]) -> list[Turned]:
    """Trials that together hold every choice and both ends of every interval: what can be checked beforehand."""
    ends = {knob: _ends(override) for knob, override in swept.items()}
    first = {knob: values[0] for knob, values in ends.items()}
    return [first, *({**first, knob: value} for knob, values in ends.items() for value in values[1:])]


def _ends(override: Override) -> list[str]:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [_text(_cast(override, value.start)), _text(_cast(override, value.end))]
    return list(override.sweep_string_iterator())


def _problem(override: Override) -> str:
    value, line = override.value(), override.input_line
    tags: set[str] = getattr(value, "tags", set())
    if tags - _TAGS:
        return f"{line}: the tags of a search are {', '.join(sorted(_TAGS))}."
    if isinstance(value, IntervalSweep):
        low, high = _cast(override, value.start), _cast(override, value.end)
        if not low < high:
            return f"{line}: the interval is empty; give the lower end first."
        if "log" in tags and low <= 0:
            return f"{line}: a logarithm wants a lower end above 0."
    elif "log" in tags:
        return f"{line}: log is for interval(low,high)."
    elif not list(override.sweep_string_iterator()):
        return f"{line}: there is no value in it."
    return ""


def _cast(override: Override, end: Any) -> int | float:
    """The end of an interval: whole with `int(interval(1,8))` or `tag(int,interval(1,8))`."""
    whole = isinstance(end, int) or "int" in override.value().tags  # type: ignore[union-attr]
    return int(end) if whole else float(end)


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high, log = _cast(override, value.start), _cast(override, value.end), "log" in value.tags
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(low, high, log=log)
    if isinstance(value, RangeSweep) and isinstance(steps := value.range(), range) and steps.step > 0:
        return IntDistribution(steps[0], steps[-1], step=steps.step)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _text(value: Any) -> str:
    """As one would type it: four digits are more than a knob can tell."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
