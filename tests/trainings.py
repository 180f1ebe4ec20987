"""The trainings of the road and nothing after them: `python -m tests.trainings [overrides]` prints their digests."""

from __future__ import annotations

import json
import sys

from flows.compose import compose
from flows.sft_then_dpo import SFTThenDPO
from flows.surroundings import prepare_environment
from tasks.download import download
from tasks.dpo import dpo
from tasks.encode import encode
from tasks.preprocess import preprocess
from tasks.reference import reference
from tasks.runtime import session
from tasks.sft import sft


def main(overrides: list[str]) -> dict[str, str]:
    cfg = compose("sft_then_dpo", SFTThenDPO, overrides)
    prepare_environment(cfg.runtime)
    with session(cfg.runtime) as now:
        base = download(cfg.download)
        chats, pairs = preprocess(cfg.chats), preprocess(cfg.pairs)
        tuned = sft(cfg.sft, base, encode(cfg.encode, base.tokenizer, chats))
        aligned = dpo(cfg.dpo, tuned, reference(cfg.reference, tuned, pairs))
        states = {record.stage: record.state for record in now.records}
    return {"sft": tuned.digest, "dpo": aligned.digest, "states": states}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
