"""`--help` shows every knob with the words written under it."""

from __future__ import annotations

import dataclasses
from typing import Any

from flows import guide
from flows.compose import compose
from flows.rlhf import RLHF, rlhf
from flows.sft_then_dpo import SFTThenDPO, sft_then_dpo
from tasks.llm.rewards import Reward


def knobs(config: Any) -> list[tuple[type, str]]:
    found = []
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        found += knobs(value) if dataclasses.is_dataclass(value) else [(type(config), item.name)]
    return found


def test_every_knob_has_words_under_it() -> None:
    config = compose("sft_then_dpo", SFTThenDPO, [])
    assert [f"{cls.__name__}.{name}" for cls, name in knobs(config) if not guide.documented(cls).get(name)] == []


def test_help_shows_choices_defaults_and_words() -> None:
    text = guide.text(sft_then_dpo, SFTThenDPO)
    assert "of full, lora" in text
    assert "sft.lora.rank = 16\n      Rank of A and B" in text
    assert text.startswith("SFT, then DPO")


def test_help_shows_the_knobs_of_entries_that_have_any_name() -> None:
    text = guide.text(rlhf, RLHF)
    assert "ppo.rewards.NAME.retries = 5\n      Of a server: how often more" in text
    assert all(guide.documented(Reward).values()) and "compare.gates.levels.NAME.kl_max" in text
