"""Where Hydra stops: overrides in, a checked dataclass out, or every mistake at once with the nearest names."""

from __future__ import annotations

import copy
import dataclasses
import re
import threading
import typing
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flows import checks, names

CONF = Path(__file__).resolve().parent.parent / "conf"
_LOCK = threading.Lock()
_REGISTERED: dict[str, type] = {}
_MISTAKES = (HydraException, OmegaConfBaseException, ValueError, AssertionError)
"""The last two are what a choice of null, and a value below something that is null, fall through as."""
_NO_SECRETS = "give the value itself, not one from the environment: secrets do not belong into a config."


class ConfigError(ValueError):
    """Everything that is wrong with a config."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(f"  {n}. {problem}" for n, problem in enumerate(problems, 1)))


def register(name: str, schema: type) -> None:
    """Make a flow's dataclass the first entry of its defaults list, so that a misspelled key dies at composition."""
    if _REGISTERED.get(name) is schema:
        return
    node = OmegaConf.structured(schema)
    _open(node)
    ConfigStore.instance().store(name=f"{name}_schema", node=node)
    _REGISTERED[name] = schema


def _open(node: Any) -> None:
    """A trainer's own knobs and its rewards have any name: `dpo.args.beta=0.3` needs no `+`."""
    for key in node:
        for name in ("args", "rewards"):
            if OmegaConf.is_config(node[key]) and name in node[key]:
                OmegaConf.set_struct(node[key][name], False)


def _enter(node: Any, path: list[str]) -> None:
    """Make the entry of a mapping of dataclasses that an override is about to fill: `ppo.rewards.mine.weight=1`."""
    for part in path:
        if not OmegaConf.is_dict(node):
            return
        kind = node._metadata.element_type
        if part not in node and dataclasses.is_dataclass(kind):
            node[part] = typing.cast(type, kind)()
        node = node.get(part) if part in node else None


def compose(name: str, schema: type, overrides: list[str], search: list[str] | None = None) -> Any:
    """The flow's dataclass for some overrides, checked. Raises ConfigError with every problem found."""
    (config,) = compose_all(name, schema, [overrides], search)
    if isinstance(config, ConfigError):
        raise config
    return config


def compose_all(name: str, schema: type, trials: list[list[str]], search: list[str] | None = None) -> list[Any]:
    """The same for many lists of overrides, in a tenth of the time: a dataclass or a ConfigError for each."""
    register(name, schema)
    composer = _Composer(name, schema, search or [])
    return [composer.config([as_meant(name, override) for override in overrides]) for overrides in trials]


def as_meant(name: str, override: str) -> str:
    """`debug=smoke` is the flow's own where it has one, and an address needs no quotes of Hydra's grammar."""
    key, _, value = override.partition("=")
    if re.fullmatch(r"https?://[^\s,'\"\[\]{}$]+", value):
        return f"{key}='{value}'"
    return f"{key}={name}/{value}" if value and (CONF / key / name / f"{value}.yaml").is_file() else override


