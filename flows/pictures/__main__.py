"""The pictures of a run or a sweep that is over, drawn again into a folder of your choice.

python -m flows.pictures 20261121-010732-sft_then_dpo-25a6 docs/pictures --kind svg
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flows import leaderboard, seeds, story, trials
from flows.pictures import road, sweep
from flows.pictures import seeds as over_seeds
from flows.reasons import artifacts_of
from tasks.runtime.catalogue import Catalogue
from tasks.runtime.runs import read_json


def of_run(root: Path, name: str, to: Path, kind: str) -> list[Path]:
    """The pictures of a run; no places where no run of this name used anything."""
    catalogue = Catalogue(root)
    found = [run for run in catalogue.runs if run.name == name]
    manifests = [entry.manifest for run in found for entry in artifacts_of(catalogue, run).values()]
    told = story.Story(catalogue.store, manifests, story.verdict(catalogue.store, manifests))
    return road.draw(told, to, kind)


def of_sweep(root: Path, name: str, to: Path, kind: str) -> list[Path]:
    folder = root / "sweeps" / name
    about = read_json(folder / "sweep.json")
    found = trials.load_all(folder)
    metric = next((trial.metric for trial in found if trial.metric), "")
    board = leaderboard.Board(name, metric, about.get("maximize", True), about.get("knobs", []), found)
    places = [to / f"score.{kind}"] if sweep.draw(board, to / f"score.{kind}") else []
    if summary := seeds.over(board, root / "store"):
        over_seeds.draw(summary, to / f"seeds.{kind}")
        places.append(to / f"seeds.{kind}")
    return places


def main(argv: list[str] | None = None) -> int:
    head, example = str(__doc__).strip().split("\n\n")
    parser = argparse.ArgumentParser(prog="python -m flows.pictures", description=head, epilog=example)
    parser.add_argument("name", metavar="NAME", help="a folder under runs/ or sweeps/")
    parser.add_argument("to", type=Path, metavar="DIR", help="where the pictures go")
    parser.add_argument("--kind", choices=("svg", "png"), default="svg", help="default: svg")
    parser.add_argument("--root", type=Path, default=Path("data"), metavar="DATA", help="default: data")
    args = parser.parse_args(argv)
    of = of_sweep if (args.root / "sweeps" / args.name).is_dir() else of_run
    places = of(args.root.resolve(), args.name, args.to, args.kind)
    for place in places:
        print(f"{place}  {place.stat().st_size / 1000:.0f} kB")
    if not places:
        what = f"Nothing under {args.root}/runs or {args.root}/sweeps has the name '{args.name}' and numbers to draw."
        print(what, file=sys.stderr)
    return 0 if places else 2


if __name__ == "__main__":
    sys.exit(main())
