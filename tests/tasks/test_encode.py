from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.encode import EncodeConfig, encode
from tasks.llm import models, preview, scoring
from tasks.llm.masks import IGNORED, Mask
from tasks.runtime import Run, Tokenizer, keys
from tests import hand, thinking

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


def test_the_notes_prove_what_the_rows_teach(tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = hand.run(tmp_path / "run")
    spelled = {
        "id": "s",
        "messages": [*hand.asked("What is <|im_end|>?"), {"role": "assistant", "content": "A token."}],
    }
    metrics = encode.body(run, EncodeConfig(), tokenizer, hand.dataset(tmp_path / "rows", [*ROWS, spelled]))
    assert (metrics["stop_trained"], metrics["fully_masked"]) == (1.0, 0)
    assert (metrics["spelled"], metrics["leaked"]) == (1, 0)
    assert _encoded(run, "train")[-1]["input_ids"].count(models.load_tokenizer(tokenizer.path).eos_token_id) == 2
    report = json.loads((run.notes / "report.json").read_text())
    assert report["mask"] == "completion"
    assert sum(report["lengths"]["counts"]) == 5
    assert "* Control tokens spelled in messages: 1, all stayed text." in (run.notes / "report.md").read_text()
    assert "What is &lt;|im_end|&gt;?" in (run.notes / "preview.html").read_text()


def test_rows_of_one_conversation_have_names_of_their_own(
    tiny_model: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tokenizer.path / "chat_template.jinja").write_text(thinking.TEMPLATE)
    said = [("user", "Hi"), ("assistant", "Yes?"), ("user", "Tea"), ("assistant", "Here")]
    talk = {"id": "a", "messages": [{"role": role, "content": text} for role, text in said]}
    run = hand.run(tmp_path / "run")
    rows = hand.dataset(tmp_path / "rows", [talk, *ROWS[:1]])
    metrics = encode.body(run, EncodeConfig(mask=Mask.assistant), tokenizer, rows)
    assert [row["id"] for row in _encoded(run, "train")] == ["a-1", "a-2", "0"]
    assert (metrics["rows"], metrics["parts"], metrics["stop_trained"]) == (3, 2, 1.0)
    assert "1 conversations took a row for each answer, 2 in all" in (run.notes / "report.md").read_text()


def test_packed_rows_hold_the_same_documents_and_say_how_full_they_are(tokenizer: Tokenizer, tmp_path: Path) -> None:
    runs = [hand.run(tmp_path / name) for name in ("rows", "packed")]
    data = hand.dataset(tmp_path / "data", ROWS, ROWS)
    for run, packing in zip(runs, (False, True), strict=True):
        metrics = encode.body(run, EncodeConfig(128, packing=packing), tokenizer, data)
    rows, packed = (_encoded(run, "train") for run in runs)
    found = [document for row in packed for document in preview.documents(row)]
    assert sorted(found) == sorted((row["input_ids"], row["labels"]) for row in rows)
    assert metrics["packed_rows"] == len(packed) < len(rows)
    assert metrics["fill"] == metrics["tokens"] / 2 / (128 * len(packed))
    assert [row["seq_lengths"] for row in _encoded(runs[1], "eval")] == [[len(row["input_ids"])] for row in rows]


def test_the_last_turn_is_the_completion_by_another_name_and_has_its_key() -> None:
    by_name = {mask: keys.keyed_fields(EncodeConfig(mask=mask), None) for mask in Mask}
    assert by_name[Mask.last_turn] == by_name[Mask.completion]
    assert len({json.dumps(fields) for fields in by_name.values()}) == 3


def test_the_bundled_chats_are_encoded_as_they_always_were(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """By hand: the prompt's ids, then those of the answer and the stop token behind it."""
    place = Path(__file__).parents[2] / "data" / "tickets" / "chats.jsonl"
    chats = [{"id": str(n), **json.loads(line)} for n, line in enumerate(place.read_text().splitlines())]
    run = hand.run(tmp_path / "run")
    encode.body(run, EncodeConfig(), tokenizer, hand.dataset(tmp_path / "rows", chats))
    loaded = models.load_tokenizer(tokenizer.path)
    rows = _encoded(run, "train")
    assert len(rows) == len(chats)
    for row, chat in zip(rows, chats, strict=True):
        prompt = loaded.apply_chat_template(chat["messages"][:-1], add_generation_prompt=True)["input_ids"]
        whole = loaded.apply_chat_template(chat["messages"])["input_ids"]
        end = len(whole) - whole[::-1].index(loaded.eos_token_id)
        assert row["input_ids"] == whole[:end][:1024]
        assert row["labels"] == ([IGNORED] * len(prompt) + whole[len(prompt) : end])[:1024]
