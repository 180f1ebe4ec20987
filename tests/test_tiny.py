from __future__ import annotations

from pathlib import Path

from tests import tiny


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_builds_give_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    assert _content(tiny.build(tmp_path / "again")) == _content(tiny_model)


def test_another_seed_changes_the_weights_and_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    other, same = _content(tiny.build(tmp_path / "other", seed=1)), _content(tiny_model)
    assert [name for name in same if other[name] != same[name]] == ["model.safetensors"]


def test_transformers_loads_it_and_it_answers_ok_and_stops(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    chat = [{"role": "user", "content": "How are you?"}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    told = model.generate(**asked, max_new_tokens=20, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(told) == "Ok.<|im_end|>"
    assert len(tokenizer) == model.config.vocab_size


def test_any_text_survives_a_round_trip_through_the_tokenizer(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    text = ' two  spaces,\ttab\n{"naïve": "😁", "n": [1, 2]} '
    assert tokenizer.decode(tokenizer(text).input_ids) == text
