"""Pairs of answers as token ids, for every stage that trains on them or asks a model about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.llm import chat, rows


def encoded_pairs(folder: Path, split: str, tokenizer: Any, cutoff: int) -> tuple[list[dict[str, Any]], int]:
    """The pairs of a split with their token ids (`prompt_ids`, `chosen_ids`, `rejected_ids`), and how many were too
    long: those whose prompt and longer answer have more than `cutoff` tokens."""
    read = list(rows.read_split(folder, split))
    prompts = [row["prompt"] for row in read]
    chosen = chat.turns(tokenizer, prompts, [row["chosen"] for row in read])
    rejected = chat.turns(tokenizer, prompts, [row["rejected"] for row in read])
    encoded = [
        {**row, "prompt_ids": good.prompt, "chosen_ids": good.answer, "rejected_ids": bad.answer}
        for row, good, bad in zip(read, chosen, rejected, strict=True)
    ]
    kept = [pair for pair in encoded if tokens(pair) <= cutoff]
    return kept, len(read) - len(kept)


def tokens(pair: dict[str, Any]) -> int:
    """The longer of a pair's two sequences."""
    return len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"]))
