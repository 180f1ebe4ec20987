"""What a finished road left in the store: its manifests, their notes, its verdict. Pictures and card tell of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.runtime.session import Session
from tasks.runtime.store import Manifest


@dataclass
class Story:
    store: Path
    manifests: list[Manifest]
    """Of every stage call, parents before children."""
    verdict: dict[str, Any] | None = None

    def of(self, *stages: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["stage"] in stages]

    def content(self, manifest: Manifest) -> Path:
        return self.store / "objects" / str(manifest["digest"])

    def note(self, manifest: Manifest, name: str) -> Any:
        """A JSON file among an artifact's notes; nothing where there is none that can be read."""
        return _read(self.store / str(manifest["notes"]) / name)

    def called(self, stage: str) -> str:
        return called(self.verdict, stage)


def called(verdict: dict[str, Any] | None, stage: str) -> str:
    """The model that a stage made, as a reader knows it: base, SFT, DPO, GGUF q8_0."""
    level = (verdict or {}).get("fidelity", {}).get("level", "")
    known = {"download": "base", "convert": "GGUF f16", "quantize": f"GGUF {level}".strip()}
    return known.get(stage, stage.upper() if len(stage) <= _INITIALS else stage.replace("_", " "))


_INITIALS = 4
"""A stage with a name as short as this is known by its initials: SFT, DPO, GRPO."""


def of_session(now: Session) -> Story:
    """The road that was just travelled."""
    manifests = [record.manifest for record in now.records]
    return Story(now.store.root, manifests, verdict(now.store.root, manifests))


def verdict(store: Path, manifests: list[Manifest]) -> dict[str, Any] | None:
    """The comparison's verdict, read from the artifact, so that a cached run has it too."""
    for manifest in reversed(manifests):
        if manifest["kind"] == "Comparison":
            found: dict[str, Any] = json.loads((store / "objects" / manifest["digest"] / "verdict.json").read_text())
            return found
    return None


def _read(place: Path) -> Any:
    try:
        return json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
