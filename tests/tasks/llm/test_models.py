from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.llm import models
from tasks.llm.training import LoRA, adapt
from tasks.runtime import Model
from tests import tiny
from tests.hand import adapter, content, handle, turns, with_code


@pytest.fixture(scope="module")
def tuned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return adapter(tmp_path_factory.mktemp("tuned"), handle(Model, tiny_model, digest="d1gest"))


def _dtypes(model: Any) -> dict[bool, set[str]]:
    """The number formats of adapter weights (True) and all others (False)."""
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for name, weight in model.named_parameters():
        found["lora_" in name].add(str(weight.dtype).removeprefix("torch."))
    return found


def test_a_tokenizer_without_pad_token_pads_with_its_stop_token(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "padless")
    place = tmp_path / "padless" / "tokenizer_config.json"
    settings = json.loads(place.read_text())
    del settings["pad_token"]
    place.write_text(json.dumps(settings))
    assert models.load_tokenizer(tmp_path / "padless").pad_token_id == tiny.STOP


def test_a_full_model_is_loaded_in_the_format_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    assert not models.is_adapter(tiny_model)
    for precision, dtype in (("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")):
        assert _dtypes(models.load(tiny_model, tmp_path / "no such base", precision))[False] == {dtype}


def test_an_adapter_trains_in_fp32_whatever_its_base_is_in(tuned: Model) -> None:
    assert models.is_adapter(tuned.path)
    model = models.load(tuned.path, tuned.base.path, "bf16", trainable=True)
    assert _dtypes(model) == {True: {"float32"}, False: {"bfloat16"}}
    assert all(weight.requires_grad == ("lora_" in name) for name, weight in model.named_parameters())


def test_an_adapter_that_is_measured_is_in_one_format_and_frozen(tuned: Model) -> None:
    model = models.load(tuned.path, tuned.base.path, "bf16")
    assert _dtypes(model) == {True: {"bfloat16"}, False: {"bfloat16"}}
    assert not any(weight.requires_grad for weight in model.parameters())


def test_a_saved_adapter_answers_as_it_did_in_memory(tuned: Model, tmp_path: Path) -> None:
    import torch

    ids = torch.tensor([turns(tuned.path)[0].prompt])
    with torch.inference_mode():
        made = models.load(tuned.path, tuned.base.path, "fp32")
        models.save(made, tmp_path, tuned.base.path, "d1gest")
        again = models.load(tmp_path, tuned.base.path, "fp32")
        plain = models.load(tuned.base.path, tuned.base.path, "fp32")
        assert torch.equal(again(input_ids=ids).logits, made(input_ids=ids).logits)
        assert not torch.allclose(plain(input_ids=ids).logits, made(input_ids=ids).logits, atol=1e-2)


