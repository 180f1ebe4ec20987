from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.runtime import keys, processes
from tasks.runtime.processes import ChildFailed, Job
from tasks.runtime.stopping import Stop
from tasks.runtime.store import Store
from tests import toys
from tests.patience import alive, wait_for
from tests.toys import Open

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """A job for a toy stage; its folders lie under tmp_path, and a child can import it."""
    monkeypatch.setenv("PYTHONPATH", str(Path(toys.__file__).parents[1]))

    def job(name: str, config: Any, *inputs: dict[str, Any]) -> Job:
        folders = {room: tmp_path / room for room in ("out", "notes", "work")}
        for folder in folders.values():
            folder.mkdir(exist_ok=True)
        plain = {"config": keys.plain(config), "inputs": list(inputs), "lineage": [], "micro_batch": 0}
        return {"module": toys.__name__, "name": name, **plain, **{k: str(v) for k, v in folders.items()}}

    return job


def in_child(job: Job, store: Store) -> list[dict[str, Any]]:
    """The events of a job."""
    events: list[dict[str, Any]] = []
    processes.execute_in_child(job, store, events.append, Stop())
    return events


# The same, elsewhere


def test_a_child_makes_what_this_process_makes(opened: Open, tmp_path: Path) -> None:
    made = []
    for isolation in ("none", "process"):
        with opened(root=str(tmp_path / isolation), isolation=isolation) as now:
            model = toys.train(toys.TrainConfig(), toys.collect(toys.CollectConfig()))
            made.append((model, now.records[-1].manifest["metrics"]))
    assert made[0] == made[1]


def test_a_child_tells_metrics_and_progress_in_order(job: Callable[..., Job], store: Store, opened: Open) -> None:
    with opened():
        rows = toys.collect(toys.CollectConfig())
    events = in_child(job("train", toys.TrainConfig(rate=6.0), rows.ref()), store)
    assert [event["metrics"] for event in events[0::2]] == [{"loss": 6.0}, {"loss": 3.0}, {"loss": 2.0}]
    assert [event["done"] for event in events[1::2]] == [1, 2, 3]


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_what_a_body_says_is_a_line_on_the_screen(
    opened: Open, isolation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(isolation=isolation):
        toys.trouble(toys.TroubleConfig("slow"))
    assert "  trouble: The server is asked again.\n" in capsys.readouterr().err


def test_the_last_words_of_a_child_are_heard(
    job: Callable[..., Job], store: Store, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    nap = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: nap(1))  # it ends while nobody listens
    with opened():
        rows = toys.collect(toys.CollectConfig())
    assert len(in_child(job("train", toys.TrainConfig(), rows.ref()), store)) == 6


def test_a_child_leaves_its_log_in_the_notes(job: Callable[..., Job], store: Store, tmp_path: Path) -> None:
    in_child(job("collect", toys.CollectConfig()), store)
    assert sorted(p.name for p in (tmp_path / "notes").iterdir()) == ["child.log", "report.md"]
    assert (tmp_path / "notes" / "child.log").read_text() == ""


def test_what_an_earlier_child_left_is_not_believed(job: Callable[..., Job], store: Store) -> None:
    in_child(job("collect", toys.CollectConfig()), store)
    with pytest.raises(ChildFailed, match="left no result"):
        in_child(job("trouble", toys.TroubleConfig("memory")), store)


# Trouble


def test_an_exception_arrives_as_its_sentence(job: Callable[..., Job], store: Store, tmp_path: Path) -> None:
    with pytest.raises(ChildFailed) as caught:
        in_child(job("trouble", toys.TroubleConfig("wrong")), store)
    log = tmp_path / "work" / "job" / "child.log"
    assert str(caught.value) == f"trouble: ValueError: The knob is wrong: turn it. (log: {log})"
    assert "Traceback" in log.read_text()


def test_network_trouble_stays_network_trouble(job: Callable[..., Job], store: Store) -> None:
    with pytest.raises(ConnectionError, match=r"^The hub does not answer: try again\.$"):
        in_child(job("trouble", toys.TroubleConfig("network")), store)


def test_a_child_killed_by_signal_9_says_memory_and_leaves_nobody_behind(
    job: Callable[..., Job], store: Store, tally: Path
) -> None:
    with pytest.raises(ChildFailed, match=r"ended with code -9 .* memory ran out: lower the batch size"):
        in_child(job("trouble", toys.TroubleConfig("memory", tally=str(tally))), store)
    wait_for(lambda: not alive(int(tally.read_text())))


def test_an_interrupted_parent_ends_its_child(
    job: Callable[..., Job], store: Store, tally: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        if tally.read_text():
            raise KeyboardInterrupt

    monkeypatch.setattr(processes, "_follow", interrupt)
    with pytest.raises(KeyboardInterrupt):
        in_child(job("trouble", toys.TroubleConfig("wait", tally=str(tally))), store)
    assert not alive(int(tally.read_text()))


# Nobody works for a parent that is gone

RUN = """
import sys
from tasks.runtime import RuntimeConfig, keys, session
from tests import toys
with session(keys.restore(RuntimeConfig, {"root": sys.argv[1], "isolation": "process"})):
    toys.trouble(toys.TroubleConfig("wait", tally=sys.argv[2], until="never"))
"""


def test_no_orphan_is_left_when_the_parent_is_killed(
    tmp_path: Path, tally: Path, python: Callable[..., subprocess.Popen[str]]
) -> None:
    parent = python(RUN, tmp_path / "data", tally)
    child = int(wait_for(tally.read_text))
    assert child != parent.pid and alive(child)
    parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not alive(child))


def test_a_child_whose_parent_died_before_it_woke_up_does_nothing(
    job: Callable[..., Job], store: Store, tmp_path: Path, tally: Path
) -> None:
    place = tmp_path / "job.json"
    gone = {"root": str(store.root), "parent": os.getpid() + 1}
    place.write_text(json.dumps(job("collect", toys.CollectConfig(tally=str(tally))) | gone))
    command = [sys.executable, "-m", "tasks.runtime.child", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "there is nobody to work for" in done.stderr
    assert tally.read_text() == "" and not (tmp_path / "result.json").exists()
