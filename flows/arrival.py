"""What a run leaves behind for people: its report, pictures, a model card with a Modelfile, and where to look."""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from flows import card, report, story, trials, usage
from flows.pictures import road
from flows.server import TEMPORARY
from flows.story import Story
from tasks.runtime.session import Session

Places = list[tuple[str, str]]
"""Name -> where it is."""


@dataclass
class Left:
    told: Story
    where: Places
    pictures: list[Path] = field(default_factory=list)
    card: list[Path] = field(default_factory=list)
    """The card, and the Modelfile where there is a GGUF."""


def leave(now: Session, folder: Path) -> Left:
    """Write everything into the run's folder. A sweep has its own pictures; `flows.pictures` draws those of a trial."""
    told = story.of_session(now)
    left = Left(told, [])
    try:
        if trials.seated.get() is None:
            left.pictures = road.draw(told, folder / "pictures")
        left.card = _card(told, folder)
    except Exception as error:  # the models are made and measured; a drawing is not worth a failed run
        what = f"{type(error).__name__}: {error}"
        warnings.warn(f"The run is done, but not all of its pictures and card could be made ({what}).", stacklevel=2)
    left.where = where_to_look(now, folder, left)
    links = {place.stem: place.relative_to(folder).as_posix() for place in left.pictures}
    (folder / "report.md").write_text(report.markdown(now, told, left.where, links), encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(report.data(now, told.verdict), indent=1))
    return left


def _card(told: Story, folder: Path) -> list[Path]:
    if told.verdict is None:
        return []
    whole = usage.Beside()
    made = {"README.md": card.text(told, card.origin(folder), whole), "Modelfile": usage.modelfile(told, whole)}
    (folder / "card").mkdir(exist_ok=True)
    places = [folder / "card" / name for name, text in made.items() if text]
    for place in places:
        place.write_text(made[place.name], encoding="utf-8")
    return places


def where_to_look(now: Session, folder: Path, left: Left) -> Places:
    product = report.product(now)
    gguf = [("GGUF", str(product))] if product else []
    kept = [("report", str(folder / "report.md")), *(("model card", str(place)) for place in left.card[:1])]
    home = f"PREFECT_HOME={os.environ['PREFECT_HOME']} " if "PREFECT_HOME" in os.environ else ""
    home += "PREFECT_SERVER_ANALYTICS_ENABLED=false "
    running = "" if TEMPORARY in os.environ else os.environ.get("PREFECT_API_URL", "").removesuffix("/api")
    prefect = running or f"{home}{Path(sys.executable).parent / 'prefect'} server start"
    return [*report.remarks(now), *gguf, *kept, *_mlflow(now), ("Prefect UI", prefect)]


def _mlflow(now: Session) -> Places:
    """The run's own page where a server answers, else the command that opens the database."""
    if now.tracker is None:
        return []
    tracker = now.tracker
    if tracker.uri.startswith("http"):
        run = f"#/experiments/{tracker.experiment}/runs/{tracker.parent}"
        return [("MLflow run", f"{tracker.uri.rstrip('/')}/{run}")]
    program = Path(sys.executable).parent / "mlflow"
    return [("MLflow UI", f"MLFLOW_DISABLE_TELEMETRY=true {program} ui --backend-store-uri {tracker.uri}")]
