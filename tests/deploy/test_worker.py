"""The worker that lets its runs leave, with a stand-in for Prefect's, which kills its run when told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.patience import wait_for

REPO = Path(__file__).resolve().parents[2]
PREFECT = """
import signal, subprocess, sys, time
run = subprocess.Popen([sys.executable, "-c", '''
import pathlib, signal, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
pathlib.Path("begun").touch()
while not told: time.sleep(.02)
time.sleep(.5)
pathlib.Path("checkpoint").touch()
'''])
def stop(*_):
    run.kill()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
open("said", "w").write(" ".join(sys.argv[1:]))
while True: time.sleep(1)
"""


def test_a_run_has_left_before_the_worker_goes(tmp_path: Path) -> None:
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "__init__.py").touch()
    (tmp_path / "prefect" / "__main__.py").write_text(PREFECT)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPO)]), "WORKER_LIMIT": "3"}
    worker = subprocess.Popen([sys.executable, "-m", "deploy.worker"], cwd=tmp_path, env=env)
    try:
        wait_for((tmp_path / "begun").exists)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
    finally:
        worker.kill()
    assert (tmp_path / "checkpoint").exists()
    assert "worker start --pool posttrain --type process --limit 3" in (tmp_path / "said").read_text()
