"""Control tokens that people spell out stay text.

A tokenizer turns `<|im_end|>` into its control token wherever it reads it: also where a user wrote about it, or did so
to end a turn that is not theirs. So a conversation that spells one is rendered with the spelling broken up; what is
whole then is the template's own, and only that becomes a control token. Other conversations are tokenized as ever.
Control tokens are those that a tokenizer calls special: others, such as Qwen3's `<think>`, are words like any other.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Message = dict[str, str]

_BREAK, _OWN = "\ufdd0", "\ufdd1"
"""Noncharacters, which no text may hold: within a spelling that stays text, and before a token of the template's."""


class Control:
    """The control tokens of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        known = getattr(tokenizer, "added_tokens_decoder", {})
        self._tokens = {number: token for number, token in known.items() if token.special and token.content}
        spellings = sorted((token.content for token in self._tokens.values()), key=len, reverse=True)
        self._spelling = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")

    def spelled(self, chat: Iterable[Message]) -> int:
        """How often the texts of a conversation spell a control token."""
        return sum(len(self._spelling.findall(message["content"])) for message in chat)

    def broken(self, chat: Iterable[Message]) -> list[Message]:
        """The conversation with every such spelling broken up, so that a template passes it on and nothing reads it."""
        return [{**m, "content": self._spelling.sub(lambda found: _BREAK.join(found[0]), m["content"])} for m in chat]

    def owned(self, rendered: str) -> str:
        """A rendered broken conversation, mended, with a mark before each control token that the template wrote."""
        return self._spelling.sub(lambda found: _OWN + found[0], rendered).replace(_BREAK, "")

    def tokenized(self, owned: str) -> list[int]:
        """Token ids, where only what is marked becomes a control token."""
        backend, numbers = self._backend
        return [numbers.get(i, i) for i in backend.encode(owned, add_special_tokens=False).ids]

    def pieces(self, owned: str) -> Iterator[tuple[list[int], str]]:
        """The text cut before each marked control token: its id (none for the first piece), and the words behind it."""
        numbers = {token.content: number for number, token in self._tokens.items()}
        first, *rest = owned.split(_OWN)
        yield [], first
        for piece in rest:
            found = self._spelling.match(piece)
            assert found, "a mark stands before a control token"
            yield [numbers[found[0]]], piece[found.end() :]

    def kept(self, owned: str, ids: Sequence[int]) -> bool:
        """Whether these ids hold the marked control tokens and no other; some tokenizers reach one by its letters."""
        return sum(i in self._tokens for i in ids) == owned.count(_OWN)

    @property
    def guards(self) -> bool:
        """Whether this tokenizer can be told to leave a spelling alone: one of the `tokenizers` library can."""
        return getattr(self._tokenizer, "backend_tokenizer", None) is not None

    @functools.cached_property
    def _backend(self) -> tuple[Any, dict[int, int]]:
        """A tokenizer that knows control tokens by their marked names only, and the ids these stand for."""
        from tokenizers import AddedToken

        backend = copy.deepcopy(self._tokenizer.backend_tokenizer)
        backend.encode_special_tokens = True  # as text, that is
        names = {_OWN + token.content: number for number, token in self._tokens.items()}
        backend.add_tokens(
            [
                AddedToken(_OWN + t.content, normalized=False, lstrip=t.lstrip, rstrip=t.rstrip)
                for t in self._tokens.values()
            ]
        )
        return backend, {backend.token_to_id(name): number for name, number in names.items()}


def plain(owned: str) -> str:
    """Without the marks."""
    return owned.replace(_OWN, "")
