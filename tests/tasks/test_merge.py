from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.llm import models
from tasks.merge import MergeConfig, merge
from tasks.runtime import Model, Precision, Run
from tasks.runtime.store import Store
from tests import hand


@pytest.fixture
def base(tiny_model: Path) -> Model:
    return hand.handle(Model, tiny_model, digest="ba5e")


def _sealed(store: Store, draft: Path, key: str) -> Any:
    """The digest that the store gives to what a run left."""
    (draft / "out").rename(draft / "content")
    return store.publish(draft, {"stage": "made", "key": key, "kind": "Model"})["digest"]


def test_an_adapter_is_folded_into_what_it_stands_on(base: Model, tmp_path: Path) -> None:
    import torch

    policy, run = hand.adapter(tmp_path / "adapter", base), hand.run(tmp_path / "run")
    metrics = merge.body(run, MergeConfig(), policy)
    assert not models.is_adapter(run.out)
    ids = torch.tensor([hand.turns(base.path)[0].prompt])
    with torch.inference_mode():
        together = models.load(policy.path, base.path, "fp32")(input_ids=ids).logits
        merged = models.load(run.out, run.out, "fp32")(input_ids=ids).logits
    assert torch.allclose(together, merged, atol=1e-5, rtol=1e-5)
    assert metrics["size_mb"] == sum(len(body) for body in hand.content(run.out).values()) / 1e6


@pytest.mark.parametrize(
    ("precision", "dtype"), [(Precision.fp32, "float32"), (Precision.bf16, "bfloat16"), (Precision.auto, "bfloat16")]
)
def test_precision_says_what_the_folded_weights_are_kept_in(
    base: Model, tmp_path: Path, precision: Precision, dtype: str
) -> None:
    run = hand.run(tmp_path / "run")
    merge.body(run, MergeConfig(precision), hand.adapter(tmp_path / "adapter", base))
    assert json.loads((run.out / "config.json").read_text())["dtype"] == dtype


def test_a_full_policy_passes_through_under_the_same_digest(base: Model, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    tuned: Run = hand.run(tmp_path / "tuned")
    models.save(models.load(base.path, base.path, "fp32"), tuned.out, base.path)
    before = _sealed(store, tmp_path / "tuned", "1")
    policy = hand.handle(Model, store.root / "objects" / before)
    merge.body(hand.run(tmp_path / "run"), MergeConfig(Precision.bf16), policy)
    assert _sealed(store, tmp_path / "run", "2") == before


def test_an_adapters_merge_names_no_path(base: Model, tmp_path: Path) -> None:
    run = hand.run(tmp_path / "run")
    merge.body(run, MergeConfig(), hand.adapter(tmp_path / "adapter", base))
    assert not any(str(tmp_path).encode() in body for body in hand.content(run.out).values())
    assert not any(str(base.path).encode() in body for body in hand.content(run.out).values())
