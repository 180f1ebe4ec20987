"""The answers of `flows.store` as a person reads them: rows of a table, sizes and dates in words."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from tasks.runtime.catalogue import Catalogue, Entry
from tasks.runtime.collect import last_touched
from tasks.runtime.uses import is_held

Data = dict[str, Any]
_PIPED_WIDTH = 160
"""Columns where nobody's terminal says how many there are."""


def row(catalogue: Catalogue, entry: Entry) -> Data:
    """One artifact, as `ls` has it."""
    run, call = catalogue.made_by(entry)
    return {
        "stage": entry.stage,
        "call": call or entry.stage,
        "kind": entry.manifest["kind"],
        "digest": entry.digest,
        "key": entry.key,
        "when": moment(entry.manifest.get("started", 0.0)),
        "seconds": entry.manifest.get("seconds", 0.0),
        "size": entry.size,
        "run": run,
        "mlflow_run": entry.manifest.get("mlflow_run", ""),
        "pinned": catalogue.pinned(entry),
        "standing": entry.standing,
        "there": catalogue.object(entry.digest).is_dir(),
    }


def unfinished(catalogue: Catalogue) -> list[Data]:
    """The work that was begun and not sealed, with its checkpoints."""
    found = []
    for folder in (catalogue.store / "work").glob("*/*"):
        if touched := last_touched(folder):
            found.append(
                {
                    "stage": folder.parent.name,
                    "key": folder.name,
                    "when": moment(touched),
                    "checkpoints": sorted(_checkpoints(folder), key=_number),
                    "going_on": is_held(catalogue.store / "locks" / folder.name),
                    "path": str(folder),
                }
            )
    return sorted(found, key=lambda work: str(work["when"]))


def _checkpoints(folder: Path) -> list[str]:
    """Those that were written to their end: a training goes on from no other."""
    return [place.parent.name for place in folder.rglob("checkpoint-*/trainer_state.json")]


def _number(name: str) -> tuple[int, str]:
    last = name.rpartition("-")[2]
    return (int(last) if last.isdigit() else -1, name)


def moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""


