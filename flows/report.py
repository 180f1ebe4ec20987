"""What a person sees at the end of a run: how the models score, the verdict, the stages, and where to look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from flows import remarks as noticed
from flows.story import Story, called
from tasks.runtime.calls import headline as figures_of
from tasks.runtime.session import Record, Session

Verdict = dict[str, Any]


def labels(records: list[Record]) -> list[str]:
    """A name for each stage call; calls of one name are told apart by what they worked on."""
    names = [r.stage if r.seat in ("", r.stage) else f"{r.stage} {r.seat}" for r in records]
    twice = {name for name, count in Counter(names).items() if count > 1}
    return [f"{n} of {r.inputs[0]}" if n in twice and r.inputs else n for n, r in zip(names, records, strict=True)]


def rows(records: list[Record]) -> list[tuple[str, str, str, str]]:
    """Stage, state, time, key figures."""
    figures = [figures_of(r.manifest) + r.note for r in records]
    return [(n, r.state, f"{r.seconds:.1f} s", f) for n, r, f in zip(labels(records), records, figures, strict=True)]


def headline(verdict: Verdict) -> str:
    """The objective's story in a sentence."""
    objective, (first, *_, last) = verdict["objective"], verdict["scores"]
    low, high = last["interval"]
    names = [called(verdict, score["model"]["stage"]) for score in (first, last)]
    never = objective == "exact_match" and not any(score[objective] for score in verdict["scores"])
    return (
        f"On {last['prompts']} held-out prompts {names[1]} reaches {objective} {last[objective]:.3f} "
        f"[{low:.3f}, {high:.3f}]; {names[0]} {first[objective]:.3f}."
    ) + (" Where answers may be worded freely, judge them by their loss: compare.objective=loss." if never else "")


def score_rows(verdict: Verdict) -> list[tuple[str, ...]]:
    """A header and a line per model: the objective with its interval, then the other measures."""
    objective = verdict["objective"]
    others = [name for name in ("exact_match", "json_valid", "loss", "stopped") if name != objective]
    if not any(score["json_valid"] for score in verdict["scores"]):
        others.remove("json_valid")  # most tasks want no JSON
    found = [("model", f"{objective} [95 % interval]", *others)]
    for score in verdict["scores"]:
        low, high = score["interval"]
        measures = (f"{score[name]:.3f}" for name in others)
        name = called(verdict, score["model"]["stage"])
        found.append((name, f"{score[objective]:.3f} [{low:.3f}, {high:.3f}]", *measures))
    return found


def difference_lines(verdict: Verdict) -> list[str]:
    """Each model against the one before it, on the same prompts; whether the interval leaves chance behind."""
    found = []
    for step in verdict["differences"]:
        low, high = step["interval"]
        beyond = "beyond chance" if low > 0 or high < 0 else "within chance"
        names = " -> ".join(called(verdict, step[end]) for end in ("from", "to"))
        found.append(f"{names}: {step['mean']:+.3f} [{low:+.3f}, {high:+.3f}], {beyond}")
    return found


def forms(verdict: Verdict | None) -> list[dict[str, Any]]:
    """Each measured form of the model against the one it was made of: `name`, `kl`, `same_top1`, and the limits of its
    gates, `kl_max` and `same_top1_min`, where there are any."""
    found = (verdict or {}).get("fidelity", {})
    limits = {gate["name"]: gate["limit"] for gate in (verdict or {}).get("gates", [])}
    names = {"merged": "adapter -> merged", "f16": "merged -> f16", "level": f"f16 -> {found.get('level', '')}"}
    forms = []
    for pair, measured in found.get("pairs", {}).items():
        gate = f"{found.get('level', '')}." if pair == "level" else f"{pair}_"
        about = {limit: limits.get(gate + limit) for limit in ("kl_max", "same_top1_min")}
        forms.append({"name": names.get(pair, f"f16 -> {pair}"), **measured, **about})
    return forms


def fidelity_lines(verdict: Verdict) -> list[str]:
    """What each form of the model costs against the one before it."""
    return [
        f"{form['name']:<18} KL {form['kl']:.2g}, same most likely token {form['same_top1']:.2%}"
        for form in forms(verdict)
    ]


def retention_lines(verdict: Verdict) -> list[str]:
    """What the aligned model lost of what the base knew, where that was asked."""
    if not (step := verdict.get("retention")):
        return []
    low, high = step["interval"]
    names = " -> ".join(called(verdict, step[end]) for end in ("from", "to"))
    return [f"{step['prompts']} general rows, {names}: {step['metric']} {step['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"]


def scores(verdict: Verdict | None) -> dict[str, float]:
    """The scores of every model by name, for a tracker."""
    names = ("exact_match", "json_valid", "loss", "stopped")
    models = verdict["scores"] if verdict else []
    return {f"{score['model']['stage']}.{name}": score[name] for score in models for name in names}


