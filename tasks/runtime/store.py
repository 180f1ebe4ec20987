"""The store: what was made, by content. The only truth about what need not be made again.

objects/<digest>/         the files of an artifact, read-only; the digest is over their names and bytes
notes/<stage>/<attempt>/  reports, plots and logs of one attempt
manifests/<stage>/<key>   the seal, written last: pre-image of the key, parents, files, metrics, versions, times
history/<stage>/          manifests that were replaced
work/<stage>/<key>/       checkpoints of unfinished work; gone once its key is published
names.json                what moving names meant when they were asked
pins.json                 what nobody wants to see go (pins.py)
runs/<name>.jsonl, door   what each run uses, so that no clean-up takes it away (uses.py)
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from tasks.runtime import durable, keys, locks, uses
from tasks.runtime.artifacts import Artifact, kind_named
from tasks.runtime.hashes import Hashes

Manifest = dict[str, Any]
STANDS_ON = "stands_on.json"
"""A file of an artifact's content that names, by digest, what it cannot be used without: `{"base": "<digest>"}`."""


class Store:
    def __init__(self, root: Path, say: Any = print) -> None:
        self.root = root.resolve()
        self.say = say
        self._told: dict[str, str] = {}
        for room in ("objects", "manifests", "notes", "history", "work", "locks", "tmp"):
            durable.made(self.root / room)
        with uses.door(self.root):
            for draft in (self.root / "tmp").glob("[!.]*"):
                if not uses.is_held(draft):  # of a process that was killed
                    shutil.rmtree(draft, ignore_errors=True)
        self.hashes = Hashes(self.root / "hashes", say)

    # Looking

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """The seal of a key as it is written, whatever became of the files."""
        try:
            found = json.loads(self._manifest_path(stage, key).read_text())
        except (FileNotFoundError, ValueError):  # a broken file is no seal
            return None
        return found if isinstance(found, dict) and {"digest", "files"} <= found.keys() else None

    def find(self, stage: str, key: str) -> Manifest | None:
        """The seal of a key whose files are all there and unaltered; what is missing or altered is said aloud."""
        manifest = self.manifest(stage, key)
        if manifest is None and not self._manifest_path(stage, key).exists():
            return None
        damage = self.damage(manifest) if manifest else f"the manifest of {key[:12]} cannot be read"
        if damage:
            if self._told.get(key) != damage:  # a stage looks twice: before and after it has the lock
                self.say(f"{stage}: {damage}; it is made again.")
            self._told[key] = damage
            return None
        self._told.pop(key, None)
        return manifest

    def damage(self, manifest: Manifest) -> str:
        """What is wrong with an artifact's files, or nothing."""
        folder = self.root / "objects" / manifest["digest"]
        short = f"artifact {manifest['digest'][:12]}"
        if not folder.is_dir():
            return f"{short} is gone from the store"
        if sorted(_files(folder)) != sorted(manifest["files"]):
            return f"files of {short} were added or removed"
        for name, sealed in manifest["files"].items():
            path = folder / name
            try:
                whole = path.stat().st_size == sealed["size"] and self.hashes.of(path, sealed=True) == sealed["sha256"]
            except FileNotFoundError:  # taken away by another process at this moment
                whole = False
            if not whole:
                return f"{name} of {short} was altered"
        return ""

    def fetch(self, ref: dict[str, Any]) -> Path:
        """A local folder with the files a reference names."""
        if ref["whole"]:
            return self._fetch_part(ref)
        folder = self.root / "objects" / ref["digest"]
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{ref['stage']} {ref['digest'][:12]} is gone from {folder}. Run the command again."
            )
        return folder

    def localise(self, ref: dict[str, Any]) -> Artifact:
        """A handle whose files, and the files of what it stands on, are local folders."""
        path = self.fetch(ref)
        bases: dict[str, Artifact] = {}
        if (path / STANDS_ON).exists():
            for name, digest in json.loads((path / STANDS_ON).read_text()).items():
                unknown = {"recipe": "", "key": "", "whole": "", "part_digests": {}}
                below = {**ref, **unknown, "digest": digest, "stage": name}
                bases[name] = kind_named(ref["kind"]).of(below, path=self.fetch(below))
        return kind_named(ref["kind"]).of(ref, path=path, stands_on=bases)

    def lineage(self, ref: dict[str, Any]) -> list[Manifest]:
        """The manifests above and including a reference, parents before children, each once."""
        seen: dict[str, Manifest] = {}

        def walk(parent: dict[str, Any]) -> None:
            manifest = self.manifest(parent["stage"], parent["key"])
            if manifest is None or manifest["key"] in seen:
                return
            for above in manifest["parents"]:
                walk(above)
            seen[manifest["key"]] = manifest

        walk(ref)
        return list(seen.values())

    # Making

    def workplace(self, stage: str, key: str) -> Path:
        return durable.made(self.root / "work" / stage / key)

    def checkpoint(self, stage: str, key: str) -> str:
        """The last checkpoint that unfinished work of a key has saved to its end; empty without one."""
        states = (self.root / "work" / stage / key).glob("**/checkpoint-*/trainer_state.json")  # written last
        return max((place.parent.name for place in states), key=lambda name: int(name.split("-")[1]), default="")

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """An empty folder with `content/` and `notes/`, gone afterwards unless published."""
        room, name = self.root / "tmp", uuid.uuid4().hex
        with uses.door(self.root):
            for part in ("content", "notes"):
                (room / f".{name}" / part).mkdir(parents=True)
            ours = uses.hold(room / f".{name}")
            folder = (room / f".{name}").rename(room / name)  # held before it has a name that others look at
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(ours)

    def publish(self, draft: Path, facts: Manifest, replaces: bool = False) -> Manifest:
        """Seal a draft: the tree complete first, its manifest last.

        Of two writers that began from the same miss the first manifest stands. `replaces`: the one that stood was
        damaged or drifted; it goes to the history and ours takes its place in one rename.
        """
        files = {name: self._seal(draft / "content" / name) for name in sorted(_files(draft / "content"))}
        kind = kind_named(facts["kind"])
        parts = {name: _digest(_only(files, part.globs)) for name, part in kind.parts.items()}
        attempt = f"{facts['key'][:16]}-{uuid.uuid4().hex[:8]}"
        manifest = {
            **facts,
            "format": 1,
            "digest": _digest(files),
            "files": files,
            "parts": parts,
            "notes": str(Path("notes") / facts["stage"] / attempt),
            "noted": {name: self._seal(draft / "notes" / name) for name in sorted(_files(draft / "notes"))},
        }
        self._keep_tree(draft, manifest)
        durable.move(draft / "notes", self.root / manifest["notes"])
        stands = self._write_manifest(draft, manifest, replaces)
        with suppress(FileNotFoundError):  # in one rename, so that nobody goes on from half of it
            os.rename(self.root / "work" / facts["stage"] / facts["key"], draft / "work")
        return stands

    def _keep_tree(self, draft: Path, manifest: Manifest) -> None:
        folder = self.root / "objects" / manifest["digest"]
        if folder.exists() and self.damage(manifest):
            durable.move(folder, draft / "damaged")  # aside, so that ours can take its place
        if not folder.exists():
            try:
                durable.move(draft / "content", folder)
            except OSError:
                if not folder.exists():
                    raise  # otherwise another writer of the same bytes was first
        for name in manifest["files"]:
            self.hashes.of(folder / name, sealed=True)

    def _write_manifest(self, draft: Path, manifest: Manifest, replaces: bool) -> Manifest:
        place, ours = self._manifest_path(manifest["stage"], manifest["key"]), draft / "manifest.json"
        durable.made(place.parent)
        ours.write_text(json.dumps(manifest, indent=1))
        durable.sync(ours)
        if not replaces:
            with suppress(FileExistsError):
                os.link(ours, place)
                durable.sync(place.parent)
                return manifest
            first = self.find(manifest["stage"], manifest["key"])
            if first is not None:
                return first
        if self.manifest(manifest["stage"], manifest["key"]):
            kept = durable.made(self.root / "history" / place.parent.name)
            os.link(place, kept / f"{place.stem}.{time.time_ns()}.json")
            durable.sync(kept)
        os.replace(ours, place)
        durable.sync(place.parent)
        return manifest

    def _seal(self, path: Path) -> dict[str, Any]:
        durable.sync(path)
        path.chmod(0o444)
        return {"size": path.stat().st_size, "sha256": self.hashes.of(path)}

    def _fetch_part(self, ref: dict[str, Any]) -> Path:
        """A folder with the files of a part alone, linked from the whole, under the part's own digest."""
        folder = self.root / "objects" / ref["digest"]
        if folder.is_dir() and self._digest_of(folder) == ref["digest"]:
            return folder
        whole = self.fetch({**ref, "digest": ref["whole"], "whole": ""})
        with self.draft() as draft:
            for name in _only(dict.fromkeys(_files(whole)), kind_named(ref["kind"]).globs):
                durable.made((draft / "content" / name).parent)
                os.link(whole / name, draft / "content" / name)
            if self._digest_of(draft / "content") != ref["digest"]:
                raise RuntimeError(f"{whole} was altered after this run had found it. Run the command again.")
            if folder.is_dir():  # damaged
                durable.move(folder, draft / "damaged")
            try:
                durable.move(draft / "content", folder)
            except OSError:
                if not folder.exists():
                    raise  # otherwise another process was first
        return folder

    def _digest_of(self, folder: Path) -> str:
        return _digest({name: {"sha256": self.hashes.of(folder / name, sealed=True)} for name in _files(folder)})

    def _manifest_path(self, stage: str, key: str) -> Path:
        return self.root / "manifests" / stage / f"{key}.json"

    # Names and locks

    def hash_file(self, path: Path) -> str:
        return self.hashes.of(path)

    def resolve(self, moving: keys.Moving, refresh: bool = False) -> str:
        """What a moving name means: asked once, recorded, and reused until a refresh."""
        place = self.root / "names.json"
        with FileLock(f"{place}.lock"):
            names = self._names(place)
            if refresh or moving.name not in names:
                names[moving.name] = {"means": moving.ask(), "asked": time.time()}
                durable.write(place, json.dumps(names, indent=1, sort_keys=True))
        return str(names[moving.name]["means"])

    def _names(self, place: Path) -> dict[str, Any]:
        try:
            names = json.loads(place.read_text()) if place.exists() else {}
            return {name: {"means": str(told["means"]), "asked": told["asked"]} for name, told in names.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            self.say(f"{place} cannot be read: what moving names mean is asked again.")
            return {}

    def lock(self, key: str, what: str) -> AbstractContextManager[None]:
        return locks.alone(self.root / "locks" / key, what, self.say)


def _files(folder: Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]


def _only(files: dict[str, Any], globs: tuple[str, ...]) -> dict[str, Any]:
    return {name: sealed for name, sealed in files.items() if any(fnmatch.fnmatch(name, glob) for glob in globs)}


def _digest(files: dict[str, Any]) -> str:
    return keys.digest([[name, sealed["sha256"]] for name, sealed in sorted(files.items())])
