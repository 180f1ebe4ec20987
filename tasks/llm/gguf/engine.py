"""Run a GGUF file with llama.cpp: logits for measuring, greedy answers for scoring, a chat for the eye."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tasks.llm.chat import Turn
from tasks.llm.gguf import native

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Message = dict[str, str]


class Engine:
    """One loaded file. `with Engine(path, context=1024) as engine: ...`

    `context` bounds a sequence (prompt and answer together), `sequences` is how many are decoded side by side.
    Token ids are used as they come: nothing is put in front of them.
    """

    def __init__(self, path: Path, context: int = 1024, sequences: int = 1, threads: int = 0, seed: int = 0) -> None:
        self.path, self.context, self.sequences = path, context, sequences
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
        # Llama's own context holds one sequence; this one holds several, and is read without a copy through Python.
        params = self._c.llama_context_default_params()
        params.n_ctx, params.n_seq_max = self.context * self.sequences, self.sequences
        params.n_batch, params.n_ubatch = max(self.context, self.sequences), 512
        params.n_threads = params.n_threads_batch = self._threads
        params.flash_attn_type = self._c.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._ctx = self._c.llama_init_from_model(self._llama.model, params)
        if not self._ctx:
            self._llama.close()
            raise MemoryError(f"No memory for {self.sequences} x {self.context} tokens of context: ask for less.")
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
        return self._decode([(token, place, 0, place >= start) for place, token in enumerate(ids)])

    def generate(self, prompt: Sequence[int], max_tokens: int, stop: Collection[int]) -> tuple[list[int], bool]:
        """Greedy continuation of one prompt: the new ids without the stop token, and whether one was reached."""
        return self.generate_batch([prompt], max_tokens, stop)[0]

    def generate_batch(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Collection[int]
    ) -> list[tuple[list[int], bool]]:
        """`generate` for up to `sequences` prompts side by side: on a CPU, 16 together take a third of the time.

        Rounding depends on how many run side by side, so a near tie may fall differently than alone.
        """
        if len(prompts) > self.sequences:
            raise ValueError(f"{len(prompts)} prompts for {self.sequences} sequences: give fewer, or open with more.")
        self._fits(max((len(prompt) for prompt in prompts), default=0) + max_tokens)
        self._forget()
        said: list[list[int]] = [[] for _ in prompts]
        finished = [False] * len(prompts)
        chosen = [self._read_prompt(prompt, row) for row, prompt in enumerate(prompts)]
        running = list(range(len(prompts)))
        for _ in range(max_tokens):
            for row in running:
                finished[row] = chosen[row] in stop
                if not finished[row]:
                    said[row].append(chosen[row])
            running = [row for row in running if not finished[row] and len(said[row]) < max_tokens]
            if not running:
                break
            at = [(chosen[row], len(prompts[row]) + len(said[row]) - 1, row, True) for row in running]
            for row, best in zip(running, self._decode(at).argmax(-1).tolist(), strict=True):
                chosen[row] = best
        return list(zip(said, finished, strict=True))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation under the file's own template, up to where the answer begins."""
        return self._tokens(self._formatter()(messages=list(messages)).prompt)

    def turn(self, messages: Sequence[Message], answer: str) -> Turn:
        """A conversation and its answer in this file's token ids, ending with its stop token."""
        prompt, stop = self.prompt(messages), int(self._llama.token_eos())
        closed = [*messages, {"role": "assistant", "content": answer}]
        whole = self._tokens(self._formatter(generation=False)(messages=closed).prompt)
        told = whole[len(prompt) :]
        if whole[: len(prompt)] != prompt or stop not in told:  # as tasks.llm.chat does it: the answer alone
            return Turn(prompt, [*self._tokens(answer, special=False), stop])
        return Turn(prompt, told[: len(told) - told[::-1].index(stop)])

    def answer_logits(self, prompt: Sequence[int], answer: Sequence[int]) -> NDArray[np.float32]:
        """The logits that predict each answer token: shape (answer tokens, vocabulary)."""
        return self.logits([*prompt, *answer], start=len(prompt) - 1)[:-1]

    def chat(self, messages: Sequence[Message], max_tokens: int = 256) -> tuple[str, str]:
        """A chat completion as any program with llama.cpp would make it, greedy: the answer, and why it ended
        ("stop" by the stop token, "length" by `max_tokens`)."""
        self._llama.chat_handler = self._formatter().to_chat_handler()
        self._llama.reset()  # an earlier chat leaves no trace, not even in the rounding
        reply = self._llama.create_chat_completion(messages=list(messages), temperature=0.0, max_tokens=max_tokens)
        choice = reply["choices"][0]
        return choice["message"]["content"] or "", choice["finish_reason"]

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

    def _read_prompt(self, prompt: Sequence[int], row: int) -> int:
        last = len(prompt) - 1
        return int(self._decode([(token, at, row, at == last) for at, token in enumerate(prompt)])[0].argmax())

    def _decode(self, tokens: list[tuple[int, int, int, bool]]) -> NDArray[np.float32]:
        """Feed (id, position, sequence, wanted) tuples; logits of the wanted ones, in order."""
        import numpy as np

        batch = self._batch
        batch.n_tokens = len(tokens)
        for at, (token, position, row, wanted) in enumerate(tokens):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
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