def show(command: str, data: Data) -> None:
    """Print an answer."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPED_WIDTH)
    _SHOWN[command](console, data)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def _table(console: Console, *head: str, rows: list[list[str]]) -> None:
    table = Table(*head, box=box.SIMPLE, show_header=any(head))
    for line in rows:
        table.add_row(*map(escape, line))
    if rows:
        console.print(table)


def _ls(console: Console, data: Data) -> None:
    rows = [
        [r["call"], r["digest"][:12], r["key"][:8], r["when"], decimal(r["size"]), f"{r['seconds']:.1f} s", *_marks(r)]
        for r in data["artifacts"]
    ]
    _table(console, "what", "digest", "key", "when", "size", "took", "made by the run", "", rows=rows)
    _say(console, f"  {len(rows)} artifacts, {decimal(data['bytes'])} of content")
    for work in data["unfinished"]:
        last = f", last {work['checkpoints'][-1]}" if work["checkpoints"] else ", no checkpoint"
        state = "going on" if work["going_on"] else "unfinished"
        _say(console, f"  {state}: {work['stage']}, key {work['key'][:12]}, touched {work['when']}{last}")


def _marks(r: Data) -> list[str]:
    run = r["run"] or (f"mlflow {r['mlflow_run'][:12]}" if r["mlflow_run"] else "")
    marks = [f"pinned {name}" for name in r["pinned"]] + [f"registered {name}" for name in r.get("registered", [])]
    marks += [] if r["standing"] else ["replaced"]
    return [run, ", ".join(marks + ([] if r["there"] else ["content gone"]))]


def _show(console: Console, data: Data) -> None:
    plain = {
        **{name: data[name] for name in ("stage", "version", "kind", "digest", "key", "recipe", "when")},
        "took": f"{data.get('seconds', 0):.1f} s",
        "size": decimal(data["size"]),
        **{name: data.get(name) or "-" for name in ("run", "mlflow_run", "pinned", "stands_on", "content", "notes")},
    }
    groups = ("config", "metrics", "parts", "libraries", "git", "machine")
    rows = [[name, ", ".join(value) if isinstance(value, list) else str(value)] for name, value in plain.items()]
    for group in groups:
        rows += [[f"{group}.{name}", str(value)] for name, value in (data.get(group) or {}).items()]
    rows += [[f"input {i['stage']}", f"{i['digest'][:12]} (key {i['key'][:12]})"] for i in data["inputs"]]
    rows += [[f"file {name}", f"{size:,} bytes"] for name, size in data["files"].items()]
    _table(console, "", "", rows=rows)


def _why(console: Console, data: Data) -> None:
    for title, lines in data.items():
        _say(console, title)
        for line in lines:
            _say(console, f"  {line}")


def _verify(console: Console, data: Data) -> None:
    wrong = [r for r in data["artifacts"] if r["problems"]]
    for r in wrong:
        for problem in r["problems"]:
            _say(console, f"{r['stage']} {r['digest'][:12]}: {problem}")
    for place in data["broken_manifests"]:
        _say(console, f"{place} cannot be read")
    after = " What is damaged is made again by the next run that needs it." if wrong else ""
    _say(console, f"{len(data['artifacts'])} artifacts read, {len(wrong)} damaged or missing.{after}")


def _rm(console: Console, data: Data) -> None:
    for r in data["removed"]:
        again = f"the next run that needs it makes it again ({r['seconds']:.0f} s the last time)"
        _say(console, f"Removed {r['call']} {r['digest'][:12]}: {again}.")
    _say(console, "What was made from it stays, and stays valid.")


def _gc(console: Console, data: Data) -> None:
    count = Counter(item["what"] for item in data["clutter"])
    sizes: Counter[str] = Counter()
    for item in data["clutter"]:
        sizes[item["what"]] += item["bytes"]
    large = [item for item in data["clutter"] if item["what"] in ("content", "old unfinished work")]
    _table(console, "goes", "", "size", rows=[[i["what"], i["name"], decimal(i["bytes"])] for i in large])
    for what, number in count.items():
        _say(console, f"  {number} x {what}, {decimal(sizes[what])}")
    pins, registered, runs = (data["kept"][name] for name in ("pins", "registered", "runs"))
    oldest = f", the oldest {runs[0]}" if runs else ""
    _say(console, f"Kept is what pins ({pins}), registered models ({registered}) and runs ({len(runs)}{oldest}) reach.")
    if data["note"]:
        _say(console, f"{data['note']}\nSo what is registered is not known, and --yes will refuse.")
    last = "was removed." if data["removed"] else "would go. --yes removes it."
    _say(console, f"{decimal(data['bytes'])} {last}" if data["clutter"] else "There is nothing to remove.")


def _pin(console: Console, data: Data) -> None:
    _say(console, f"{data['stage']} {data['digest'][:12]} and all it was made from stay: pinned as {data['pinned']}.")


def _unpin(console: Console, data: Data) -> None:
    _say(console, f"No longer pinned: {', '.join(data['unpinned'])}.")


def _export(console: Console, data: Data) -> None:
    where, size = data["exported"], decimal(data["bytes"])
    _say(console, f"{data['stage']} {data['digest'][:12]} was copied to {where}, {size}.")


def _reproduce(console: Console, data: Data) -> None:
    if "commands" in data:
        for line in [*data["because"], "These commands run it again with its own code:", *data["commands"]]:
            _say(console, line)
        return
    rows = []
    for stage in data["stages"]:
        pairs = [f"{name} {before:.6g} / {now:.6g}" for name, (before, now) in stage["metrics"].items()]
        verdict = "equal" if stage["equal"] else "DIFFERS"
        rows.append([stage["call"], verdict, stage["digest"][:12], stage["again"][:12], "  ".join(pairs[:4])])
    _table(console, "stage", "", "then", "now", "then / now", rows=rows)
    same = sum(stage["equal"] for stage in data["stages"])
    kept = f" The second run is kept in {data['kept']}." if data["kept"] else ""
    _say(console, f"{same} of {len(rows)} stages gave the same bytes.{kept}")


_SHOWN: dict[str, Callable[[Console, Data], None]] = {
    **{"ls": _ls, "show": _show, "why": _why, "verify": _verify, "rm": _rm, "gc": _gc, "pin": _pin, "unpin": _unpin},
    **{"export": _export, "reproduce": _reproduce},
}
