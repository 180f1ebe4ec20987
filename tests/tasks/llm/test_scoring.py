from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.llm import models, scoring
from tasks.llm.chat import Turn
from tests import tiny
from tests.hand import turns

THIRDS = np.log(np.array([[1, 1, 1]], dtype=np.float32) / 3)
SKEWED = np.log(np.array([[2, 1, 1]], dtype=np.float32) / 4)


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, list[Turn]]:
    """A model that says something else to everybody, its tokenizer, and turns of four lengths."""
    folder = tiny.build(tmp_path_factory.mktemp("talker"), seed=3, says="")
    return models.load(folder, folder, "fp32").eval(), models.load_tokenizer(folder), turns(folder)


def test_log_softmax_is_right_where_a_plain_one_overflows() -> None:
    assert scoring.log_softmax(np.array([[1000.0, 1000.0], [-1000.0, 0.0]])) == pytest.approx(
        np.array([[math.log(0.5), math.log(0.5)], [-1000.0, 0.0]])
    )


def test_the_loss_of_an_answer_is_its_mean_surprise() -> None:
    logits = np.concatenate([THIRDS, SKEWED]) + 7  # a constant more changes no probability
    assert scoring.answer_loss(logits, [2, 0]) == pytest.approx((math.log(3) + math.log(2)) / 2)


def test_kl_over_three_words_is_the_sum_by_hand() -> None:
    found = scoring.Divergence()
    found.add(SKEWED, THIRDS)
    by_hand = 0.5 * math.log(0.5 / (1 / 3)) + 2 * 0.25 * math.log(0.25 / (1 / 3))
    assert found.result()["kl"] == pytest.approx(by_hand, rel=1e-5)
    found.add(np.concatenate([THIRDS, THIRDS]), np.concatenate([THIRDS, THIRDS]))
    assert found.tokens == 3
    assert found.result()["kl"] == pytest.approx(by_hand / 3, rel=1e-5)


def test_kl_is_of_the_first_from_the_second_and_not_the_other_way_round() -> None:
    ways = []
    for p, q in ((SKEWED, THIRDS), (THIRDS, SKEWED)):
        found = scoring.Divergence()
        found.add(p, q)
        ways.append(found.result()["kl"])
    assert ways[1] == pytest.approx(math.log(4 / 3) * 2 / 3 + math.log(2 / 3) / 3, rel=1e-5)
    assert ways[0] != pytest.approx(ways[1], rel=1e-3)


def test_identical_logits_have_no_divergence() -> None:
    found = scoring.Divergence()
    found.add(SKEWED, SKEWED)
    assert found.result() == {"kl": 0.0, "same_top1": 1.0}


def test_same_top1_is_the_share_of_tokens_with_the_same_first_choice() -> None:
    p = np.array([[3.0, 1, 0], [0, 3, 1], [0, 1, 3], [3, 1, 0]], dtype=np.float32)
    q = np.array([[9.0, 1, 0], [3, 0, 1], [0, 1, 2], [5, 1, 0]], dtype=np.float32)
    found = scoring.Divergence()
    found.add(p, q)
    assert found.result()["same_top1"] == 0.75


def test_logits_come_back_from_disk_answer_by_answer(tmp_path: Path) -> None:
    kept = scoring.LogitsFile(tmp_path / "logits", [2, 1, 3], 4)
    answers = [np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32) for rows in (2, 1, 3)]
    for index in (2, 0, 1):
        kept[index] = answers[index]
    assert all((kept[index] == answers[index]).all() for index in range(3))


def test_a_token_follows_where_it_is_the_best_or_all_but_the_best() -> None:
    logits = np.array([[3.0, 1, 0], [1.0, 1.04, 0]], dtype=np.float32)
    assert scoring.followed(logits, [0, 1])
    assert scoring.followed(logits, [0, 0])  # a near tie, which two number formats may order differently
    assert not scoring.followed(logits, [1, 1])
    assert not scoring.followed(logits, [0, 2])


