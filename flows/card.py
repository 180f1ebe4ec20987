"""The model card of a finished road: everything in it is read from the manifests and the verdict, nothing is typed.

It names no path of the machine it was made on, so it can lie beside files that are given away.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from flows import remarks, report, usage
from flows.story import Story, verdict
from tasks.llm import knobs
from tasks.runtime.catalogue import Catalogue, Entry
from tasks.runtime.runs import read_json
from tasks.runtime.store import Manifest, Store

_SAID_ELSEWHERE = ("download", "preprocess", "compare")


@dataclass
class Origin:
    """The run a card tells of; empty where it is not known any more."""

    run: str = ""
    command: str = ""


def origin(folder: Path) -> Origin:
    """What a run's folder tells."""
    return Origin(folder.name, str(read_json(folder / "provenance.json").get("command", "")))


def text(story: Story, of: Origin, beside: usage.Beside) -> str:
    """The card of a road that came to a verdict."""
    assert story.verdict is not None
    parts = [
        _front(story, beside),
        f"# {usage.base_name(story)} + {', '.join(_learned(story, beside))}\n\n{_first(story, story.verdict, beside)}",
        "## Scores\n\n" + _scores(story.verdict),
        "## What each form costs\n\n" + _forms(story.verdict),
        "## How to run it\n\n" + usage.text(story, beside),
        "## What it was made from\n\n" + _base(story) + "\n" + _data(story),
        "## How it was made\n\n" + _settings(story),
        "## How to make it again\n\n" + _again(story, of),
        "## Limitations\n\n" + "".join(f"* {line}\n" for line in [*_trial(of), *_limitations(story, story.verdict)]),
    ]
    return "\n".join(parts)


def beside(catalogue: Catalogue, entry: Entry, file: str = "") -> dict[str, str]:
    """What belongs beside an exported model: name -> text of its card and, for a GGUF, its Modelfile. Nothing where no
    finished run came to a verdict about it. `file`: the name that a GGUF gets."""
    if entry.manifest["kind"] not in ("Model", "GGUF") or entry.stage == "download":
        return {}
    store = Store(catalogue.store)
    for judged in reversed([e for e in catalogue.standing if e.manifest["kind"] == "Comparison"]):
        manifests = store.lineage(judged.manifest)
        if entry.key in {manifest["key"] for manifest in manifests} and catalogue.object(judged.digest).is_dir():
            told = Story(store.root, manifests, verdict(store.root, manifests))
            lies = usage.Beside(entry.manifest, file)
            made = {"README.md": text(told, _run_of(catalogue, judged), lies), "Modelfile": usage.modelfile(told, lies)}
            return {name: said for name, said in made.items() if said}
    return {}


def _run_of(catalogue: Catalogue, entry: Entry) -> Origin:
    """The last run that came to this verdict."""
    found = [run for run in catalogue.runs if any(row["digest"] == entry.digest for row in run.used)]
    return origin(catalogue.root / "runs" / found[-1].name) if found else Origin()


def _learned(story: Story, beside: usage.Beside) -> list[str]:
    return list(dict.fromkeys(story.called(manifest["stage"]) for manifest in _trainings(story, beside)))


def _trainings(story: Story, beside: usage.Beside) -> list[Manifest]:
    """Those that what it lies beside went through."""
    keys = [manifest["key"] for manifest in story.manifests]
    last = keys.index(beside.manifest["key"]) + 1 if beside.manifest and beside.manifest["key"] in keys else None
    return usage.trained(story.manifests[:last])


# The front matter, as model hubs read it


def _front(story: Story, beside: usage.Beside) -> str:
    made_from, trained = usage.made_from(story), _trainings(story, beside)
    methods = [str(manifest["fields"].get("method", "")) for manifest in trained]
    form = ["gguf"] if beside.gguf or (beside.manifest is None and usage.text(story, beside).count("llama-cli")) else []
    tags = [*(manifest["stage"] for manifest in trained), *methods, *form, "posttrain"]
    sets = [str(m["config"]["repo"]) for m in story.of("preprocess") if m["config"].get("repo")]
    facts: dict[str, Any] = {
        "license": made_from.get("license", "unknown"),
        "base_model": made_from.get("repo") or usage.base_name(story),
        "library_name": usage.library(beside),
        "pipeline_tag": "text-generation",
        "datasets": list(dict.fromkeys(sets)),
        "tags": list(dict.fromkeys(tag for tag in tags if tag)),
    }
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in facts.items() if value]
    return "\n".join(["---", *lines, "---\n"])  # YAML takes JSON's strings and lists


