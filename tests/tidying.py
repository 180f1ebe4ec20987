"""For tests of the store as a user sees it: toy roads, a clean-up, and what is left after it."""

from __future__ import annotations

from pathlib import Path

from tasks.runtime import Model
from tasks.runtime.artifacts import Artifact
from tasks.runtime.catalogue import Catalogue
from tasks.runtime.collect import Clutter, Rules, collect
from tests import toys

NOTHING_KEPT = Rules(keep_runs=0)


def trained(rate: float = 0.5, text: str = "a row", tally: Path | str = "") -> Model:
    rows = toys.collect(toys.CollectConfig(text, tally=str(tally)))
    return toys.train(toys.TrainConfig(rate, tally=str(tally)), rows)


def measured(rate: float = 0.5) -> Artifact:
    """The end of a road with an adapter on a base and a part of a model in it."""
    base = trained(rate)
    toys.encode(toys.EncodeConfig(), base.tokenizer, toys.collect(toys.CollectConfig()))
    return toys.measure(toys.MeasureConfig(), [toys.adapt(toys.AdaptConfig(), base)])


def cleaned(data: Path, rules: Rules = NOTHING_KEPT) -> list[Clutter]:
    return collect(Catalogue(data), rules, lambda text: None)


def sealed(data: Path) -> list[str]:
    """The stages of all seals, and that their content is there."""
    found = Catalogue(data)
    assert all(found.object(entry.digest).is_dir() for entry in found.entries)
    return sorted(entry.stage for entry in found.entries)


def left(data: Path, room: str) -> list[str]:
    return sorted(place.name for place in (data / "store" / room).glob("*"))
