"""What flows along the wires of a drawing. A handle is a small, JSON-able reference; files stay in the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self


@dataclass(frozen=True)
class Artifact:
    """One sealed result: who made it (stage, keys) and what it is (digest). `path` exists only where a body runs."""

    kind: ClassVar[str] = "Artifact"
    parts: ClassVar[dict[str, type[Artifact]]] = {}
    """Named parts of the content: a stage that takes `model.tokenizer` is keyed on those files alone."""
    globs: ClassVar[tuple[str, ...]] = ()
    """Of a part: which files of the whole belong to it."""
    native: ClassVar[bool] = False
    """Read or written by long C calls that hold Python's signal handling: their stages run in a child process."""

    stage: str
    recipe: str
    key: str
    digest: str
    whole: str = ""
    """Of a part: the digest of the artifact it is taken from."""
    part_digests: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    path: Path = field(default=Path(), compare=False, repr=False)
    stands_on: dict[str, Artifact] = field(default_factory=dict, compare=False, repr=False)

    def ref(self) -> dict[str, Any]:
        """The handle as JSON values, to travel to another process."""
        return {"kind": self.kind} | {name: getattr(self, name) for name in _TRAVELS}

    @classmethod
    def of(cls, ref: dict[str, Any], path: Path = Path(), stands_on: dict[str, Artifact] | None = None) -> Self:
        return cls(**{name: ref[name] for name in _TRAVELS}, path=path, stands_on=stands_on or {})

    def part(self, name: str) -> Any:
        digest, whole = self.part_digests[name], self.digest or NOT_YET
        return self.parts[name](self.stage, self.recipe, self.key, digest, whole=whole)

    def identity(self) -> dict[str, str]:
        """How this input enters a content key."""
        return {"digest": self.digest}

    def recipe_identity(self) -> dict[str, str]:
        """How this input enters a recipe key."""
        return {"recipe": self.recipe, "part": self.kind} if self.whole else {"recipe": self.recipe}


NOT_YET = "not made yet"
"""Of a part in a plan: it is taken from something that is not there."""
_TRAVELS = ("stage", "recipe", "key", "digest", "whole", "part_digests")


class Dataset(Artifact):
    """Rows: `train.jsonl` and `eval.jsonl`."""

    kind = "Dataset"


class Tokens(Artifact):
    """Encoded rows: `train.parquet` and `eval.parquet` with `input_ids` and `labels`; packed, `seq_lengths` too."""

    kind = "Tokens"


class Preferences(Artifact):
    """Encoded pairs and what a reference says of them: `train.parquet` and `eval.parquet` with `prompt_ids`,
    `chosen_ids`, `rejected_ids`, `ref_chosen_logps` and `ref_rejected_logps` (summed over the answer, in nats)."""

    kind = "Preferences"


class Tokenizer(Artifact):
    """The tokenizer's files and the chat template, a part of a model."""

    kind = "Tokenizer"
    globs = (
        *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
        *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "*.tiktoken"),
    )


class Model(Artifact):
    """A policy: `full` (a folder transformers loads) or `adapter` (one adapter, standing on the full model `base`)."""

    kind = "Model"
    parts: ClassVar[dict[str, type[Artifact]]] = {"tokenizer": Tokenizer}

    @property
    def tokenizer(self) -> Tokenizer:
        found = self.part("tokenizer")
        assert isinstance(found, Tokenizer)
        return found

    @property
    def base(self) -> Model:
        """The full model an adapter stands on; a full model stands on itself."""
        base = self.stands_on.get("base", self)
        assert isinstance(base, Model)
        return base


class RewardModel(Artifact):
    """A judge of answers: a folder that transformers' AutoModelForSequenceClassification loads, with `num_labels` 1 and
    its tokenizer beside it. The score is read at the stop token; the pad token is another one."""

    kind = "RewardModel"


class GGUF(Artifact):
    """One model file for llama.cpp."""

    kind = "GGUF"
    native = True


class Metrics(Artifact):
    """Measurements as data: `metrics.json`, and what they were computed from."""

    kind = "Metrics"


class Comparison(Artifact):
    """A verdict as data: `verdict.json`, and the comparison it was drawn from."""

    kind = "Comparison"


def kind_named(name: str) -> type[Artifact]:
    """The handle class of a kind, a user's own subclasses included."""

    def below(cls: type[Artifact]) -> list[type[Artifact]]:
        return [cls, *(found for sub in cls.__subclasses__() for found in below(sub))]

    return next(cls for cls in below(Artifact) if cls.kind == name)
