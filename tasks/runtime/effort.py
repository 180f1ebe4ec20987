"""How much a piece of work has to do, as far as it can be told without doing it: whose time says something of whose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Manifest = dict[str, Any]
Behind = Callable[[dict[str, Any]], Manifest | None]
"""The work behind a reference, made or planned."""
_HOW_MUCH = {
    *("rows", "max_steps", "num_train_epochs", "batch_size", "max_new_tokens"),
    *("method", "rank", "gradient_checkpointing"),
}
"""Settings that decide how much a stage has to do, whatever rows it gets."""


def effort(work: Manifest, behind: Behind) -> tuple[Any, ...]:
    """Equal for runs of a stage whose times can be set beside each other: such settings, and the first model."""
    return sorted(_settings(work["fields"])), sorted(_first_models(work, behind))


def scale(ours: Manifest, other: Manifest, behind: Behind) -> float:
    """How many times more rows ours has to go through, by the bytes of its inputs that are rows."""
    now, before = _rows(ours, behind), _rows(other, behind)
    return now / before if now and before else 1.0


def size(manifest: Manifest) -> float:
    return float(sum(sealed["size"] for sealed in manifest["files"].values()))


def _settings(fields: dict[str, Any]) -> list[tuple[str, str]]:
    nested = [pair for value in fields.values() if isinstance(value, dict) for pair in _settings(value)]
    return [*nested, *((name, str(value)) for name, value in fields.items() if name in _HOW_MUCH)]


def _first_models(work: Manifest, behind: Behind) -> set[str]:
    found = set[str]()
    for ref in work["parents"]:
        above = behind(ref)
        if above and above["parents"]:
            found |= _first_models(above, behind)
        elif ref["kind"] == "Model":
            found.add(ref["recipe"])
    return found


def _rows(manifest: Manifest, behind: Behind) -> float:
    refs = [ref for ref in manifest["parents"] if ref["kind"] in ("Dataset", "Tokens", "Preferences")]
    found = [behind(ref) for ref in refs if ref["digest"]]
    return sum(size(work) for work in found if work) if len(found) == len(refs) else 0.0
