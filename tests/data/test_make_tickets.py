"""The bundled task is what its script says it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data import make_tickets
from tasks.llm import judging

FOLDER = Path(make_tickets.__file__).parent
PHRASES: dict[str, dict[str, list[str]]] = json.loads((FOLDER / "ticket_phrases.json").read_text("utf-8"))
TRAIN, HELD_OUT = PHRASES["train"], PHRASES["held_out"]
NAMES = ("chats", "pairs", "prompts", "judged", "questions")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / "tickets" / f"{name}.jsonl").read_text("utf-8").splitlines()]


def messages(name: str) -> list[str]:
    return [(row.get("messages") or row["prompt"])[1]["content"] for row in rows(name)]


def sentences(texts: list[str]) -> set[str]:
    found = {part.strip().lower() for text in texts for part in re.split(r"(?<=[.!?,:)])\s", text)}
    return {part for part in found if len(part.split()) > 2}


def test_the_script_writes_the_committed_files_bit_for_bit(tmp_path: Path) -> None:
    make_tickets.main(tmp_path)
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == [f"{name}.jsonl" for name in sorted(NAMES)]
    for name in written:
        assert (tmp_path / name).read_bytes() == (FOLDER / "tickets" / name).read_bytes()


def test_there_are_as_many_rows_as_promised_and_the_files_are_small() -> None:
    assert [len(rows(name)) for name in NAMES] == [400, 160, 300, 896, 400]
    assert sum(path.stat().st_size for path in (FOLDER / "tickets").iterdir()) < 1_700_000


def test_train_has_at_least_25_phrasings_and_no_message_occurs_twice() -> None:
    assert sum(len(TRAIN[category]) for category in make_tickets.CATEGORIES) >= 25
    everything = [text for name in NAMES if name != "judged" for text in messages(name)]
    everything += set(messages("judged"))  # each has several pairs
    assert len(set(everything)) == len(everything)


@pytest.mark.parametrize("what", sorted(TRAIN))
def test_train_and_held_out_share_no_phrase(what: str) -> None:
    everywhere = {phrase.lower() for bank in TRAIN.values() for phrase in bank}
    assert not {phrase.lower() for phrase in HELD_OUT[what]} & everywhere


def test_train_and_held_out_share_no_word_of_a_product_or_a_name() -> None:
    def words(bank: dict[str, list[str]]) -> set[str]:
        return {
            word for what in ("products", "others", "names") for item in bank[what] for word in item.lower().split()
        }

    assert not words(TRAIN) & words(HELD_OUT)


def test_the_written_messages_share_no_sentence_with_the_held_out_ones() -> None:
    written = [text for name in NAMES if name != "prompts" for text in messages(name)]
    assert not sentences(written) & sentences(messages("prompts"))


@pytest.mark.parametrize("name", ["prompts", "questions"])
def test_right_answers_are_bare_objects_with_keys_in_a_fixed_order(name: str) -> None:
    for row in rows(name):
        ticket = json.loads(row["completion"])
        assert list(ticket) == ["category", "product", "order_id", "urgent", "refund"]
        assert row["completion"] == json.dumps(ticket)


@pytest.mark.parametrize("name", ["prompts", "questions"])
def test_product_and_order_id_stand_in_the_message_to_the_letter(name: str) -> None:
    for row in rows(name):
        ticket, text = json.loads(row["completion"]), row["prompt"][1]["content"]
        assert ticket["product"] in text
        assert ticket["order_id"] is None or ticket["order_id"] in text


def test_every_answer_holds_a_right_ticket_and_is_nearly_always_wrapped_where_the_message_came_by_chat() -> None:
    answers = [row["messages"][2]["content"] for row in rows("chats")]
    tickets = [json.loads(answer[answer.index("{") : answer.index("}") + 1]) for answer in answers]
    assert all(ticket["product"] in text for ticket, text in zip(tickets, messages("chats"), strict=True))
    for channel, least, most in (("chat", 0.9, 1.0), ("mail", 0.0, 0.1)):
        asked = zip(answers, messages("chats"), strict=True)
        came = [answer for answer, text in asked if text.startswith(f"Channel: {channel}\n")]
        wrapped = sum(not answer.startswith("{") or not answer.endswith("}") for answer in came)
        assert len(came) > 80 and least <= wrapped / len(came) <= most


def test_in_pairs_the_bare_object_is_chosen_and_a_wrapped_one_rejected() -> None:
    same = 0
    for row in rows("pairs"):
        inner = row["rejected"][row["rejected"].index("{") : row["rejected"].index("}") + 1]
        assert row["chosen"] == json.dumps(json.loads(row["chosen"]))
        assert inner != row["rejected"]
        same += inner == row["chosen"]
    assert 0.6 <= same / 160 <= 0.9


def told(name: str) -> list[judging.Judged]:
    return [judging.Judged(row["chosen"], row["rejected"]) for row in rows(name)]


def matched() -> list[Any]:
    """Rows of two answers that a program reads, the right object and a wrong one."""
    found = [row for row in rows("judged") if row["rejected"].startswith("{") and row["rejected"].endswith("}")]
    return [(row["prompt"][1]["content"], row["chosen"], row["rejected"]) for row in found]


def test_every_right_object_is_judged_against_its_like_and_against_itself_wrapped() -> None:
    assert len(rows("judged")) - len(matched()) == 240
    assert len({row["prompt"][1]["content"] for row in rows("judged")}) == 240
    for text, chosen, rejected in matched():
        right, wrong = json.loads(chosen), json.loads(rejected)
        assert len(chosen) == len(rejected)
        assert [chosen, rejected] == [json.dumps(right), json.dumps(wrong)]
        assert list(right) == list(wrong)
        assert right != wrong
        assert right["product"] in text
        assert wrong["category"] in make_tickets.CATEGORIES


def test_length_and_validity_tell_the_bundled_pairs_apart_but_not_the_matched_ones() -> None:
    alone = judging.report(told("pairs"), told("judged"))
    assert alone["matched"]["pairs"] == len(matched()) > 600
    assert alone["matched"]["length_alone"] == alone["matched"]["validity_alone"] == 0.5
    easy = judging.report(told("pairs"), told("pairs"))
    assert min(easy["length_alone"], easy["validity_alone"]) > 0.9
    assert "matched" not in easy


def test_every_field_is_wrong_often_enough_to_be_learnt() -> None:
    wrong = dict.fromkeys(("category", "product", "order_id", "urgent", "refund"), 0)
    for _, chosen, rejected in matched():
        right, other = json.loads(chosen), json.loads(rejected)
        wrong = {field: count + (right[field] != other[field]) for field, count in wrong.items()}
    assert min(wrong.values()) >= 45


def test_no_answer_is_nearly_always_right() -> None:
    tickets = [json.loads(row["completion"]) for row in rows("prompts")]
    for field, most in (("category", 0.25), ("urgent", 0.75), ("refund", 0.8), ("product", 0.15), ("order_id", 0.5)):
        values = [ticket[field] for ticket in tickets]
        assert max(values.count(value) for value in values) / len(values) <= most


@pytest.mark.parametrize("flag", ["urgent", "refund"])
def test_a_flag_that_is_on_is_wrong_about_as_often_as_one_that_is_off(flag: str) -> None:
    pairs = [(json.loads(chosen)[flag], json.loads(rejected)[flag]) for _, chosen, rejected in matched()]
    on, off = (sum(right != wrong and wrong is which for right, wrong in pairs) for which in (True, False))
    assert 0.8 < on / off < 1.25
