"""Every figure of the pipeline itself in one go: `make bench` (about 35 minutes on 2 cores; nothing else beside it).

python -m tests.bench [FOLDER]      FOLDER: where its stores go, by default one that is removed in the end
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import bench_rerun, bench_sweep, kill_many

TRIALS = 100


def main(folder: Path) -> None:
    for title, run in (
        ("a sweep beside its distinct stages", lambda: bench_sweep.main(folder)),
        ("a fully cached run beside a floor", lambda: bench_rerun.main(folder / "trial", cut())),
        (f"planning {TRIALS} trials", lambda: plan(folder / "sweep")),
        ("200 kills", lambda: kill_many.main(["200"])),
    ):
        began = time.perf_counter()
        print(f"\n{title}", flush=True)
        run()
        print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)


def cut() -> list[str]:
    """The overrides of the trial that bench_sweep left behind."""
    rate, beta = bench_sweep.RATES[0], bench_sweep.BETAS[0]
    return ["experiment=bench", f"dpo.args.beta={beta}", f"sft.args.learning_rate={rate}"]


def plan(root: Path) -> None:
    """Milliseconds per trial: a sweep's plan less the plan of one trial, which pays for Python and the imports."""

    def took(betas: int) -> float:
        grid = "dpo.args.beta=" + ",".join(f"{0.01 * n:.2f}" for n in range(1, betas + 1))
        rates = "sft.args.learning_rate=" + ",".join(f"{n}e-4" for n in range(1, 6 if betas > 1 else 2))
        command = [*bench_sweep.ROAD, "-m", "plan=true", "experiment=bench", f"runtime.root={root}", grid, rates]
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    one, many = took(1), took(TRIALS // 5)
    each = 1000 * (many - one) / (TRIALS - 1)
    print(f"one trial {one:.2f} s, {TRIALS} trials {many:.2f} s: {each:.1f} ms per trial more")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
