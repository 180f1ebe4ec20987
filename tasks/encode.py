"""Rows to token ids and labels, through the model's own chat template: what bears loss, what is cut, what is packed.

Keyed on the tokenizer's files and the rows, not on the weights: a new base with the same tokenizer hits. The notes hold
the proof that the rows teach what was meant (`report.md`, `report.json`) and show the first of them (`preview.html`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.llm import batches, preview
from tasks.llm.masks import Mask
from tasks.llm.proof import Proof
from tasks.runtime import Dataset, Run, Tokenizer, Tokens, canonical_as, stage

_SHOWN = 20
"""Rows in the preview."""


def _meant(cfg: EncodeConfig) -> str:
    return Mask.completion.value if cfg.mask is Mask.last_turn else cfg.mask.value


@dataclass
class EncodeConfig:
    cutoff: int = 1024
    """Tokens per row at most. Longer rows lose their end, stop token included; the report counts them."""
    mask: Mask = canonical_as(_meant, default=Mask.completion)
    """What bears loss: completion (the last answer; also called last_turn), assistant (every answer), everything."""
    packing: bool = False
    """Pack rows to train on into rows of `cutoff` tokens, unseen by one another; sft.batch_size counts packed rows."""

    def problems(self) -> Iterator[str]:
        if self.cutoff < 8:
            yield f"cutoff is {self.cutoff} tokens; give at least 8, usually 512 to 4096."


@stage(makes=Tokens, version="1")
def encode(run: Run, cfg: EncodeConfig, tokenizer: Tokenizer, chats: Dataset) -> dict[str, float]:
    from tasks.llm import models

    loaded = models.load_tokenizer(tokenizer.path)
    proof = Proof(stop=loaded.eos_token_id, cutoff=cfg.cutoff)
    train, held_out = (
        list(_encoded(loaded, chats.path, split, cfg, proof, run.progress)) for split in ("train", "eval")
    )
    proof.check()

    if cfg.packing:
        train, held_out = batches.packed(train, cfg.cutoff), batches.alone(held_out)
        proof.packed = len(train)
    _write(train, cfg.packing, run.out / "train.parquet")
    _write(held_out, cfg.packing, run.out / "eval.parquet")
    words = [f"Mask: {_meant(cfg)}.", *proof.words(loaded.eos_token)]
    (run.notes / "report.json").write_text(json.dumps({"mask": _meant(cfg), **proof.report()}, indent=1))
    (run.notes / "report.md").write_text("".join(f"* {line}\n" for line in words))
    (run.notes / "preview.html").write_text(preview.page(loaded, train[:_SHOWN], words), encoding="utf-8")
    return proof.metrics


def _encoded(
    tokenizer: Any, folder: Path, split: str, cfg: EncodeConfig, proof: Proof, progress: Any
) -> Iterator[dict[str, Any]]:
    from tasks.llm import masks, rows

    read = list(rows.read_split(folder, split))
    for row in masks.encoded(tokenizer, [row["messages"] for row in read], cfg.mask):
        name = read[row.row]["id"] + (f"-{row.part + 1}" if row.parts > 1 else "")
        if kept := proof.add(split, row):
            yield {"id": name, **kept}
        if row.row % 512 == 511 or row.row + 1 == len(read):
            progress(row.row + 1, len(read), "rows")


def _write(encoded: list[dict[str, Any]], packed: bool, place: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids = pa.list_(pa.int32())
    names = ["input_ids", "labels", *(["seq_lengths"] if packed else [])]
    schema = pa.schema([("id", pa.string()), *((name, ids) for name in names)])
    pq.write_table(pa.Table.from_pylist(encoded, schema=schema), place)
