"""Checkpoints of several ranks: each of them must have left its part. Those of one process are in test_training.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.llm import checkpoints


def _checkpoint(folder: Path, step: int, zero2: bool) -> Path:
    """What two ranks leave, by the names that transformers and DeepSpeed give."""
    import torch
    from safetensors.torch import save_file

    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    save_file({"a": torch.zeros(3, 5)}, place / "adapter_model.safetensors")
    names = ["rng_state_0.pth", "rng_state_1.pth", "scheduler.pt"]
    if zero2:
        (place / f"global_step{step}").mkdir()
        (place / "latest").write_text(f"global_step{step}")
        names += [f"global_step{step}/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)]
    for name in names:
        torch.save({"state": torch.ones(2)}, place / name)
    (place / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return place


def _without_the_last_ranks_random_state(place: Path) -> None:
    (place / "rng_state_1.pth").unlink()


def _with_half_a_random_state(place: Path) -> None:
    (place / "rng_state_1.pth").write_bytes((place / "rng_state_1.pth").read_bytes()[:-40])


def _without_the_last_ranks_optimizer(place: Path) -> None:
    next(place.glob("global_step*/zero_pp_rank_1_*")).unlink()


def _with_half_an_optimizer(place: Path) -> None:
    part = next(place.glob("global_step*/zero_pp_rank_0_*"))
    part.write_bytes(part.read_bytes()[:-40])


def _without_a_word_on_the_latest(place: Path) -> None:
    (place / "latest").unlink()


@pytest.mark.parametrize(
    ("zero2", "damage"),
    [
        (False, _without_the_last_ranks_random_state),
        (False, _with_half_a_random_state),
        (True, _without_the_last_ranks_random_state),
        (True, _without_the_last_ranks_optimizer),
        (True, _with_half_an_optimizer),
        (True, _without_a_word_on_the_latest),
    ],
)
def test_a_checkpoint_that_lacks_a_ranks_part_is_passed_over(
    tmp_path: Path, zero2: bool, damage: Callable[[Path], None]
) -> None:
    whole, cut = _checkpoint(tmp_path, 2, zero2), _checkpoint(tmp_path, 4, zero2)
    assert checkpoints.last_complete(tmp_path, 2) == str(cut)
    damage(cut)
    assert checkpoints.last_complete(tmp_path, 2) == str(whole)


@pytest.mark.parametrize("other", ["4x1x1", "2x1x2 zero2"])
def test_another_number_of_ranks_or_strategy_starts_again_and_says_so(tmp_path: Path, other: str) -> None:
    begun = _checkpoint(tmp_path / "checkpoints", 2, zero2=False)
    checkpoints.forget_other_split(tmp_path, "2x1x2")
    checkpoints.forget_other_split(tmp_path, "2x1x2")
    assert begun.exists()
    with pytest.warns(UserWarning, match=r"used another batch split \(2x1x2\); it starts again"):
        checkpoints.forget_other_split(tmp_path, other)
    assert not begun.exists()
