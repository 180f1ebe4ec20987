from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.llm import merging, models
from tasks.runtime import Model
from tests import tiny
from tests.hand import adapter, content, handle, turns, with_code


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("merging")
    return adapter(folder / "adapter", handle(Model, tiny.build(folder / "base", says="")))


def _logits(policy: Path, base: Path) -> Any:
    import torch

    with torch.inference_mode():
        return models.load(policy, base, "fp32")(input_ids=torch.tensor([turns(base)[0].prompt])).logits


def test_the_folded_model_says_in_fp32_what_the_adapter_says(tuned: Model, tmp_path: Path) -> None:
    import torch

    merging.fold(tuned.path, tuned.base.path, tmp_path, "fp32")
    together, folded = _logits(tuned.path, tuned.base.path), _logits(tmp_path, tmp_path)
    assert torch.allclose(together, folded, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(folded, _logits(tuned.base.path, tuned.base.path), atol=1e-2)


def test_the_sum_is_made_in_fp32_and_rounded_once(tuned: Model, tmp_path: Path) -> None:
    import torch

    for precision in ("fp32", "bf16"):
        (tmp_path / precision).mkdir()
        merging.fold(tuned.path, tuned.base.path, tmp_path / precision, precision)
    exact, rounded = (models.load(tmp_path / p, tmp_path / p, p).state_dict() for p in ("fp32", "bf16"))
    assert all(torch.equal(exact[name].to(torch.bfloat16), rounded[name]) for name in exact)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("fp16", "float16"), ("auto", "bfloat16")])
def test_the_folded_model_is_in_the_format_asked_for(tuned: Model, tmp_path: Path, precision: str, dtype: str) -> None:
    from safetensors.torch import load_file

    merging.fold(tuned.path, tuned.base.path, tmp_path, precision)
    assert {str(weight.dtype) for weight in load_file(tmp_path / "model.safetensors").values()} == {f"torch.{dtype}"}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype


def test_a_base_that_brings_its_own_trusted_code_is_folded_as_well(
    tiny_model: Path, tmp_path: Path, code_folder: Path
) -> None:
    base = handle(Model, with_code(tmp_path / "base", tiny_model, trusted=True))
    (tmp_path / "out").mkdir()
    merging.fold(adapter(tmp_path / "adapter", base).path, base.path, tmp_path / "out", "auto")
    assert "bfloat16" in (tmp_path / "out" / "config.json").read_text()
    assert type(models.load(tmp_path / "out", tmp_path / "out", "bf16")).__name__ == "OursForCausalLM"


def test_a_folded_model_is_a_plain_folder_with_its_tokenizer(tuned: Model, tmp_path: Path) -> None:
    from safetensors import safe_open

    merging.fold(tuned.path, tuned.base.path, tmp_path, "fp32")
    assert not models.is_adapter(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (tuned.base.path / name).read_bytes()
    with (
        safe_open(tmp_path / "model.safetensors", "pt") as made,
        safe_open(tuned.base.path / "model.safetensors", "pt") as base,
    ):
        assert sorted(made.keys()) == sorted(base.keys())


def test_the_same_fold_twice_gives_the_same_bytes(tuned: Model, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        merging.fold(tuned.path, tuned.base.path, tmp_path / name, "fp32")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_what_passes_through_has_the_same_bytes_and_takes_no_room(tiny_model: Path, tmp_path: Path) -> None:
    merging.pass_through(tiny_model, tmp_path)
    assert content(tmp_path) == content(tiny_model)
    weights = "model.safetensors"
    assert (tmp_path / weights).stat().st_ino == (tiny_model / weights).stat().st_ino


def test_what_cannot_be_linked_is_copied(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr("os.link", refuse)
    merging.pass_through(tiny_model, tmp_path)
    assert content(tmp_path) == content(tiny_model)
