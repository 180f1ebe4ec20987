"""`plan=true` on the whole road: it says what then really happens, and does nothing itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import plan
from flows.compose import compose
from flows.launch import front_door
from flows.sft_then_dpo import SFTThenDPO, sft_then_dpo
from tasks.runtime import devices
from tasks.runtime.plan import Plan, Step
from tests.flows import roads


@pytest.fixture(scope="module")
def first(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root under which the road was travelled once. Tests that make more copy it."""
    root = tmp_path_factory.mktemp("first")
    roads.travelled(tiny_model, root)
    return root


def config(model: Path, root: Path, *more: str) -> SFTThenDPO:
    found: SFTThenDPO = compose("sft_then_dpo", SFTThenDPO, roads.overrides(model, root, *more))
    return found


def planned(model: Path, root: Path, *more: str) -> Plan:
    return plan.drawn(sft_then_dpo, [config(model, root, *more)])


def step(found: Plan, label: str) -> Step:
    return next(step for step in found.steps if step.label == label)


def states(found: Plan) -> Counter[str]:
    return Counter(step.state.value for step in found.steps)


def files(root: Path) -> Iterator[tuple[str, int, int]]:
    for place in sorted(p for p in root.rglob("*") if p.is_file() and "hashes" not in p.parts):
        yield str(place), place.stat().st_size, place.stat().st_mtime_ns


def test_without_sft_dpo_begins_from_the_base_and_no_model_is_measured_twice(tiny_model: Path, tmp_path: Path) -> None:
    labels = [step.label for step in planned(tiny_model, tmp_path, "sft=null").steps]
    assert {"reference of download", "dpo of download", "evaluate of download"} <= set(labels)
    assert not {"sft of download", "encode of download", "preprocess chats"} & set(labels)
    assert len(labels) == len(set(labels))


def test_before_anything_ran_nothing_is_cached(tiny_model: Path, tmp_path: Path) -> None:
    found = planned(tiny_model, tmp_path)
    begins = {step.label for step in found.steps if step.state == "runs"}
    assert begins == {"download", "preprocess chats", "preprocess general", "preprocess pairs", "preprocess prompts"}
    assert set(states(found)) == {"runs", "depends"}
    assert step(found, "sft of download").peak, "the model is a folder here: its config.json can be read already"


def test_after_a_run_everything_is_cached(tiny_model: Path, first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(states(planned(tiny_model, first))) == {"cached"}
    plan.show(sft_then_dpo, config(tiny_model, first))
    assert "20 cached" in capsys.readouterr().out


def test_after_a_changed_knob_it_names_what_then_really_runs_and_why(
    tiny_model: Path, first: Path, tmp_path: Path
) -> None:
    root, change = Path(shutil.copytree(first, tmp_path / "again")), "dpo.args.beta=0.3"
    found = planned(tiny_model, root, change)
    assert step(found, "dpo of sft").why == ["args.beta 0.1 -> 0.3"]
    assert step(found, "dpo of sft").seconds and step(found, "dpo of sft").disk and step(found, "dpo of sft").peak
    assert step(found, "merge of dpo").why[0] == "waits for dpo"
    runs = Counter(step.name for step in found.steps if step.state != "cached")
    assert runs == Counter(call.split()[0] for call in roads.made(roads.travelled(tiny_model, root, change)))


def test_an_edited_data_file_is_named(tiny_model: Path, first: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text((roads.ROOT / "data/tickets/pairs.jsonl").read_text().replace("Hello", "Good day"))
    found = step(planned(tiny_model, first, f"pairs.path={pairs}"), "preprocess pairs")
    assert found.why == [f"path data/tickets/pairs.jsonl -> {pairs}, with other content"]


def test_a_plan_writes_nothing(tiny_model: Path, first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(files(first))
    plan.show(sft_then_dpo, config(tiny_model, first, "sft.args.learning_rate=1e-5"))
    assert list(files(first)) == before and capsys.readouterr().out


def test_a_plan_is_drawn_without_the_heavy_libraries(tiny_model: Path, first: Path) -> None:
    heavy = {"prefect", "mlflow", "torch", "transformers", "trl", "datasets"}
    code = f"""
import sys
from flows.launch import launch
from flows.sft_then_dpo import SFTThenDPO, sft_then_dpo
try:
    launch(sft_then_dpo, SFTThenDPO, {roads.overrides(tiny_model, first, "dpo.args.beta=0.3", "plan=true")})
except SystemExit as end:
    print(end.code, sorted({heavy} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=roads.ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert "11 cached, 1 run, 8 depend; about " in done.stdout


def test_a_sweep_is_one_plan(tiny_model: Path, first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials = [
        config(tiny_model, first, f"sft.args.learning_rate={rate}", f"dpo.args.beta={beta}")
        for rate in (1e-4, 3e-4)
        for beta in (0.05, 0.1, 0.3)
    ]
    plan.show_sweep(sft_then_dpo, trials)
    said = capsys.readouterr().out
    assert said.startswith("6 trials: 4 preprocess, 1 download, 1 encode, 2 sft, 2 reference, 6 dpo, 6 merge, ")
    assert "4 sft, 4 reference" in said.split("\n")[0] and said.split("\n")[0].endswith(" saved")
    assert "dpo of sft (6 times)" in said and "evaluate of download  " in said


def test_what_does_not_fit_says_what_to_turn(
    tiny_model: Path, first: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(devices, "memory", lambda: 1e8)
    trial = config(tiny_model, first, "sft.args.learning_rate=1e-5")
    monkeypatch.setattr("flows.plan.shutil.disk_usage", lambda place: shutil._ntuple_diskusage(9, 8, 1))  # type: ignore[attr-defined]
    plan.show(sft_then_dpo, trial)
    said = capsys.readouterr().out
    assert (
        "sft of download needs about 0.6 GB of memory and there are 0.1 GB: lower runtime.micro_batch (1 takes" in said
    )
    assert "make room (python -m flows.store gc shows what can go), or choose another disk with runtime.root" in said


def test_from_the_ui_the_plan_is_the_report_and_the_run_is_completed(
    tiny_model: Path, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("flows.launch._tell_prefect", told.append)
    flow = front_door(sft_then_dpo, SFTThenDPO)
    asked = {name: parameter.default for name, parameter in flow.fn.__signature__.parameters.items()}
    state = flow.fn(**asked | {"overrides": roads.overrides(tiny_model, first, "plan=true")})
    assert state.is_completed() and state.message == "a plan: nothing was run"
    assert told[0].startswith("```\n") and "20 cached" in told[0]