def test_a_saved_adapter_names_its_base_by_digest_and_no_path(tuned: Model, tiny_model: Path) -> None:
    config = json.loads((tuned.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "d1gest"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert json.loads((tuned.path / "stands_on.json").read_text()) == {"base": "d1gest"}
    assert not any(str(tiny_model).encode() in body for body in content(tuned.path).values())
    assert not (tuned.path / "README.md").exists()


def test_the_tokenizer_lies_beside_a_saved_policy_byte_for_byte(tuned: Model, tiny_model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tuned.path / name).read_bytes() == (tiny_model / name).read_bytes()


def test_what_is_copied_beside_a_policy_is_all_that_a_tokenizer_may_be_made_of(tmp_path: Path) -> None:
    from tasks.runtime import Tokenizer

    for folder in ("from", "to"):
        (tmp_path / folder).mkdir()
    names = [*(glob.replace("*", "words") for glob in Tokenizer.globs), models.ORIGIN]
    for name in [*names, "model.safetensors", "config.json"]:
        (tmp_path / "from" / name).write_text(name)
    models.copy_tokenizer(tmp_path / "from", tmp_path / "to")
    assert sorted(content(tmp_path / "to")) == sorted(names)


def test_the_same_adapter_saved_from_two_places_has_the_same_bytes(
    tuned: Model, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "moved")
    moved = adapter(tmp_path / "adapter", handle(Model, tmp_path / "moved", digest="d1gest"))
    assert content(moved.path) == content(tuned.path)


def test_a_saved_full_model_answers_as_it_did_and_may_use_its_cache_again(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    model = models.load(tiny_model, tiny_model, "fp32")
    model.config.use_cache = False
    models.save(model, tmp_path, tiny_model)
    again = models.load(tmp_path, tmp_path, "fp32")
    ids = torch.tensor([turns(tiny_model)[0].prompt])
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    assert again.config.use_cache
    assert not (tmp_path / "stands_on.json").exists()


def test_a_first_adapter_follows_from_the_seed_alone(tiny_model: Path) -> None:
    import torch

    def weights(seed: int) -> dict[str, Any]:
        model = adapt(models.load(tiny_model, tiny_model, "fp32"), LoRA(rank=2, alpha=4), seed)
        return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    one, same, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(not one[name].any() for name in one if "lora_B" in name)  # so that it begins as its base
    assert not any("lm_head" in name for name in one)


def test_targets_may_be_named(tiny_model: Path) -> None:
    lora = LoRA(rank=2, targets=["q_proj", "v_proj"])
    model = adapt(models.load(tiny_model, tiny_model, "fp32"), lora, 0)
    adapted = {name.split(".")[-4] for name, weight in model.named_parameters() if weight.requires_grad}
    assert adapted == {"q_proj", "v_proj"}


def test_a_dequantized_gguf_loads_and_answers_as_the_model_it_was_made_of(
    tiny_model: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    import torch

    models.dequantize(tiny_gguf, tmp_path, "fp32")
    whole, made = (models.load(folder, folder, "fp32") for folder in (tiny_model, tmp_path))
    assert [turn.prompt for turn in turns(tmp_path)] == [turn.prompt for turn in turns(tiny_model)]
    ids = torch.tensor([turns(tiny_model)[0].prompt])
    with torch.inference_mode():
        assert torch.allclose(whole(input_ids=ids).logits, made(input_ids=ids).logits, atol=1e-4)
    assert models.stop_ids(made, models.load_tokenizer(tmp_path)) == [tiny.STOP]


@pytest.mark.parametrize(("named", "ids"), [(None, [tiny.STOP]), (7, [tiny.STOP, 7]), ([7, 9, 2], [tiny.STOP, 7, 9])])
def test_every_named_stop_token_counts(tiny_model: Path, named: Any, ids: list[int]) -> None:
    model = models.load(tiny_model, tiny_model, "fp32")
    model.generation_config.eos_token_id = named
    assert models.stop_ids(model, models.load_tokenizer(tiny_model)) == ids


def test_stop_words_are_read_without_loading_anything(tmp_path: Path) -> None:
    tokens = [{"id": 7, "content": "<|end|>"}, {"id": 9, "content": "<|eot|>"}]
    written = {
        "tokenizer_config.json": {"eos_token": {"content": "<|end|>"}},
        "generation_config.json": {"eos_token_id": [7, 9, 11]},
        "tokenizer.json": {"added_tokens": tokens},
    }
    for name, what in written.items():
        (tmp_path / name).write_text(json.dumps(what))
    assert models.stop_words(tmp_path) == ["<|end|>", "<|eot|>"]
    (tmp_path / "generation_config.json").unlink()
    assert models.stop_words(tmp_path) == ["<|end|>"]


def test_code_that_comes_with_a_model_runs_only_where_its_origin_says_so(
    tiny_model: Path, tmp_path: Path, code_folder: Path
) -> None:
    strange = with_code(tmp_path / "strange", tiny_model, trusted=False)
    with pytest.raises(ValueError, match="custom code"):
        models.load(strange, strange, "fp32")
    known = with_code(tmp_path / "known", tiny_model, trusted=True)
    assert type(models.load(known, known, "fp32")).__name__ == "OursForCausalLM"
