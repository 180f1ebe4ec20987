"""Learning to judge with TRL's RewardTrainer, where a prompt is read once for all the answers to it.

The loss and what is logged are TRL's. Pairs that share their prompt are learned from together, as Ouyang et al. (2022)
do with all comparisons of one prompt: apart from each other they would be an invitation to learn prompts by heart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tasks.llm import reward_models
from tasks.llm.forks import forks, possible

if TYPE_CHECKING:
    from torch import Tensor

Pair = dict[str, Any]
"""Token ids: `prompt_ids`, `chosen_ids`, `rejected_ids`; and `margin`."""


def trainer(model: Any, train_dataset: Any, **given: Any) -> Any:
    """A RewardTrainer of TRL over pairs."""
    import trl

    class Trainer(trl.RewardTrainer):
        def _set_signature_columns_if_needed(self) -> None:
            self._signature_columns = list(train_dataset.column_names)

        def _get_train_sampler(self, *_: Any) -> Any:
            return Together(train_dataset["prompt_ids"], self.args.seed)

        def compute_loss(self, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            from transformers.modeling_outputs import SequenceClassifierOutput

            pairs, pad = inputs["pairs"], self.processing_class.pad_token_id
            real, scores = of_pairs(model, pairs, pad, self.accelerator.device, possible(self.model.config))
            seen = {"attention_mask": real, "margin": inputs["margin"]}
            return super().compute_loss(lambda **_: SequenceClassifierOutput(logits=scores), seen, *more, **named)

    return Trainer(model=model, train_dataset=train_dataset, data_collator=_batch, **given)


def _batch(pairs: Sequence[Pair]) -> dict[str, Any]:
    import torch

    return {"pairs": list(pairs), "margin": torch.tensor([pair["margin"] for pair in pairs])}


def of_pairs(model: Any, pairs: Sequence[Pair], pad: int, device: Any, shared: bool) -> tuple[Tensor, Tensor]:
    """Which tokens were read, and the scores (2 pairs, 1): of the chosen answers, then of the rejected ones. An answer
    that stands in several pairs is read once."""
    wanted = [
        (tuple(pair["prompt_ids"]), tuple(pair[which])) for which in ("chosen_ids", "rejected_ids") for pair in pairs
    ]
    asked = list(dict.fromkeys(wanted))
    prompts, answers = zip(*asked, strict=True)
    given = forks([*map(list, prompts)], [*map(list, answers)], pad, device, shared)
    found = reward_models.scored(model, given)
    return given.owner >= 0, found[[asked.index(one) for one in wanted]].unsqueeze(1)


class Together:
    """The order of an epoch: prompts at random, and all rows of a prompt in a row. It follows from seed and epoch."""

    def __init__(self, prompts: Sequence[list[int]], seed: int) -> None:
        self.rows: dict[tuple[int, ...], list[int]] = {}
        for number, prompt in enumerate(prompts):
            self.rows.setdefault(tuple(prompt), []).append(number)
        self.size, self.seed, self.epoch = len(prompts), seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        import torch

        groups, dice = list(self.rows.values()), torch.Generator().manual_seed(self.seed + self.epoch)
        return (row for group in torch.randperm(len(groups), generator=dice).tolist() for row in groups[group])
