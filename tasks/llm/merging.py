"""Adapters into weights."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tasks.llm import models


def with_base(folder: Path) -> tuple[Path, Path] | None:
    """An adapter and the model it stands on, from a folder that holds both (`adapter/`, `base/`: what an export is) or
    from an adapter in a store, whose base lies beside it under its digest. None for anything else."""
    place = folder.expanduser().resolve()
    adapter, base, named = place / "adapter", place / "base", place / "stands_on.json"
    if named.exists():
        adapter, base = place, place.parent / json.loads(named.read_text())["base"]
    both = models.is_adapter(adapter) and (base / "config.json").is_file()
    return (adapter, base) if both and not (place / "config.json").exists() else None


def folded(policy: Path, base: Path) -> Any:
    """An adapter summed into the model it stands on, in fp32 and in memory."""
    return models.load(policy, base, "fp32").merge_and_unload()


def fold(policy: Path, base: Path, out: Path, precision: str) -> None:
    """W + (alpha / rank) B A, summed in fp32 and then rounded once to `precision` ("auto": the base's own)."""
    merged = folded(policy, base)
    kept = models.own_dtype(base) if precision == "auto" else models.dtype_of(precision)
    models.save(merged.to(kept).cpu(), out, base)


def pass_through(policy: Path, out: Path) -> None:
    """The same files under another stage: hard links where the file system has them, so that nothing is copied."""
    for source in (p for p in policy.rglob("*") if p.is_file()):
        target = out / source.relative_to(policy)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
