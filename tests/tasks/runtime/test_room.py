"""A disk that is full, for real: a small file system of its own, which only the process that mounts it can see."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.runtime import room
from tasks.runtime.room import DiskFull
from tasks.runtime.store import Store

REPO = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")

RUN = """
import json, subprocess, sys
from pathlib import Path
from tasks.runtime import RuntimeConfig, session
from tasks.runtime.session import Isolation
from tasks.runtime.tracking import Tracker
from tests import long_toys, toys

disk, where, isolation, tracked = Path(sys.argv[1]), sys.argv[2], Isolation(sys.argv[3]), sys.argv[4] == "True"
size = 3 << 20

def sized(how, size):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{how}size={size}", "tmpfs", str(disk)], check=True)

def run(rest):
    tracker = Tracker(disk, "run", {}) if tracked else None
    states, error = [], ""
    with session(RuntimeConfig(root=str(disk), isolation=isolation), tracker) as now:
        try:
            long_toys.fill(long_toys.FillConfig(where, rest=rest), toys.collect(toys.CollectConfig()))
        except OSError as full:
            error = f"{type(full).__name__}: {full}"
        states = [record.state for record in now.records]
    left = [p.name for p in (disk / "store" / "tmp").iterdir()]
    begun = [p.name for p in (disk / "store" / "work" / "fill").glob("*/begun")]
    print(json.dumps({"states": states, "error": error, "left": left, "begun": begun}))

if tracked:
    sized("", 64 << 20)
    Tracker(disk, "before", {}).end("FINISHED")
    size += sum(p.stat().st_size for p in disk.rglob("*"))
    sized("remount,", size)
else:
    sized("", size)
run(rest=True)
for ballast in disk.glob("store/work/fill/*/ballast"):
    ballast.unlink()
sized("remount,", size + (32 << 20))
run(rest=False)
run(rest=False)
"""


def on_a_small_disk(folder: Path, *words: object) -> list[dict[str, Any]]:
    """What three runs came to: on a full disk, and twice after room was made."""
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", RUN, folder, *words]
    done = subprocess.run([str(word) for word in command], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("isolation", ["none", "process"])
@pytest.mark.parametrize("where", ["out", "work", "rest"])
def test_a_full_disk_names_path_and_bytes_and_the_rerun_works(tmp_path: Path, where: str, isolation: str) -> None:
    full, after, again = on_a_small_disk(tmp_path, where, isolation, False)
    assert full["error"].startswith(f"DiskFull: The disk of {tmp_path} is full: ")
    assert " of 3,145,728 bytes are free, and this work needs more than the " in full["error"]
    assert f"Make room (python -m flows.store gc --root {tmp_path} shows what can go)" in full["error"]
    assert "runtime.root=/other" in full["error"]
    assert full["states"] == ["made"] and full["left"] == [] and full["begun"] == ["begun"]
    assert (after["error"], after["states"]) == ("", ["cached", "made"])
    assert (again["error"], again["states"]) == ("", ["cached", "cached"])


def test_an_mlflow_on_the_same_full_disk_does_not_hide_it(tmp_path: Path) -> None:
    full, after, _ = on_a_small_disk(tmp_path, "rest", "none", True)
    assert full["error"].startswith("DiskFull: The disk of ")
    assert (after["error"], after["states"]) == ("", ["cached", "made"])


# Told from what is said


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """As if so many bytes were free under a store."""
    usage = room.shutil.disk_usage

    def roomy(free: int) -> None:
        monkeypatch.setattr(room.shutil, "disk_usage", lambda place: usage(place)._replace(free=free))

    return roomy


def test_the_kernels_own_word_is_believed_though_there_is_room(store: Store) -> None:
    with pytest.raises(DiskFull, match=r"The disk of .* is full"), room.told(store.root):
        Path("/dev/full").write_bytes(b"a byte")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("train: OSError: [Errno 28] No space left on device (log: child.log)"),
        ValueError("(sqlite3.OperationalError) database or disk is full"),
    ],
)
def test_a_full_disk_is_recognised_in_what_libraries_and_children_say(store: Store, error: Exception) -> None:
    with pytest.raises(DiskFull) as caught, room.told(store.root):
        try:
            raise error
        except Exception as below:
            raise RuntimeError("the stage failed") from below
    assert caught.value.__cause__ is not None and str(caught.value).endswith("(the stage failed)")


def test_where_nothing_fits_any_more_a_wordless_failure_is_put_down_to_it(
    store: Store, roomy: Callable[[int], None]
) -> None:
    def fail() -> None:
        with room.told(store.root):
            raise RuntimeError("basic_ios::clear: iostream error")

    roomy(10 << 20)
    with pytest.raises(RuntimeError, match="iostream error") as caught:
        fail()
    assert not isinstance(caught.value, DiskFull)
    roomy(4096)
    with pytest.raises(DiskFull, match=r"4,096 of [\d,]+ bytes are free"):
        fail()
