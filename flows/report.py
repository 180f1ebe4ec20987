"""What a person sees at the end of a run: the stages, the scores, the verdict, and where to look."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tasks.runtime.calls import headline
from tasks.runtime.session import Record, Session


def labels(records: list[Record]) -> list[str]:
    """A name for each stage call; calls of one name are told apart by what they worked on."""
    names = [r.stage if r.seat in ("", r.stage) else f"{r.stage} {r.seat}" for r in records]
    twice = {name for name, count in Counter(names).items() if count > 1}
    return [f"{n} of {r.inputs[0]}" if n in twice and r.inputs else n for n, r in zip(names, records, strict=True)]


def verdict_of(session: Session) -> dict[str, Any] | None:
    """The comparison's verdict, read from the artifact, so that a cached run has it too."""
    for record in reversed(session.records):
        if record.manifest["kind"] == "Comparison":
            place = session.store.root / "objects" / record.manifest["digest"] / "verdict.json"
            found: dict[str, Any] = json.loads(place.read_text())
            return found
    return None


def rows(records: list[Record]) -> list[tuple[str, str, str, str]]:
    """Stage, state, time, key figures."""
    figures = [headline(r.manifest) + r.note for r in records]
    return [(n, r.state, f"{r.seconds:.1f} s", f) for n, r, f in zip(labels(records), records, figures, strict=True)]


def score_rows(verdict: dict[str, Any]) -> list[tuple[str, ...]]:
    """A header and a line per model: the objective with its interval, then the other measures."""
    objective = verdict["objective"]
    others = [name for name in ("exact_match", "json_valid", "loss", "stopped") if name != objective]
    found = [("model", f"{objective} [95 % interval]", *others)]
    for score in verdict["scores"]:
        low, high = score["interval"]
        measures = (f"{score[name]:.3f}" for name in others)
        found.append((score["model"]["stage"], f"{score[objective]:.3f} [{low:.3f}, {high:.3f}]", *measures))
    return found


def difference_lines(verdict: dict[str, Any]) -> list[str]:
    """Each model against the one before it, on the same prompts; whether the interval leaves chance behind."""
    found = []
    for step in verdict["differences"]:
        low, high = step["interval"]
        beyond = "beyond chance" if low > 0 or high < 0 else "within chance"
        found.append(f"{step['from']} -> {step['to']}: {step['mean']:+.3f} [{low:+.3f}, {high:+.3f}], {beyond}")
    return found


def fidelity_lines(verdict: dict[str, Any]) -> list[str]:
    """What each form of the model costs against the one before it."""
    fidelity = verdict["fidelity"]
    names = {"merged": "adapter -> merged", "f16": "merged -> f16", "level": f"f16 -> {fidelity.get('level', '')}"}
    return [
        f"{names[name]:<18} KL {pair['kl']:.5f}, same most likely token {pair['same_top1']:.2%}"
        for name, pair in fidelity.get("pairs", {}).items()
    ]


def scores(verdict: dict[str, Any] | None) -> dict[str, float]:
    """The scores of every model by name, for a tracker."""
    names = ("exact_match", "json_valid", "loss", "stopped")
    models = verdict["scores"] if verdict else []
    return {f"{score['model']['stage']}.{name}": score[name] for score in models for name in names}


def remarks(session: Session) -> list[tuple[str, str]]:
    """What somebody should look at: rows that were left out, results of earlier code."""
    found = []
    for record in session.records:
        if dropped := record.manifest["metrics"].get("dropped"):
            place = session.store.root / record.manifest["notes"] / "report.json"
            found.append(("left out", f"{dropped:.0f} rows of {record.seat}; why and which: {place}"))
    if any(record.note for record in session.records):
        found.append(("drift", "some results are of earlier code or libraries; runtime.drift=rerun makes them again"))
    return found


def gate_lines(verdict: dict[str, Any]) -> list[str]:
    """What every failed gate measured, its limit, and what to try."""
    failed = [gate for gate in verdict["gates"] if not gate["passed"]]
    return [f"{g['name']}: measured {g['value']:.4g}, limit {g['limit']:.4g}. {g['advice']}" for g in failed]


def show(console: Console, session: Session, verdict: dict[str, Any] | None, where: list[tuple[str, str]]) -> None:
    table = Table("stage", "state", "time", "key figures", box=box.SIMPLE, title_justify="left")
    for row in rows(session.records):
        table.add_row(*row)
    console.print(table)
    if verdict:
        head, *lines = score_rows(verdict)
        beside = Table(*head, box=box.SIMPLE)
        for line in lines:
            beside.add_row(*line)
        console.print(beside)
        for text in [*difference_lines(verdict), "", *fidelity_lines(verdict), "", *_verdict_lines(verdict)]:
            console.print(f"  {text}", soft_wrap=True)
    console.print()
    for name, text in where:
        console.print(f"  {name:<12} {text}", soft_wrap=True)


def data(session: Session, verdict: dict[str, Any] | None) -> dict[str, Any]:
    """The report for programs."""
    stages = [
        {"call": call, "state": r.state, "seconds": r.seconds, "digest": r.manifest["digest"], **r.manifest["metrics"]}
        for call, r in zip(labels(session.records), session.records, strict=True)
    ]
    found = product(session)
    return {"stages": stages, "verdict": verdict, "product": str(found) if found else ""}


def markdown(session: Session, verdict: dict[str, Any] | None, where: list[tuple[str, str]]) -> str:
    text = _table([("stage", "state", "time", "key figures"), *rows(session.records)])
    if verdict:
        text += "\n" + _table(score_rows(verdict)) + "\n"
        lines = [*difference_lines(verdict), *fidelity_lines(verdict), *_verdict_lines(verdict)]
        text += "".join(f"* {line}\n" for line in lines)
    return text + "\n" + "".join(f"* {name}: `{value}`\n" for name, value in where)


def _verdict_lines(verdict: dict[str, Any]) -> list[str]:
    """The gates judge whether the file may be used, not whether it is better than what it came from."""
    word = "passed" if verdict["passed"] else "FAILED"
    return [f"verdict: {word}, {len(verdict['gates'])} gates", *(f"- {line}" for line in gate_lines(verdict))]


def _table(lines: Sequence[tuple[str, ...]]) -> str:
    rule = "|".join("---" for _ in lines[0])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("\n", f"\n|{rule}|\n", 1) + "\n"


def product(session: Session) -> Path | None:
    """The file the road was for: the last GGUF that was made or found."""
    for record in reversed(session.records):
        if record.manifest["kind"] == "GGUF":
            folder = session.store.root / "objects" / record.manifest["digest"]
            return next(folder.glob("*.gguf"), None)
    return None
