"""What a stage will need, said before it runs: from the model and the rows as far as these are known."""

from __future__ import annotations

import functools
import heapq
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tasks.llm import rewards
from tasks.llm.memory import Practice, Shape, Training, Unforeseen
from tasks.llm.rows import answer_of, prompt_of
from tasks.llm.training import rows_at_once

_READ = 16
"""Rows of a text whose tokens are counted: those with the most characters."""
_AROUND = 8
"""Tokens that a chat template writes around a message, about."""


class Foreseen(Protocol):
    """An input as a plan sees it."""

    stage: str
    config: dict[str, Any]
    path: Path | None
    """Its files, where they are there already."""
    inputs: dict[str, Any]
    """What it was made from, or will be, likewise."""


@dataclass(frozen=True)
class Where:
    """What a stage's own config does not say: how it is run."""

    precision: str = "fp32"
    micro_batch: int = 0
    ranks: int = 1
    gpu: bool = False


@dataclass(frozen=True)
class Rows:
    """The most that a row of the training split and of the held-out one can ask for, in tokens."""

    longest: int
    scored: int
    """Tokens that bear loss."""
    held_out: int
    held_out_scored: int
    note: str = ""
    """What the figures rest on, where it is not the encoded rows."""


def of_sft(cfg: Any, inputs: Mapping[str, Foreseen], **how: Any) -> tuple[float, str]:
    """Bytes at the peak of `sft`, and a word on what the figure rests on; `how`: see Where."""
    where, rows = Where(**how), rows_of(inputs["tokens"], inputs["base"])
    at_once = rows_at_once(cfg.batch_size, where.micro_batch, ranks=where.ranks)
    passes = at_once * rows.longest, at_once * rows.scored, at_once * rows.held_out  # its evaluation scores them all
    return _training(cfg, inputs["base"], where, at_once, *passes), rows.note


def of_dpo(cfg: Any, inputs: Mapping[str, Foreseen], **how: Any) -> tuple[float, str]:
    """The same for `dpo`: two sequences per pair, and no reference model beside the policy."""
    where, rows = Where(**how), rows_of(inputs["pairs"], inputs["policy"])
    at_once = rows_at_once(cfg.batch_size, where.micro_batch, sequences_per_row=2, ranks=where.ranks)
    passes = 2 * at_once * rows.longest, 2 * at_once * rows.scored, 2 * at_once * rows.held_out_scored
    return _training(cfg, inputs["policy"], where, at_once, *passes), rows.note


def of_reward_model(cfg: Any, inputs: Mapping[str, Foreseen], **how: Any) -> tuple[float, str]:
    """The same for `reward_model`, whose pairs are text and whose head is one number: no position bears a vocabulary.
    Its adapter is a fresh one."""
    where, (longest, answers, note) = Where(**how), _longest_told(cfg.cutoff, inputs["pairs"], inputs["policy"])
    rows = rows_at_once(cfg.batch_size, where.micro_batch, ranks=where.ranks)
    pairs = where.micro_batch or cfg.batch_size // where.ranks  # those of one prompt share a row
    tokens = rows * longest + pairs * answers
    return _training(cfg, inputs["policy"], where, rows, tokens, 0, 0, fresh=True), note


