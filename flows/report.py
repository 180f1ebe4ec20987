"""What a person sees at the end of a run: the stages, the scores, the verdict, and where to look."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tasks.runtime.session import Record, Session
from tasks.runtime.stage import headline


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
    objective = verdict["objective"]
    found = []
    for score in verdict["scores"]:
        low, high = score["interval"]
        measures = (f"{score[name]:.3f}" for name in ("exact_match", "json_valid", "loss", "stopped"))
        found.append((score["model"]["stage"], f"{score[objective]:.3f} [{low:.3f}, {high:.3f}]", *measures))
    return found


def gate_lines(verdict: dict[str, Any]) -> list[str]:
    """What every failed gate measured, its limit, and what to try."""
    failed = [gate for gate in verdict["gates"] if not gate["passed"]]
    return [f"{g['name']}: measured {g['value']:.4g}, limit {g['limit']:.4g}. {g['advice']}" for g in failed]


SCORES = ("model", "objective, 95 % interval", "exact_match", "json_valid", "loss", "stopped")


def show(console: Console, session: Session, verdict: dict[str, Any] | None, where: list[tuple[str, str]]) -> None:
    table = Table("stage", "state", "time", "key figures", box=box.SIMPLE, title_justify="left")
    for row in rows(session.records):
        table.add_row(*row)
    console.print(table)
    if verdict:
        scores = Table(*SCORES, box=box.SIMPLE)
        for line in score_rows(verdict):
            scores.add_row(*line)
        console.print(scores)
        for name, pair in verdict["fidelity"].get("pairs", {}).items():
            name = f"{name} {verdict['fidelity']['level']}" if name == "level" else name
            console.print(f"  fidelity {name:<12} KL {pair['kl']:.5f}   same top-1 {pair['same_top1']:.2%}")
        console.print(f"\n  verdict: {'passed' if verdict['passed'] else 'FAILED'} ({len(verdict['gates'])} gates)")
        for text in gate_lines(verdict):
            console.print(f"  - {text}")
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
    text = _table(("stage", "state", "time", "key figures"), rows(session.records))
    if verdict:
        text += "\n" + _table(SCORES, score_rows(verdict))
        text += f"\nVerdict: **{'passed' if verdict['passed'] else 'failed'}**\n"
        text += "".join(f"* {line}\n" for line in gate_lines(verdict))
    return text + "\n" + "".join(f"* {name}: `{value}`\n" for name, value in where)


def _table(head: tuple[str, ...], lines: list[Any]) -> str:
    rule = "|".join("---" for _ in head)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, *lines]).replace("\n", f"\n|{rule}|\n", 1) + "\n"


def product(session: Session) -> Path | None:
    """The file the road was for: the last GGUF that was made or found."""
    for record in reversed(session.records):
        if record.manifest["kind"] == "GGUF":
            folder = session.store.root / "objects" / record.manifest["digest"]
            return next(folder.glob("*.gguf"), None)
    return None
