"""Which checkpoint of unfinished work may be gone on from: one written to its end, of the same split of the batch."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from pathlib import Path


def forget_other_split(work: Path, split: str) -> None:
    """Another batch split is the same recipe, but a half-finished run is not resumed under it."""
    mark = work / "split.txt"
    if mark.exists() and mark.read_text() != split:
        warnings.warn(f"Unfinished work used another batch split ({mark.read_text()}); it starts again.", stacklevel=2)
        shutil.rmtree(work / "checkpoints", ignore_errors=True)
    mark.write_text(split)


def last_complete(checkpoints: Path, ranks: int = 1) -> str | None:
    """The newest checkpoint that was written to its end. The first rank writes `trainer_state.json` last, so it must
    parse, every safetensors file must be as long as its own header says and every file of torch must have its end.
    Of several ranks each must have left its random state and, where DeepSpeed shares the optimizer, its part."""
    found = sorted(checkpoints.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True)
    return next((str(place) for place in found if _is_complete(place, ranks)), None)


def _is_complete(checkpoint: Path, ranks: int) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        weights = list(checkpoint.rglob("*.safetensors"))
        whole = all(_is_whole(place) for place in weights) and all(map(zipfile.is_zipfile, checkpoint.rglob("*.pt*")))
        return bool(weights) and whole and (ranks == 1 or _is_of_all(checkpoint, ranks))
    except (OSError, ValueError):
        return False


def _is_of_all(checkpoint: Path, ranks: int) -> bool:
    """DeepSpeed names in `latest` the folder that holds each rank's part of the optimizer."""
    parts = ["rng_state_{}.pth"]
    if any(checkpoint.glob("global_step*")):
        step = (checkpoint / "latest").read_text().strip()
        parts += [f"{step}/zero_pp_rank_{{}}_mp_rank_00_optim_states.pt"]
    return all((checkpoint / part.format(rank)).exists() for part in parts for rank in range(ranks))


def _is_whole(place: Path) -> bool:
    with open(place, "rb") as file:
        head = int.from_bytes(file.read(8), "little")
        tensors = json.loads(file.read(head))
    end = max((item["data_offsets"][1] for name, item in tensors.items() if name != "__metadata__"), default=0)
    return place.stat().st_size == 8 + head + end
