"""A road of toy stages that says where it is: `python -m tests.kill_road ROOT ISOLATION`. Something to be killed.

Prints the digest of each stage call when it arrives. `ROOT/where` holds what it is doing at this moment, and under
`ROOT/tally` each call has a file that grows while its body works.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.runtime import RuntimeConfig, session
from tasks.runtime.calls import Call
from tasks.runtime.session import Isolation
from tasks.runtime.store import Store
from tests import toys
from tests.long_toys import StudyConfig, study

STEPS = 30
NAP = 0.02


class Where:
    """Writes down what this process is doing; the last word is there after a kill."""

    def __init__(self, place: Path) -> None:
        self.handle = os.open(place, os.O_RDWR | os.O_CREAT)

    def __call__(self, words: str) -> None:
        os.pwrite(self.handle, words.ljust(40).encode(), 0)

    def around(self, owner: type, name: str, words: Callable[..., str]) -> None:
        """While a method runs, these are the words."""
        method = getattr(owner, name)

        def told(*given: Any, **options: Any) -> Any:
            self(words(*given))
            try:
                return method(*given, **options)
            finally:
                self("look-up")

        setattr(owner, name, told)


def road(root: Path) -> dict[str, str]:
    """Call -> digest."""

    def tally(name: str) -> str:
        return str(root / "tally" / name)

    chats = toys.collect(toys.CollectConfig("chats", tally=tally("chats")))
    pairs = toys.collect(toys.CollectConfig("pairs", tally=tally("pairs")))
    tuned = study(StudyConfig(STEPS, "sft", NAP, files=12, tally=tally("sft")), chats)
    again = study(StudyConfig(STEPS, "dpo", NAP, files=12, tally=tally("dpo")), pairs)
    adapter = toys.adapt(toys.AdaptConfig(), tuned)
    words = toys.encode(toys.EncodeConfig(tally("encode")), tuned.tokenizer, pairs)
    made = {"chats": chats, "pairs": pairs, "sft": tuned, "dpo": again, "adapter": adapter, "encode": words}
    return {name: artifact.digest for name, artifact in made.items()}


def main(root: Path, isolation: str) -> None:
    (root / "tally").mkdir(parents=True, exist_ok=True)
    where = Where(root / "where")
    where("start-up")
    where.around(Store, "publish", lambda store, draft, facts, *_: f"publish {facts['stage']}")
    where.around(Call, "_execute", lambda call, *_: f"body {call.stage.name}")
    with session(RuntimeConfig(root=str(root), isolation=Isolation(isolation))) as now:
        digests = road(root)
    print(json.dumps({"digests": digests, "states": [record.state for record in now.records]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
