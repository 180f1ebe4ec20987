"""Rows: from the shapes people keep their data in to the three forms the stages train and measure on.

    chats    {"id", "messages": [{"role", "content"}, ...]}          the last turn is the assistant's
    pairs    {"id", "prompt": [messages], "chosen": str, "rejected": str}    and "margin": float, where it is given
    prompts, questions  {"id", "prompt": [messages], "answer": str}  the last turn of the prompt is the user's; to
                                                                     questions the answer may be ""

`id` is a short hash of the content, so the same row has the same id anywhere. Text is kept to the letter. A row that
does not fit is never mended in silence: it raises BadRow, whose reason is counted. One function reads one shape; a new
shape is a function and its line in SHAPES.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tasks.llm.messages import ROLES, BadRow, Message, json_list, message, short, text_of, turns

Row = dict[str, Any]


class Kind(StrEnum):
    """What the rows are for."""

    chats = "chats"
    pairs = "pairs"
    prompts = "prompts"
    questions = "questions"


class Format(StrEnum):
    """The shape rows have in their file; `auto` looks at the columns of each row."""

    auto = "auto"
    messages = "messages"
    prompt_completion = "prompt_completion"
    alpaca = "alpaca"
    preference = "preference"
    sharegpt = "sharegpt"


# Shapes: from a mapping of columns to its conversation


def _from_messages(row: Mapping[str, Any]) -> list[Message]:
    return _listed(row, "messages")


def _from_sharegpt(row: Mapping[str, Any]) -> list[Message]:
    return _listed(row, "conversations")


def _from_prompt_completion(row: Mapping[str, Any]) -> list[Message]:
    return turns(_filled(row, "prompt"), "user") + turns(_filled(row, "completion"), "assistant")


def _from_alpaca(row: Mapping[str, Any]) -> list[Message]:
    return [*_alpaca_prompt(row), {"role": "assistant", "content": text_of(_filled(row, "output"), "output")}]


def _alpaca_prompt(row: Mapping[str, Any]) -> list[Message]:
    asked = [text_of(row.get(key) or "", key) for key in ("instruction", "input")]
    history = row.get("history") or []
    if isinstance(history, str):
        history = json_list(history)
    if not isinstance(history, list) or not all(isinstance(past, list) and len(past) == 2 for past in history):
        raise BadRow("history is not a list of [question, answer]", short(row.get("history")))
    past = [turns(text, speaker) for pair in history for text, speaker in zip(pair, ("user", "assistant"), strict=True)]
    return [m for turn in past for m in turn] + [{"role": "user", "content": "\n".join(filter(str.strip, asked))}]


@dataclass(frozen=True)
class Shape:
    """The columns a shape is known by, and how its rows are read."""

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], list[Message]]


SHAPES = {  # in the order in which `auto` looks
    Format.messages: Shape(("messages",), _from_messages),
    Format.sharegpt: Shape(("conversations",), _from_sharegpt),
    Format.alpaca: Shape(("instruction", "output"), _from_alpaca),
    Format.prompt_completion: Shape(("prompt", "completion"), _from_prompt_completion),
}
PAIR = ("chosen", "rejected")
# Where a pair keeps its question; with none of them, `chosen` and `rejected` are whole conversations that begin alike.
PAIR_PROMPTS: dict[str, Callable[[Mapping[str, Any]], list[Message]]] = {
    "prompt": lambda row: turns(_filled(row, "prompt"), "user"),
    "conversations": _from_sharegpt,
    "instruction": _alpaca_prompt,
}


def _pair(row: Mapping[str, Any]) -> tuple[list[Message], str, str]:
    """Prompt, chosen and rejected of a preference row, in any of the ways people write one."""
    read = next((read for column, read in PAIR_PROMPTS.items() if row.get(column) not in (None, "")), None)
    asked = _with_system(row, read(row)) if read else []
    (before, chosen), (other, rejected) = (_answer(turns(_filled(row, column), "assistant"), column) for column in PAIR)
    if before != other:
        found = f"{len(before)} and {len(other)} turns precede it"
        raise BadRow("chosen and rejected differ before their last turn", found)
    return _joined(asked, before), chosen, rejected


def _joined(asked: list[Message], before: list[Message]) -> list[Message]:
    """One prompt from the row's own and from what precedes the answer in `chosen`. Either may hold the system turn."""
    if not (asked and before):
        return asked or before
    said = [m for m in (*asked, *before) if m["role"] == "system"][:1]
    asked, before = ([m for m in messages if m["role"] != "system"] for messages in (asked, before))
    if before[: len(asked)] != asked:
        raise BadRow("chosen does not begin with the prompt", short(before[0]["content"] if before else ""))
    return said + before


def _answer(conversation: list[Message], column: str) -> tuple[list[Message], str]:
    if not conversation or conversation[-1]["role"] != "assistant":
        raise BadRow("does not end with assistant", column)
    return conversation[:-1], conversation[-1]["content"]


# One row


