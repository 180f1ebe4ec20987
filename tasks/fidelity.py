"""How far each form of the model is from the one before it, in KL and same-top-1 on held-out answer tokens.

    adapter -> merged    what folding and rounding cost       (both computed in fp32)
    merged  -> f16       what the converter changed           (merged in fp32)
    f16     -> level     what quantization cost

And whether the f16 GGUF chats as the merged model does: the same prompt under its own template and tokenizer, the same
first tokens of an answer. It measures and does not judge: `compare` does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.runtime import GGUF, Dataset, Metrics, Model, Run, stage

if TYPE_CHECKING:
    from tasks.llm import chat


@dataclass
class FidelityConfig:
    rows: int = 64
    """Held-out rows to measure on, at most."""
    chats: int = 16
    """Of these, how many to begin an answer to, with the merged model and with the f16 GGUF; 0 for none."""

    def problems(self) -> Iterator[str]:
        if self.rows < 1:
            yield f"rows is {self.rows}; give a positive number, 64 or more for figures to trust."
        if self.chats < 0:
            yield f"chats is {self.chats}; give 0 or more."


@stage(makes=Metrics, version="2", device=True)
def fidelity(
    run: Run, cfg: FidelityConfig, policy: Model, merged: Model, f16: GGUF, level: GGUF, prompts: Dataset
) -> dict[str, float]:
    from numpy import isnan

    from tasks.llm import chat, gguf, models, rows, scoring

    asked = list(rows.read_split(prompts.path, "eval"))[: cfg.rows]
    if not asked:
        raise ValueError("There are no held-out rows to measure on: give the prompts some rows.")
    tokenizer = models.load_tokenizer(merged.path)
    turns = list(chat.turns(tokenizer, [row["prompt"] for row in asked], [row["answer"] for row in asked]))
    lengths = [len(turn.answer) for turn in turns]

    ends = {
        "adapter": _transformer(policy),
        "merged": _transformer(merged),
        "f16": _llama(f16),
        "level": _llama(level),
    }
    pairs: dict[str, scoring.Divergence] = {}
    before = None
    for number, (name, open_model) in enumerate(ends.items()):
        now = None
        for index, logits in enumerate(open_model(turns)):
            if now is None:
                now = scoring.LogitsFile(run.work / f"{number % 2}.logits", lengths, logits.shape[-1])
            if isnan(logits).any():
                raise ValueError(f"{_NAMES[name]} answers with NaN instead of probabilities: {_OVERFLOW}")
            now[index] = logits
            if before is not None:
                pairs.setdefault(name, scoring.Divergence()).add(before[index], logits)
            run.progress(number * len(turns) + index + 1, len(ends) * len(turns), name)
        before = now

    found = {name: pair.result() for name, pair in pairs.items()}
    begun = _begun(merged, f16, asked[: cfg.chats], turns) if cfg.chats else {}
    about = {"level": gguf.file_in(level.path).stem.removeprefix("model-"), "rows": len(turns), "tokens": sum(lengths)}
    (run.out / "metrics.json").write_text(json.dumps({**about, "pairs": found, "chat": begun}, indent=1))
    flat = {f"{name}_{measure}": value for name, pair in found.items() for measure, value in pair.items()}
    return flat | begun | {"tokens": sum(lengths), "rows": len(turns)}


_NAMES = {
    "adapter": "The trained model",
    "merged": "The merged model",
    "f16": "The f16 GGUF",
    "level": "The quantized GGUF",
}
_OVERFLOW = (
    "numbers in it are too large for its format. That is what a training leaves that diverged: look at its loss curve, "
    "and lower its args.learning_rate."
)


def _begun(merged: Model, f16: GGUF, asked: list[dict[str, Any]], turns: list[chat.Turn]) -> dict[str, float]:
    """The share of chats whose prompt is the same to both, and of those that both begin to answer in the same way.

    The GGUF speaks first, freely; the merged model is asked whether it would have chosen the same tokens one by one.
    """
    from tasks.llm import chat, gguf, models, scoring

    with gguf.Engine(gguf.file_in(f16.path), context=scoring.room(asked) + _FIRST) as engine:
        prompts = [engine.prompt(row["prompt"]) for row in asked]
        said = [engine.begin(prompt, _FIRST) for prompt in prompts]
    model = models.load(merged.path, merged.base.path, "fp32").eval()
    met = [chat.Turn(turn.prompt, answer) for turn, answer in zip(turns, said, strict=False)]
    same = [prompt == turn.prompt for prompt, turn in zip(prompts, turns, strict=False)]
    followed = [scoring.followed(scoring.answer_logits(model, turn), turn.answer) for turn in met]
    shares = {"prompt_ids_same": sum(same) / len(same), "first_tokens_same": sum(followed) / len(followed)}
    return {"chats": len(asked), "first_tokens": _FIRST, **shares}


_FIRST = 8
"""Tokens of an answer's beginning: what goes wrong in a template or a tokenizer shows there."""


Logits = Callable[[list[Any]], Iterator[Any]]


def _transformer(policy: Model) -> Logits:
    def logits(turns: list[Any]) -> Iterator[Any]:
        from tasks.llm import models, scoring

        model = models.load(policy.path, policy.base.path, "fp32").eval()
        yield from (scoring.answer_logits(model, turn) for turn in turns)

    return logits


def _llama(model: GGUF) -> Logits:
    def logits(turns: list[Any]) -> Iterator[Any]:
        from tasks.llm import gguf

        longest = max(len(turn.prompt) + len(turn.answer) for turn in turns)
        with gguf.Engine(gguf.file_in(model.path), context=longest) as engine:
            yield from (engine.answer_logits(turn.prompt, turn.answer) for turn in turns)

    return logits