# What was measured


def _first(story: Story, verdict: dict[str, Any], beside: usage.Beside) -> str:
    word = "**The road passed its gates.**" if verdict["passed"] else "**A gate FAILED: see the limitations.**"
    made = beside.manifest
    this = f" The files beside this card are {story.called(made['stage'])}, content `{made['digest']}`." if made else ""
    return f"{report.headline(verdict)} {word}{this}\n"


def _scores(verdict: dict[str, Any]) -> str:
    told = [*report.difference_lines(verdict), *report.retention_lines(verdict)]
    table = report.table(report.score_rows(verdict))
    lines = "".join(f"* {line}\n" for line in told)
    return f"{table}\nEach model against the one before it, on the same prompts:\n\n{lines}"


def _forms(verdict: dict[str, Any]) -> str:
    rows = [("form", "KL divergence, nats per token", "same most likely token")]
    rows += [(form["name"], f"{form['kl']:.2g}", f"{form['same_top1']:.2%}") for form in report.forms(verdict)]
    gates = [("gate", "measured", "limit", "")]
    for gate in verdict["gates"]:
        word = "passed" if gate["passed"] else "**FAILED**"
        gates.append((gate["name"], f"{gate['value']:.4g}", f"{gate['limit']:.4g}", word))
    tokens = verdict.get("fidelity", {}).get("tokens", 0)
    measured = f"On {tokens:,} held-out answer tokens:\n\n{report.table(rows)}\n" if len(rows) > 1 else ""
    return measured + report.table(gates)


# What it was made from, and how


def _base(story: Story) -> str:
    """License, source, and whatever else the download stage wrote down."""
    made_from = dict(usage.made_from(story))
    licence = made_from.pop("license", "unknown")
    where = ", ".join(f"{name} `{_shown(value)}`" for name, value in sorted(made_from.items()) if value)
    return f"* base model: {usage.base_name(story)}\n* its license: {licence}\n* it came from: {where or 'unknown'}\n"


def _data(story: Story) -> str:
    rows = [("data", "from", "rows", "trained on", "held out", "left out", "content")]
    for manifest in story.of("preprocess"):
        config, counts = manifest["config"], manifest["metrics"]
        numbers = (f"{counts.get(name, 0):,.0f}" for name in ("rows", "train", "eval", "dropped"))
        rows.append((config.get("kind", ""), f"`{_source(manifest)}`", *numbers, f"`{manifest['digest'][:12]}`"))
    return report.table(rows)


def _source(manifest: Manifest) -> str:
    """Where a data set's rows came from, as it was configured."""
    config = manifest["config"]
    return _shown(config.get("path") or f"{config.get('repo')}@{manifest['fields'].get('revision', '')[:12]}")


def _settings(story: Story) -> str:
    rows = [("stage", "settings", "result")]
    for manifest in story.manifests:
        if manifest["stage"] not in _SAID_ELSEWHERE and (said := ", ".join(_asked(manifest))):
            measured = manifest["kind"] in ("Metrics", "Comparison")  # once for each model, in the same way
            rows.append((manifest["stage"], said, "" if measured else f"`{manifest['digest'][:12]}`"))
    return report.table([rows[0], *dict.fromkeys(rows[1:])])


def _asked(manifest: Manifest) -> Iterator[str]:
    """What was set, as it was in force; what is off, or only changes what is seen of a run, is left out."""
    asked = {name: value for name, value in manifest["config"].get("args", {}).items() if name not in knobs.FREE}
    fields = {**manifest["fields"], "args": {**asked, **manifest["fields"].get("args", {})}}
    for name, value in _flat(fields):
        if value not in (None, "", [], False, 0):
            yield f"{name} {_shown(value)}"


