from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from tasks.llm import several

REPO = Path(__file__).resolve().parents[3]
TALK = """
import json, os
from accelerate import PartialState
from tasks.llm import several
rank = PartialState(cpu=True).process_index
heard = several.told(lambda: ["asked"] if rank == 0 else 1 / 0)
print(json.dumps([several.agreed([rank == 1, False]), several.mean(float(rank)), heard]), flush=True)
os._exit(0)  # as the runtime's ranks end
"""


def _talk() -> list[object]:
    """What each of two real processes comes to."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = str(door.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TALK],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    return [json.loads(process.communicate(timeout=120)[0]) for process in both]


def test_what_one_rank_wishes_all_do_and_what_the_first_finds_all_hear() -> None:
    assert _talk() == [[[True, False], 0.5, ["asked"]]] * 2


def test_one_process_agrees_with_itself() -> None:
    assert several.agreed([True, False]) == [True, False]
    assert several.mean(3.5) == 3.5
    assert several.told(lambda: "found") == "found"


def test_a_noted_data_set_knows_which_rows_were_drawn() -> None:
    class Rows(list[str]):
        def __getitems__(self, numbers: list[int]) -> list[str]:
            return [self[number] for number in numbers]

    noted = several.Noted(Rows("abcd"))
    assert (len(noted), noted[1], noted.drawn) == (4, "b", [])
    assert noted.__getitems__([3, 0]) + noted.__getitems__([1]) == ["d", "a", "b"]
    assert (noted.drawn, noted.count) == ([3, 0, 1], 3)
