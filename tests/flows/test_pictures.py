"""The pictures of a run: all that there are numbers for, on no background, the same each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.pictures import __main__ as command
from flows.pictures import road, style
from flows.story import Story
from tests.flows import stories

ALL = ["scores", "training", "fidelity", "lengths"]


def test_a_finished_road_has_every_picture_and_the_page_shows_through(tmp_path: Path) -> None:
    from matplotlib.image import imread

    places = road.draw(stories.told(tmp_path / "store"), tmp_path / "pictures")
    assert [place.name for place in places] == [f"{name}.png" for name in ALL]
    for place in places:
        assert imread(place)[0, 0, 3] == 0


def test_ppo_has_a_panel_for_everything_that_is_watched(tmp_path: Path) -> None:
    names = (
        "reward",
        "reward/model",
        "reward/short",
        "kl",
        "length",
        "entropy",
        "clip_fraction",
        "value_clip_fraction",
    )
    names += (
        "explained_variance",
        "finished",
        "empty",
        "seconds/generate",
        "seconds/score",
        "seconds/look",
        "seconds/learn",
    )
    made = stories.manifest(tmp_path, "ppo", "Model")
    stories.noted(tmp_path, made, "history.json", [dict.fromkeys(names, n / 20) for n in range(20)])
    (place,) = road.draw(Story(tmp_path, [made]), tmp_path, "svg")
    drawn = place.read_text()
    assert place.name == "rollouts.svg" and drawn.count(">update of PPO<") == 8
    for label in ("in all", "model", "short", "policy", "critic", "generate", "score", "learn", "by themselves"):
        assert f">{label}<" in drawn
    assert ">mean of an update's answers<" in drawn
    (place,) = road.draw(Story(tmp_path, [made | {"config": {"missing_eos_penalty": 1.0}}]), tmp_path, "svg")
    assert ">mean of an update's answers, 1 off where cut<" in place.read_text()


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_same_numbers_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    told = stories.told(tmp_path / "store")
    for name in ("first", "second"):
        assert road.scores(told, tmp_path / f"{name}.{kind}")
    first, second = ((tmp_path / f"{name}.{kind}").read_bytes() for name in ("first", "second"))
    assert first == second


def test_what_has_no_numbers_has_no_picture(tmp_path: Path) -> None:
    told = stories.told(tmp_path / "store")
    unjudged = Story(told.store, [m for m in told.manifests if m["stage"] == "sft"])
    assert [place.stem for place in road.draw(unjudged, tmp_path / "one")] == ["training"]
    assert road.draw(Story(told.store, []), tmp_path / "none") == []


def test_notes_that_are_gone_or_broken_cost_their_picture_alone(tmp_path: Path) -> None:
    told = stories.told(tmp_path / "store")
    (told.store / "notes" / "encode0" / "report.json").write_text("{ cut")
    for stage in ("sft", "dpo"):
        (told.store / "notes" / f"{stage}0" / "history.json").unlink()
    assert [place.stem for place in road.draw(told, tmp_path / "pictures")] == ["scores", "fidelity"]


def test_a_road_that_changed_nothing_at_all_can_be_drawn(tmp_path: Path) -> None:
    told = stories.told(tmp_path / "store", {name: [0.0] * stories.PROMPTS for name in stories.MODELS})
    assert told.verdict
    told.verdict["fidelity"]["pairs"] = {"level": {"kl": 0.0, "same_top1": 1.0}}
    told.verdict["gates"] = []
    assert len(road.draw(told, tmp_path)) == len(ALL)


@pytest.mark.parametrize("page", ["#ffffff", "#0d1117"])
def test_ink_and_colours_stand_out_on_light_pages_and_on_dark_ones(page: str) -> None:
    assert contrast(style.INK, page) > 4
    assert min(contrast(colour, page) for colour in style.COLOURS) > 3
    assert len(style.MARKERS) == len(style.COLOURS)


def contrast(one: str, other: str) -> float:
    """As the Web Content Accessibility Guidelines (2.1, section 1.4.3) measure it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.fixture
def over(tmp_path: Path) -> Path:
    """A data folder with a run that is over."""
    told = stories.told(tmp_path / "store")
    used: list[dict[str, Any]] = [{"call": m["stage"], "state": "made", "digest": m["digest"]} for m in told.manifests]
    run = tmp_path / "runs" / "a-run"
    run.mkdir(parents=True)
    (run / "report.json").write_text(json.dumps({"stages": used}))
    return tmp_path


def test_a_run_that_is_over_is_drawn_again_as_svg(over: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["a-run", str(over / "docs"), "--root", str(over)]) == 0
    assert sorted(place.name for place in (over / "docs").iterdir()) == sorted(f"{name}.svg" for name in ALL)
    assert "<text" in (over / "docs" / "scores.svg").read_text()  # words stay words, and the file small
    assert "scores.svg" in capsys.readouterr().out


def test_a_name_that_no_run_has_is_told(over: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["other", str(over / "docs"), "--root", str(over)]) == 2
    assert "other" in capsys.readouterr().err