def of_ppo(cfg: Any, inputs: Mapping[str, Foreseen], **how: Any) -> tuple[float, str]:
    """The same for `ppo`: policy and critic, the reference, a judge where a reward asks one, and the answers while they
    are drawn and while they are learned from."""
    from tasks.llm.ppo import Trainer
    from tasks.llm.rollouts import Transformers

    where, policy = Where(**how), inputs["policy"]
    shape, given, each = _shape(policy), _adapter(policy), 4 if where.precision == "fp32" else 2
    lora = None if cfg.method == "full" else {**(given or vars(cfg.lora)), "dropout": 0.0}
    asked, said = _prompt(inputs["questions"], policy), cfg.sampling.max_new_tokens
    each_prompt, separate = cfg.answers_per_prompt, cfg.critic == "separate"
    rows = max(each_prompt, min(where.micro_batch or Trainer.at_once, cfg.minibatch_size) // each_prompt * each_prompt)
    copy = 4 * shape.adapter(lora)[0] if given and lora else 4 * shape.parameters if lora is None else 0
    judged = rewards.of_model(cfg.rewards) and "judge" in inputs
    practice = Practice(
        shape,
        where.precision,
        tokens=rows * (asked + said),
        scored=0,
        lora=lora,
        widened=False,
        accumulates=cfg.minibatch_size > rows,
        gpu=where.gpu,
        beside=copy + (each * _shape(inputs["judge"]).parameters if judged else 0),
        opening=each * shape.parameters if lora and (given or separate) else 0,
        answers=rows * (said + 1),
        drawn=min(Transformers.at_once, cfg.batch_size),
        length=asked + said,
        separate=separate,
    )
    return practice.peak(), f"at most, with answers of {said} tokens"


def _training(
    cfg: Any,
    policy: Foreseen,
    where: Where,
    at_once: int,
    tokens: int,
    scored: int,
    measured: int,
    fresh: bool = False,
) -> float:
    """`fresh`: a reward model's."""
    shape, adapter = _shape(policy), _adapter(policy)
    training = Training(
        shape,
        where.precision,
        tokens,
        scored,
        measured,
        lora=None if cfg.method == "full" else (not fresh and adapter) or vars(cfg.lora),
        widened=not fresh,
        accumulates=cfg.batch_size > at_once * where.ranks,
        checkpointing=bool(cfg.args.get("gradient_checkpointing", True)),  # TRL's default
        optimizer=str(cfg.args.get("optim", "adamw_torch_fused")),
        gpu=where.gpu,
        opening=4 * shape.parameters if fresh and adapter else 0,  # while it is folded into its base
    )
    return training.peak() * (1 if where.gpu else where.ranks)


def _adapter(policy: Foreseen) -> Mapping[str, Any] | None:
    """The adapter that a policy is and that training continues: as the stage that made it first was told."""
    found = next((above for item in policy.inputs.values() if (above := _adapter(item))), None)
    return found or (policy.config.get("lora") if policy.config.get("method") == "lora" else None)


# The model


def model_folder(policy: Foreseen) -> Path:
    """The full model that a policy is, stands on, or will be made from. Raises Unforeseen where none is there yet."""
    found = next((place for place in _folders(policy) if (place / "config.json").exists()), None)
    if found is None:
        raise Unforeseen(f"unknown until {_first(policy)} has run")
    return found


def _shape(policy: Foreseen) -> Shape:
    return Shape.of(json.loads((model_folder(policy) / "config.json").read_text()))


def _folders(policy: Foreseen) -> Iterator[Path]:
    if policy.path:
        yield policy.path
    elif folder := policy.config.get("path"):  # on this machine, to be brought into the store
        yield from (Path(folder).expanduser(), Path(folder).expanduser() / "base")  # the latter of an adapter
    for item in policy.inputs.values():
        yield from _folders(item)


def _first(policy: Foreseen) -> str:
    above = next((item for item in policy.inputs.values() if not item.path), None)
    return _first(above) if above else policy.stage


# The rows


def rows_of(encoded: Foreseen, policy: Foreseen) -> Rows:
    """From the encoded rows; where they are not there yet, from the longest texts, else from the cutoff alone."""
    if encoded.path:
        return Rows(*_encoded(encoded.path / "train.parquet"), *_encoded(encoded.path / "eval.parquet"))
    cutoff, packing = encoded.config["cutoff"], encoded.config.get("packing", False)
    texts = next(
        (item.path for item in encoded.inputs.values() if item.path and (item.path / "train.jsonl").exists()), None
    )
    vocabulary = model_folder(policy) / "tokenizer.json"
    if texts is None or packing or not vocabulary.exists():
        note = f"at most, with rows of {cutoff} tokens: {encoded.stage} has not run"
        return Rows(cutoff, cutoff, cutoff, cutoff, note)
    train, held_out = (
        [min(cutoff, n) for n in _told(texts / f"{split}.jsonl", vocabulary)[:2]] for split in ("train", "eval")
    )
    note = f"about, from the longest texts: {encoded.stage} has not run"
    return Rows(train[0], train[1], held_out[0], held_out[1], note)


def _longest_told(cutoff: int, pairs: Foreseen, policy: Foreseen) -> tuple[int, int, str]:
    """The longest prompt with its answer and the longest answer to train on, of pairs that are text."""
    vocabulary = model_folder(policy) / "tokenizer.json"
    if not pairs.path or not vocabulary.exists():
        return cutoff, 0, f"at most, with rows of {cutoff} tokens: {pairs.stage} has not run"
    longest, answers, _ = _told(pairs.path / "train.jsonl", vocabulary)
    return min(cutoff, longest), min(cutoff, answers), "about, from the longest texts"


def _prompt(questions: Foreseen, policy: Foreseen) -> int:
    """Tokens of the longest prompt of rows that are text."""
    vocabulary = model_folder(policy) / "tokenizer.json"
    if not questions.path or not vocabulary.exists():
        raise Unforeseen(f"unknown until {questions.stage if not questions.path else policy.stage} has run")
    return _told(questions.path / "train.jsonl", vocabulary)[2]


@functools.lru_cache(maxsize=64)
def _encoded(place: Path) -> tuple[int, int]:
    """Longest row and most scored tokens of a row; of pairs, the longer sequence of each."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    def most(values: Any) -> int:
        return int(pc.max(values).as_py() or 0)

    if "labels" in pq.read_schema(place).names:
        labels = pq.read_table(place, columns=["labels"])["labels"]
        rows = pc.list_parent_indices(labels).filter(pc.not_equal(pc.list_flatten(labels), -100))
        scored = pc.value_counts(rows).field("counts") if len(rows) else rows
        return most(pc.list_value_length(labels)), most(scored)
    table = pq.read_table(place, columns=["prompt_ids", "chosen_ids", "rejected_ids"])
    prompt, chosen, rejected = (pc.list_value_length(table[name]) for name in table.column_names)
    answer = pc.max_element_wise(chosen, rejected)
    return most(pc.add(prompt, answer)), most(answer)


@functools.lru_cache(maxsize=64)
def _told(place: Path, vocabulary: Path) -> tuple[int, int, int]:
    """The same of rows that are text still, as the model's tokenizer counts their longest; and the longest prompt."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(vocabulary))

    def count(text: str) -> int:
        return len(tokenizer.encode(text).ids) + _AROUND

    rows, answers, prompts = [0], [0], [0]
    with open(place, encoding="utf-8") as lines:
        for row in map(json.loads, heapq.nlargest(_READ, lines, key=len)):
            answers.append(max(count(answer_of(row)), count(row.get("rejected", ""))))
            prompts.append(sum(count(message["content"]) for message in prompt_of(row)))
            rows.append(answers[-1] + prompts[-1])
    return max(rows), max(answers), max(prompts)