def normalise(value: Any, kind: Kind, shape: Format = Format.auto) -> Row:
    """The canonical row of one record; raises BadRow."""
    if not isinstance(value, Mapping):
        raise BadRow("not a mapping", f"found {type(value).__name__} {short(value)}")
    if value.get("tools") not in (None, "", "[]", []):
        raise BadRow("tool calls are not read", f"tools is {short(value['tools'])}")
    row: Row
    if kind is Kind.pairs:
        require(value, PAIR)
        prompt, chosen, rejected = _pair(value)
        _check(prompt, (chosen, rejected))
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        if chosen.strip() == rejected.strip():
            raise BadRow("chosen equals rejected", short(chosen))
        if value.get("margin") not in (None, ""):
            row["margin"] = _number(value["margin"], "margin")
    else:
        value = _unanswered(value) if kind is Kind.questions else value
        *prompt, last = _with_system(value, _shape_of(value, shape).read(value)) or [{"role": "nobody", "content": ""}]
        if last["role"] != "assistant":
            raise BadRow("does not end with assistant", f"ends with {last['role']}")
        _check(prompt, () if kind is Kind.questions else (last["content"],))
        row = {"messages": [*prompt, last]} if kind is Kind.chats else {"prompt": prompt, "answer": last["content"]}
    try:
        return {"id": digest(row), **row}
    except UnicodeEncodeError as error:
        raise BadRow("not valid Unicode", "holds half of a surrogate pair; write the text again as UTF-8") from error


_ANSWERS = ("answer", "completion", "output", "response")
"""What answers are called in one shape or another: not to be taken for a question that has none."""


def _unanswered(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """With an empty answer where a question has none."""
    for asked, said in (("instruction", "output"), ("prompt", "completion")):
        if asked in row and row.get(said) is None:
            if other := [column for column in _ANSWERS if row.get(column)]:
                raise BadRow("its answer has another name", f"{other[0]!r} must be called {said!r}")
            return {**row, said: ""}
    for column, shape in (("messages", Format.messages), ("conversations", Format.sharegpt)):
        if column in row and (talk := SHAPES[shape].read(row)) and talk[-1]["role"] == "user":
            return {**row, column: [*talk, {"role": "assistant", "content": ""}]}
    return row


def digest(content: Any) -> str:
    """A short name for any JSON content."""
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompt_of(row: Row) -> list[Message]:
    """All that stands before the answer."""
    prompt: list[Message] = row["prompt"] if "prompt" in row else row["messages"][:-1]
    return prompt


def answer_of(row: Row) -> str:
    """The text to learn or to be measured by; of a pair, the chosen one."""
    text: str = row["messages"][-1]["content"] if "messages" in row else row["chosen" if "chosen" in row else "answer"]
    return text


def require(row: Mapping[str, Any], columns: Iterable[str]) -> None:
    if lost := [column for column in columns if column not in row]:
        raise BadRow("missing column", f"{', '.join(map(repr, lost))}; found {', '.join(map(repr, row)) or 'none'}")


def _shape_of(row: Mapping[str, Any], wanted: Format) -> Shape:
    if wanted is not Format.auto:
        require(row, SHAPES[wanted].columns)
        return SHAPES[wanted]
    named = [shape for shape in SHAPES.values() if all(column in row for column in shape.columns)]
    filled = [shape for shape in named if all(row[column] is not None for column in shape.columns)]
    if named:  # a table joined from several sources has all columns in every row, most of them empty
        return (filled or named)[0]
    raise BadRow("missing column", f"found {', '.join(map(repr, row)) or 'none'}")


def _with_system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    said = row.get("system")
    if not isinstance(said, str) or not said.strip() or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": said}, *messages]


def _check(prompt: list[Message], answers: Iterable[str]) -> None:
    spoken = prompt[1:] if prompt and prompt[0]["role"] == "system" else prompt
    if not spoken:
        raise BadRow("empty prompt", "no user turn before the answer")
    for i, turn in enumerate(spoken):
        if turn["role"] != ROLES[1 + i % 2]:
            raise BadRow("roles do not alternate", f"turn {i + 1} is {turn['role']}, expected {ROLES[1 + i % 2]}")
        if not turn["content"].strip():
            raise BadRow(("empty prompt", "empty answer")[i % 2], f"turn {i + 1}")
    if len(spoken) % 2 == 0:
        raise BadRow("roles do not alternate", "the prompt ends with assistant, expected user")
    if not all(answer.strip() for answer in answers):
        raise BadRow("empty answer")


def _filled(row: Mapping[str, Any], column: str) -> Any:
    return "" if row.get(column) is None else row[column]


def _listed(row: Mapping[str, Any], column: str) -> list[Message]:
    value = json_list(row[column]) if isinstance(row[column], str) else row[column]
    if not isinstance(value, list):
        raise BadRow(f"{column} is not a list", f"found {short(row[column])}")
    return [message(m) for m in value]


def _number(value: Any, of: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # CSV has no numbers
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadRow(f"{of} is not a number", short(value))
    return number


def read_split(folder: Path, split: str) -> Iterator[Row]:
    """The rows of a checked data set, `split` being "train" or "eval"."""
    with open(folder / f"{split}.jsonl", encoding="utf-8") as file:
        yield from map(json.loads, file)
