"""Two trainings never share a GPU by accident. The GPUs are a program that says what nvidia-smi would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

RUN = """
import sys
from tasks.runtime import devices
with devices.leased(int(sys.argv[1]), sys.argv[2], lambda text: print(text, flush=True)) as environment:
    print("has", environment.get("CUDA_VISIBLE_DEVICES"), flush=True)
    sys.stdin.readline()
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a process that wants GPUs of a machine that has two, and keeps them until it is told to go on."""
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 9.0\necho 9.0\n")
    smi.chmod(0o755)
    running: list[subprocess.Popen[str]] = []

    def started(count: int, what: str, **more: str) -> subprocess.Popen[str]:
        path = f"{smi.parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "TMPDIR": str(tmp_path), **more}
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", RUN, str(count), what],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return running[-1]

    yield started
    for process in running:
        process.kill()
        process.communicate()


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def go_on(process: subprocess.Popen[str]) -> None:
    process.communicate("go\n", timeout=30)


def test_two_trainings_get_a_gpu_each_and_a_third_waits_and_says_for_whom(start: Start) -> None:
    first, second = start(1, "sft"), None
    assert says(first) == "has 0"
    second = start(1, "dpo")
    assert says(second) == "has 1"
    third = start(1, "reward")
    assert says(third) == (
        "reward: waiting for 1 free GPU(s); at work: "
        f"dpo in process {second.pid} on GPU 1, sft in process {first.pid} on GPU 0."
    )
    go_on(first)
    assert says(third) == "has 0"


def test_a_killed_training_frees_its_gpu(start: Start) -> None:
    first = start(2, "sft")
    assert says(first) == "has 0,1"
    second = start(1, "dpo")
    assert says(second).startswith("dpo: waiting")
    first.send_signal(signal.SIGKILL)
    assert says(second) == "has 0"


def test_two_that_want_both_gpus_come_one_after_the_other(start: Start) -> None:
    wanting = [start(2, name) for name in ("a", "b")]
    heard = {process: says(process) for process in wanting}
    has = next(process for process, said in heard.items() if said == "has 0,1")
    waits = next(process for process in wanting if process is not has)
    time.sleep(0.5)
    go_on(has)
    assert "has 0,1" in (heard[waits], says(waits))


def test_who_sees_one_gpu_only_waits_for_that_one(start: Start) -> None:
    assert says(start(1, "sft", CUDA_VISIBLE_DEVICES="1")) == "has 1"
    other = start(1, "dpo", CUDA_VISIBLE_DEVICES="1")
    assert says(other).startswith("dpo: waiting")
    assert says(start(1, "reward")) == "has 0"


def test_without_gpus_nobody_waits(start: Start) -> None:
    assert says(start(1, "sft", PATH="/nowhere")) == "has None"
    assert says(start(1, "dpo", PATH="/nowhere")) == "has None"
