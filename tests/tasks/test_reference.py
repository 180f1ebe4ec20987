"""The sums are held against log-probabilities added up by plain code, one sequence at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tasks.llm import models
from tasks.llm.pairs import encoded_pairs
from tasks.llm.training import Method
from tasks.reference import ReferenceConfig, reference
from tasks.runtime import Model, Precision, Run, keys
from tests import hand, tiny

ROWS = hand.pairs()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return hand.handle(Model, tiny.build(tmp_path_factory.mktemp("reference") / "base", says=""), digest="ba5e")


@pytest.fixture(scope="module")
def tuned(base: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """What SFT leaves: an adapter that says something else than its base."""
    return hand.adapter(tmp_path_factory.mktemp("tuned"), base, scale=0.2)


def _config(precision: Precision = Precision.fp32, **more: Any) -> ReferenceConfig:
    return ReferenceConfig(precision=precision, **more)


def _written(run: Run, split: str = "train") -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return list(pq.read_table(run.out / f"{split}.parquet").to_pylist())


def _sums(run: Run, split: str = "train") -> list[float]:
    return [row[name] for row in _written(run, split) for name in ("ref_chosen_logps", "ref_rejected_logps")]


def _by_hand(policy: Model, rows: list[dict[str, Any]]) -> list[float]:
    answers = zip(hand.log_p(policy, rows, "chosen"), hand.log_p(policy, rows, "rejected"), strict=True)
    return [value for pair in answers for value in pair]


@pytest.mark.parametrize("which", ["adapter", "full"])
def test_the_sums_are_those_by_hand_row_by_row_in_both_splits(
    which: str, tuned: Model, base: Model, tmp_path: Path
) -> None:
    policy, run = tuned if which == "adapter" else base, hand.run(tmp_path / "run")
    metrics = reference.body(run, _config(), policy, hand.dataset(tmp_path / "rows", ROWS, ROWS[2:]))
    assert _sums(run) == pytest.approx(_by_hand(policy, ROWS), abs=1e-4)
    assert _sums(run, "eval") == pytest.approx(_by_hand(policy, ROWS[2:]), abs=1e-4)
    assert [row["id"] for row in _written(run)] == ["0", "1", "2", "3"]
    assert (metrics["pairs"], metrics["eval_pairs"], metrics["too_long"]) == (4, 2, 0)


def test_the_reference_of_an_adapter_is_not_the_model_below_it(tuned: Model, base: Model, tmp_path: Path) -> None:
    run = hand.run(tmp_path / "run")
    reference.body(run, _config(), tuned, hand.dataset(tmp_path / "rows", ROWS))
    assert max(abs(a - b) for a, b in zip(_sums(run), _by_hand(base, ROWS), strict=True)) > 1


def test_how_many_pairs_are_asked_at_once_changes_nothing(tuned: Model, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    rows = hand.dataset(tmp_path / "rows", ROWS, ROWS[:1])
    found = []
    for at_once in (1, 3, 64):
        run = hand.run(tmp_path / str(at_once), micro_batch=at_once, progress=lambda now, of, _: told.append((now, of)))
        reference.body(run, _config(), tuned, rows)
        found.append(_sums(run))
    assert found[1] == pytest.approx(found[0], abs=1e-4)
    assert found[2] == pytest.approx(found[0], abs=1e-4)
    assert told == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5), (3, 5), (5, 5), (5, 5)]


def test_two_folders_give_the_same_bytes(tuned: Model, tmp_path: Path) -> None:
    runs = [hand.run(tmp_path / name) for name in ("here", "there")]
    for run in runs:
        reference.body(run, _config(Precision.bf16), tuned, hand.dataset(run.work / "rows", ROWS))
    assert hand.content(runs[0].out) == hand.content(runs[1].out)
    assert not any(str(tmp_path).encode() in body for body in hand.content(runs[0].out).values())


def test_a_pair_is_a_prompt_and_two_answers_that_stop(tuned: Model, tmp_path: Path) -> None:
    run = hand.run(tmp_path / "run")
    reference.body(run, _config(), tuned, hand.dataset(tmp_path / "rows", ROWS))
    decode, pair = models.load_tokenizer(tuned.path).decode, _written(run)[0]
    assert decode(pair["chosen_ids"]) == "bake: 3 loaves<|im_end|>"
    assert decode(pair["rejected_ids"]) == "sevaol 3 :ekab!<|im_end|>"
    assert decode(pair["prompt_ids"]).endswith("bake bread<|im_end|>\n<|im_start|>assistant\n")


def test_pairs_over_the_cutoff_are_dropped_whole_and_counted(tuned: Model, tmp_path: Path) -> None:
    rows = hand.dataset(tmp_path / "rows", ROWS, ROWS)
    encoded, dropped = encoded_pairs(rows.path, "train", models.load_tokenizer(tuned.path), 1000)
    assert (len(encoded), dropped) == (4, 0)
    lengths = [len(p["prompt_ids"]) + max(len(p["chosen_ids"]), len(p["rejected_ids"])) for p in encoded]
    run = hand.run(tmp_path / "run")
    metrics = reference.body(run, _config(cutoff=max(lengths) - 1), tuned, rows)
    assert (metrics["pairs"], metrics["eval_pairs"], metrics["too_long"]) == (3, 3, 2)
    longest = lengths.index(max(lengths))
    assert [row["id"] for row in _written(run)] == [str(i) for i in range(4) if i != longest]
    kept = [row for i, row in enumerate(ROWS) if i != longest]
    assert _sums(run) == pytest.approx(_by_hand(tuned, kept), abs=1e-4)
    assert reference.body(run, _config(cutoff=max(lengths)), tuned, rows)["too_long"] == 0


def test_nothing_but_too_long_pairs_is_an_error_that_names_the_knob(tuned: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No pair to train on is within cutoff=8 tokens.* reference.cutoff"):
        reference.body(
            hand.run(tmp_path / "run"), _config(cutoff=8), tuned, hand.dataset(tmp_path / "rows", ROWS, ROWS)
        )


def test_no_held_out_pairs_are_no_error(tuned: Model, tmp_path: Path) -> None:
    run = hand.run(tmp_path / "run")
    reference.body(run, _config(), tuned, hand.dataset(tmp_path / "rows", ROWS))
    assert _written(run, "eval") == []


def test_bf16_stays_near_fp32(base: Model, tmp_path: Path) -> None:
    rows, exact = hand.dataset(tmp_path / "rows", ROWS), _by_hand(base, ROWS)
    found = {}
    for method in Method:
        run = hand.run(tmp_path / method)
        reference.body(run, _config(Precision.bf16, method=method), base, rows)
        found[method] = _sums(run)
        assert all(math.isclose(near, far, rel_tol=0.02) for near, far in zip(found[method], exact, strict=True))
    assert found[Method.full] != found[Method.lora]


def test_the_method_is_keyed_where_it_changes_the_arithmetic() -> None:
    def fields(precision: Precision, method: Method) -> dict[str, Any]:
        return keys.keyed_fields(ReferenceConfig(precision=precision, method=method), None)  # type: ignore[arg-type]

    assert set(fields(Precision.bf16, Method.lora)) == {"cutoff", "precision", "method"}
    assert fields(Precision.fp32, Method.full) == fields(Precision.fp32, Method.lora)
    assert fields(Precision.bf16, Method.full) != fields(Precision.bf16, Method.lora)


def test_problems_are_those_of_cutoff_and_precision() -> None:
    assert list(ReferenceConfig().problems()) == []
    cutoff, precision = ReferenceConfig(cutoff=1, precision=Precision.fp16).problems()
    assert ("at least 8" in cutoff, "use bf16, fp32 or auto" in precision) == (True, True)
