from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.runtime import RuntimeConfig, devices
from tasks.runtime.processes import ChildFailed, ChildKilled
from tasks.runtime.ranks import Strategy
from tasks.runtime.session import Isolation
from tests import toys
from tests.patience import alive, wait_for
from tests.team import TeamConfig, team
from tests.toys import Open

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(toys.__file__).parents[1]))


def told(tally: Path) -> list[tuple[int, int]]:
    """Rank, and the step it went on from, of every start."""
    lines = [line.split() for line in tally.read_text().splitlines()]
    return sorted((int(rank), int(step)) for rank, _, step in lines)


def pids(tally: Path) -> list[int]:
    return [int(line.split()[1]) for line in tally.read_text().splitlines()]


# Together


def test_both_run_and_the_first_ones_result_is_kept(opened: Open, tally: Path) -> None:
    with opened(ranks=2) as now:
        made = team(TeamConfig(tally=str(tally)))
        assert (now.store.fetch(made.ref()) / "train.jsonl").read_text() == "by rank 0"
        assert now.records[-1].manifest["metrics"] == {"rank": 0.0, "ranks": 2.0}
    assert told(tally) == [(0, 0), (1, 0)]
    assert os.getpid() not in pids(tally)


def test_the_first_one_alone_tells_metrics_and_progress(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[dict[str, Any]] = []
    monkeypatch.setattr("tasks.runtime.calls.Call._report", lambda call, event, attempt: heard.append(event))
    with opened(ranks=2):
        team(TeamConfig())
    assert heard == [{"metrics": {"loss": 1.0}, "step": 1}, {"done": 1, "total": 1, "what": "rank 0"}]


def test_each_has_a_log_of_its_own_and_they_find_one_another(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    with opened(ranks=2) as now:
        team(TeamConfig())
        notes = now.store.root / now.records[-1].manifest["notes"]
    assert sorted(place.name for place in notes.iterdir()) == ["by0", "rank0.log", "rank1.log"]
    first, last = (json.loads((notes / f"rank{rank}.log").read_text()) for rank in (0, 1))
    assert (first.pop("RANK"), first.pop("LOCAL_RANK")) == ("0", "0")
    assert (last.pop("RANK"), last.pop("LOCAL_RANK")) == ("1", "1")
    assert first == last
    assert (first["WORLD_SIZE"], first["OMP_NUM_THREADS"], first["MASTER_ADDR"]) == ("2", "4", "127.0.0.1")


def test_a_stage_that_runs_alone_does_so_whatever_the_number_of_ranks(opened: Open, tally: Path) -> None:
    with opened(ranks=2):
        toys.collect(toys.CollectConfig(tally=str(tally)))
    assert tally.read_text() == "collect\n"


def test_what_one_process_made_is_a_hit_for_several(opened: Open, tally: Path) -> None:
    made = []
    for ranks, strategy in ((1, "ddp"), (2, "ddp"), (3, "zero2")):
        with opened(ranks=ranks, strategy=strategy) as now:
            team(TeamConfig(tally=str(tally)))
            made.append(now.records[-1])
    assert [record.state for record in made] == ["made", "cached", "cached"]
    assert len({record.manifest["recipe"] for record in made}) == 1
    assert len(told(tally)) == 1


# One falls, all fall


def test_the_error_of_any_rank_ends_all_and_names_it(opened: Open, tally: Path) -> None:
    began = time.monotonic()
    with opened(ranks=2), pytest.raises(ChildFailed) as caught:
        team(TeamConfig("wrong", tally=str(tally)))
    assert time.monotonic() - began < 20
    assert str(caught.value).startswith("team: rank 1 of 2: ValueError: The knob is wrong: turn it. (log: ")
    assert "rank1.log" in str(caught.value)
    assert told(tally) == [(0, 0), (1, 0)]  # no second try: what is wrong stays wrong
    assert not any(map(alive, pids(tally)))


def test_a_killed_rank_takes_the_others_along_and_they_go_on_from_what_was_saved(
    opened: Open, tally: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with opened(ranks=2) as now:
        team(TeamConfig(deaths=1, tally=str(tally)))
        assert now.records[-1].state == "made"
    assert told(tally) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    said = capfd.readouterr().err
    assert "team: rank 1 of 2 ended with code -9 and left no result. Signal 9 usually means memory ran out" in said
    assert "Killed, and tried once more (2 of 2) from what it had saved." in said


def test_the_others_are_ended_within_10_seconds(opened: Open, tally: Path) -> None:
    seconds: list[float] = []

    def kill() -> None:
        for attempt in (1, 2):
            wait_for(lambda needed=2 * attempt: len(pids(tally)) == needed)  # type: ignore[misc]
            lines = [line.split() for line in tally.read_text().splitlines()[-2:]]
            began, (first, last) = time.monotonic(), (int(pid) for _, pid, _ in sorted(lines))
            os.kill(last, signal.SIGKILL)
            wait_for(lambda pid=first: not alive(pid))  # type: ignore[misc]
            seconds.append(time.monotonic() - began)

    killer = threading.Thread(target=kill)
    killer.start()
    with opened(ranks=2), pytest.raises(ChildKilled, match="rank 1 of 2"):
        team(TeamConfig("forever", tally=str(tally)))
    killer.join()
    assert len(seconds) == 2 and max(seconds) < 10


def test_killed_twice_it_fails_and_the_same_command_goes_on(opened: Open, tally: Path) -> None:
    with opened(ranks=2), pytest.raises(ChildKilled) as caught:
        team(TeamConfig(deaths=2, tally=str(tally)))
    assert str(caught.value).startswith("team: rank 1 of 2 ended with code -9 and left no result. Signal 9")
    assert "team: Killed again (2 of 2). Make room for it; the same command goes on" in str(caught.value)
    assert not any(map(alive, pids(tally)))
    with opened(ranks=2) as now:
        team(TeamConfig(deaths=2, tally=str(tally)))
        assert now.records[-1].state == "made"
    assert told(tally) == [(rank, step) for rank in (0, 1) for step in (0, 1, 2)]


def test_a_single_child_is_tried_once_more_too(opened: Open, tally: Path) -> None:
    with opened(isolation="process") as now:
        team(TeamConfig(deaths=1, tally=str(tally)))
        assert now.records[-1].state == "made"
    assert told(tally) == [(0, 0), (0, 1)]


def test_two_attempts_are_two_runs_of_the_tracker(opened: Open, tally: Path) -> None:
    ended: list[str] = []

    class Attempt:
        run = "r"
        log = tag = inputs = files = lambda *_: None

        def end(self, status: str) -> None:
            ended.append(status)

    class Tracker:
        tag = lambda *_: None  # noqa: E731

        def child(self, *_: Any) -> Attempt:
            return Attempt()

    with opened(ranks=2) as now:
        now.tracker = Tracker()  # type: ignore[assignment]
        team(TeamConfig(deaths=1, tally=str(tally)))
    assert ended == ["FAILED", "FINISHED"]


# Nobody stays


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_the_run(sign: signal.Signals, tmp_path: Path, tally: Path) -> None:
    code = f"from tests.team import work_for_ever; work_for_ever({str(tmp_path / 'data')!r}, {str(tally)!r})"
    run = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: len(pids(tally)) == 2)
        began = time.monotonic()
        run.send_signal(sign)
        wait_for(lambda: not any(map(alive, pids(tally))))
        assert time.monotonic() - began < 10
        assert run.wait(30) == (143 if sign is signal.SIGTERM else -9)
    finally:
        for pid in [run.pid, *pids(tally)]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


# Before anything runs


def _problems(**fields: Any) -> list[str]:
    return list(RuntimeConfig(**fields).problems())


def test_what_cannot_run_is_said_before() -> None:
    assert _problems(ranks=2) == _problems(ranks=2, strategy=Strategy.zero2) == []
    assert "give 1, or as many" in _problems(ranks=0)[0]
    assert "several ranks are several" in _problems(ranks=2, isolation=Isolation.none)[0]
    assert "give runtime.ranks=2 or more" in _problems(strategy=Strategy.zero2)[0]


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: (9.0,))
    assert "give at most 1" in _problems(ranks=2)[0]


def test_zero2_without_deepspeed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "posttrain[distributed]" in _problems(ranks=2, strategy=Strategy.zero2)[0]