@dataclasses.dataclass
class _Composer:
    """Trials differ in values, seldom in choices: what Hydra composed for some choices is kept for their next trial."""

    name: str
    schema: type
    search: list[str]
    composed: dict[tuple[str, ...], Any] = dataclasses.field(default_factory=dict)
    parsed: dict[str, Override] = dataclasses.field(default_factory=dict)
    told: dict[str, str] = dataclasses.field(default_factory=dict)
    """Override -> what is wrong with it, empty when nothing is."""

    def config(self, overrides: list[str]) -> Any:
        try:
            node = self._node(overrides)
            if _reads_environment(OmegaConf.to_container(node)):
                lines = [line.strip() for line in OmegaConf.to_yaml(node).splitlines() if "oc.env" in line]
                return ConfigError([f"{line}: {_NO_SECRETS}" for line in lines])
            config = OmegaConf.to_object(node)
        except _MISTAKES as error:
            return ConfigError([*self._every_mistake(overrides, error), *self._besides(overrides)])
        problems = list(checks.problems(config))
        return ConfigError(problems) if problems else config

    def _node(self, overrides: list[str]) -> Any:
        """As Hydra itself does it: first the choices, then the values in their order."""
        values = [parsed for override in overrides if (parsed := self._value(override))]
        left = {override: stage for override in overrides if (stage := self._left_out(override))}
        choices = tuple(f"~{left[o]}" if o in left else o for o in overrides if not self._value(o))
        if choices not in self.composed:
            self.composed[choices] = _compose(self.name, [*choices], self.search)
            _open(self.composed[choices])  # also what is null unless chosen
        node = copy.deepcopy(self.composed[choices])
        for stage in left.values():
            node[stage] = None  # whatever a debug or experiment file says of it
        for value in values:
            _enter(node, value.key_or_group.split("."))
        ConfigLoaderImpl._apply_overrides_to_config(values, node)
        return node

    def _left_out(self, override: str) -> str:
        """The stage that `reward_model=null` leaves out; to Hydra a choice and a key of one name, which it refuses.
        Raises ValueError for one that the road needs."""
        stage, _, value = override.removeprefix("~").partition("=")
        hint = typing.get_type_hints(self.schema).get(stage)
        if hint is None or stage not in _groups() or (value != "null" and not override.startswith("~")):
            return ""
        if type(None) not in typing.get_args(hint):
            others = [road.stem for road in sorted(CONF.glob("*.yaml")) if stage not in choices(road.stem)]
            without = f"; a road without it is {' or '.join(f'flows.{road}' for road in others)}" if others else ""
            raise ValueError(f"flows.{self.name} needs its {stage}{without}.")
        return stage if value == "null" else ""

    def _value(self, override: str) -> Override | None:
        """`sft.seed=1` parsed; none for `sft=full`, `preprocess@chats=mine` or a sweep, which are left to Hydra."""
        if override not in self.parsed:
            (self.parsed[override],) = OverridesParser.create().parse_overrides([override])
        parsed = self.parsed[override]
        ours = "." in parsed.key_or_group and "/" not in parsed.key_or_group and not parsed.is_hydra_override()
        return parsed if ours and parsed.package is None and not parsed.is_sweep_override() else None

    def _every_mistake(self, overrides: list[str], first: Exception) -> list[str]:
        """Hydra stops at the first mistake; each override tried alone tells them all."""
        for override in overrides:
            if override not in self.told:
                try:
                    OmegaConf.to_object(self._node([override]))
                    self.told[override] = ""
                except _MISTAKES as error:
                    self.told[override] = explain(self.schema, error, override)
        found = [self.told[override] for override in overrides if self.told[override]]
        return found or [explain(self.schema, first, "")]

    def _besides(self, overrides: list[str]) -> list[str]:
        """Problems of the stages that no mistake can be about, to be told with the mistakes."""
        wrong = [override for override in overrides if self.told[override]]
        about = {re.split(r"[.=]", override.lstrip("+~").rpartition("@")[2])[0] for override in wrong}
        seats = {item.name for item in dataclasses.fields(self.schema)}
        if not about or not about <= seats:
            return []
        try:
            config = OmegaConf.to_object(self._node([override for override in overrides if override not in wrong]))
        except _MISTAKES:
            return []
        stages = {name: getattr(config, name) for name in sorted(seats - about)}
        return [p for name, of in stages.items() if dataclasses.is_dataclass(of) for p in checks.problems(of, name)]


def _compose(name: str, overrides: list[str], search: list[str]) -> Any:
    """Hydra's own state is one per process: lock it, put it aside, compose, put it back."""
    where = [f"hydra.searchpath=[{','.join(f'file://{Path(p).resolve()}' for p in search)}]"] if search else []
    with _LOCK:
        state = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                return hydra_compose(name, overrides=overrides + where)
        finally:
            GlobalHydra.instance().clear()
            GlobalHydra.instance().hydra = state


def _reads_environment(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_reads_environment, value.values()))
    return any(map(_reads_environment, value)) if isinstance(value, list) else "oc.env" in str(value)


