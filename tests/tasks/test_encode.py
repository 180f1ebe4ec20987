from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.encode import IGNORED, EncodeConfig, encode
from tasks.llm import models, scoring
from tasks.runtime import Run, Tokenizer
from tests import hand

ROWS = hand.chats()
ANSWERS = [row["said"] for row in hand.TOLD]


@pytest.fixture
def tokenizer(tiny_model: Path, tmp_path: Path) -> Tokenizer:
    """The tokenizer's files alone, as the stage gets them: no config, no weights."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for glob in Tokenizer.globs:
        for path in tiny_model.glob(glob):
            shutil.copyfile(path, folder / path.name)
    return hand.handle(Tokenizer, folder)


def _encoded(run: Run, split: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return list(pq.read_table(run.out / f"{split}.parquet").to_pylist())


def test_only_the_answer_and_its_stop_token_bear_loss(tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = hand.run(tmp_path / "run")
    metrics = encode.body(run, EncodeConfig(), tokenizer, hand.dataset(tmp_path / "rows", ROWS))
    decode = models.load_tokenizer(tokenizer.path).decode
    rows = _encoded(run, "train")
    assert [row["id"] for row in rows] == ["0", "1", "2", "3"]
    for row, answer in zip(rows, ANSWERS, strict=True):
        assert len(row["labels"]) == len(row["input_ids"])
        labelled = [label for label in row["labels"] if label != IGNORED]
        assert decode(labelled) == f"{answer}<|im_end|>"
        assert row["input_ids"][-len(labelled) :] == labelled
        assert decode(row["input_ids"][: -len(labelled)]).endswith("<|im_start|>assistant\n")
    labelled = sum(label != IGNORED for row in rows for label in row["labels"])
    tokens = sum(len(row["input_ids"]) for row in rows)
    assert metrics["trained_share"] == labelled / tokens
    assert (metrics["rows"], metrics["eval_rows"], metrics["tokens"]) == (4, 0, tokens)
    assert (metrics["truncated"], metrics["no_label"]) == (0, 0)


def test_of_a_longer_conversation_the_last_answer_alone_bears_loss(tokenizer: Tokenizer, tmp_path: Path) -> None:
    said = [("user", "Hi"), ("assistant", "Yes?"), ("user", "Tea"), ("assistant", "Here")]
    row = {"id": "a", "messages": [{"role": role, "content": text} for role, text in said]}
    run = hand.run(tmp_path / "run")
    encode.body(run, EncodeConfig(), tokenizer, hand.dataset(tmp_path / "rows", [row]))
    decode = models.load_tokenizer(tokenizer.path).decode
    (encoded,) = _encoded(run, "train")
    assert decode([label for label in encoded["labels"] if label != IGNORED]) == "Here<|im_end|>"
    assert "Yes?" in decode(encoded["input_ids"])


def test_the_loss_of_a_row_is_the_models_own_on_these_labels(
    tiny_model: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    import torch

    run = hand.run(tmp_path / "run")
    encode.body(run, EncodeConfig(), tokenizer, hand.dataset(tmp_path / "rows", ROWS[1:2]))
    (row,) = _encoded(run, "train")
    model = models.load(tiny_model, tiny_model, "fp32")
    with torch.inference_mode():
        known = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
        log_p = torch.log_softmax(model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double(), -1)
    where = [i for i, label in enumerate(row["labels"]) if label != IGNORED]
    by_hand = -sum(log_p[i - 1, row["input_ids"][i]].item() for i in where) / len(where)
    assert by_hand == pytest.approx(known.item(), rel=1e-5)
    (turn,) = hand.turns(tiny_model, hand.TOLD[1:2])
    assert by_hand == pytest.approx(scoring.answer_loss(scoring.answer_logits(model, turn), turn.answer), rel=1e-5)


def test_a_row_over_the_cutoff_loses_its_end_and_is_counted(
    tiny_model: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lengths = [len(turn.prompt) + len(turn.answer) for turn in hand.turns(tiny_model)]
    cutoff = max(lengths) - 2
    run = hand.run(tmp_path / "run")
    metrics = encode.body(run, EncodeConfig(cutoff), tokenizer, hand.dataset(tmp_path / "rows", ROWS))
    assert metrics["truncated"] == sum(length > cutoff for length in lengths) == 1
    cut = max(_encoded(run, "train"), key=lambda row: len(row["input_ids"]))
    assert len(cut["input_ids"]) == len(cut["labels"]) == cutoff
    assert cut["labels"][-1] == cut["input_ids"][-1] != models.load_tokenizer(tokenizer.path).eos_token_id


def test_a_row_without_an_answer_token_within_the_cutoff_is_dropped_and_counted(
    tiny_model: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prompts = sorted(len(turn.prompt) for turn in hand.turns(tiny_model))
    run = hand.run(tmp_path / "run")
    rows = hand.dataset(tmp_path / "rows", ROWS, ROWS)
    metrics = encode.body(run, EncodeConfig(prompts[-1]), tokenizer, rows)
    assert (metrics["rows"], metrics["eval_rows"], metrics["no_label"]) == (3, 3, 2)
    metrics = encode.body(hand.run(tmp_path / "run"), EncodeConfig(prompts[-1] + 1), tokenizer, rows)
    assert (metrics["rows"], metrics["eval_rows"], metrics["no_label"]) == (4, 4, 0)


def test_no_row_left_is_an_error_that_says_why(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"No row is left.*; 4 had no answer token within cutoff=8: raise encode\.cutoff"
    ):
        encode.body(hand.run(tmp_path), EncodeConfig(8), tokenizer, hand.dataset(tmp_path / "rows", ROWS))


def test_the_same_rows_give_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    runs = [hand.run(tmp_path / name) for name in ("one", "two")]
    for run in runs:
        encode.body(run, EncodeConfig(), tokenizer, hand.dataset(tmp_path / f"{run.out.parent.name}-rows", ROWS, ROWS))
    assert hand.content(runs[0].out) == hand.content(runs[1].out)
    assert sorted(hand.content(runs[0].out)) == ["eval.parquet", "train.parquet"]


def test_a_cutoff_too_short_for_anything_is_a_problem() -> None:
    assert list(EncodeConfig().problems()) == []
    (problem,) = EncodeConfig(cutoff=4).problems()
    assert "give at least 8" in problem
