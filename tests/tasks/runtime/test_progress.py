from __future__ import annotations

import pytest

from tasks.runtime import progress
from tasks.runtime.progress import Screen

Capture = pytest.CaptureFixture[str]


def advance(screen: Screen) -> None:
    screen.begin("train")
    for step in (1, 2):
        screen.advance(step, 2, "steps")
    screen.advance(1, 1, "saving")
    screen.done("train is done")


def test_a_log_file_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(progress, "_PLAIN_EVERY", -1.0)
    told: list[str] = []
    with Screen(told.append) as screen:
        advance(screen)
    for written in (capsys.readouterr().err.splitlines(), told):  # told: to Prefect, whose page has no terminal
        lines = [line.split(", about")[0].strip() for line in written]
        assert lines == ["train: steps 1/2", "train: steps 2/2", "train: saving 1/1", "train is done"]


def test_a_short_stage_gets_one_line(capsys: Capture) -> None:
    with Screen() as screen:
        advance(screen)
    assert capsys.readouterr().err == "train is done\n"


def test_progress_of_nothing_and_of_unknown_length_is_harmless(capsys: Capture) -> None:
    with Screen() as screen:
        screen.advance(1, 2, "steps")
        screen.begin("fetch")
        screen.advance(10, 0, "bytes")
    assert capsys.readouterr().err == ""


def test_brackets_are_said_as_they_stand(capsys: Capture) -> None:
    with Screen() as screen:
        screen.begin("preprocess")
        screen.say("(?s)[a-z]+[/b] has a bracket")
        screen.done("[/data] is done")
    assert capsys.readouterr().err == "  (?s)[a-z]+[/b] has a bracket\n[/data] is done\n"
