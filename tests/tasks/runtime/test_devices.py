from __future__ import annotations

import pytest

from tasks.runtime import Precision, devices, resolved


@pytest.mark.parametrize(
    ("gpus", "flags", "meaning"),
    [
        ((9.0,), frozenset[str](), Precision.bf16),
        ((7.5,), frozenset({"amx_bf16"}), Precision.fp32),
        ((), frozenset({"amx_bf16"}), Precision.bf16),
        ((), frozenset({"avx2"}), Precision.fp32),
    ],
)
def test_auto_is_bf16_where_this_machine_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, gpus: tuple[float, ...], flags: frozenset[str], meaning: Precision
) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: gpus)
    monkeypatch.setattr(devices, "_cpu_flags", lambda: flags)
    assert resolved(Precision.auto) is meaning
    assert resolved(Precision.fp16) is Precision.fp16
