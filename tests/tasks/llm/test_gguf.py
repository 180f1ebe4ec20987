from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.llm import chat, gguf
from tests import tiny

CHATS = [
    [{"role": "user", "content": "How are you?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ' {"naïve": "😁"}  \n 123\t'}],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Ok."},
        {"role": "user", "content": "Once more, please"},
    ],
]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def _tensors(path: Path) -> dict[str, bytes]:
    """Read by llama.cpp's own package, not by ours."""
    from gguf import GGUFReader

    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(path).tensors}


def _pretend_converter(folder: Path, program: str) -> str:
    """A llama.cpp checkout whose converter is `program`; `model` and `out` are its paths."""
    folder.mkdir()
    start = "import pathlib, sys\nmodel, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[3])\n"
    (folder / "convert_hf_to_gguf.py").write_text(start + program)
    return str(folder)


# Converting


def test_the_same_content_gives_the_same_bytes_wherever_it_lies(
    tiny_model: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    elsewhere = shutil.copytree(tiny_model, tmp_path / "SomeOne_Other-7B-Chat-v2.1")
    gguf.convert(elsewhere, tmp_path / "out.gguf", tmp_path / "log")
    assert (tmp_path / "out.gguf").read_bytes() == tiny_gguf.read_bytes()
    assert gguf.metadata(tiny_gguf)["general.name"] == "posttrain"


def test_an_unknown_architecture_is_named_and_the_way_out_given(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["NovelForCausalLM"]}))
    with pytest.raises(ValueError, match=r"NovelForCausalLM: give convert\.llama_cpp"):
        gguf.convert(model, tmp_path / "out.gguf", tmp_path / "log")
    assert "NovelForCausalLM is not supported" in (tmp_path / "log").read_text()


def test_an_adapter_is_sent_to_merge_first(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="Merge an adapter into its base first"):
        gguf.convert(tmp_path, tmp_path / "out.gguf", tmp_path / "log")


def test_a_missing_converter_says_make_setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="Run `make setup`"):
        gguf.converter()
    with pytest.raises(FileNotFoundError, match="Give the root of a llama"):
        gguf.converter(str(tmp_path))


def test_python_files_of_a_model_never_reach_the_converter(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "modeling_evil.py").write_text("raise SystemExit")
    checkout = _pretend_converter(tmp_path / "cpp", "out.write_text(' '.join(sorted(p.name for p in model.iterdir())))")
    gguf.convert(model, tmp_path / "seen", tmp_path / "log", llama_cpp=checkout)
    assert (tmp_path / "seen").read_text().split() == sorted(path.name for path in tiny_model.iterdir())


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("sys.exit('BPE pre-tokenizer was not recognized')", "does not know this tokenizer"),
        ("import os; os.kill(os.getpid(), 9)", "memory ran out"),
        ("raise RuntimeError('the moon is full')", "the moon is full"),
        ("pass", "exit code 0"),
    ],
)
def test_a_failing_converter_is_explained(tiny_model: Path, tmp_path: Path, program: str, said: str) -> None:
    checkout = _pretend_converter(tmp_path / "cpp", program)
    with pytest.raises(ValueError, match=said):
        gguf.convert(tiny_model, tmp_path / "out.gguf", tmp_path / "log", llama_cpp=checkout)


# Quantizing


