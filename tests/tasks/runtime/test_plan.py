"""What a plan says of calls it does not make."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.runtime import Dataset, Metrics, Model, Moving, Run, external, fingerprint, stage
from tasks.runtime.fingerprint import Code
from tasks.runtime.plan import Foreseen, Plan, Step, spoken
from tests import toys
from tests.toys import Open


@contextmanager
def planning(opened: Open, **runtime: Any) -> Iterator[Plan]:
    with opened(**runtime) as now:
        now.plan = plan = Plan(now)
        yield plan


def trained(rate: float = 0.5, text: str = "a row", words: str = "a b c") -> Model:
    return toys.train(toys.TrainConfig(rate, words), toys.collect(toys.CollectConfig(text)))


def road(rate: float = 0.5, text: str = "a row") -> Metrics:
    """Every kind of wire: an artifact, a part of one, a list, one left out."""
    model = trained(rate, text)
    toys.encode(toys.EncodeConfig(), model.tokenizer, toys.collect(toys.CollectConfig(text)))
    return toys.measure(toys.MeasureConfig(), [model, toys.adapt(toys.AdaptConfig(), model)])


def states(plan: Plan) -> dict[str, str]:
    return {step.name: step.state.value for step in plan.steps}


def step(plan: Plan, name: str) -> Step:
    return next(step for step in plan.steps if step.name == name)


def files(root: Path) -> dict[str, bytes]:
    kept = ("hashes", "names")
    found = (p for p in root.rglob("*") if p.is_file() and not any(part.startswith(kept) for part in p.parts))
    return {str(p): p.read_bytes() for p in found}


# What would run


def test_before_anything_ran_the_first_stages_run_and_the_rest_waits(opened: Open) -> None:
    with planning(opened) as plan:
        road()
    assert states(plan) == {
        "collect": "runs",
        "train": "depends",
        "encode": "depends",
        "adapt": "depends",
        "measure": "depends",
    }
    assert step(plan, "collect").why == ["never run before"]
    assert step(plan, "encode").why == ["waits for train, collect", "never run before"]


def test_after_a_run_everything_is_cached(opened: Open) -> None:
    with opened():
        road()
    with planning(opened) as plan:
        road()
    assert set(states(plan).values()) == {"cached"} and not any(step.why for step in plan.steps)


def test_a_plan_has_the_recipe_keys_of_the_run(opened: Open) -> None:
    with planning(opened) as plan:
        road()
    with opened() as now:
        road()
    assert [step.recipe for step in plan.steps] == list(dict.fromkeys(r.manifest["recipe"] for r in now.records))


def test_a_changed_knob_runs_its_stage_and_says_which(opened: Open) -> None:
    with opened():
        road()
    with planning(opened) as plan:
        road(rate=0.1)
    assert states(plan)["collect"] == "cached" and states(plan)["train"] == "runs"
    assert step(plan, "train").why == ["rate 0.5 -> 0.1"]
    assert step(plan, "adapt").why == ["waits for train"]


def test_what_was_made_before_from_such_inputs_is_said_to_be(opened: Open) -> None:
    with opened() as now:
        made = trained()
        toys.adapt(toys.AdaptConfig(), made)
        shutil.rmtree(now.store.root / "objects" / made.digest)
    with planning(opened) as plan:
        toys.adapt(toys.AdaptConfig(), trained())
    assert states(plan) == {"collect": "cached", "train": "runs", "adapt": "depends"}
    assert step(plan, "train").why == [f"artifact {made.digest[:12]} is gone from the store; it is made again"]
    assert step(plan, "adapt").why[1] == "made before from inputs made so: a hit if they come out as they did"


def test_equal_bytes_made_another_way_are_one_piece_of_work(opened: Open) -> None:
    with opened():
        toys.collect(toys.CollectConfig("a row")), toys.collect(toys.CollectConfig(" a row"))
    with planning(opened) as plan:
        one, other = trained(text="a row"), trained(text=" a row")
    assert sorted(step.name for step in plan.steps) == ["collect", "collect", "train"]
    assert step(plan, "train").trials == 2 and one == other


def test_many_drawings_share_what_they_have_in_common(opened: Open) -> None:
    with planning(opened) as plan:
        for rate in (0.1, 0.2, 0.3):
            road(rate)
    assert [(step.name, step.trials) for step in plan.steps[:2]] == [("collect", 6), ("train", 1)]
    assert sum(step.name == "train" for step in plan.steps) == 3


# Drift, unfinished work, the world outside


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(fingerprint, "of_stage", lambda module: Code("edited", {}))


@pytest.mark.parametrize(
    ("drift", "state", "says"),
    [
        ("warn", "cached", "code changed since it was made"),
        ("rerun", "runs", "code changed since it was made"),
        ("refuse", "stops", "code changed since it was made, and runtime.drift=refuse stops there"),
    ],
)
def test_a_hit_of_other_code_is_ruled_as_in_a_run(
    opened: Open, edited: Callable[[], None], drift: str, state: str, says: str
) -> None:
    with opened():
        toys.collect(toys.CollectConfig())
    edited()
    with planning(opened, drift=drift) as plan:
        toys.collect(toys.CollectConfig())
    assert states(plan) == {"collect": state} and plan.steps[0].why[0].startswith(says)


def test_unfinished_work_is_gone_on_with(opened: Open) -> None:
    with planning(opened) as plan:
        toys.collect(toys.CollectConfig())
        work = plan.session.store.root / "work" / "collect" / plan.steps[0].work["key"] / "checkpoints"
    for number, whole in ((9, True), (10, True), (11, False)):
        (work / f"checkpoint-{number}").mkdir(parents=True)
        if whole:
            (work / f"checkpoint-{number}" / "trainer_state.json").touch()
    with planning(opened) as plan:
        toys.collect(toys.CollectConfig())
    assert plan.steps[0].why == ["never run before", "goes on from checkpoint-10"]


def test_a_path_that_leads_nowhere_stops_the_run_and_not_the_plan(opened: Open, tmp_path: Path) -> None:
    with planning(opened) as plan:
        toys.train(toys.TrainConfig(), toys.collect(toys.CollectConfig(path=str(tmp_path / "none"))))
    assert states(plan) == {"collect": "stops", "train": "depends"}
    assert "There is nothing at" in plan.steps[0].why[0]


def _ask() -> str:
    raise ConnectionError("The hub does not answer: check the network.")


@dataclass
class AskConfig:
    revision: str = external(lambda cfg: Moving("toy@main", _ask), default="main")


@stage(makes=Model, version="1")
def ask(run: Run, cfg: AskConfig) -> dict[str, float]:
    raise AssertionError("a plan runs nothing")


def test_a_hub_that_cannot_be_asked_leaves_it_unknown(opened: Open) -> None:
    with planning(opened) as plan:
        toys.adapt(toys.AdaptConfig(), ask(AskConfig()))
    assert states(plan) == {"ask": "unknown", "adapt": "depends"}
    assert plan.steps[0].why == ["The hub does not answer: check the network."]


def test_the_age_of_a_moving_name_is_told(opened: Open, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    hub.write_text("commit-1")
    with opened() as now:
        toys.pull(toys.PullConfig(hub=str(hub)))
        names = now.store.root / "names.json"
        asked = json.loads(names.read_text())
    asked["toy@main"]["asked"] -= 3 * 86400
    names.write_text(json.dumps(asked))
    with planning(opened) as plan:
        toys.pull(toys.PullConfig(hub=str(hub)))
    assert plan.steps[0].why == ["toy@main was asked 3 days ago (runtime.refresh=true asks again)"]


def test_a_plan_runs_and_writes_nothing(opened: Open, tmp_path: Path, tally: Path) -> None:
    with opened():
        road()
    before = files(tmp_path)
    with planning(opened):
        road(rate=0.1)
        toys.collect(toys.CollectConfig("another", tally=str(tally)))
    assert files(tmp_path) == before and not tally.read_text()


# Estimates


def recorded(opened: Open, name: str, **facts: Any) -> None:
    """Change what the manifests of a stage say of themselves."""
    with opened() as now:
        for place in (now.store.root / "manifests" / name).glob("*.json"):
            place.write_text(json.dumps(json.loads(place.read_text()) | facts))


def test_time_and_disk_are_those_of_the_nearest_earlier_runs(opened: Open) -> None:
    with opened():
        for rate in (0.1, 0.2):
            trained(rate)
    recorded(opened, "train", seconds=100.0)
    with planning(opened) as plan:
        trained(0.3)
    assert step(plan, "train").seconds == pytest.approx(100)
    assert step(plan, "train").disk == len("0.1 a row") + len("a b c")


def test_time_is_scaled_by_the_rows(opened: Open) -> None:
    with opened():
        trained()
        toys.collect(toys.CollectConfig("a row" * 3))
    recorded(opened, "train", seconds=100.0)
    with planning(opened) as plan:
        trained(text="a row" * 3)
    assert step(plan, "train").seconds == pytest.approx(300)


def test_time_of_other_settings_of_how_much_to_do_says_nothing(opened: Open) -> None:
    with opened():
        toys.adapt(toys.AdaptConfig(rank=8), trained())
    with planning(opened) as plan:
        toys.adapt(toys.AdaptConfig(rank=16), trained())
    assert step(plan, "adapt").seconds is None and step(plan, "adapt").disk


def test_time_on_another_machine_says_nothing(opened: Open) -> None:
    with opened():
        trained()
    recorded(opened, "train", machine={"node": "elsewhere"})
    with planning(opened) as plan:
        trained(0.3)
    assert step(plan, "train").seconds is None and step(plan, "train").disk


def test_a_stage_tells_its_memory_from_what_is_known_of_its_inputs(opened: Open) -> None:
    seen: dict[str, Foreseen] = {}

    def needs(cfg: toys.AdaptConfig, inputs: dict[str, Foreseen], micro_batch: int, **how: Any) -> tuple[float, str]:
        seen.update(inputs)
        if not inputs["base"].path:
            raise LookupError("unknown until train has run")
        return 1e6 * cfg.rank + micro_batch, "about, as toys go"

    hungry = dataclasses.replace(toys.adapt, needs=needs)
    with planning(opened, micro_batch=2) as plan:
        hungry(toys.AdaptConfig(), trained())
    assert (step(plan, "adapt").peak, step(plan, "adapt").peak_note) == (None, "unknown until train has run")
    assert step(plan, "train").peak_note == "not estimated"
    with opened():
        trained()
    with planning(opened, micro_batch=2) as plan:
        hungry(toys.AdaptConfig(), trained())
    assert (step(plan, "adapt").peak, step(plan, "adapt").peak_note) == (8e6 + 2, "about, as toys go")
    base = seen["base"]
    assert base.path and (base.path / "model.safetensors").exists() and base.config["rate"] == 0.5
    assert base.inputs["rows"].stage == "collect"


def test_what_needs_more_memory_than_there_is_is_also_told_for_one_row_at_a_time(opened: Open) -> None:
    hungry = dataclasses.replace(
        toys.collect, needs=lambda cfg, inputs, micro_batch, **how: (1e18 if micro_batch != 1 else 1e9, "")
    )
    with planning(opened) as plan:
        made: Dataset = hungry(toys.CollectConfig())
    assert not made.digest and (plan.steps[0].peak, plan.steps[0].peak_least) == (1e18, 1e9)


@pytest.mark.parametrize(("seconds", "says"), [(40, "40 s"), (240, "4 min"), (9000, "2.5 h"), (3 * 86400, "3 days")])
def test_a_length_of_time_is_said_in_its_unit(seconds: float, says: str) -> None:
    assert spoken(seconds) == says
