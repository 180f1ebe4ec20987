"""What is said about the data of a run without being asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows import card, legs, remarks, report, usage
from flows.story import Story
from tasks.llm.rows import Kind
from tasks.preprocess import PreprocessConfig
from tasks.runtime import RuntimeConfig, session
from tasks.runtime.session import Record
from tests.flows import stories


def asks(text: str, *, system: str = "Be brief.") -> dict[str, Any]:
    talk = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return {"prompt": talk, "answer": "no matter"}


def as_chat(row: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [*row["prompt"], {"role": "assistant", "content": "another"}]}


def rows(store: Path, number: int, kind: str, train: list[Any], held: list[Any], **more: Any) -> dict[str, Any]:
    metrics = {"rows": len(train) + len(held), "train": len(train), "eval": len(held), "dropped": 0}
    made = stories.manifest(store, "preprocess", "Dataset", number, config={"kind": kind, **more}, metrics=metrics)
    for name, part in (("train", train), ("eval", held)):
        place = store / "objects" / made["digest"] / f"{name}.jsonl"
        place.write_text("".join(json.dumps(row) + "\n" for row in part))
    return made


@pytest.fixture
def told(tmp_path: Path) -> Story:
    """Four prompts, of which chats have the first two in other spelling and pairs the second and third."""
    store = tmp_path / "store"
    spelled = [as_chat(asks(text)) for text in ("what  is IT 0?", "What is it 1?\n")]
    others = [as_chat(asks("What is it 3?", system="Rhyme.")), *(as_chat(asks(f"Else {i}?")) for i in range(8))]
    pairs = [{**asks(f"What is it {i}?"), "chosen": "a", "rejected": "b"} for i in (1, 2)]
    chats = rows(store, 11, "chats", [*spelled, *others], [as_chat(asks("What is it 3?"))])
    asked = rows(store, 13, "prompts", [], [asks(f"What is it {i}?") for i in range(4)])
    return Story(store, [chats, rows(store, 12, "pairs", pairs, []), asked])


def test_prompts_that_are_also_trained_on_are_counted_once_whatever_their_spelling(told: Story) -> None:
    assert list(remarks.memory(told, {})) == [
        "3 of the 4 held-out prompts are also trained on (chats and pairs): their scores measure memory. "
        "Remove them from prompts."
    ]


def test_what_is_odd_about_rows_is_said_as_soon_as_they_are_read_and_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f'{{"prompt": "{i}?", "completion": "{i}!"}}\n' for i in range(9)))
    chats = PreprocessConfig(path=str(tmp_path / "a.jsonl"), eval_rows=6)
    prompts = PreprocessConfig(kind=Kind.prompts, path=chats.path)
    for times in (1, 0):
        with session(RuntimeConfig(root=str(tmp_path / "data"))):
            legs.rows(chats, prompts)
        said = capsys.readouterr().err
        assert said.count("6 of 9 rows are held out") == times
        assert said.count("3 of the 9 held-out prompts are also trained on") == times


def test_each_set_of_prompts_goes_by_its_seat(told: Story) -> None:
    names = {told.manifests[-1]["key"]: "general"}
    assert next(remarks.memory(told, names)).startswith("3 of the 4 held-out prompts of general are also trained on")


def test_prompts_of_their_own_and_rows_that_were_cleaned_away_are_no_remark(told: Story) -> None:
    chats, pairs, prompts = told.manifests
    assert list(remarks.memory(Story(told.store, [prompts]), {})) == []
    for made in (chats, pairs):
        (told.content(made) / "train.jsonl").unlink()
    assert list(remarks.memory(told, {})) == []


def test_holding_out_most_of_few_rows_is_told_with_a_better_number(told: Story) -> None:
    few = rows(told.store, 14, "pairs", [{}] * 4, [{}] * 16, eval_rows=16)
    own = rows(told.store, 15, "pairs", [{}] * 4, [{}] * 16, eval_path="held.jsonl")
    third = rows(told.store, 16, "pairs", [{}] * 8, [{}] * 4, eval_rows=4)
    assert list(remarks.held_out(Story(told.store, [*told.manifests, few, own, third]), {})) == [
        "pairs: 16 of 20 rows are held out; pairs.eval_rows=4 leaves more to learn from."
    ]


@pytest.mark.parametrize(
    ("reasons", "says"),
    [
        ({"empty answer": {"rows": 1, "examples": ["my pairs.csv:7 turn 2"]}}, ", my pairs.csv:7 (empty answer); more"),
        (
            {"duplicate": {"rows": 1, "examples": ["a:2"]}, "bad": {"rows": 2, "examples": ["a:3 x", "a:5"]}},
            ", such as a:3 (bad); why and which: ",
        ),
        ({}, "; "),
    ],
)
def test_a_row_left_out_is_named(told: Story, reasons: dict[str, Any], says: str) -> None:
    made = rows(told.store, 17, "pairs", [{}] * 9, [])
    made["metrics"]["dropped"] = count = sum(left["rows"] for left in reasons.values()) or 1
    stories.noted(told.store, made, "report.json", {"reasons": reasons})
    (text,) = remarks.left_out(Story(told.store, [made]), {})
    assert text.startswith(f"{count} of 9 rows of pairs{says}")


def test_card_report_and_screen_say_it(told: Story, tmp_path: Path) -> None:
    sentence = "3 of the 4 held-out prompts are also trained on (chats and pairs)"
    with session(RuntimeConfig(root=str(tmp_path))) as now:
        now.records += [Record(m["stage"], m["config"]["kind"], [], "made", 1.0, m) for m in told.manifests]
        said = report.remarks(now)
        assert [name for name, _ in said] == ["memory"] and said[0][1].startswith(sentence)
        assert report.data(now, None)["remarks"] == [{"about": "memory", "text": said[0][1]}]
        page = report.markdown(now, told, [*said, ("report", "/a/path")], {})
    assert f"* memory: {sentence}" in page and "* report: `/a/path`" in page
    road = stories.told(told.store)
    road.manifests[1:1] = told.manifests
    assert f"* {sentence}" in card.text(road, card.Origin(), usage.Beside()).split("## Limitations")[1]


def test_what_rewards_were_worth_is_told_with_its_interval_and_the_answers(tmp_path: Path) -> None:
    metrics = {"eval_before": 0.1, "eval_after": 0.6, "eval_gain": 0.5, "eval_gain_low": 0.2, "eval_gain_high": 0.8}
    made = stories.manifest(tmp_path, "ppo", "Model", 31, metrics={**metrics, "kl": 1.25})
    (said,) = remarks.rewarded(Story(tmp_path, [made]), {})
    assert said.startswith("on held-out questions 0.100 -> 0.600, +0.500 [+0.200, +0.800], 1.25 nats per answer away")
    assert said.endswith("answers.md")
