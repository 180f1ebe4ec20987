"""The store as a person sees it: what is there, what it came from, whether it is whole, what may go.

python -m flows.store ls                         everything that was made, newest last
python -m flows.store why dpo 3f9a               what differs between two artifacts
python -m flows.store gc                         what a clean-up would remove; --yes removes it

An artifact A is the beginning of its digest or key (4 characters or more), the name of a pin, or a stage: its newest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from flows import card, inventory
from flows.surroundings import services
from tasks.runtime import pins, upkeep
from tasks.runtime.catalogue import Catalogue, Entry, Unnamed
from tasks.runtime.collect import Rules, clutter, collect, reached_runs
from tasks.runtime.export import export
from tasks.runtime.registry import Unheard, registered
from tasks.runtime.stopping import Stopped
from tasks.runtime.upkeep import Refused

Answer = tuple[dict[str, Any], int]
"""What a command found out, as JSON values, and the exit code."""
_STDERR = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    _STDERR.print(text, markup=False, soft_wrap=True)


def ls(catalogue: Catalogue, args: argparse.Namespace) -> Answer:
    pointed = registered(catalogue.root) if args.registered else {}
    entries = [e for e in catalogue.entries if (e.standing or args.history) and args.stage in ("", e.stage)]
    if args.stage and not entries:
        raise Unnamed(f"There is no stage '{args.stage}' here.", sorted({e.stage for e in catalogue.standing}))
    rows = [inventory.row(catalogue, entry) | {"registered": pointed.get(entry.digest, [])} for entry in entries]
    size = sum({entry.digest: entry.size for entry in entries}.values())
    unfinished = [work for work in inventory.unfinished(catalogue) if args.stage in ("", work["stage"])]
    return {"artifacts": rows, "unfinished": unfinished, "bytes": size}, 0


def show(catalogue: Catalogue, args: argparse.Namespace) -> Answer:
    entry = catalogue.one(args.artifact)
    facts = {name: value for name, value in entry.manifest.items() if name not in ("files", "noted", "parents")}
    near = {name: inventory.row(catalogue, entry)[name] for name in ("call", "run", "pinned", "size", "when")}
    inputs = [{name: parent[name] for name in ("stage", "digest", "key")} for parent in entry.manifest["parents"]]
    files = {name: sealed["size"] for name, sealed in entry.manifest["files"].items()}
    places = {"content": str(catalogue.object(entry.digest)), "notes": str(catalogue.store / entry.manifest["notes"])}
    below = {"stands_on": catalogue.stands_on(entry.digest)}
    return {**facts, **near, **below, **places, "inputs": inputs, "files": files}, 0


def why(catalogue: Catalogue, args: argparse.Namespace) -> Answer:
    from flows import reasons

    return reasons.why(catalogue, args.thing, args.other), 0


def verify(catalogue: Catalogue, args: argparse.Namespace) -> Answer:
    entries = [catalogue.one(name) for name in args.artifacts] or catalogue.standing
    rows = []
    for entry in track(entries, "Reading every byte", console=_STDERR, transient=True, disable=args.json):
        wrong = upkeep.damages(catalogue, entry)
        if wrong and not entry.place.exists():
            continue  # removed while we read
        if wrong:
            upkeep.forget(catalogue, entry)
        rows.append({"stage": entry.stage, "digest": entry.digest, "key": entry.key, "problems": wrong})
    broken = [] if args.artifacts else [str(place) for place in catalogue.broken]
    return {"artifacts": rows, "broken_manifests": broken}, int(any(row["problems"] for row in rows) or bool(broken))


def rm(catalogue: Catalogue, args: argparse.Namespace) -> Answer:
    try:
        gone = upkeep.remove(catalogue, args.artifacts, args.force, say)
    except Refused as error:
        raise Refused([*error.reasons, "Nothing was removed. --force removes it all the same."]) from None
    return {"removed": [inventory.row(catalogue, entry) for entry in gone]}, 0


def gc(catalogue: Catalogue, args: argparse.Namespace) -> Answer:
    pointed, unheard = _pointed_at(catalogue, args)
    if unheard and args.yes:
        raise Refused([unheard, "Nothing was removed. --without-registry: go on, whatever is registered."])
    rules = Rules(pointed, args.keep_runs, args.keep_work_days)
    gone = collect(catalogue, rules, say) if args.yes else clutter(catalogue, rules)
    items = [{"what": c.what, "name": c.name, "bytes": c.size, "path": str(c.path)} for c in gone]
    kept = {"pins": len(catalogue.pins), "registered": len(pointed), "runs": reached_runs(catalogue, rules)}
    total = sum(item.size for item in gone)
    return {"removed": args.yes, "clutter": items, "bytes": total, "kept": kept, "note": unheard}, 0


def _pointed_at(catalogue: Catalogue, args: argparse.Namespace) -> tuple[dict[str, list[str]], str]:
    """Registered digests, and why they are not known."""
    if args.without_registry:
        return {}, ""
    tracked = [str(e.manifest["mlflow_run"]) for e in catalogue.standing if e.manifest.get("mlflow_run")]
    try:
        return registered(catalogue.root, tracked[-1] if tracked else ""), ""
    except Unheard as error:
        return {}, str(error)


def pin(catalogue: Catalogue, args: argparse.Namespace) -> Answer:
    entry = catalogue.one(args.artifact)
    name = pins.pin(catalogue, entry, args.name)
    return {"pinned": name, "stage": entry.stage, "digest": entry.digest, "key": entry.key}, 0


def unpin(catalogue: Catalogue, args: argparse.Namespace) -> Answer:
    names = [args.artifact] if args.artifact in catalogue.pins else catalogue.pinned(catalogue.one(args.artifact))
    if not names:
        raise Unnamed(f"Nothing is pinned as '{args.artifact}'.", list(catalogue.pins))
    pins.unpin(catalogue, names)
    return {"unpinned": names}, 0


def take_out(catalogue: Catalogue, args: argparse.Namespace) -> Answer:
    entry: Entry = catalogue.one(args.artifact)
    to = Path(args.dest)
    place, size = export(catalogue, entry, to, args.zip, _card(catalogue, entry, to, args.zip))
    return {"exported": str(place), "bytes": size, "stage": entry.stage, "digest": entry.digest}, 0


def _card(catalogue: Catalogue, entry: Entry, to: Path, zipped: bool) -> dict[str, str]:
    try:
        return card.beside(catalogue, entry, to.name if to.suffix == ".gguf" and not zipped else "")
    except (OSError, LookupError, ValueError) as error:  # part of what a card tells of is gone; the files are not
        say(f"There is no model card beside it: {type(error).__name__}: {error}")
        return {}


def reproduce(catalogue: Catalogue, args: argparse.Namespace) -> Answer:
    from flows.reproduce import reproduce

    return reproduce(catalogue, args.run, args.keep, say)


def parser() -> argparse.ArgumentParser:
    """Every command with its help."""
    head, *_, naming = str(__doc__).strip().split("\n\n")
    top = argparse.ArgumentParser(prog="python -m flows.store", description=head, epilog=naming)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Catalogue, argparse.Namespace], Answer], words: str) -> Any:
        made = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".", epilog=naming)
        made.add_argument("--root", default="data", metavar="DIR", help="the folder the runs write to (default: data)")
        made.add_argument("--json", action="store_true", help="answer as JSON, for programs")
        made.set_defaults(answer=run)
        return made.add_argument

    add = command("ls", ls, "what was made, by what, how large; and what is unfinished")
    add("stage", nargs="?", default="", metavar="STAGE", help="only this stage")
    add("--history", action="store_true", help="also what was replaced")
    add("--registered", action="store_true", help="ask MLflow which models are registered")
    add = command("show", show, "everything about one artifact")
    add("artifact", metavar="A")
    add = command("why", why, "what an artifact or a run was made from; of two, what differs")
    add("thing", metavar="A", help="an artifact, a folder under runs/, or an MLflow run id")
    add("other", nargs="?", default="", metavar="B", help="the one to compare with")
    add = command("verify", verify, "read every byte again; exit code 1 when something is damaged or missing")
    add("artifacts", nargs="*", metavar="A", help="only these (default: all)")
    add = command("rm", rm, "remove artifacts; the next run that needs one makes it again")
    add("artifacts", nargs="+", metavar="A")
    add("--force", action="store_true", help="also what is pinned, in use, or stood on by another")
    add = command("gc", gc, "what nothing needs any more: shown, and with --yes removed")
    add("--yes", action="store_true", help="remove it")
    add("--keep-runs", type=_count, default=10, metavar="N", help="keep all that the last N runs used (default: 10)")
    add("--keep-work-days", type=float, default=14, metavar="D", help="keep unfinished work for D days (default: 14)")
    add("--without-registry", action="store_true", help="do not ask MLflow; registered models may go")
    add = command("pin", pin, "keep an artifact and all it was made from, whatever a clean-up finds")
    add("artifact", metavar="A")
    add("--name", default="", help="what to call it (default: stage and digest)")
    add = command("unpin", unpin, "take a pin off")
    add("artifact", metavar="A")
    add = command("export", take_out, "copy an artifact out: a folder (an adapter with its base), a zip, or one GGUF")
    add("artifact", metavar="A")
    add("dest", metavar="DEST", help="a folder that is not there yet; for a GGUF also a name ending in .gguf")
    add("--zip", action="store_true", help="one zip file instead of a folder")
    add = command("reproduce", reproduce, "run a run again past the cache, in a store of its own, and compare")
    add("run", metavar="RUN", help="the name of a folder under runs/")
    add("--keep", action="store_true", help="keep the second run's store also when everything is equal")
    return top


def _count(text: str) -> int:
    if (number := int(text)) < 0:
        raise ValueError
    return number


def _answer(args: argparse.Namespace) -> Answer:
    root = Path(args.root)
    if not (root / "store" / "manifests").is_dir():
        say(f"There is nothing under '{root}' yet. A run puts something there: python -m flows.sft_then_dpo")
        say("Runs with another runtime.root are found with --root DIR.")
        args.yes = False
    if told := services():  # up or not: what is registered there has to be known
        os.environ["MLFLOW_TRACKING_URI"] = os.environ.get("MLFLOW_TRACKING_URI") or told["MLFLOW_TRACKING_URI"]
    try:
        done: Answer = args.answer(Catalogue(root), args)
    except Unnamed as error:
        return {"error": str(error), "candidates": error.candidates}, 2
    except (Refused, Unheard, ValueError) as error:
        return {"error": str(error), "candidates": []}, 1
    except Stopped as stop:
        return {"error": f"{stop}. The same command goes on from here.", "candidates": []}, stop.code
    return done


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    data, code = _answer(args)
    if args.json:
        print(json.dumps(data, indent=1))
    elif "error" in data:
        say("\n  ".join([data["error"], *data["candidates"]]))
    else:
        inventory.show(args.command, data)
    return code


if __name__ == "__main__":
    sys.exit(main())
