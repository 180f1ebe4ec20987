from __future__ import annotations

import subprocess
import sys

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


FAULTS = """
import resource
from contextlib import nullcontext
from tasks.runtime import devices

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        b"x" * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

new = faults()
with devices.memory_at_hand():
    kept = faults()
pages = int(open("/proc/self/statm").read().split()[1])
print(new, kept, pages * resource.getpagesize())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_that_a_step_frees_is_at_hand_for_the_next_and_returned_in_the_end() -> None:
    said = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout
    new, kept, held = map(int, said.split())
    assert kept < new / 5
    assert held < 64 << 20
