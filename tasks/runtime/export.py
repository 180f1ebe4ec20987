"""An artifact taken out of the store: plain files, the model it stands on, and a word on loading it."""

from __future__ import annotations

import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.runtime import keys
from tasks.runtime.catalogue import Catalogue, Entry
from tasks.runtime.hashes import file_sha256
from tasks.runtime.store import STANDS_ON
from tasks.runtime.upkeep import Refused
from tasks.runtime.uses import door

_SPARE = 50_000_000
"""Bytes of disk that are left free."""


def export(
    catalogue: Catalogue, entry: Entry, to: Path, zipped: bool = False, beside: dict[str, str] | None = None
) -> tuple[Path, int]:
    """Copy an artifact to a folder, a zip file, or (a GGUF, where the name ends so) one file: where, and its bytes.

    `beside`: texts to lie beside the files, by name; README.md takes the place of a plain one. One file `a.gguf` gets
    them as `a.README.md`. Refuses to write over anything, to copy damaged content, and to begin what the disk cannot
    hold.
    """
    texts = {"README.md": _readme(entry, _folders(catalogue, entry)), **(beside or {})}
    to = to.with_name(f"{to.name}.zip") if zipped and to.suffix != ".zip" else to
    if to.is_file() or (to.is_dir() and (zipped or any(to.iterdir()))):
        raise Refused([f"{to} is there already. Give another name."])
    single = {to.with_name(f"{to.stem}.{name}"): text for name, text in (beside or {}).items()}
    if not zipped and to.suffix == ".gguf" and (there := [str(place) for place in single if place.exists()]):
        raise Refused([f"{' and '.join(there)} would be written over. Give another name."])
    with door(catalogue.store):  # a clean-up waits for us
        folders = _folders(catalogue, entry)
        for folder in folders.values():
            _check(folder)
        size = sum(path.stat().st_size for folder in folders.values() for path in _files(folder))
        _check_room(to, size)
        with _in_one_go(to) as draft:
            if zipped:
                _zip(texts, folders, draft)
            elif to.suffix == ".gguf":
                shutil.copyfile(_only_gguf(entry, folders), draft)
                for place, text in single.items():
                    place.write_text(text, encoding="utf-8")
            else:
                _copy(texts, folders, draft)
    return to, size


def _folders(catalogue: Catalogue, entry: Entry) -> dict[str, Path]:
    """Name -> content. What stands on nothing lies at the top, an adapter beside its base."""
    own = catalogue.object(entry.digest)
    if not (own / STANDS_ON).exists():
        return {"": own}
    below = json.loads((own / STANDS_ON).read_text())
    return {"adapter": own, **{name: catalogue.object(digest) for name, digest in below.items()}}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _check(folder: Path) -> None:
    """Content lies under its own digest."""
    named = sorted((path.relative_to(folder).as_posix(), path) for path in _files(folder))
    if keys.digest([[name, file_sha256(path)] for name, path in named]) != folder.name:
        short = folder.name[:12]
        raise Refused([f"{short} is damaged or gone. `verify` says what is wrong; a run that needs it makes it again."])


def _check_room(to: Path, size: int) -> None:
    place = next(above for above in (to.absolute(), *to.absolute().parents) if above.is_dir())
    free = shutil.disk_usage(place).free
    if free < size + _SPARE:
        raise Refused([f"{place} has {free / 1e9:.2f} GB free, and this takes {size / 1e9:.2f} GB. Make room there."])


@contextmanager
def _in_one_go(to: Path) -> Iterator[Path]:
    """A place beside the goal, which becomes the goal once all is written, and is gone if it is not."""
    to.absolute().parent.mkdir(parents=True, exist_ok=True)
    draft = to.absolute().with_name(f".{to.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield draft
        os.rename(draft, to)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft)
        draft.unlink(missing_ok=True)


def _copy(texts: dict[str, str], folders: dict[str, Path], draft: Path) -> None:
    for name, folder in folders.items():
        for path in _files(folder):
            goal = draft / name / path.relative_to(folder)
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, goal)  # not its mode: in the store it is read-only
    for name, text in texts.items():
        (draft / name).write_text(text, encoding="utf-8")


def _zip(texts: dict[str, str], folders: dict[str, Path], draft: Path) -> None:
    with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as archive:  # weights do not get smaller
        for name, folder in folders.items():
            for path in _files(folder):
                archive.write(path, Path(name) / path.relative_to(folder))
        for name, text in texts.items():
            archive.writestr(name, text)


def _only_gguf(entry: Entry, folders: dict[str, Path]) -> Path:
    found = [path for folder in folders.values() for path in _files(folder) if path.suffix == ".gguf"]
    if len(found) != 1:
        raise Refused([f"{entry} holds no GGUF file: give a folder, or the name of a GGUF artifact."])
    return found[0]


_LOADING = {
    "adapter": """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("base")
model = PeftModel.from_pretrained(base, "adapter")
tokenizer = AutoTokenizer.from_pretrained("adapter")
""",
    "Model": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
""",
    "RewardModel": """from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")  # pads on the right with its own pad token
""",
    "GGUF": """from llama_cpp import Llama

llama = Llama("{file}")
""",
}


def _readme(entry: Entry, folders: dict[str, Path]) -> str:
    kind = "adapter" if "adapter" in folders else str(entry.manifest["kind"])
    commit = entry.manifest.get("git", {}).get("commit", "")
    text = f"# {entry.stage} {entry.digest[:12]}\n\nMade by posttrain.\n\n"
    text += f"* content: `{entry.digest}`\n* key: `{entry.key}`\n* code: `{commit}`\n"
    if kind == "adapter":
        text += "\nAn adapter in `adapter/`; it works on the model in `base/` and on no other.\n"
    if kind in _LOADING:
        file = next((path.name for folder in folders.values() for path in _files(folder) if path.suffix == ".gguf"), "")
        text += f"\n```python\n{_LOADING[kind].format(file=file)}```\n"
    return text
