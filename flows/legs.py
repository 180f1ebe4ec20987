"""What roads have in common: how they come to a tuned model, and what becomes of an aligned one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from flows import report
from tasks.compare import CompareConfig, compare
from tasks.convert import ConvertConfig, convert
from tasks.encode import EncodeConfig, encode
from tasks.evaluate import EvaluateConfig, evaluate
from tasks.fidelity import FidelityConfig, fidelity
from tasks.llm.tables import TableError
from tasks.llm.training import LoRA, Method
from tasks.merge import MergeConfig, merge
from tasks.preprocess import PreprocessConfig, preprocess
from tasks.quantize import QuantizeConfig, quantize
from tasks.runtime import Comparison, Dataset, Model
from tasks.runtime.session import current
from tasks.sft import SFTConfig, sft


class Legs(Protocol):
    """The seats that these legs need of a road's config."""

    general: PreprocessConfig | None
    encode: EncodeConfig
    sft: SFTConfig | None
    merge: MergeConfig
    convert: ConvertConfig
    quantize: QuantizeConfig
    fidelity: FidelityConfig
    evaluate: EvaluateConfig
    retention: EvaluateConfig
    compare: CompareConfig


def problems(cfg: Legs, name: str, after: Any) -> Iterator[str]:
    """`after`: the training that follows SFT, called `name`."""
    if cfg.sft is not None and cfg.sft.method is Method.lora:
        if after.method is Method.full:
            yield f"{name}.method is full, but SFT makes an adapter, which has no weights of its own: use sft=full too."
        if after.lora != LoRA():
            does = f"{name.upper()} goes on with the adapter that SFT made"
            yield f"{name}.lora has no effect: {does}. Set sft.lora instead."
    if cfg.evaluate.max_new_tokens == 0:
        yield "evaluate.max_new_tokens is 0, and this road scores answers: give 96. Only retention may do without."


def rows(*seats: PreprocessConfig | None) -> list[Any]:
    """A data set for each seat, None for one that is left out; what is wrong with any of them is told at once, and
    what is odd about them is said before anything long begins."""
    found, wrong = [], []
    for seat in seats:
        try:
            found.append(preprocess(seat) if seat else None)
        except TableError as error:
            wrong.append(f"{current().seats.get(id(seat), 'rows')}: {error}")
    if wrong:
        raise TableError("\n".join(wrong))
    if any(record.state == "made" for record in current().records):
        for name, text in report.remarks(current()):
            if name != "drift":
                current().screen.say(text)
    return found


def tuned(cfg: Legs, base: Model, chats: Dataset | None) -> Model:
    """After SFT; the base where there is none."""
    return sft(cfg.sft, base, encode(cfg.encode, base.tokenizer, chats)) if cfg.sft and chats else base


def delivered(
    cfg: Legs, base: Model, after_sft: Model, aligned: Model, prompts: Dataset, general: Dataset | None
) -> Comparison:
    """To a GGUF, with every model measured and every form of the last one compared."""
    merged = merge(cfg.merge, aligned)
    f16 = convert(cfg.convert, merged)
    gguf = quantize(cfg.quantize, f16)
    trust = fidelity(cfg.fidelity, aligned, merged, f16, gguf, prompts)
    models = (base, after_sft, aligned, gguf) if cfg.sft else (base, aligned, gguf)
    scores = [evaluate(cfg.evaluate, model, prompts) for model in models]
    retained = [evaluate(cfg.retention, model, general) for model in (base, aligned)] if general else []
    return compare(cfg.compare, scores, trust, retained)
