"""How much memory a stage will take at its peak, computed before it runs, from a model's config.json and the rows.

Weights, gradients and optimizer states are counted exactly. Activations are what autograd keeps of a Llama-like decoder
layer under SDPA, tensor by tensor, as saved-tensor hooks show them. The head scores labelled positions in tiles of the
vocabulary (TRL's fused head). What no tensor accounts for was measured: `python -m tests.bench_memory` sets predictions
beside peaks of real processes. Nothing of this is part of a result, so it may change without changing any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GB = 1e9
PROCESS = 0.55 * GB
"""Python with torch, transformers, trl, peft and datasets imported, on a CPU; about the same for CUDA's context."""
UNRETURNED = {"full": 0.35, "lora": 0.65}
"""Of all activations of a pass, freed ones too: what glibc's malloc holds back in pieces too small for the next use
(more where small gradients lie between them). PyTorch's own allocator on a GPU holds back less."""
TILE = 32768
"""Columns of the vocabulary that the head scores at once."""


class Unforeseen(LookupError):
    """What an estimate needs is not known yet, or the model is of a kind that is not estimated; says which."""


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes, from its config.json."""

    hidden: int
    inner: int
    layers: int
    queries: int
    """Heads times their size; so are `keys`."""
    keys: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        config = {**config, **config.get("text_config", {})}
        if any(config.get(name) for name in ("num_local_experts", "num_experts", "n_routed_experts")):
            raise Unforeseen("not estimated for a mixture of experts")
        try:
            hidden, heads = config["hidden_size"], config["num_attention_heads"]
            head = config.get("head_dim") or hidden // heads
            keys = head * (config.get("num_key_value_heads") or heads)
            layers, inner, vocabulary = (config[n] for n in ("num_hidden_layers", "intermediate_size", "vocab_size"))
        except KeyError as name:
            raise Unforeseen(f"not estimated: the model's config.json has no {name}") from None
        return cls(hidden, inner, layers, head * heads, keys, vocabulary, config.get("tie_word_embeddings", True))

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Of one layer: name -> (in, out)."""
        h, m, q, k = self.hidden, self.inner, self.queries, self.keys
        attention = {"q_proj": (h, q), "k_proj": (h, k), "v_proj": (h, k), "o_proj": (q, h)}
        return attention | {"gate_proj": (h, m), "up_proj": (h, m), "down_proj": (m, h)}

    @property
    def body(self) -> int:
        """Parameters of all layers."""
        return self.layers * sum(a * b for a, b in self.linears.values())

    @property
    def parameters(self) -> int:
        norms = self.hidden * (2 * self.layers + 1)
        return self.body + norms + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def adapter(self, lora: Mapping[str, Any]) -> tuple[int, int]:
        """Parameters of a LoRA adapter, and widths of the inputs of the linear layers it stands beside, summed."""
        targets = [
            sizes
            for name, sizes in self.linears.items()
            if lora["targets"] == ["all-linear"] or name in lora["targets"]
        ]
        return self.layers * lora["rank"] * sum(a + b for a, b in targets), self.layers * sum(a for a, _ in targets)