def test_no_row_has_more_tokens_than_it_is_given_room_for(tiny_model: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": word * 40}], "answer": word} for word in ("naïve 😁", "b")]
    told = [{"done": row["prompt"][0]["content"], "said": row["answer"]} for row in rows]
    longest = max(len(turn.prompt) + len(turn.answer) for turn in turns(tiny_model, told))
    assert longest <= scoring.room(rows)


def test_answer_logits_are_those_that_predict_the_answers_tokens(talker: tuple[Any, Any, list[Turn]]) -> None:
    import torch

    model, _, (turn, *_) = talker
    with torch.inference_mode():
        whole = model(input_ids=torch.tensor([turn.prompt + turn.answer])).logits[0].numpy()
    found = scoring.answer_logits(model, turn)
    assert found.dtype == np.float32
    assert found == pytest.approx(whole[len(turn.prompt) - 1 : -1], abs=1e-5)


def test_padding_on_the_left_gives_the_answers_of_one_by_one(talker: tuple[Any, Any, list[Turn]]) -> None:
    model, tokenizer, rows = talker
    prompts = [turn.prompt for turn in rows]
    assert len({len(prompt) for prompt in prompts}) == 4
    together = list(scoring.generate(model, tokenizer, prompts, [tiny.STOP], max_new=12, batch=4))
    alone = list(scoring.generate(model, tokenizer, prompts, [tiny.STOP], max_new=12, batch=1))
    assert together == alone
    assert sorted(answer.index for answer in alone) == [0, 1, 2, 3]
    assert len({answer.text for answer in alone}) > 2  # else it would prove little


def test_answers_come_batch_by_batch(talker: tuple[Any, Any, list[Turn]], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer, rows = talker
    calls: list[int] = []
    whole = model.generate

    def counted(**given: Any) -> Any:
        calls.append(len(given["input_ids"]))
        return whole(**given)

    monkeypatch.setattr(model, "generate", counted)
    answers = scoring.generate(model, tokenizer, [turn.prompt for turn in rows], [tiny.STOP], max_new=2, batch=2)
    next(answers)
    assert calls == [2]
    assert len(list(answers)) == 3
    assert calls == [2, 2]


def test_an_answer_ends_before_the_first_stop_token_or_is_not_finished(tiny_model: Path) -> None:
    model, tokenizer = models.load(tiny_model, tiny_model, "fp32"), models.load_tokenizer(tiny_model)
    prompts = [turn.prompt for turn in turns(tiny_model)][:1]
    (answer,) = scoring.generate(model, tokenizer, prompts, [tiny.STOP], max_new=20, batch=1)
    assert (answer.text, answer.finished) == ("Ok.", True)
    (answer,) = scoring.generate(model, tokenizer, prompts, [tiny.STOP], max_new=2, batch=1)
    assert (answer.text, answer.finished) == ("Ok", False)
    period = tokenizer.convert_tokens_to_ids(".")
    (answer,) = scoring.generate(model, tokenizer, prompts, [tiny.STOP, period], max_new=20, batch=1)
    assert (answer.text, answer.finished) == ("Ok", True)


def test_a_models_own_wish_to_sample_is_not_granted(tiny_model: Path) -> None:
    model, tokenizer = models.load(tiny_model, tiny_model, "fp32"), models.load_tokenizer(tiny_model)
    for name, value in {"do_sample": True, "temperature": 5.0, "top_k": 50, "repetition_penalty": 9.0}.items():
        setattr(model.generation_config, name, value)
    prompts = [turn.prompt for turn in turns(tiny_model)]
    told = [a.text for a in scoring.generate(model, tokenizer, prompts, [tiny.STOP], max_new=8, batch=4)]
    assert told == ["Ok."] * 4


@pytest.mark.parametrize(
    ("said", "wanted", "score"),
    [("a b", "a b", 1), (" a b\n", "a b", 1), ("a  b", "a b", 0), ("A b", "a b", 0), ("", "a", 0), ("", " ", 1)],
)
def test_exact_match_is_to_the_letter_but_for_the_ends(said: str, wanted: str, score: int) -> None:
    assert scoring.exact_match(said, wanted) == score


@pytest.mark.parametrize(
    ("said", "score"),
    [
        ('{"a": 1}', 1),
        (" [1, 2]\n", 1),
        ('{"a": 1', 0),
        ('{"a": 1} ok', 0),
        ("```json\n{}\n```", 0),
        ("3", 0),
        ('"text"', 0),
        ("", 0),
    ],
)
def test_json_valid_wants_one_object_or_array_and_nothing_else(said: str, score: int) -> None:
    assert scoring.json_valid(said, "") == score


@pytest.mark.parametrize("opened", ["[", '{"a":'])
def test_an_answer_that_only_opens_brackets_is_no_json_and_ends_no_evaluation(opened: str) -> None:
    assert scoring.json_valid(opened * 20_000, "") == 0


def test_constant_differences_have_an_interval_of_no_width() -> None:
    assert scoring.interval([0.25] * 9) == (0.25, 0.25)


def test_an_interval_is_the_same_every_time_and_that_of_nothing_is_nothing() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert scoring.interval(values) == scoring.interval(values)
    low, high = scoring.interval(values)
    assert low < 0.6 < high
    assert all(math.isnan(end) for end in scoring.interval([]))


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    source = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        low, high = scoring.interval(list(source.normal(0.3, 1, size=40)), resamples=400)
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 300 <= 0.98
