"""What is taken out of the store is whole, complete, one's own, and overwrites nothing."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from tasks.runtime import GGUF, Run, stage
from tasks.runtime.catalogue import Catalogue
from tasks.runtime.export import export
from tasks.runtime.upkeep import Refused
from tests import toys
from tests.toys import Open


@stage(makes=GGUF, version="1")
def shrink(run: Run, cfg: toys.AdaptConfig) -> dict[str, float]:
    (run.out / "model-q8_0.gguf").write_text("GGUF")
    return {}


@pytest.fixture
def catalogue(opened: Open, tmp_path: Path) -> Catalogue:
    with opened(isolation="none"):
        base = toys.train(toys.TrainConfig(), toys.collect(toys.CollectConfig()))
        toys.adapt(toys.AdaptConfig(), base)
        shrink(toys.AdaptConfig())
    return Catalogue(tmp_path / "data")


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_full_model_becomes_a_folder_of_its_own(catalogue: Catalogue, tmp_path: Path) -> None:
    entry = catalogue.one("train")
    place, size = export(catalogue, entry, tmp_path / "deep" / "out")
    assert files(place) == ["README.md", "model.safetensors", "tokenizer.json"] and size == entry.size
    (place / "tokenizer.json").write_text("mine now")  # no link into the store, and not read-only
    assert (catalogue.object(entry.digest) / "tokenizer.json").read_text() == "a b c"
    assert 'from_pretrained(".")' in (place / "README.md").read_text()


@pytest.mark.parametrize("zipped", [False, True])
def test_an_adapter_brings_the_base_it_stands_on(catalogue: Catalogue, tmp_path: Path, zipped: bool) -> None:
    place, _ = export(catalogue, catalogue.one("adapt"), tmp_path / "out", zipped)
    if zipped:
        assert place.name == "out.zip"
        zipfile.ZipFile(place).extractall(tmp_path / "out")
    found = files(tmp_path / "out")
    assert found == [
        *("README.md", "adapter/adapter.json", "adapter/stands_on.json"),
        *("base/model.safetensors", "base/tokenizer.json"),
    ]
    assert 'PeftModel.from_pretrained(base, "adapter")' in (tmp_path / "out" / "README.md").read_text()


def test_a_gguf_can_be_one_file(catalogue: Catalogue, tmp_path: Path) -> None:
    place, _ = export(catalogue, catalogue.one("shrink"), tmp_path / "small.gguf")
    assert place.read_text() == "GGUF"
    folder, _ = export(catalogue, catalogue.one("shrink"), tmp_path / "folder")
    assert files(folder) == ["README.md", "model-q8_0.gguf"]
    assert 'Llama("model-q8_0.gguf")' in (folder / "README.md").read_text()
    with pytest.raises(Refused, match="holds no GGUF file"):
        export(catalogue, catalogue.one("train"), tmp_path / "other.gguf")


def test_texts_lie_beside_the_files_and_take_the_place_of_a_plain_one(catalogue: Catalogue, tmp_path: Path) -> None:
    texts = {"README.md": "a card", "Modelfile": "FROM it"}
    entry = catalogue.one("shrink")
    folder, _ = export(catalogue, entry, tmp_path / "folder", beside=texts)
    assert files(folder) == ["Modelfile", "README.md", "model-q8_0.gguf"]
    assert (folder / "README.md").read_text() == "a card"
    place, _ = export(catalogue, entry, tmp_path / "out", zipped=True, beside=texts)
    assert zipfile.ZipFile(place).read("README.md") == b"a card"
    (tmp_path / "README.md").write_text("mine")
    export(catalogue, entry, tmp_path / "small.gguf", beside=texts)
    assert (tmp_path / "small.README.md").read_text() == "a card" and (tmp_path / "small.Modelfile").exists()
    assert (tmp_path / "README.md").read_text() == "mine"
    (tmp_path / "small.gguf").unlink()
    with pytest.raises(Refused, match=r"small\.README\.md"):
        export(catalogue, entry, tmp_path / "small.gguf", beside=texts)
    assert not (tmp_path / "small.gguf").exists()


def test_nothing_is_written_over(catalogue: Catalogue, tmp_path: Path) -> None:
    for place in (tmp_path / "out", tmp_path / "there.gguf", tmp_path / "out.zip"):
        place.mkdir() if not place.suffix else place.write_text("mine")
    (tmp_path / "out" / "mine").touch()
    for name, place, zipped in (
        ("train", "out", False),
        ("shrink", "there.gguf", False),
        ("train", "out.zip", False),
        ("train", "out", True),
    ):
        with pytest.raises(Refused, match="is there already"):
            export(catalogue, catalogue.one(name), tmp_path / place, zipped)
    assert (tmp_path / "out.zip").read_text() == "mine" and files(tmp_path / "out") == ["mine"]


def test_damaged_content_is_not_copied(catalogue: Catalogue, tmp_path: Path) -> None:
    base = catalogue.object(catalogue.one("train").digest) / "model.safetensors"
    base.chmod(0o644)
    base.write_text("other")
    with pytest.raises(Refused, match="is damaged or gone"):
        export(catalogue, catalogue.one("adapt"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_copy_that_does_not_fit_is_not_begun(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(Refused, match=r"GB free, and this takes .* Make room there"):
        export(catalogue, catalogue.one("train"), tmp_path / "out")


def test_a_copy_that_breaks_off_leaves_nothing(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    before = set(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        export(catalogue, catalogue.one("train"), tmp_path / "out")
    assert set(tmp_path.iterdir()) == before
