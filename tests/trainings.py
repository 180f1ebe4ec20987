"""The trainings of a road and nothing after them: `python -m tests.trainings FLOW [overrides]` prints their digests."""

from __future__ import annotations

import json
import sys
from typing import Any

from flows.compose import compose
from flows.rlhf import RLHF
from flows.sft_then_dpo import SFTThenDPO
from flows.surroundings import prepare_environment
from tasks.download import download
from tasks.dpo import dpo
from tasks.encode import encode
from tasks.ppo import ppo
from tasks.preprocess import preprocess
from tasks.reference import reference
from tasks.runtime import session
from tasks.sft import sft


def sft_then_dpo(overrides: list[str]) -> dict[str, Any]:
    cfg = compose("sft_then_dpo", SFTThenDPO, overrides)
    prepare_environment(cfg.runtime)
    with session(cfg.runtime) as now:
        base = download(cfg.download)
        chats, pairs = preprocess(cfg.chats), preprocess(cfg.pairs)
        tuned = sft(cfg.sft, base, encode(cfg.encode, base.tokenizer, chats))
        aligned = dpo(cfg.dpo, tuned, reference(cfg.reference, tuned, pairs))
        states = {record.stage: record.state for record in now.records}
    return {"sft": tuned.digest, "dpo": aligned.digest, "states": states}


def rlhf(overrides: list[str]) -> dict[str, Any]:
    """PPO of the base itself, with no judge."""
    cfg = compose("rlhf", RLHF, overrides)
    prepare_environment(cfg.runtime)
    with session(cfg.runtime) as now:
        aligned = ppo(cfg.ppo, download(cfg.download), preprocess(cfg.questions))
        states = {record.stage: record.state for record in now.records}
    return {"ppo": aligned.digest, "states": states}


if __name__ == "__main__":
    print(json.dumps({"sft_then_dpo": sft_then_dpo, "rlhf": rlhf}[sys.argv[1]](sys.argv[2:])))