def explain(schema: type, error: BaseException, override: str) -> str:
    """Hydra's message in one line, with the nearest names."""
    text = " ".join(str(part) for part in (error, error.__cause__) if part)
    choice = re.search(r"(?:Could not find|In '.*': Could not find) '([\w@]+)/(\w+)'", text)
    if choice:
        options = sorted(p.stem for p in (CONF / choice[1]).glob("*.yaml"))
        near = names.nearest(choice[2], options)
        return f"{choice[1]}={choice[2]}: no such choice.{near} There are: {', '.join(options)}."
    key = override.lstrip("+~").split("=", 1)[0]
    seats = [item.name for item in dataclasses.fields(schema)]
    if key in _groups() and key not in (*seats, "debug", "experiment", "preprocess"):
        return f"{key}: this road has no such stage.{names.nearest(key, seats)}"
    if "Config group override must be a string" in text:
        return f"{override}: a choice is left out with ~{key}."
    if isinstance(error, AssertionError):
        return "A value stands below something that is null: leave out the value, or the null."
    known = list(dict.fromkeys([*names.keys(schema, key), *_groups()]))
    if key and key not in known and not any(key.startswith(k + ".") for k in known if k.endswith("args")):
        return f"{key}: no such key.{names.nearest(key, known)}"
    if unfit := re.search(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", text):
        return f"{key}={unfit[1]}: it wants {_KINDS.get(unfit[2], unfit[2])}."
    if one_of := re.search(r"Invalid value '(.*)', expected one of \[(.*)\]", text):
        near = names.nearest(one_of[1], one_of[2].split(", "))
        return f"{key}={one_of[1]}: no such choice.{near} There are: {one_of[2]}."
    if "Could not append" in text:
        return f"{override}: the key is there already; leave out the +."
    if "is not Optional" in text:
        return f"{override}: it wants a value; leave the override out for the default."
    if "Ambiguous value" in text or "requires --multirun" in text:
        return f"{override}: several values are a sweep and want -m; a list is written [a,b]."
    if "Cannot assign" in text and "Dict[" in text:
        below = [k for k in names.keys(schema, f"{key}.NAME") if k.startswith(f"{key}.NAME.")]
        return f"{override}: give each of them by its name: {below[0] if below else f'{key}.NAME'}=."
    if fields := [k.removeprefix(key) for k in known if "." in key and k.rpartition(".")[0] == key]:
        return f"{override}: name what of it is set: {key}{'=, '.join(fields)}=."
    line = text.strip().splitlines()[0]
    return f"{override}: {line}" if override else text.strip().replace("\n", " ")


_KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def _groups() -> list[str]:
    return sorted(p.name for p in CONF.iterdir() if p.is_dir() and p.name != "__pycache__")


def dashed(schema: type, argv: list[str]) -> list[str]:
    """Choices and knobs written as options, each with how it is written."""
    typed = {word: word.lstrip("-").partition("=")[0] for word in argv if word.startswith("--")}
    known = {name for name in typed.values() if name in (*names.keys(schema, name), *_groups())}
    return [f"{word}: write {name}=..., without dashes." for word, name in typed.items() if name in known]


def choices(name: str) -> dict[str, tuple[str, list[str]]]:
    """The named choices of a flow: seat -> (default, options), read from its defaults list and the folders of conf/."""
    defaults = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))["defaults"]  # type: ignore[call-overload,index]
    found: dict[str, tuple[str, list[str]]] = {}
    for entry in defaults:
        for key, default in entry.items() if isinstance(entry, dict) else []:
            group = key.removeprefix("optional ").split("@")[0]
            of_flow = f"{name}/" if not default and (CONF / group / name).is_dir() else ""  # experiments of its own
            options = [of_flow + o for o in _of_a_kind(sorted((CONF / group / of_flow).glob("*.yaml")), default)]
            if not key.startswith("override") and options:
                found[key] = (default or "none", options if default else ["none", *options])
    return found


def _of_a_kind(places: list[Path], default: str | None) -> list[str]:
    """Names of the choices that say the same `kind` as the default: pairs are no choice where chats go."""
    kinds = {place.stem: re.findall(r"^kind: (\w+)", place.read_text(), re.M) for place in places}
    return [name for name, kind in kinds.items() if kind == kinds.get(default or name)]
