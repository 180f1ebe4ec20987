"""The keeper with services that are a line of shell each."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import keeper
from deploy.keeper import Died, Keeper, Service, Stopping
from tests.patience import alive, wait_for


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Keeper]:
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGTERM, signal.SIGINT)}
    found = Keeper(tmp_path)
    yield found
    found.stop()
    for sign, handler in before.items():
        signal.signal(sign, handler)


def service(name: str, line: str, folder: Path) -> Service:
    """It is well once it has made a file of its name."""
    return Service(name, ["sh", "-c", line], dict(os.environ), (folder / name).exists)


def test_a_service_that_does_not_start_is_told_with_its_last_words(kept: Keeper, tmp_path: Path) -> None:
    with pytest.raises(Died, match="Cook is not well") as died:
        kept.start([service("Cook", "echo no salt; exit 3", tmp_path)])
    assert "no salt" in str(died.value) and str(tmp_path / "cook.log") in str(died.value)


def test_what_dies_is_started_again_and_what_it_left_is_ended(
    kept: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(keeper, "_PAUSE", 0.0)
    line = f"echo $$ >> {tmp_path}/pids; touch {tmp_path}/Cook; sleep 1000 & echo $! >> {tmp_path}/left; wait"
    kept.start([service("Cook", line, tmp_path)])
    wait_for(lambda: (tmp_path / "left").exists() and (tmp_path / "left").read_text().strip())
    first, left = (int((tmp_path / name).read_text()) for name in ("pids", "left"))

    def kill_and_look() -> None:
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: len((tmp_path / "left").read_text().split()) == 2)
        kept.stopping.set()

    hand = threading.Thread(target=kill_and_look)
    hand.start()
    kept.watch()
    hand.join()
    assert "Cook ended with code -9 and is started again." in capfd.readouterr().out
    wait_for(lambda: not alive(left))
    kept.stop()
    wait_for(lambda: not any(alive(int(pid)) for pid in (tmp_path / "left").read_text().split()))


def test_they_are_ended_in_reverse(kept: Keeper, tmp_path: Path) -> None:
    for name in ("first", "second"):
        line = (
            f"trap 'echo {name} >> {tmp_path}/order; exit' TERM; touch {tmp_path}/{name}; while :; do sleep .05; done"
        )
        kept.start([service(name, line, tmp_path)])
    kept.stop()
    assert (tmp_path / "order").read_text().split() == ["second", "first"]


def test_a_stop_is_heard_while_a_service_is_awaited(kept: Keeper, tmp_path: Path) -> None:
    kept.stopping.set()
    with pytest.raises(Stopping):
        kept.start([service("Cook", "sleep 1000", tmp_path)])
