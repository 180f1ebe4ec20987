"""Rows: every shape people keep their data in comes out as one of three forms, or is refused for a reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.llm.messages import BadRow
from tasks.llm.rows import Format, Kind, normalise

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}
WRONG = {"role": "assistant", "content": "5"}


def chat(row: Any, shape: Format = Format.auto) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = normalise(row, Kind.chats, shape)["messages"]
    return messages


def pair(row: Any) -> tuple[list[dict[str, str]], str, str]:
    found = normalise(row, Kind.pairs)
    return found["prompt"], found["chosen"], found["rejected"]


def reason(row: Any, kind: Kind = Kind.chats, shape: Format = Format.auto) -> str:
    with pytest.raises(BadRow) as bad:
        normalise(row, kind, shape)
    return bad.value.reason


# Shapes


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, ANSWER]},
        {"messages": json.dumps([ASK, ANSWER])},
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": [ASK], "completion": [ANSWER]},
        {"prompt": json.dumps([ASK]), "completion": "4"},
        {"instruction": "2+2?", "input": "", "output": "4"},
        {"instruction": "", "input": "2+2?", "output": "4", "history": []},
        {"instruction": "2+2?", "output": "4", "system": None, "history": None},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"messages": [{**ASK, "name": "Ann"}, {**ANSWER, "tool_calls": None}], "label": True},
    ],
)
def test_every_shape_says_the_same(row: dict[str, Any]) -> None:
    assert chat(row) == [ASK, ANSWER]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SYSTEM, ASK, ANSWER], "system": "not this one"},
        {"messages": [ASK, ANSWER], "system": "Be brief."},
        {"prompt": [SYSTEM, ASK], "completion": "4"},
        {"prompt": "2+2?", "completion": "4", "system": "Be brief."},
        {"instruction": "2+2?", "output": "4", "system": "Be brief."},
    ],
)
def test_a_system_turn_comes_first(row: dict[str, Any]) -> None:
    assert chat(row) == [SYSTEM, ASK, ANSWER]


def test_alpaca_joins_instruction_and_input_and_puts_history_before_them() -> None:
    row = {"instruction": "Translate.", "input": "Hund", "output": "dog", "history": [["2+2?", "4"]]}
    asked = {"role": "user", "content": "Translate.\nHund"}
    assert chat(row) == [ASK, ANSWER, asked, {"role": "assistant", "content": "dog"}]
    assert chat({**row, "history": '[["2+2?", "4"]]'}) == chat(row)


def test_text_is_kept_to_the_letter() -> None:
    assert chat({"prompt": " [x] ", "completion": " 4\n"}) == [
        {"role": "user", "content": " [x] "},
        {"role": "assistant", "content": " 4\n"},
    ]


def test_a_format_can_be_forced_where_columns_fit_two() -> None:
    row = {"messages": [ASK, WRONG], "prompt": "2+2?", "completion": "4"}
    assert chat(row)[-1] == WRONG
    assert chat(row, Format.prompt_completion)[-1] == ANSWER


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        {"prompt": [ASK], "chosen": [ANSWER], "rejected": [WRONG]},
        {"prompt": "2+2?", "chosen": [ASK, ANSWER], "rejected": [ASK, WRONG]},
        {"chosen": [ASK, ANSWER], "rejected": [ASK, WRONG]},
        {"prompt": None, "chosen": json.dumps([ASK, ANSWER]), "rejected": json.dumps([ASK, WRONG])},
        {"instruction": "2+2?", "input": "", "chosen": "4", "rejected": "5"},
        {
            "conversations": [{"from": "human", "value": "2+2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
    ],
)
def test_every_way_to_write_a_pair_says_the_same(row: dict[str, Any]) -> None:
    assert pair(row) == ([ASK], "4", "5")


def test_a_system_turn_of_either_side_of_a_pair_is_kept() -> None:
    whole = {"chosen": [SYSTEM, ASK, ANSWER], "rejected": [SYSTEM, ASK, WRONG]}
    assert pair(whole)[0] == pair({**whole, "prompt": "2+2?"})[0] == [SYSTEM, ASK]
    assert pair({"prompt": [SYSTEM, ASK], "chosen": [ASK, ANSWER], "rejected": [ASK, WRONG]})[0] == [SYSTEM, ASK]


@pytest.mark.parametrize(("given", "kept"), [(0.5, 0.5), (2, 2.0), ("1.5", 1.5), (0, 0.0), (-1, -1.0)])
def test_a_margin_of_a_pair_is_kept_as_a_number(given: Any, kept: float) -> None:
    assert normalise({"prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": given}, Kind.pairs)["margin"] == kept


@pytest.mark.parametrize("margin", [{}, {"margin": None}, {"margin": ""}])
def test_a_pair_without_a_margin_is_the_row_it_always_was(margin: dict[str, Any]) -> None:
    row = normalise({"prompt": "2+2?", "chosen": "4", "rejected": "5", **margin}, Kind.pairs)
    assert set(row) == {"id", "prompt", "chosen", "rejected"}
    assert row["id"] == "a3241e3f7ed1d172"


def test_a_chat_taken_as_a_prompt_is_cut_before_its_last_answer() -> None:
    row = normalise({"messages": [SYSTEM, ASK, ANSWER, ASK, WRONG]}, Kind.prompts)
    assert (row["prompt"], row["answer"]) == ([SYSTEM, ASK, ANSWER, ASK], "5")


# Ids


def test_the_same_row_has_the_same_id_in_any_shape_and_another_row_another() -> None:
    one, two = ({"messages": [ASK, ANSWER]}, {"prompt": "2+2?", "completion": "4"})
    assert normalise(one, Kind.chats)["id"] == normalise(two, Kind.chats)["id"]
    assert normalise(one, Kind.chats)["id"] != normalise({"messages": [ASK, WRONG]}, Kind.chats)["id"]


def test_an_id_never_changes() -> None:
    assert normalise({"messages": [ASK, ANSWER]}, Kind.chats)["id"] == "8cc7bc6d1ed4ebf3"


# Faults


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("text", "not a mapping"),
        ({"text": "a"}, "missing column"),
        ({"prompt": "2+2?"}, "missing column"),
        ({"prompt": " ", "completion": "4"}, "empty prompt"),
        ({"prompt": None, "completion": "4"}, "empty prompt"),
        ({"prompt": "2+2?", "completion": "\n"}, "empty answer"),
        ({"prompt": "2+2?", "completion": "4", "messages": []}, "does not end with assistant"),
        ({"instruction": "2+2?", "output": None}, "empty answer"),
        ({"messages": [ANSWER]}, "empty prompt"),
        ({"messages": [SYSTEM, ANSWER]}, "empty prompt"),
        ({"messages": []}, "does not end with assistant"),
        ({"messages": [ASK]}, "does not end with assistant"),
        ({"messages": [ASK, ASK, ANSWER]}, "roles do not alternate"),
        ({"messages": [ASK, ANSWER, WRONG]}, "roles do not alternate"),
        ({"messages": [ASK, SYSTEM, ANSWER]}, "roles do not alternate"),
        ({"messages": [{"role": "tool", "content": "x"}, ANSWER]}, "unknown role"),
        ({"messages": [{"role": None, "content": "x"}, ANSWER]}, "unknown role"),
        ({"messages": [ASK, {"role": "assistant", "content": None}]}, "content is not text"),
        ({"messages": [ASK, {"role": "assistant"}]}, "not a message"),
        ({"messages": "2+2?"}, "messages is not a list"),
        ({"messages": [ASK, {**ANSWER, "tool_calls": [{"name": "f"}]}]}, "tool calls are not read"),
        ({"messages": [ASK, ANSWER], "tools": '[{"name": "f"}]'}, "tool calls are not read"),
        ({"instruction": "a", "output": "b", "history": ["c"]}, "history is not a list of [question, answer]"),
        ({"instruction": 3, "output": "b"}, "content is not text"),
        ({"prompt": "half a pair \ud83d", "completion": "4"}, "not valid Unicode"),
    ],
)
def test_a_chat_that_does_not_fit_has_a_reason(row: Any, expected: str) -> None:
    assert reason(row) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "2+2?", "chosen": "4"}, "missing column"),
        ({"prompt": "2+2?", "chosen": "4", "rejected": None}, "empty answer"),
        ({"prompt": "2+2?", "chosen": "4", "rejected": "4 "}, "chosen equals rejected"),
        ({"prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": "much"}, "margin is not a number"),
        ({"prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": True}, "margin is not a number"),
        ({"prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": "nan"}, "margin is not a number"),
        ({"prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": [1]}, "margin is not a number"),
        ({"prompt": "", "chosen": "4", "rejected": "5"}, "empty prompt"),
        ({"prompt": [ASK, ANSWER], "chosen": "4", "rejected": "5"}, "roles do not alternate"),
        ({"prompt": "2+2?", "chosen": [ASK], "rejected": "5"}, "does not end with assistant"),
        (
            {"chosen": [ASK, ANSWER], "rejected": [SYSTEM, ASK, WRONG]},
            "chosen and rejected differ before their last turn",
        ),
        (
            {"prompt": "3+3?", "chosen": [ASK, ANSWER], "rejected": [ASK, WRONG]},
            "chosen does not begin with the prompt",
        ),
    ],
)
def test_a_pair_that_does_not_fit_has_a_reason(row: Any, expected: str) -> None:
    assert reason(row, Kind.pairs) == expected


def test_a_forced_format_names_the_columns_it_misses() -> None:
    with pytest.raises(BadRow, match="'instruction', 'output'; found 'prompt', 'completion'"):
        normalise({"prompt": "a", "completion": "b"}, Kind.chats, Format.alpaca)


ASKED = [{"role": "user", "content": "Why?"}]


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "Why?"},
        {"prompt": ASKED, "completion": None},
        {"instruction": "Why?", "output": ""},
        {"messages": ASKED},
        {"conversations": [{"from": "human", "value": "Why?"}]},
    ],
)
def test_a_question_needs_no_answer(value: dict[str, Any]) -> None:
    row = normalise(value, Kind.questions)
    assert (row["prompt"], row["answer"]) == (ASKED, "")
    with pytest.raises(BadRow):
        normalise(value, Kind.prompts)


def test_a_question_keeps_its_answer() -> None:
    given = {"prompt": "Why?", "completion": "Because."}
    assert normalise(given, Kind.questions) == normalise(given, Kind.prompts)
    with pytest.raises(BadRow, match="empty prompt"):
        normalise({"prompt": ""}, Kind.questions)


@pytest.mark.parametrize("column", ["answer", "output"])
def test_an_answer_by_another_name_is_no_question_without_one(column: str) -> None:
    with pytest.raises(BadRow, match="its answer has another name"):
        normalise({"prompt": "Why?", column: "Because."}, Kind.questions)
