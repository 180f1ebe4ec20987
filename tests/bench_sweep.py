"""What a sweep costs beside its distinct stages alone, and where a run's overhead goes.

    python -m tests.bench_sweep FOLDER

Six trials of the real model (`experiment=bench`) as one command; then every distinct body once more as a plain function
in one process; then one of the trials with an empty store, under a clock.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

BETAS, RATES = (0.05, 0.1, 0.3), (1e-3, 3e-4)
ROAD = [sys.executable, "-m", "flows.sft_then_dpo"]
ALONE = "from tests.bench_sweep import alone; import sys; alone(sys.argv[1])"
TIMED = "from tests.bench_sweep import timed; import sys; timed(sys.argv[1:])"


def main(folder: Path) -> None:
    root, empty = folder / "sweep", folder / "trial"
    grid = [f"dpo.args.beta={','.join(map(str, BETAS))}", f"sft.args.learning_rate={','.join(map(str, RATES))}"]
    sweep = seconds([*ROAD, "-m", "experiment=bench", f"runtime.root={root}", *grid])
    trials = [json.loads(place.read_text()) for place in sorted(root.rglob("trial-*.json"))]
    calls = [stage for trial in trials for stage in trial["stages"]]
    made = [stage for stage in calls if stage["state"] == "made"]
    distinct = {(stage["stage"], stage["recipe"]) for stage in calls}
    counts = ", ".join(f"{n} {stage}" for stage, n in Counter(stage["stage"] for stage in made).items())
    print(f"{len(trials)} trials, {len(calls)} stage calls, {len(made)} made, {len(distinct)} distinct: {counts}")

    spent: dict[str, float] = json.loads(subprocess.check_output([sys.executable, "-c", ALONE, str(root)]))
    bodies = sum(spent.values())
    print(f"sweep {sweep:.0f} s, its distinct bodies alone {bodies:.0f} s: ratio {sweep / bodies:.3f}")

    one = ["experiment=bench", f"runtime.root={empty}", f"dpo.args.beta={BETAS[0]}"]
    one.append(f"sft.args.learning_rate={RATES[0]}")
    clock = json.loads(subprocess.check_output([sys.executable, "-c", TIMED, *one]).splitlines()[-1])
    trial = sum(clock.values())
    times = len(trials) * trial / sweep
    print(f"one trial, empty store {trial:.0f} s; {len(trials)} such runs would take {times:.2f} times the sweep")
    own = sum(s for key, s in spent.items() if key in keys_of(empty))
    print(f"overhead of that trial over its bodies as plain functions ({own:.0f} s): {trial - own:+.1f} s, of which")
    for cause, took in sorted(clock.items(), key=lambda item: -item[1]):
        print(f"  {took - own if cause == 'bodies' else took:7.2f} s  {CAUSES.get(cause, cause)}")


CAUSES = {"bodies": "bodies beyond the plain functions: children starting, noise", "": "imports and all else"}


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def keys_of(root: Path) -> set[str]:
    return {place.stem for place in (root / "store" / "manifests").rglob("*.json")}


def alone(root: str) -> None:
    """Every body behind the manifests of a store as a plain function, in the order they were made; prints seconds."""
    from flows.surroundings import prepare_environment
    from tasks.runtime import RuntimeConfig
    from tasks.runtime.processes import execute
    from tasks.runtime.stopping import Stop
    from tasks.runtime.store import Store

    prepare_environment(RuntimeConfig(root=root))
    store = Store(Path(root) / "store")
    places = (Path(root) / "store" / "manifests").rglob("*.json")
    manifests = sorted((json.loads(place.read_text()) for place in places), key=lambda m: m["started"])
    spent = {}
    for manifest in manifests:
        with tempfile.TemporaryDirectory() as scratch:
            job = as_job(manifest, store, Path(scratch))
            began = time.perf_counter()
            execute(job, store, lambda event: None, Stop())
            spent[manifest["key"]] = time.perf_counter() - began
    print(json.dumps(spent))


def as_job(manifest: dict[str, Any], store: Any, scratch: Path) -> dict[str, Any]:
    refs = {ref["digest"]: ref for ref in manifest["parents"]}

    def ref(identity: Any) -> Any:
        return [ref(item) for item in identity] if isinstance(identity, list) else identity and refs[identity["digest"]]

    folders = {name: scratch / name for name in ("out", "notes", "work")}
    for folder in folders.values():
        folder.mkdir()
    above = {m["key"]: m for parent in manifest["parents"] for m in store.lineage(parent)}
    lineage = [{"config": m["fields"], **{k: m[k] for k in ("stage", "recipe", "digest")}} for m in above.values()]
    return {
        "module": f"tasks.{manifest['stage']}",
        "name": manifest["stage"],
        "config": manifest["config"],
        "inputs": [ref(identity) for identity in manifest["preimage"]["inputs"].values()],
        "micro_batch": 0,
        "lineage": lineage,
        **{name: str(folder) for name, folder in folders.items()},
    }


class Clock:
    """Time spent in some functions, each without what it spends in others of them."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.stack, self.mark = [""], time.perf_counter()

    def _turn(self) -> None:
        now = time.perf_counter()
        self.spent[self.stack[-1]] += now - self.mark
        self.mark = now

    def watch(self, owner: Any, name: str, cause: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self.stack.append(cause)
            try:
                return inner(*args, **kwargs)
            finally:
                self._turn()
                self.stack.pop()

        setattr(owner, name, outer)


def timed(overrides: list[str]) -> None:
    """One run in this process; prints where its seconds went."""
    clock = Clock()
    from flows import launch, server
    from flows.sft_then_dpo import SFTThenDPO, sft_then_dpo
    from tasks.runtime import calls, prefects, processes, store, tracking

    for owner, name, cause in (
        (launch, "compose", "composing and checking the config"),
        (server, "_wait", "waiting for Prefect's server"),
        (server, "send_what_waits", "sending Prefect's last words"),
        (tracking.Tracker, "__init__", "opening MLflow"),
        (tracking.Tracker, "send", "telling MLflow"),
        (prefects, "as_task", "Prefect's tasks"),
        (calls.Call, "perform", "keys, locks, manifests"),
        (store.Store, "find", "looking up"),
        (store.Store, "publish", "hashing and sealing"),
        (processes, "execute", "bodies"),
        (processes, "execute_in_child", "bodies"),
        (launch, "_arrived", "report"),
    ):
        clock.watch(owner, name, cause)
    code = launch.run_once(sft_then_dpo, SFTThenDPO, overrides, [])
    clock._turn()
    assert code == 0, code
    print(json.dumps(clock.spent))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
