"""The models of PPO: a policy with a critic, and the frozen policy it started from.

The critic is a value head on the policy's own trunk (`shared`), or on a trunk of its own that starts as the policy does
(`separate`). Frozen weights exist once: an adapter's base serves policy, critic and reference. Dropout is off
throughout: the ratio of PPO compares a policy with itself, not with a half of it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.llm import losses, models, training
from tasks.llm.forks import Forks

if TYPE_CHECKING:
    from torch import Tensor


class Critic(StrEnum):
    """Where the value head stands."""

    shared = "shared"
    separate = "separate"


@dataclass(frozen=True)
class Said:
    """What policy and critic say of the answers of a batch, all (rows, answer width) in fp32, 0 in the padding."""

    log_probs: Tensor
    values: Tensor
    entropy: Tensor | None = None


class Actor:
    """Policy and critic, and their weights that are trained."""

    def __init__(self, policy: Any, head: Any, trunk: Any = None, temperature: float = 1.0) -> None:
        """`head`: hidden size to 1. `trunk`: the critic's own, or None to stand on the policy's."""
        self.policy, self.head, self.trunk, self.temperature = policy, head, trunk, temperature

    @property
    def device(self) -> Any:
        return self.policy.device

    def __call__(self, given: Forks, entropy: bool = False) -> Said:
        import torch

        logits, hidden = _predict(self.policy, given)
        if self.trunk is not None:
            hidden = given.foretelling(self.trunk(**given.inputs()).last_hidden_state)
        logits = logits.float() / self.temperature
        log_probs = losses.policy_log_probs(logits, given.answers) * given.mask
        with torch.autocast(self.device.type, enabled=False):  # a value of 3 in bf16 would come in steps of 1/64
            values = self.head(hidden.float()).squeeze(-1) * given.mask
        return Said(log_probs, values, losses.entropy(logits) * given.mask if entropy else None)

    def trained(self) -> dict[str, Any]:
        """Name -> parameter of all that is trained; the names are those of a checkpoint."""
        parts = {"policy": self.policy, "head": self.head} | ({"trunk": self.trunk} if self.trunk is not None else {})
        return {
            f"{part}.{name}": weight
            for part, module in parts.items()
            for name, weight in module.named_parameters()
            if weight.requires_grad
        }

    def critics(self) -> set[str]:
        """Names, as in `trained`, of what the critic alone has."""
        return {name for name in self.trained() if not name.startswith("policy.")}


class Reference:
    """The policy before its first step: an adapter is off where the policy came without one, else a frozen copy."""

    def __init__(self, model: Any, off: Any = None, temperature: float = 1.0) -> None:
        """`off`: opens a context in which `model` is the reference; None where it always is."""
        self.model, self.off, self.temperature = model, off, temperature

    def __call__(self, given: Forks) -> Tensor:
        """log pi_ref of the answers' tokens, (rows, answer width) in fp32."""
        from contextlib import nullcontext

        with self.off() if self.off else nullcontext():
            logits, _ = _predict(self.model, given)
        return losses.policy_log_probs(logits.float() / self.temperature, given.answers) * given.mask


def _predict(model: Any, given: Forks) -> tuple[Tensor, Tensor]:
    """Logits that foretell the answers' tokens, and the hidden states they are read from."""
    kept: list[Tensor] = []

    def of_answers(_: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        kept.append(given.foretelling(inputs[0]))
        return (kept[0],)

    hook = model.get_output_embeddings().register_forward_pre_hook(of_answers)
    try:
        logits = model(**given.inputs()).logits
    finally:
        hook.remove()
    return logits, kept[0]


# Opening them


@dataclass(frozen=True)
class Opening:
    """How a policy on disk becomes an actor and its reference."""

    policy: Path
    base: Path
    """The full model that an adapter stands on."""
    full: bool
    lora: training.LoRA
    critic: Critic
    precision: str
    """"bf16" or "fp32"; trained weights are fp32 either way."""
    temperature: float
    seed: int

    def __call__(self) -> tuple[Actor, Reference]:
        import torch

        policy, reference = self._trained(), None
        if self.full or models.is_adapter(self.policy):
            reference = self._model().requires_grad_(False).eval()
            _share(policy, reference)
        trunk = None
        if self.critic is Critic.separate:
            second = self._trained()
            _share(policy, second)
            trunk = _plain(second).get_decoder()
        head = torch.nn.Linear(_plain(policy).config.get_text_config().hidden_size, 1).to(policy.device)
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        told = Actor(policy, head, trunk, self.temperature)
        if reference is None:
            return told, Reference(policy, policy.disable_adapter, self.temperature)
        return told, Reference(reference, temperature=self.temperature)

    def _trained(self) -> Any:
        model = self._model()
        if not (self.full or models.is_adapter(self.policy)):
            model = self._mixing(training.adapt(model, self.lora, self.seed))
        return model.eval()

    def _model(self) -> Any:
        """All alike, so that before its first step the policy is its reference to the last bit."""
        return self._mixing(
            models.load(self.policy, self.base, "fp32" if self.full else self.precision, trainable=True)
        )

    def _mixing(self, model: Any) -> Any:
        return models.multiply_in_bf16(model) if self.precision == "bf16" else model

    def mixed(self) -> AbstractContextManager[Any]:
        """fp32 weights, of an adapter or of a whole model, under bf16 arithmetic."""
        import torch

        return torch.autocast(models.best_device(), torch.bfloat16, enabled=self.precision == "bf16")


def _share(one: Any, other: Any) -> None:
    """Let frozen weights that two models have in common exist once."""
    known = {name: weight for name, weight in one.named_parameters() if not weight.requires_grad}
    for name, weight in other.named_parameters():
        if name in known and "lora_" not in name and known[name].dtype == weight.dtype:
            weight.data = known[name].data


def _plain(model: Any) -> Any:
    """The model below an adapter's wrapping; the adapter's layers stay in it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
