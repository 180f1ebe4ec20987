"""Looking after single artifacts: is it whole, may it go, and taking it away."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.runtime.catalogue import Catalogue, Entry
from tasks.runtime.hashes import Hashes, file_sha256
from tasks.runtime.uses import clearing, is_held


class Refused(RuntimeError):
    """Something that would hurt; `reasons` say why, one each."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = reasons


# Whole?


def damages(catalogue: Catalogue, entry: Entry) -> list[str]:
    """Everything that is wrong with an artifact, every byte of it read: content, notes, and what it stands on."""
    folder = catalogue.object(entry.digest)
    if not folder.is_dir():
        return ["its content is gone"]
    notes = catalogue.store / entry.manifest["notes"]
    found = [*_damaged(folder, entry.manifest["files"]), *_damaged(notes, entry.manifest["noted"], "note ")]
    for below in catalogue.stands_on(entry.digest):
        if not catalogue.object(below).is_dir():
            found.append(f"{below[:12]}, which it stands on, is gone")
    return found


def _damaged(folder: Path, sealed: dict[str, Any], kind: str = "") -> Iterator[str]:
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(there - set(sealed)):
        yield f"{kind}{name} was added"
    for name, facts in sealed.items():
        if name not in there:
            yield f"{kind}{name} is missing"
        elif (folder / name).stat().st_size != facts["size"]:
            yield f"{kind}{name} has {(folder / name).stat().st_size:,} bytes, not {facts['size']:,}"
        elif file_sha256(folder / name) != facts["sha256"]:
            yield f"{kind}{name} was altered"


def forget(catalogue: Catalogue, entry: Entry) -> None:
    """Make a damaged artifact a miss: bytes that rot under an unchanged date are not read again otherwise."""
    hashes = Hashes(catalogue.store / "hashes")
    for name in entry.manifest["files"]:
        hashes.forget(catalogue.object(entry.digest) / name)


# Away


def objections(catalogue: Catalogue, going: Iterable[Entry]) -> list[str]:
    """Why some artifacts should stay."""
    going = list(going)
    using, gone, keys = catalogue.alive(), _lost_content(catalogue, going), {entry.key for entry in going}
    staying = [entry for entry in catalogue.standing if entry.key not in keys]
    needing = {below: entry for entry in staying for below in catalogue.stands_on(entry.digest)}
    found = []
    for entry in going:
        if names := catalogue.pinned(entry):
            found.append(f"{entry} is pinned as {', '.join(names)}.")
        if entry.digest in using:
            found.append(f"{entry} is in use by the run {using[entry.digest]}.")
        if is_held(catalogue.store / "locks" / entry.key):
            found.append(f"{entry} is being made right now.")
        if entry.digest in gone and entry.digest in needing:
            found.append(f"{needing[entry.digest]} stands on {entry} and cannot be used without it.")
    return found


def remove(catalogue: Catalogue, names: list[str], force: bool, say: Callable[[str], None]) -> list[Entry]:
    """Take artifacts away: seals (those in the history too), notes, and content that nothing else names."""
    for name in names:
        catalogue.one(name)  # a wrong name waits for nobody
    with clearing(catalogue.store, say) as trash:
        catalogue = Catalogue(catalogue.root)
        going = list({entry.key: entry for entry in map(catalogue.one, names)}.values())
        if not force and (reasons := objections(catalogue, going)):
            raise Refused(reasons)
        lost = _lost_content(catalogue, going)
        for entry in _with_history(catalogue, going):
            entry.place.unlink(missing_ok=True)
        notes = [catalogue.store / entry.manifest["notes"] for entry in _with_history(catalogue, going)]
        for folder in [*map(catalogue.object, lost), *notes]:
            if folder.exists():
                folder.rename(trash / uuid.uuid4().hex)
    return going


def _with_history(catalogue: Catalogue, going: list[Entry]) -> list[Entry]:
    keys = {entry.key for entry in going}
    return [entry for entry in catalogue.entries if entry.key in keys]


def _lost_content(catalogue: Catalogue, going: list[Entry]) -> set[str]:
    """The digests that no other seal names: equal content is shared."""

    def named(entries: Iterable[Entry]) -> set[str]:
        return {digest for e in entries for digest in (e.digest, *e.manifest["parts"].values())}

    keys = {entry.key for entry in going}
    away = _with_history(catalogue, going)
    return named(away) - named(entry for entry in catalogue.entries if entry.key not in keys)
