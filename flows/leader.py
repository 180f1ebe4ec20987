"""Leads a sweep: its folder, its MLflow run, its workers, and what is said at the end.

A worker that dies (memory) takes the others' trials along: whoever was at work is tried once more. A signal goes to the
workers, each of which stops as a single run does; no further trial begins, and what is done is on the leaderboard.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.callbacks import Callbacks
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import OmegaConf
from rich.console import Console

from flows import job, leaderboard, seeds, trials
from flows.leaderboard import Board
from flows.pictures import sweep as picture
from flows.server import prefect_server
from flows.trials import State, Trial
from tasks.runtime.stopping import Stopped
from tasks.runtime.tracking import Tracker

if TYPE_CHECKING:
    from flows.sweeps import Asked

_TRIES = 2


class Leader:
    """One sweep. `config` is its first trial's: root, objective and the rest of it are the sweep's, too."""

    def __init__(self, asked: Asked, config: Any, total: int) -> None:
        self.asked, self.config, self.total = asked, config, total
        self.name = f"{time.strftime('%Y%m%d-%H%M%S')}-{asked.drawing.__name__}-{uuid.uuid4().hex[:4]}"
        self.folder = Path(config.runtime.root, "sweeps", self.name).resolve()
        self.tracker: Tracker | None = None
        self.begun = 0
        self.side_by_side = False

    @property
    def at_once(self) -> int:
        """Trials that run side by side, as the launcher has it."""
        jobs = int(OmegaConf.select(self.asked.config, "hydra.launcher.n_jobs", default=1))
        return jobs if jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + jobs)

    def lead(self, run: Callable[[], object]) -> int:
        """Run the trials and tell what they came to; returns the exit code."""
        self.folder.mkdir(parents=True)
        code = 0
        with self._heard(), prefect_server(self.config.runtime) as up:
            try:
                tags = {"flow": self.asked.drawing.__name__, "sweep": self.asked.sweeper}
                self.tracker = Tracker(Path(self.config.runtime.root), self.name, tags)
                self.tracker.asked(self.asked.words)
                up()
                run()
            except Stopped as stop:
                code = stop.code
            finally:
                self._dismiss()
            code = job.stopped(self.folder) or code
            return self._end(code)

    def launch(self, turned: list[dict[str, str]]) -> list[Trial]:
        """Run a trial for each; whatever becomes of one, the others run. Raises Stopped."""
        numbers = range(self.begun + 1, self.begun + len(turned) + 1)
        self.begun += len(turned)
        for number, values in zip(numbers, turned, strict=True):
            Trial(number, self.asked.overrides(values), values).save(self.folder)
        left = [*numbers]
        while left:
            before = self._tries(left)
            self._launch(left)
            if sign := job.stopped(self.folder):
                raise Stopped(sign - 128)
            left = self._left(left)
            if left and self._tries(left) == before:
                raise RuntimeError("The workers of this sweep end before they begin a trial; try hydra/launcher=basic.")
        return [trials.load(self.folder, number) for number in numbers]

    def _launch(self, numbers: list[int]) -> None:
        config, folder = self.asked.config, str(self.folder).replace("'", "\\'")
        config.hydra.sweep.dir = str(self.folder)
        work = job.Job(
            drawing=self.asked.drawing,
            schema=self.asked.schema,
            search=self.asked.search,
            folder=self.folder,
            parent=self.tracker.parent if self.tracker else "",
            leader=os.getpid(),
            total=self.total,
        )
        context = HydraContext(config_loader=self.asked.loader, callbacks=Callbacks())
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=work, config=config)
        own = [f"hydra.sweep.dir='{folder}'", "hydra.sweep.subdir=."]
        overrides = [[*trials.load(self.folder, n).overrides, *own, f"hydra.job.name=trial-{n}"] for n in numbers]
        self.side_by_side = self.at_once > 1
        os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")  # of workers that are dismissed
        try:
            with suppress(BrokenProcessPool), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="A worker stopped while some jobs")  # joblib replaces it
                launcher.launch(overrides, initial_job_idx=0)
        finally:
            self.side_by_side = False

    def _dismiss(self) -> None:
        """End the workers while the server is still there: at their own end they would wait long for it."""
        if self.at_once > 1:
            from joblib.externals.loky import get_reusable_executor

            get_reusable_executor(reuse=True).shutdown(kill_workers=True)

    def _tries(self, numbers: list[int]) -> int:
        return sum(trials.load(self.folder, number).tries for number in numbers)

    def _left(self, numbers: list[int]) -> list[int]:
        """Trials to launch again after a worker died: those at work at that moment, and those that had not begun."""
        left = []
        for trial in (trials.load(self.folder, number) for number in numbers):
            if trial.state is State.running and trial.tries >= _TRIES:
                trial.error = "its process died, twice: signal 9 usually means that memory ran out"
                trial.end(self.folder, 1, None)
            elif trial.state in (State.running, State.waiting):
                left.append(trial.number)
        return left

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C; a trial in this process hears them itself and passes them on by its code."""

        def hear(sign: int, frame: Any) -> None:
            if not self.side_by_side:
                raise Stopped(sign)
            job.stop(self.folder, 128 + sign)
            for pid in job.running(self.folder):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

        before = {sign: signal.signal(sign, hear) for sign in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)

    # The end

    def _end(self, code: int) -> int:
        found = trials.load_all(self.folder)
        for trial in found:
            if trial.state is State.running:  # it had no time left to say so itself
                trial.state = State.stopped
                trial.save(self.folder)
        compare = getattr(self.config, "compare", None)
        metric, maximize = (compare.objective, compare.maximize) if compare else ("", True)
        board = Board(self.name, metric, maximize, list(self.asked.swept), found)
        files = leaderboard.write(board, self.folder)
        if picture.draw(board, self.folder / "score.png"):
            files.append(self.folder / "score.png")
        console = Console(highlight=False)
        leaderboard.show(console, board, self.folder)
        over_seeds = seeds.over(board, Path(self.config.runtime.root, "store"))
        if over_seeds:
            files += seeds.write(over_seeds, self.name, self.folder)
            seeds.show(console, over_seeds, self.folder)
        text = leaderboard.markdown(board) + (f"\n{seeds.markdown(over_seeds, self.name)}" if over_seeds else "")
        self._tell(board, files, "" if code else text)  # who asked for a stop waits for it
        failed = any(trial.state is State.failed for trial in found)
        if self.tracker:
            self.tracker.end("KILLED" if code else "FAILED" if failed else "FINISHED")
        return code or int(failed)

    def _tell(self, board: Board, files: list[Path], text: str) -> None:
        """MLflow gets the files and the best score under the sweep's run, Prefect (with a text) the table, too."""
        command = shlex.join(["python", "-m", f"flows.{self.asked.drawing.__name__}", "-m", *self.asked.words])
        told = {"knobs": board.knobs, "maximize": board.maximize}
        (self.folder / "sweep.json").write_text(json.dumps({"command": command, **told}, indent=1))
        if self.tracker:
            best = board.best
            self.tracker.scores({f"best.{board.metric}": best.score} if best and best.score is not None else {})
            for place in files:
                self.tracker.file(place)
        if not text:
            return
        try:
            _as_artifact(board, f"{self.asked.drawing.__name__}-sweep", text)
        except Exception as error:
            warnings.warn(f"Prefect does not take the leaderboard ({error}); it lies in {self.folder}.", stacklevel=2)


def _as_artifact(board: Board, name: str, text: str) -> None:
    """Prefect keeps artifacts of flow runs only, so the end of a sweep is a small one."""
    from prefect import flow
    from prefect.artifacts import create_table_artifact

    def publish() -> None:
        table = [*map(dict, leaderboard.rows(board))]
        create_table_artifact(table, key="sweep-leaderboard", description=text)

    flow(name=name, flow_run_name=board.name, persist_result=False)(publish)()
