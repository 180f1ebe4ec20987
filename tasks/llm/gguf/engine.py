"""Run a GGUF file with llama.cpp: logits for measuring, greedy answers for scoring, a chat for the eye."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

from tasks.llm.chat import Turn
from tasks.llm.control import Control, plain
from tasks.llm.gguf import native

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Message = dict[str, str]


class Engine:
    """One loaded file. `with Engine(path, context=1024) as engine: ...`

    `context` bounds prompt and answer together. Token ids are used as they come: nothing is put in front of them.
    """

    def __init__(self, path: Path, context: int = 1024, threads: int = 0, seed: int = 0) -> None:
        self.path, self.context = path, context
        self._threads, self._seed = threads or native.cores(), seed

    def __enter__(self) -> Self:
        import llama_cpp

        self._c: Any = llama_cpp
        native.quiet()
        settings = {"n_ctx": self.context, "n_threads": self._threads, "n_threads_batch": self._threads}
        try:
            self._llama: Any = self._c.Llama(str(self.path), seed=self._seed, verbose=False, **settings)
        except ValueError as error:
            raise ValueError(f"llama.cpp cannot load {self.path}: {error}\n{native.last_words()}") from error
        # Llama's own context is for chats; this one is for measuring, and is read without a copy through Python.
        params = self._c.llama_context_default_params()
        params.n_ctx = params.n_batch = self.context
        params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = self._threads
        params.flash_attn_type = self._c.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._ctx = self._c.llama_init_from_model(self._llama.model, params)
        if not self._ctx:
            self._llama.close()
            raise MemoryError(f"No memory for {self.context} tokens of context: ask for less.")
        self._batch = self._c.llama_batch_init(params.n_batch, 0, 1)
        return self

    def __exit__(self, *error: object) -> None:
        self._c.llama_batch_free(self._batch)
        self._c.llama_free(self._ctx)
        self._llama.close()

    @property
    def vocabulary(self) -> int:
        return int(self._llama.n_vocab())

    def logits(self, ids: Sequence[int], start: int = 0) -> NDArray[np.float32]:
        """Logits (T - start, V) float32 of one sequence of T ids, for the positions from `start` on."""
        self._fits(len(ids))
        self._forget()
        return self._decode([(token, place, place >= start) for place, token in enumerate(ids)])

    def begin(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """The first tokens of a greedy answer, as `chat` makes it; the stop token ends it where it comes that early."""
        self._fits(len(prompt) + tokens)
        self._forget()
        said: list[int] = []
        fed = [(token, at, at == len(prompt) - 1) for at, token in enumerate(prompt)]
        while len(said) < tokens and int(self._llama.token_eos()) not in said:
            said.append(int(self._decode(fed)[0].argmax()))
            fed = [(said[-1], len(prompt) + len(said) - 1, True)]
        return said

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation under the file's own template, up to where the answer begins."""
        return self._ids(messages, generation=True)

    def turn(self, messages: Sequence[Message], answer: str) -> Turn:
        """A conversation and its answer in this file's token ids, ending with its stop token."""
        prompt, stop = self.prompt(messages), int(self._llama.token_eos())
        closed = [*messages, {"role": "assistant", "content": answer}]
        whole = self._ids(closed, generation=False)
        told = whole[len(prompt) :]
        if whole[: len(prompt)] != prompt or stop not in told:  # as tasks.llm.chat does it: the answer alone
            return Turn(prompt, [*self._tokens(answer, special=False), stop])
        return Turn(prompt, told[: len(told) - told[::-1].index(stop)])

    def answer_logits(self, prompt: Sequence[int], answer: Sequence[int]) -> NDArray[np.float32]:
        """The logits that predict each answer token: shape (answer tokens, vocabulary)."""
        return self.logits([*prompt, *answer], start=len(prompt) - 1)[:-1]

    def chat(self, messages: Sequence[Message], max_tokens: int = 256) -> tuple[str, str]:
        """A chat completion as any program with llama.cpp would make it, greedy: the answer, and why it ended
        ("stop" by the stop token, "length" by `max_tokens`). Only control tokens that a message spells stay text."""
        self._llama.reset()  # an earlier chat leaves no trace, not even in the rounding
        if self._control.spelled(messages):
            told = self._llama.create_completion(self.prompt(messages), temperature=0.0, max_tokens=max_tokens)
            return told["choices"][0]["text"], told["choices"][0]["finish_reason"]
        self._llama.chat_handler = self._formatter().to_chat_handler()
        reply = self._llama.create_chat_completion(messages=list(messages), temperature=0.0, max_tokens=max_tokens)
        choice = reply["choices"][0]
        return choice["message"]["content"] or "", choice["finish_reason"]

    def _ids(self, messages: Sequence[Message], generation: bool) -> list[int]:
        """A conversation's token ids; what spells a control token in it stays text, as tasks.llm.chat has it."""
        render, control = self._formatter(generation), self._control
        text: str = render(messages=list(messages)).prompt
        if control.spelled(messages):
            owned = control.owned(render(messages=control.broken(messages)).prompt)
            if plain(owned) == text:
                parts = control.pieces(owned)
                return [i for own, words in parts for i in [*own, *self._tokens(words, special=False)]]
        return self._tokens(text)

    @functools.cached_property
    def _control(self) -> Control:
        """The file's control tokens."""
        vocabulary = self._c.llama_model_get_vocab(self._llama.model)
        ids = [i for i in range(self.vocabulary) if self._c.llama_vocab_is_control(vocabulary, i)]
        tokens = {i: SimpleNamespace(content=self._text(i), special=True) for i in ids}
        return Control(SimpleNamespace(added_tokens_decoder=tokens))

    def _tokens(self, text: str, special: bool = True) -> list[int]:
        return [int(token) for token in self._llama.tokenize(text.encode(), add_bos=False, special=special)]

    def _formatter(self, generation: bool = True) -> Any:
        """The file's own template. Left alone, Llama swaps in a format of its own for templates it believes to know,
        and one of those puts a second start token in front."""
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        template = self._llama.metadata.get("tokenizer.chat_template")
        if not template:
            raise ValueError(f"{self.path.name} has no chat template. Convert a model folder that carries one.")
        start, stop = self._llama.token_bos(), self._llama.token_eos()
        return Jinja2ChatFormatter(template, self._text(stop), self._text(start), generation, [stop])

    def _text(self, token: int) -> str:
        """A token as the vocabulary spells it, special ones included; "" where the file names none (-1)."""
        vocabulary = self._c.llama_model_get_vocab(self._llama.model)
        return self._c.llama_vocab_get_text(vocabulary, token).decode() if token >= 0 else ""

    # One step of llama.cpp

    def _decode(self, tokens: list[tuple[int, int, bool]]) -> NDArray[np.float32]:
        """Feed (id, position, wanted) tuples; logits of the wanted ones, in order."""
        import numpy as np

        batch = self._batch
        batch.n_tokens = len(tokens)
        for at, (token, position, wanted) in enumerate(tokens):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
        code = self._c.llama_decode(self._ctx, batch)
        if code != 0:
            raise RuntimeError(f"llama.cpp could not decode {len(tokens)} tokens (code {code}):\n{native.last_words()}")
        rows = sum(wanted for *_, wanted in tokens)
        return np.ctypeslib.as_array(self._c.llama_get_logits(self._ctx), (rows, self.vocabulary)).copy()

    def _forget(self) -> None:
        self._c.llama_memory_clear(self._c.llama_get_memory(self._ctx), False)

    def _fits(self, length: int) -> None:
        if length > self.context:
            raise ValueError(f"{length} tokens do not fit a context of {self.context}: shorten the rows or raise it.")
