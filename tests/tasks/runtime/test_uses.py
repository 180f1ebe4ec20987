"""A run that is going on loses nothing to a clean-up, whenever that comes."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.runtime.catalogue import Catalogue
from tasks.runtime.collect import Rules, clutter, collect
from tests import toys
from tests.patience import wait_for
from tests.tidying import NOTHING_KEPT, cleaned, left, measured, sealed, trained
from tests.toys import Open


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_a_run_that_is_going_on_keeps_what_it_found_and_what_it_made(opened: Open, data: Path, tally: Path) -> None:
    with opened():
        trained(0.1, tally=tally)
        trained(0.2, tally=tally)
    with opened() as now:
        trained(0.1, tally=tally)
        made = measured(0.7)
        cleaned(data)
        assert sealed(data) == ["adapt", "collect", "encode", "measure", "train", "train"]
        assert measured(0.7) == made
        assert [record.state for record in now.records[-5:]] == ["cached"] * 5
    assert tally.read_text().split() == ["collect", "train", "train"]
    cleaned(data)
    assert sealed(data) == []


def test_a_clean_up_waits_for_a_run_that_is_sealing_and_then_lets_it_be(opened: Open, data: Path) -> None:
    heard: list[str] = []
    cleaning = threading.Thread(target=lambda: collect(Catalogue(data), NOTHING_KEPT, heard.append))
    with opened() as now:
        rows = toys.collect(toys.CollectConfig())
        (data / "store" / "runs" / f"{now.uses.place.name}").write_text("")  # type: ignore[union-attr]

        def look() -> Any:
            cleaning.start()
            wait_for(lambda: heard)  # it has come to the door, and the row that would save the rows is not there yet
            return now.store.find("collect", rows.key)

        now.using("cached", "collect", look)
        cleaning.join(30)
        assert heard == ["A run is looking something up or sealing it; waiting until it is done."]
        assert sealed(data) == ["collect"]


def test_what_came_into_use_after_the_dry_run_stays(opened: Open, data: Path) -> None:
    with opened():
        trained()
    seen = Catalogue(data)
    assert clutter(seen, NOTHING_KEPT)
    with opened():
        trained()
        collect(seen, NOTHING_KEPT, lambda text: None)
        assert sealed(data) == ["collect", "train"]


RUN = """
import sys
from tasks.runtime import RuntimeConfig, keys, session
from tests import toys
with session(keys.restore(RuntimeConfig, {"root": sys.argv[1], "isolation": sys.argv[3]})):
    toys.train(toys.TrainConfig(), toys.collect(toys.CollectConfig()))
    toys.trouble(toys.TroubleConfig("wait", tally=sys.argv[2], until="never"))
"""


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_what_a_living_process_uses_stays_and_what_a_killed_one_left_goes(
    data: Path, tally: Path, python: Callable[..., subprocess.Popen[str]], isolation: str
) -> None:
    run = python(RUN, data, tally, isolation)
    wait_for(tally.read_text)
    drafts = left(data, "tmp")
    cleaned(data)
    assert left(data, "tmp") == drafts and len(drafts) == 1
    assert sealed(data) == ["collect", "train"] and len(left(data, "work/trouble")) == 1
    run.send_signal(signal.SIGKILL)
    run.wait()
    cleaned(data, Rules(keep_runs=1))
    assert left(data, "tmp") == [] and sealed(data) == ["collect", "train"]
    assert len(left(data, "work/trouble")) == 1  # its checkpoint is for the next try
    cleaned(data)
    assert sealed(data) == []


def test_a_clean_up_beside_runs_never_costs_one_of_them_anything(
    opened: Open, data: Path, python: Callable[..., subprocess.Popen[str]]
) -> None:
    code = """
import sys
from tasks.runtime import RuntimeConfig, keys, session
from tests import toys
for turn in range(25):
    with session(keys.restore(RuntimeConfig, {"root": sys.argv[1]})) as now:
        base = toys.train(toys.TrainConfig(turn % 3), toys.collect(toys.CollectConfig()))
        toys.encode(toys.EncodeConfig(), base.tokenizer, toys.collect(toys.CollectConfig()))
        toys.measure(toys.MeasureConfig(), [toys.adapt(toys.AdaptConfig(), base)])
        again = toys.train(toys.TrainConfig(turn % 3), toys.collect(toys.CollectConfig()))
        assert now.records[-1].state == "cached" and again == base
"""
    runs = [python(code, data) for _ in range(2)]
    turns = 0
    while any(run.poll() is None for run in runs):
        if (data / "store" / "tmp").is_dir():
            cleaned(data)
            turns += 1
    assert [(run.wait(), run.stdout.read()) for run in runs if run.stdout and run.returncode] == []
    assert turns > 3
