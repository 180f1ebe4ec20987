"""The leader of a sweep and its workers, when some of them die."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from flows import sweeps, trials
from flows.leader import Leader
from flows.sft_then_dpo import SFTThenDPO, sft_then_dpo
from flows.trials import State
from tests.flows import roads
from tests.patience import alive, wait_for


class Workers(Leader):
    """A leader whose trials are played: `plays` says what becomes of each launch."""

    def __init__(self, folder: Path, plays: list[dict[int, State]]) -> None:
        config = SimpleNamespace(runtime=SimpleNamespace(root=str(folder)))
        hydra = OmegaConf.create({"hydra": {"launcher": {"n_jobs": 2}}})
        super().__init__(sweeps.Asked(sft_then_dpo, SFTThenDPO, [], config=hydra), config, 3)
        self.folder.mkdir(parents=True)
        self.plays = plays
        self.launched: list[list[int]] = []

    def _launch(self, numbers: list[int]) -> None:
        self.launched.append(numbers)
        for number, state in self.plays.pop(0).items():
            trial = trials.load(self.folder, number)
            trial.begin(self.folder)
            trial.state = state
            trial.save(self.folder)


def test_after_a_workers_death_who_was_at_work_is_tried_once_more_and_who_waited_begins(tmp_path: Path) -> None:
    first = {1: State.passed, 2: State.running, 3: State.running}
    workers = Workers(tmp_path, [first, {2: State.running, 3: State.passed}])
    found = workers.launch([{"a": "1"}, {"a": "2"}, {"a": "3"}])
    assert workers.launched == [[1, 2, 3], [2, 3]]
    assert [trial.state for trial in found] == [State.passed, State.failed, State.passed]
    assert "memory ran out" in found[1].error


def test_workers_that_cannot_begin_a_trial_are_not_started_for_ever(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="hydra/launcher=basic"):
        Workers(tmp_path, [{}]).launch([{"a": "1"}])


def test_a_worker_ends_with_its_leader(tmp_path: Path) -> None:
    mark = tmp_path / "worker"
    tell = f"open({str(mark)!r}, 'w').write(str(os.getpid()))"
    worker = f"import os, time; from flows import job; job._belong_to(os.getppid()); {tell}; time.sleep(60)"
    leader = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    process = subprocess.Popen([sys.executable, "-c", leader], cwd=roads.ROOT)
    pid = int(wait_for(lambda: mark.exists() and mark.read_text()))
    process.kill()
    process.wait()
    wait_for(lambda: not alive(pid))
