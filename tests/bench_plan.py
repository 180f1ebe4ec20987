"""How long it takes to plan a sweep of 100 trials, per trial.

    python -m tests.bench_plan ROOT        ROOT: where the road was travelled before (runtime.root)

Composing the trials' configs is timed apart. The second drawing finds every file's hash remembered.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from flows import plan
from flows.compose import compose_all
from flows.sft_then_dpo import SFTThenDPO, sft_then_dpo

RATES = [f"{1 + n / 10}e-4" for n in range(10)]
BETAS = [round(0.05 + n / 50, 2) for n in range(10)]


def main(root: Path) -> None:
    asked = [
        [f"runtime.root={root}", f"sft.args.learning_rate={rate}", f"dpo.args.beta={beta}"]
        for rate in RATES
        for beta in BETAS
    ]
    began = time.perf_counter()
    configs = compose_all("sft_then_dpo", SFTThenDPO, asked)
    print(f"compose  {(time.perf_counter() - began) / len(asked) * 1e3:6.2f} ms a trial")
    for turn in ("first", "again"):
        began = time.perf_counter()
        drawn = plan.drawn(sft_then_dpo, configs)
        print(f"plan     {(time.perf_counter() - began) / len(asked) * 1e3:6.2f} ms a trial ({turn})")
    print(plan.headline(drawn, len(configs)))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
