"""What the project reads from its surroundings is written down."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_every_environment_variable_that_is_read_is_in_the_example() -> None:
    code = "".join(place.read_text() for room in ("flows", "tasks", "deploy") for place in (ROOT / room).rglob("*.py"))
    read = re.findall(r'environ(?:\.get\(|\[)"([A-Z_]+)"', code) + re.findall(
        r'"([A-Z_]+)"(?: not)? in os\.environ', code
    )
    example = (ROOT / "deploy/.env.example").read_text()
    assert read
    ours = {"RANK", "ACCELERATE_USE_DEEPSPEED"}  # the runtime tells them to its own ranks
    assert [name for name in read if f"{name}=" not in example and name not in ours] == []


def test_the_suite_cannot_reach_the_network() -> None:
    import socket

    with pytest.raises(OSError, match="no network"), socket.create_connection(("192.0.2.1", 80), timeout=1):
        pass