def _flat(fields: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """`kl.coef`, `rewards.mine.weight`; the trainer's own arguments by their own names."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flat(value, "" if name == "args" else f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _shown(value: Any) -> str:
    """A value as a card has it: lists in words, of a path on this machine its name alone."""
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else str(value)


def _again(story: Story, of: Origin) -> str:
    commits = {(m["git"].get("commit", ""), m["git"].get("dirty") == "yes") for m in story.manifests}
    code = [f"`{commit}`{' with edits of its own' if edited else ''}" for commit, edited in sorted(commits) if commit]
    libraries: dict[str, str] = {}
    for manifest in story.manifests:
        libraries |= manifest["libraries"]
    python = sorted({manifest["machine"]["python"] for manifest in story.manifests})
    versions = ", ".join(f"{name} {version}" for name, version in sorted(libraries.items()))
    steps = [_told(of.command)] if of.command else []
    steps += [f"python -m flows.store reproduce {of.run}    # the run again past the cache; compares"] if of.run else []
    block = "```\n" + "\n".join(steps) + "\n```\n" if steps else ""
    if "runtime.root=" in of.command:
        block += "Where that run was made, `flows.store` wants `--root` with the folder it wrote to.\n"
    if of.command.count("=/") > of.command.count("runtime.root=/"):
        block += "Of files of one's own their names are left: put your own folders in front.\n"
    return f"{block}\nCode: {', '.join(code) or 'unknown'}. Python {', '.join(python)}; {versions}.\n"


def _told(command: str) -> str:
    """A command without where it ran; of a path on that machine its name is left."""
    words = [word for word in shlex.split(command) if not word.startswith("runtime.root=")]
    return shlex.join(re.sub(r"=(/\S+)$", lambda found: f"={PurePath(found[1]).name}", word) for word in words)


# What to expect of it


def _measured_on(story: Story, verdict: dict[str, Any]) -> str:
    """Where the candidate's prompts came from: a parent of its measurement, which is a parent of the comparison."""
    by_key = {manifest["key"]: manifest for manifest in story.manifests}
    (judged,) = [manifest for manifest in story.manifests if manifest["kind"] == "Comparison"][-1:]
    measured = by_key.get(judged["parents"][len(verdict["scores"]) - 1]["key"], {"parents": []})
    for above in measured["parents"]:
        if above["kind"] == "Dataset" and above["key"] in by_key:
            return f"`{_source(by_key[above['key']])}`"
    return "one data set"


def _trial(of: Origin) -> Iterator[str]:
    if found := re.search(r"\bdebug=[\w/]+", of.command):
        yield f"Made with `{found[0]}`: a few steps on a few rows try the machinery. It is no model to use."


def _limitations(story: Story, verdict: dict[str, Any]) -> Iterator[str]:
    yield from (f"The gate {line}" for line in report.gate_lines(verdict))
    yield from dict.fromkeys(remarks.memory(story, {}))
    candidate, objective = verdict["scores"][-1], verdict["objective"]
    if objective != "loss":
        low, high = candidate["interval"]
        yield (
            f"{1 - candidate[objective]:.0%} of its answers to held-out prompts miss {objective} (95 % interval "
            f"{1 - high:.0%} to {1 - low:.0%}): check what it says before anything is done with it."
        )
    if candidate["stopped"] < 1:
        yield f"{1 - candidate['stopped']:.1%} of its answers did not end by themselves and were cut."
    kept = " but for the general rows above" if verdict.get("retention") else ""
    yield (
        f"Measured on {candidate['prompts']} prompts of {_measured_on(story, verdict)}, greedily. Other tasks{kept}, "
        "other languages, long conversations and safety were not measured."
    )
    for step in verdict["differences"]:
        low, high = step["interval"]
        names = f"{story.called(step['from'])} to {story.called(step['to'])}"
        if low <= 0 <= high:
            yield f"From {names}, {objective} changed within chance ({step['mean']:+.3f} [{low:+.3f}, {high:+.3f}])."
    if cut := sum(m["metrics"].get("truncated", 0) for m in story.of("encode")):
        yield f"{cut:,.0f} training rows were longer than the cutoff and lost their end."
