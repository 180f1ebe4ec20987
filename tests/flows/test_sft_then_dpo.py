"""The whole road on a tiny model: what runs, what is found again, and what each change costs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tasks.llm import gguf
from tests.flows import roads


@pytest.fixture(scope="module")
def first(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root under which the road was travelled once. Tests that make more copy it."""
    root = tmp_path_factory.mktemp("first")
    found = roads.travelled(tiny_model, root)
    assert set(found.values()) == {"made"}
    return root


@pytest.fixture
def again(first: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first, tmp_path / "again"))


def manifests(root: Path) -> dict[str, dict[str, object]]:
    return {f"{p.parent.name}/{p.stem}": json.loads(p.read_text()) for p in (root / "store/manifests").glob("*/*.json")}


def test_the_road_ends_with_a_gguf_and_a_verdict(first: Path) -> None:
    report = roads.newest(first)
    assert report["verdict"]["passed"]
    assert [score["model"]["stage"] for score in report["verdict"]["scores"]] == ["download", "sft", "dpo", "quantize"]
    assert Path(report["product"]).suffix == ".gguf"


def test_a_second_run_finds_everything(tiny_model: Path, again: Path) -> None:
    assert set(roads.travelled(tiny_model, again).values()) == {"cached"}


BELOW_DPO = {"dpo", "merge", "convert", "quantize", "fidelity", "evaluate of dpo", "evaluate of quantize", "compare"}
BELOW_DPO |= {"evaluate retention of dpo"}


@pytest.mark.parametrize(
    "changed", [["dpo.args.beta=0.3"], ["dpo.args.learning_rate=1e-4", "dpo.seed=1", "dpo.batch_size=2"]], ids=str
)
def test_another_training_runs_dpo_and_what_lies_below_it_on_the_same_reference(
    changed: list[str], tiny_model: Path, again: Path
) -> None:
    assert roads.made(roads.travelled(tiny_model, again, *changed)) == BELOW_DPO


def test_another_cutoff_of_the_pairs_asks_the_reference_again(tiny_model: Path, again: Path) -> None:
    ran = roads.made(roads.travelled(tiny_model, again, "reference.cutoff=900"))
    assert "reference" in ran
    assert ran - {"reference"} <= BELOW_DPO


def test_what_the_base_knew_is_measured_on_rows_of_their_own(first: Path) -> None:
    told = roads.newest(first)["verdict"]["retention"]
    assert (told["from"], told["to"], told["metric"], told["prompts"]) == ("download", "dpo", "loss", 48)


def test_without_general_rows_the_road_does_not_ask_what_was_forgotten(tiny_model: Path, again: Path) -> None:
    found = roads.travelled(tiny_model, again, "general=null")
    assert roads.made(found) == {"compare"}
    assert not [call for call in found if "general" in call or "retention" in call]
    assert roads.newest(again)["verdict"]["retention"] is None


def test_a_changed_logging_cadence_runs_nothing(tiny_model: Path, again: Path) -> None:
    assert not roads.made(roads.travelled(tiny_model, again, "sft.args.logging_steps=2"))


def test_an_edited_data_file_runs_what_depends_on_it(tiny_model: Path, again: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    shutil.copyfile(roads.ROOT / "data/tickets/pairs.jsonl", pairs)
    assert not roads.made(roads.travelled(tiny_model, again, f"pairs.path={pairs}"))  # the same bytes elsewhere
    pairs.write_text(pairs.read_text().replace("Hello", "Good day").replace("Hi", "Hey"))
    ran = roads.made(roads.travelled(tiny_model, again, f"pairs.path={pairs}"))
    assert {"preprocess pairs", "reference", "dpo", "merge"} <= ran
    assert not ran & {"download", "preprocess chats", "encode", "sft", "evaluate of sft"}


def test_a_removed_artifact_is_made_again_and_nothing_else(tiny_model: Path, again: Path) -> None:
    (merged,) = (m for name, m in manifests(again).items() if name.startswith("merge/"))
    shutil.rmtree(again / "store/objects" / str(merged["digest"]))
    assert roads.made(roads.travelled(tiny_model, again)) == {"merge"}


def test_the_same_work_in_two_stores_has_the_same_digest(tiny_model: Path, first: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(tiny_model, tmp_path / "a model elsewhere"))
    roads.travelled(moved, tmp_path / "second")
    one, other = manifests(first), manifests(tmp_path / "second")
    assert {name: m["digest"] for name, m in one.items()} == {name: m["digest"] for name, m in other.items()}


def test_the_gguf_carries_its_lineage(first: Path) -> None:
    about = gguf.metadata(Path(roads.newest(first)["product"]))
    lineage = json.loads(about["posttrain.lineage"])
    by_stage = {entry["stage"]: entry for entry in lineage}
    assert set(by_stage) == {"download", "preprocess", "encode", "sft", "reference", "dpo", "merge", "convert"}
    sealed = {m["recipe"]: m for m in manifests(first).values()}
    assert all(sealed[entry["recipe"]]["fields"] == entry["config"] for entry in lineage)
    assert about["posttrain.base"] == by_stage["download"]["digest"]
    data = {entry["digest"] for entry in lineage if entry["stage"] == "preprocess"}
    assert set(about["posttrain.data"].split(",")) == data
    assert len(data) == 2  # what it learned from; the prompts it is measured on are no ancestors


def test_a_failed_gate_keeps_everything_and_fails_again_from_the_cache(tiny_model: Path, again: Path) -> None:
    gate = "compare.gates.f16_kl_max=0.0"
    assert roads.made(roads.travelled(tiny_model, again, gate)) == {"compare"}
    assert not roads.newest(again)["verdict"]["passed"]
    assert not roads.made(roads.travelled(tiny_model, again, gate))
    assert not roads.newest(again)["verdict"]["passed"]
    assert Path(roads.newest(again)["product"]).exists()