def test_quantizing_twice_gives_the_same_smaller_bytes(tiny_gguf: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    for name in ("a", "b"):
        gguf.quantize(tiny_gguf, tmp_path / name, "q8_0", tmp_path / "log", lambda *step: seen.append(step))
    assert seen == [(done, 21, "tensors") for done in range(1, 22)] * 2
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert gguf.measure(tmp_path / "a")["bits_per_weight"] == pytest.approx(8.5, abs=0.1)
    assert gguf.measure(tiny_gguf)["bits_per_weight"] == pytest.approx(16, abs=0.1)
    assert "q8_0" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("level", gguf.LEVELS)
def test_every_level_is_known_to_the_quantizer_and_loads(tiny_gguf: Path, tmp_path: Path, level: str) -> None:
    gguf.quantize(tiny_gguf, tmp_path / "out.gguf", level, tmp_path / "log")
    with gguf.Engine(tmp_path / "out.gguf", context=64) as engine:
        assert np.isfinite(engine.logits([3, 300, 301])).all()


def test_a_source_at_the_wanted_level_is_copied(tiny_gguf: Path, tmp_path: Path) -> None:
    gguf.quantize(tiny_gguf, tmp_path / "out.gguf", "f16", tmp_path / "log")
    assert (tmp_path / "out.gguf").read_bytes() == tiny_gguf.read_bytes()


def test_a_quantized_source_is_refused_with_llama_cpps_reason(tiny_gguf: Path, tmp_path: Path) -> None:
    gguf.quantize(tiny_gguf, tmp_path / "small.gguf", "q8_0", tmp_path / "log")
    with pytest.raises(ValueError, match="requantizing from type q8_0 is disabled"):
        gguf.quantize(tmp_path / "small.gguf", tmp_path / "smaller.gguf", "q4_0", tmp_path / "log")


def test_an_unknown_level_names_the_nearest(tiny_gguf: Path, tmp_path: Path) -> None:
    assert "the nearest is 'q4_k_m'" in gguf.level_problem("Q4-KM")
    with pytest.raises(ValueError, match="no level 'q8'; the nearest is 'q8_0'"):
        gguf.quantize(tiny_gguf, tmp_path / "out.gguf", "q8", tmp_path / "log")


# What a file says about itself


def test_annotating_leaves_every_tensor_and_every_other_key_as_it_was(tiny_gguf: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    gguf.annotate(tiny_gguf, tmp_path / "out.gguf", {"posttrain.note": "é" * 1001, "general.name": "another"})
    assert _tensors(tmp_path / "out.gguf") == _tensors(tiny_gguf)
    before, after = GGUFReader(tiny_gguf).fields, GGUFReader(tmp_path / "out.gguf").fields
    assert after["posttrain.note"].contents() == "é" * 1001
    assert after["general.name"].contents() == "another"
    same = [key for key in before if key not in ("general.name", "GGUF.kv_count")]
    assert {key: before[key].contents() for key in same} == {key: after[key].contents() for key in same}


def test_annotating_again_replaces(tiny_gguf: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.gguf", tmp_path / "twice.gguf"
    gguf.annotate(tiny_gguf, once, {"posttrain.note": "first, and longer"})
    gguf.annotate(once, twice, {"posttrain.note": "second"})
    assert gguf.metadata(twice)["posttrain.note"] == "second"
    assert _tensors(twice) == _tensors(tiny_gguf)


def test_lineage_goes_in_and_comes_out(tiny_gguf: Path, tmp_path: Path) -> None:
    stages = [("download", "d1", {"source": "hub"}), ("preprocess", "p1", {}), ("preprocess", "p2", {"seed": 3})]
    lineage = [{"stage": s, "recipe": "r" + d, "digest": d, "config": c} for s, d, c in stages]
    gguf.annotate(tiny_gguf, tmp_path / "out.gguf", gguf.lineage_keys(lineage))
    said = gguf.metadata(tmp_path / "out.gguf")
    assert json.loads(said["posttrain.lineage"]) == lineage
    assert (said["posttrain.base"], said["posttrain.data"], said["posttrain.version"]) == ("d1", "p1,p2", "1")


def test_metadata_reads_strings_and_scalars(tiny_gguf: Path) -> None:
    said = gguf.metadata(tiny_gguf)
    assert said["tokenizer.chat_template"] == tiny.TEMPLATE
    assert said["llama.block_count"] == 2
    assert said["tokenizer.ggml.add_bos_token"] is False
    assert said["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert "tokenizer.ggml.tokens" not in said


def test_a_file_of_another_kind_and_a_cut_one_are_told_apart(tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("hello")
    (tmp_path / "cut").write_bytes(tiny_gguf.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not a GGUF file"):
        gguf.metadata(tmp_path / "other")
    with pytest.raises(ValueError, match="is damaged"):
        gguf.metadata(tmp_path / "cut")


def test_a_folder_with_two_files_names_both(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="found: none"):
        gguf.file_in(tmp_path)
    (tmp_path / "a.gguf").touch()
    assert gguf.file_in(tmp_path).name == "a.gguf"
    (tmp_path / "b.gguf").touch()
    with pytest.raises(FileNotFoundError, match=r"a\.gguf, b\.gguf"):
        gguf.file_in(tmp_path)


# Running a file


def test_a_chat_is_fed_the_ids_that_transformers_would_feed(tiny_gguf: Path, tokenizer: Any) -> None:
    with gguf.Engine(tiny_gguf, context=128) as engine:
        for messages in CHATS:
            expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
            assert engine.prompt(messages) == expected


def test_f16_logits_are_those_of_fp32_within_a_hundredth(tiny_model: Path, tiny_gguf: Path, tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    ids = tokenizer('The quick brown fox, {"jumps": [1, 2]} over the lazy dog.').input_ids
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    with gguf.Engine(tiny_gguf, context=128) as engine:
        engine.logits([5, 6, 7])  # an earlier sequence leaves no trace
        found = engine.logits(ids)
        assert found.shape == (len(ids), engine.vocabulary) == expected.shape
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=0.01)
        np.testing.assert_array_equal(engine.logits(ids, start=10), found[10:])


def test_a_turn_has_the_ids_it_has_in_transformers_and_its_logits_are_those_of_the_answer(
    tiny_gguf: Path, tokenizer: Any
) -> None:
    chats, answer = CHATS[:2], ' {"a": 1}'
    expected = list(chat.turns(tokenizer, chats, [answer] * 2))
    with gguf.Engine(tiny_gguf, context=128) as engine:
        assert [engine.turn(messages, answer) for messages in chats] == expected
        prompt, told = expected[0].prompt, expected[0].answer
        found = engine.answer_logits(prompt, told)
        assert len(found) == len(told)
        np.testing.assert_array_equal(found, engine.logits(prompt + told)[len(prompt) - 1 : -1])


def test_a_chat_ends_by_the_stop_token(tiny_gguf: Path) -> None:
    with gguf.Engine(tiny_gguf, context=128) as engine:
        assert engine.chat(CHATS[1]) == ("Ok.", "stop")
        assert engine.chat(CHATS[0], max_tokens=1) == ("O", "length")


def test_a_chat_without_a_template_says_what_is_missing(tiny_model: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.gguf"
    gguf.annotate(tiny_gguf, bare, {"tokenizer.chat_template": ""})
    with gguf.Engine(bare, context=64) as engine, pytest.raises(ValueError, match="has no chat template"):
        engine.chat(CHATS[0])


def test_an_answer_begins_as_the_chat_does_and_ends_with_the_stop_token(tiny_gguf: Path, tokenizer: Any) -> None:
    with gguf.Engine(tiny_gguf, context=128) as engine:
        for messages in CHATS:
            said = engine.begin(engine.prompt(messages), 12)
            assert (tokenizer.decode(said[:-1]), said[-1]) == ("Ok.", tiny.STOP)
        assert tokenizer.decode(engine.begin(engine.prompt(CHATS[0]), 2)) == engine.chat(CHATS[0], max_tokens=2)[0]


def test_what_does_not_fit_is_refused_with_numbers(tiny_gguf: Path) -> None:
    with gguf.Engine(tiny_gguf, context=64) as engine:
        with pytest.raises(ValueError, match="65 tokens do not fit a context of 64"):
            engine.logits([5] * 65)
        with pytest.raises(ValueError, match="66 tokens do not fit"):
            engine.begin([5] * 64, 2)


def test_a_file_that_llama_cpp_cannot_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ValueError, match=r"cannot load .*broken\.gguf"), gguf.Engine(tmp_path / "broken.gguf"):
        pass


def test_llama_cpp_prints_nothing(tiny_gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gguf.quantize(tiny_gguf, tmp_path / "out.gguf", "q4_k_m", tmp_path / "log")
    with gguf.Engine(tmp_path / "out.gguf", context=64) as engine:
        engine.chat([{"role": "user", "content": "Hi"}])
    assert capfd.readouterr() == ("", "")
