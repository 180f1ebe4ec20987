"""Messages: turns of a talk, from the ways people write them down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Message = dict[str, str]


class BadRow(ValueError):
    """A row that does not fit: `reason` is a short fixed phrase to count by, `detail` what was found in this row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


def turns(value: Any, speaker: str) -> list[Message]:
    """Text (a turn of `speaker`), one message, a list of messages, or such a list as JSON text (CSV has no lists)."""
    if isinstance(value, str):
        listed = json_list(value)
        if not (listed and all(isinstance(m, dict) and _role_key(m) for m in listed)):
            return [{"role": speaker, "content": value}]
        value = listed
    return [message(m) for m in (value if isinstance(value, list) else [value])]


def message(value: Any) -> Message:
    key = _role_key(value) if isinstance(value, Mapping) else None
    if key is None:
        raise BadRow("not a message", f"{short(value)} has no role and content")
    if value.get("tool_calls") or value.get("function_call"):
        raise BadRow("tool calls are not read", short(value))
    role, content = value[key], value["content" if key == "role" else "value"]
    role = SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise BadRow("unknown role", f"{role!r}; known are {', '.join(ROLES)}")
    return {"role": role, "content": text_of(content, str(role))}


def _role_key(message: Mapping[str, Any]) -> str | None:
    keys = (("role", "content"), ("from", "value"))
    return next((key for key, text in keys if key in message and text in message), None)


def json_list(text: str) -> list[Any] | None:
    try:
        value = json.loads(text) if text.lstrip().startswith("[") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def text_of(value: Any, of: str) -> str:
    if not isinstance(value, str):
        raise BadRow("content is not text", f"{of} is {type(value).__name__}")
    return value


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
