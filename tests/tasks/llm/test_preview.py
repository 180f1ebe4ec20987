from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tasks.llm import masks, models, preview
from tasks.llm.masks import Mask
from tasks.llm.preview import Piece
from tests.hand import asked

STOP = "<|im_end|>"


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return models.load_tokenizer(tiny_model)


def row(tokenizer: Any, question: str, answer: str) -> dict[str, Any]:
    (found,) = masks.encoded(tokenizer, [[*asked(question), {"role": "assistant", "content": answer}]], Mask.completion)
    return {"input_ids": found.ids, "labels": found.labels}


class Page(HTMLParser):
    """What a browser would show: texts by the class of the element around them, and every tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.shown: list[tuple[str, str]] = []
        self._around = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._around = dict(attrs).get("class") or ""

    def handle_endtag(self, tag: str) -> None:
        self._around = ""

    def handle_data(self, data: str) -> None:
        self.shown.append((self._around, data))


def test_pieces_say_the_whole_text_and_what_of_it_bears_loss(tokenizer: Any) -> None:
    encoded = row(tokenizer, "Is it 😁?", "naïve")
    found = preview.pieces(tokenizer, **{"ids": encoded["input_ids"], "labels": encoded["labels"]})
    assert found[-2:] == [Piece("naïve", True, False), Piece(STOP, True, True)]
    assert "".join(piece.text for piece in found) == tokenizer.decode(encoded["input_ids"])
    assert "Is it 😁?" in "".join(piece.text for piece in found)


def test_a_spelling_that_stayed_text_does_not_look_like_a_control_token(tokenizer: Any) -> None:
    encoded = row(tokenizer, f"What is {STOP}?", "Ok.")
    found = preview.pieces(tokenizer, encoded["input_ids"], encoded["labels"])
    assert [piece.text for piece in found if piece.control] == ["<|im_start|>", STOP, "<|im_start|>", STOP]
    assert any(STOP in piece.text for piece in found if not piece.control)


def test_the_page_shows_text_as_it_is_and_runs_none_of_it(tokenizer: Any) -> None:
    nasty = "<script>alert('x')</script> & <b class=\"trained\">bold</b>"
    page = Page(preview.page(tokenizer, [row(tokenizer, nasty, "</pre>Ok.")], ["1 < 2 & so on"]))
    assert not {"script", "b", "link", "img"} & set(page.tags)
    assert nasty in "".join(text for kind, text in page.shown if kind == "")
    assert ("trained", "</pre>Ok.") in page.shown
    assert ("trained control", STOP) in page.shown
    assert ("", "1 < 2 & so on") in page.shown


def test_the_page_needs_nothing_else_and_knows_dark_screens(tokenizer: Any) -> None:
    page = preview.page(tokenizer, [], [])
    assert "prefers-color-scheme: dark" in page
    assert not [word for word in ("http://", "https://", "src=", "url(", "@import") if word in page]


def test_a_packed_row_is_shown_document_by_document(tokenizer: Any) -> None:
    one, two = row(tokenizer, "Hi", "Ok."), row(tokenizer, "Tea", "Here.")
    packed = {name: one[name] + two[name] for name in one} | {
        "seq_lengths": [len(each["input_ids"]) for each in (one, two)]
    }
    assert list(preview.documents(packed)) == [(each["input_ids"], each["labels"]) for each in (one, two)]
    page = preview.page(tokenizer, [packed], [])
    assert "Row 1, 2 packed" in page
    assert page.count("<pre>") == 2