@dataclass(frozen=True)
class Training:
    """One training's facts, all that its peak depends on."""

    shape: Shape
    precision: str
    tokens: int
    """Of one forward pass, padding included."""
    scored: int
    """Positions of one forward pass that bear loss."""
    measured: int = 0
    """Positions that one forward pass of the evaluation scores."""
    lora: Mapping[str, Any] | None = None
    """Rank, dropout and targets of the adapter; None where every weight is trained."""
    widened: bool = True
    """The adapter multiplies in fp32 also beside bf16 weights: each of its layers keeps a copy of what comes in."""
    accumulates: bool = False
    """Several forward passes per step: gradients stay in memory during all but the first."""
    checkpointing: bool = False
    optimizer: str = "adamw_torch_fused"
    gpu: bool = False
    beside: float = 0.0
    """Bytes of frozen models that stand beside the trained one."""
    opening: float = 0.0
    """Bytes that are there only until all models stand: a copy that is shared or folded then."""

    def peak(self) -> float:
        """Bytes: at the begin of the backward pass, when the gradients are complete, or before anything begins."""
        models = PROCESS + self.weights() + self.beside
        begin = self.kept() + self.casts() + self.head() + (self.gradients() if self.accumulates else 0)
        most = max(begin, self.casts() + self.gradients(), self.before())
        return models + max(self.states() + self.unreturned() + most, self.opening)

    def before(self) -> float:
        """What a step holds before its first forward pass, and frees."""
        return 0.0

    def trained(self) -> int:
        return self.shape.parameters if self.lora is None else self.shape.adapter(self.lora)[0]

    def weights(self) -> float:
        """fp32 where they are trained, else frozen in the precision beside an fp32 adapter."""
        frozen = 0 if self.lora is None else self.shape.parameters * (4 if self.precision == "fp32" else 2)
        return frozen + 4 * self.trained()

    def gradients(self) -> float:
        return 4 * self.trained()

    def states(self) -> float:
        """The optimizer's: two fp32 numbers per trained weight for the Adam family."""
        named = {"adafactor": 0.1, "sgd": 0, "rmsprop": 4, "lion": 4, "adagrad": 4}
        each = next((size for name, size in named.items() if name in self.optimizer), 8)
        return self.trained() * each / (4 if "8bit" in self.optimizer else 1)

    def casts(self) -> float:
        """Autocast's bf16 copies of fp32 weights, kept for the backward pass."""
        return 2 * self.shape.body if self._autocast else 0

    @property
    def _autocast(self) -> bool:
        return self.lora is None and self.precision != "fp32"

    def activations(self) -> float:
        """What one forward pass keeps for its backward pass, all layers together.

        Per token and layer with hidden h, inner m, queries q: the two norms' fp32 inputs (and normalised ones where the
        norm's weight is trained), the linear layers' inputs where these are needed, q, k, v (repeated to q wide) and
        the output of attention, and three of the MLP's four inner tensors beside the input of the last.
        """
        h, m, q = self.shape.hidden, self.shape.inner, self.shape.queries
        if self._autocast:
            each = self.shape.layers * (16 * h + 10 * h + 8 * q + 8 * m)
        elif self.lora is None:
            each = self.shape.layers * (24 * h + 16 * q + 16 * m)
        else:
            _, wide = self.shape.adapter(self.lora)
            dropped = 4 * wide if self.lora["dropout"] else 0
            if self.precision == "fp32":
                each = self.shape.layers * (16 * h + 16 * q + 16 * m) + dropped
            else:
                each = self.shape.layers * (8 * h + 8 * q + 6 * m) + (4 * wide if self.widened else 0) + dropped
        return each * self.tokens

    def kept(self) -> float:
        """Of the activations: all, or with checkpointing the layers' inputs and one layer's own."""
        if not self.checkpointing:
            return self.activations()
        inputs = (
            self.shape.layers * self.shape.hidden * self.tokens * (2 if self.lora and self.precision != "fp32" else 4)
        )
        return inputs + self.activations() / self.shape.layers

    def unreturned(self) -> float:
        return 0.1 * self.kept() if self.gpu else UNRETURNED["lora" if self.lora else "full"] * self.activations()

    def head(self) -> float:
        """One tile of logits and what is computed on it: eight fp32 copies in training, four when only scoring (Triton
        works in place), the tile's weights, and the whole head's gradient where it is trained."""
        columns = min(TILE, self.shape.vocabulary)
        train, score = (4, 4) if self.gpu else (33, 17)
        tile = columns * max(train * min(self.scored, _TILE_ROWS), score * min(self.measured, _TILE_ROWS))
        gradient = 4 * self.shape.vocabulary * self.shape.hidden if self.lora is None else 0
        return tile + 4 * columns * self.shape.hidden + gradient


_TILE_ROWS = 4096
"""Positions that the head scores at once."""


_LOGITS = 20
"""Bytes of each logit of an answer: bf16, fp32, and what log-softmax, entropy or a gradient hold beside them."""


@dataclass(frozen=True)
class Practice(Training):
    """PPO's facts. Dropout is off, the head gives every logit of an answer, and answers are drawn with a KV cache."""

    answers: int = 0
    """Positions of one forward pass that belong to answers."""
    drawn: int = 0
    """Answers that are drawn at once."""
    length: int = 0
    """Tokens of the longest prompt and its answer."""
    separate: bool = False
    """The critic has a trunk of its own, of what is trained as much again."""

    def trained(self) -> int:
        return super().trained() * (2 if self.separate else 1)

    def casts(self) -> float:
        return super().casts() * (2 if self.separate else 1)

    def activations(self) -> float:
        return super().activations() * (2 if self.separate else 1)

    def head(self) -> float:
        gradient = 4 * self.shape.vocabulary * self.shape.hidden if self.lora is None else 0
        return _LOGITS * self.answers * self.shape.vocabulary + gradient

    def before(self) -> float:
        """Keys and values of every layer, and the logits of one token for each answer."""
        cache = 2 * self.shape.layers * self.shape.keys * (4 if self.precision == "fp32" else 2)
        return self.casts() + self.drawn * (self.length * cache + _LOGITS * self.shape.vocabulary)