def remarks(session: Session) -> list[tuple[str, str]]:
    """What somebody should look at: rows left out or missing, prompts learned by heart, results of earlier code."""
    told = Story(session.store.root, list({r.manifest["key"]: r.manifest for r in session.records}.values()))
    seats = {r.manifest["key"]: r.seat for r in session.records if r.seat not in ("", r.stage)}
    about = {
        "rewards": noticed.rewarded,
        "memory": noticed.memory,
        "held out": noticed.held_out,
        "left out": noticed.left_out,
    }
    found = [(name, text) for name, notice in about.items() for text in notice(told, seats)]
    if any(record.note for record in session.records):
        found.append(("drift", "some results are of earlier code or libraries; runtime.drift=rerun makes them again"))
    return found


def gate_lines(verdict: Verdict) -> list[str]:
    """What every failed gate measured, its limit, and what to try."""
    failed = [gate for gate in verdict["gates"] if not gate["passed"]]
    said = [" ".join(word for word in (g.get("means"), g["advice"]) if word) for g in failed]
    numbers = [f"{g['name']}: measured {g['value']:.4g}, limit {g['limit']:.4g}." for g in failed]
    return [f"{measured} {words}" for measured, words in zip(numbers, said, strict=True)]


def show(console: Console, session: Session, told: Story, where: list[tuple[str, str]]) -> None:
    console.print(_screen_table([("stage", "state", "time", "key figures"), *rows(session.records)]))
    if verdict := told.verdict:
        console.print(f"  {headline(verdict)}", soft_wrap=True)
        console.print(_screen_table(score_rows(verdict)))
        for part in (difference_lines, retention_lines, fidelity_lines, _verdict_lines):
            for text in part(verdict):
                console.print(f"  {text}", soft_wrap=True)
            console.print()
    for name, text in where:
        console.print(f"  {name:<12} {text}", soft_wrap=True)


def _screen_table(lines: Sequence[tuple[str, ...]]) -> Table:
    table = Table(*lines[0], box=box.SIMPLE)
    for line in lines[1:]:
        table.add_row(*line)
    return table


def data(session: Session, verdict: Verdict | None) -> dict[str, Any]:
    """The report for programs."""
    stages = [
        {"call": call, "state": r.state, "seconds": r.seconds, "digest": r.manifest["digest"], **r.manifest["metrics"]}
        for call, r in zip(labels(session.records), session.records, strict=True)
    ]
    found = product(session)
    said = [{"about": name, "text": text} for name, text in remarks(session)]
    return {"stages": stages, "verdict": verdict, "remarks": said, "product": str(found) if found else ""}


def markdown(session: Session, told: Story, where: list[tuple[str, str]], pictures: dict[str, str]) -> str:
    """The story of the objective first, then pictures (name -> link), the stages, and where to look."""
    text = ""
    if verdict := told.verdict:
        text += f"{headline(verdict)}\n\n{table(score_rows(verdict))}\n"
        parts = (difference_lines, retention_lines, fidelity_lines, _verdict_lines)
        text += "".join(f"* {line}\n" for part in parts for line in part(verdict)) + "\n"
    text += "".join(f"![{name}]({link})\n\n" for name, link in pictures.items())
    text += table([("stage", "state", "time", "key figures"), *rows(session.records)]) + "\n"
    said = remarks(session)  # sentences; the others are places and commands
    return text + "".join(f"* {n}: {value if (n, value) in said else _linked(value)}\n" for n, value in where)


def _linked(value: str) -> str:
    return f"<{value}>" if value.startswith("http") else f"`{value}`"


def _verdict_lines(verdict: Verdict) -> list[str]:
    """The gates judge whether the file may be used, not whether it is better than what it came from."""
    said = f"passed, {len(verdict['gates'])} gates" if verdict["passed"] else failed(verdict)
    return [f"verdict: {said}", *(f"- {line}" for line in gate_lines(verdict))]


def failed(verdict: Verdict) -> str:
    """Of a failed verdict: how many gates, and which."""
    names = [gate["name"] for gate in verdict["gates"] if not gate["passed"]]
    return f"{len(names)} of {len(verdict['gates'])} gates FAILED ({', '.join(names)})"


def table(lines: Sequence[tuple[str, ...]]) -> str:
    """Markdown of a header and its lines."""
    rule = "|".join("---" for _ in lines[0])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("\n", f"\n|{rule}|\n", 1) + "\n"


def product(session: Session) -> Path | None:
    """The file the road was for: the last GGUF that was made or found."""
    for record in reversed(session.records):
        if record.manifest["kind"] == "GGUF":
            folder = session.store.root / "objects" / record.manifest["digest"]
            return next(folder.glob("*.gguf"), None)
    return None
