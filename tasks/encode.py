"""Rows to token ids and labels, through the model's own chat template. Only the answer bears loss.

Keyed on the tokenizer's files and the rows, not on the weights: a new base with the same tokenizer hits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.runtime import Dataset, Run, Tokenizer, Tokens, stage

IGNORED = -100
"""The label that bears no loss, as PyTorch's cross entropy has it."""


@dataclass
class EncodeConfig:
    cutoff: int = 1024
    """Tokens per row at most. Longer rows lose their end, stop token included; the report counts them."""

    def problems(self) -> Iterator[str]:
        if self.cutoff < 8:
            yield f"cutoff is {self.cutoff} tokens; give at least 8, usually 512 to 4096."


@stage(makes=Tokens, version="1")
def encode(run: Run, cfg: EncodeConfig, tokenizer: Tokenizer, chats: Dataset) -> dict[str, float]:
    from tasks.llm import models, rows

    loaded = models.load_tokenizer(tokenizer.path)
    counts: Counter[str] = Counter()
    for split in ("train", "eval"):
        read = list(rows.read_split(chats.path, split))
        encoded = _encoded(loaded, read, cfg.cutoff, counts, run.progress)
        _write(encoded, run.out / f"{split}.parquet")
        counts[split] = len(encoded)
    if not counts["train"]:
        lost = f"{counts['no_label']} had no answer token within cutoff={cfg.cutoff}"
        raise ValueError(f"No row is left to train on; {lost}: raise encode.cutoff, or give rows to chats.")
    headline: dict[str, float] = {"rows": counts["train"], "eval_rows": counts["eval"], "tokens": counts["tokens"]}
    headline["trained_share"] = counts["labelled"] / counts["tokens"]
    return headline | {name: counts[name] for name in ("truncated", "no_label")}


def _encoded(tokenizer: Any, read: list[Any], cutoff: int, counts: Counter[str], progress: Any) -> list[dict[str, Any]]:
    from tasks.llm import chat

    conversations = [row["messages"][:-1] for row in read]
    answers = [row["messages"][-1]["content"] for row in read]
    kept = []
    for done, (row, turn) in enumerate(zip(read, chat.turns(tokenizer, conversations, answers), strict=True), 1):
        ids = (turn.prompt + turn.answer)[:cutoff]
        labels = ([IGNORED] * len(turn.prompt) + turn.answer)[:cutoff]
        labelled = len(ids) - len(turn.prompt)
        counts["truncated"] += len(turn.prompt) + len(turn.answer) > cutoff
        if labelled <= 0:
            counts["no_label"] += 1
            continue
        counts["tokens"] += len(ids)
        counts["labelled"] += labelled
        kept.append({"id": row["id"], "input_ids": ids, "labels": labels})
        if done % 512 == 0 or done == len(read):
            progress(done, len(read), "rows")
    return kept


def _write(encoded: list[dict[str, Any]], place: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = pa.list_(pa.int32())
    schema = pa.schema([("id", pa.string()), ("input_ids", ids), ("labels", ids)])
    pq.write_table(pa.Table.from_pylist(encoded, schema=schema), place)
