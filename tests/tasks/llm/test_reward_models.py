from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.llm import models, reward_models
from tests import hand, tiny

CHATS = [(pair["prompt"], pair[which]) for pair in hand.pairs() for which in ("chosen", "rejected")]


def _published(folder: Path, precision: str = "fp32", seed: int = 3) -> Path:
    """A judge with a head of noise."""
    import torch

    source = tiny.build(folder / "policy", says="")
    tokenizer = reward_models.load_tokenizer(source)
    model = reward_models.begun(source, source, "fp32", tokenizer.pad_token_id)
    model.score.weight.data = torch.randn(model.score.weight.shape, generator=torch.Generator().manual_seed(seed))
    (folder / "judge").mkdir()
    reward_models.save(reward_models.finished(model, precision), folder / "judge", source, tokenizer.pad_token)
    return folder / "judge"


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _published(tmp_path_factory.mktemp("judge"))


def _raw(folder: Path) -> tuple[Any, Any]:
    """As anybody loads it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="float32").eval()
    return model, AutoTokenizer.from_pretrained(folder)


def _texts(tokenizer: Any) -> list[str]:
    turns = [[*prompt, {"role": "assistant", "content": answer}] for prompt, answer in CHATS]
    return [tokenizer.apply_chat_template(turn, tokenize=False).rstrip("\n") for turn in turns]


def test_a_fresh_head_scores_everything_alike(tmp_path: Path) -> None:
    source = tiny.build(tmp_path, says="")
    model = reward_models.begun(source, source, "bf16", 0)
    assert reward_models.scores(model, [([5, 6], [2]), ([7], [2])], 2) == [0.0, 0.0]


def test_the_score_does_not_depend_on_what_it_is_batched_with(judge: Path) -> None:
    alone, together = (reward_models.Judge(judge, "fp32", at_once)(CHATS) for at_once in (1, len(CHATS)))
    backwards = reward_models.Judge(judge, "fp32", 3)(CHATS[::-1])[::-1]
    assert together == pytest.approx(alone, abs=1e-4)
    assert backwards == pytest.approx(alone, abs=1e-4)
    assert len({round(score, 3) for score in alone}) == len(CHATS)


def test_the_score_is_read_at_the_stop_token(judge: Path) -> None:
    import torch

    model, tokenizer = _raw(judge)
    found = []
    for text in _texts(tokenizer):
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        assert ids[0, -1] == tokenizer.eos_token_id
        with torch.inference_mode():
            found.append((model.model(ids).last_hidden_state[0, -1] @ model.score.weight[0]).item())
    assert reward_models.Judge(judge, "fp32", 4)(CHATS) == pytest.approx(found, abs=1e-4)


def test_whoever_pads_with_its_own_tokenizer_gets_the_same_scores(judge: Path) -> None:
    import torch

    model, tokenizer = _raw(judge)
    batch = tokenizer(_texts(tokenizer), padding=True, add_special_tokens=False, return_tensors="pt")
    assert (batch["attention_mask"] == 0).any()
    with torch.inference_mode():
        found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist()
    assert reward_models.Judge(judge, "fp32", 4)(CHATS) == pytest.approx(found, abs=1e-4)


def test_the_pad_token_is_not_the_stop_token_where_the_model_pads_with_it(judge: Path) -> None:
    named = json.loads((judge / "tokenizer_config.json").read_text())
    assert (named["pad_token"], named["eos_token"]) == ("<unk>", "<|im_end|>")
    assert json.loads((judge / "config.json").read_text())["pad_token_id"] == 0


def test_a_pad_token_of_its_own_is_kept(tmp_path: Path) -> None:
    folder = tiny.build(tmp_path, more=["<pad>"])
    place = folder / "tokenizer_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"pad_token": "<pad>"}))
    assert reward_models.load_tokenizer(folder).pad_token == "<pad>"


def test_the_tokenizer_of_a_policy_stays_as_it_is(tmp_path: Path) -> None:
    judge = _published(tmp_path)
    assert models.load_tokenizer(tmp_path / "policy").pad_token == "<|im_end|>"
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (judge / name).read_bytes() == (tmp_path / "policy" / name).read_bytes()


def test_in_bf16_scores_are_finer_than_bf16(tmp_path: Path) -> None:
    import torch

    folder = _published(tmp_path, "bf16")
    found = reward_models.Judge(folder, "bf16", 4)(CHATS)
    assert all(weight.dtype == torch.bfloat16 for weight in _weights(folder).values())
    assert any(torch.tensor(score).bfloat16().item() != score for score in found)
    assert found == pytest.approx(reward_models.Judge(folder, "fp32", 4)(CHATS), abs=0.5)


def _weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_where_it_came_from_lies_beside_it(tmp_path: Path) -> None:
    shutil.copytree(_published(tmp_path), tmp_path / "again")
    (tmp_path / "policy" / models.ORIGIN).write_text('{"repo": "some/model"}')
    (tmp_path / "out").mkdir()
    model = reward_models.load(tmp_path / "judge", "fp32")
    reward_models.save(model, tmp_path / "out", tmp_path / "policy", "<unk>")
    assert models.origin(tmp_path / "out") == {"repo": "some/model"}
