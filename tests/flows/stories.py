"""A finished road made by hand: manifests, notes and verdict as the stages leave them, without a stage having run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from flows.story import Story

MODELS = ("download", "sft", "dpo", "quantize")
PROMPTS = 8


def manifest(store: Path, stage: str, kind: str, number: int = 0, **more: Any) -> dict[str, Any]:
    """A seal with its content folder; `number` tells two of a stage apart."""
    digest = f"{stage}{number}".ljust(64, "0")
    (store / "objects" / digest).mkdir(parents=True, exist_ok=True)
    facts = {
        **{"stage": stage, "kind": kind, "key": f"key-{digest}", "digest": digest, "recipe": "r", "parents": []},
        **{"fields": {}, "config": {}, "metrics": {}, "files": {}, "notes": f"notes/{stage}{number}", "started": 1.0},
        **{"git": {"commit": "c0ffee", "dirty": "no"}, "machine": {"python": "3.11.7"}, "libraries": {"torch": "2.13"}},
        **more,
    }
    place = store / "manifests" / stage / f"{facts['key']}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(facts))
    return facts


def noted(store: Path, of: dict[str, Any], name: str, what: Any) -> None:
    folder = store / of["notes"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(what))


def told(store: Path, values: dict[str, list[float]] | None = None, number: int = 0, passed: bool = True) -> Story:
    """A road from download to compare. `values`: each model's exact_match per prompt."""
    values = values or {name: [float(i < n) for i in range(PROMPTS)] for n, name in enumerate(MODELS)}
    base = manifest(store, "download", "Model")
    origin = {"license": "apache-2.0", "source": "wheel", "file": "in/Small-Instruct.Q4_1.gguf", "path": "/home/me/x"}
    (store / "objects" / base["digest"] / "origin.json").write_text(json.dumps(origin))
    asked = {"kind": "prompts", "path": "/home/me/secret/prompts.jsonl"}
    rows = manifest(store, "preprocess", "Dataset", config=asked, metrics={"rows": 9, "eval": 8, "dropped": 1})
    tokens = manifest(store, "encode", "Tokens", fields={"cutoff": 512}, metrics={"truncated": 2})
    noted(store, tokens, "report.json", {"lengths": {"edges": [0, 10, 20], "counts": [3, 5]}})
    trainings = [_trained(store, "sft", "loss"), _trained(store, "dpo", "loss", "rewards/margins")]
    merged = manifest(store, "merge", "Model", parents=[trainings[-1]], files={"config.json": {}})
    file: dict[str, Any] = {"model-q8_0.gguf": {}}
    gguf = manifest(store, "quantize", "GGUF", parents=[merged], fields={"level": "q8_0"}, files=file)
    scores = [_measured(store, i, rows, values[name], number) for i, name in enumerate(MODELS)]
    judged = manifest(store, "compare", "Comparison", number, parents=[*scores, *trainings, gguf, rows, tokens, base])
    verdict = _verdict(values, passed)
    (store / "objects" / judged["digest"] / "verdict.json").write_text(json.dumps(verdict))
    return Story(store, [base, rows, tokens, *trainings, merged, gguf, *scores, judged], verdict)


def _trained(store: Path, stage: str, *curves: str) -> dict[str, Any]:
    asked = {"method": "lora", "lora": {"rank": 16, "dropout": 0.0}, "args": {"learning_rate": 1e-3}}
    config = {"args": {"learning_rate": 1e-3, "beta": 0.1, "logging_steps": 5}}
    made = manifest(store, stage, "Model", fields=asked, config=config, files={"stands_on.json": {}})
    history: list[dict[str, float]] = [{"step": n, **dict.fromkeys(curves, 1 / n)} for n in (1, 2, 3)]
    noted(store, made, "history.json", [*history, {"step": 3, **{f"eval_{name}": 0.4 for name in curves}}])
    return made


def _measured(store: Path, index: int, rows: dict[str, Any], values: list[float], number: int) -> dict[str, Any]:
    asked = {"max_new_tokens": 96}
    found = manifest(store, "evaluate", "Metrics", 10 * number + index, fields=asked, parents=[rows])
    lines = [json.dumps({"id": f"p{i}", "exact_match": value}) for i, value in enumerate(values)]
    (store / "objects" / found["digest"] / "predictions.jsonl").write_text("\n".join(lines))
    return found


def _verdict(values: dict[str, list[float]], passed: bool) -> dict[str, Any]:
    means = {name: sum(column) / len(column) for name, column in values.items()}
    rest = {"prompts": PROMPTS, "json_valid": 1.0, "loss": 0.5, "stopped": 0.75}
    gates = [
        {"name": "merged_kl_max", "value": 0.0, "limit": 0.005, "passed": True, "advice": ""},
        {
            "name": "stopped_min",
            "value": 0.75,
            "limit": 0.5 if passed else 0.9,
            "passed": passed,
            "advice": "Train on.",
        },
    ]
    steps = itertools.pairwise(MODELS)
    return {
        "passed": passed,
        "objective": "exact_match",
        "gates": gates,
        "candidate": {"stage": "quantize", "digest": "quantize0".ljust(64, "0")},
        "scores": [
            {"model": {"stage": name}, "exact_match": mean, "interval": [mean - 0.1, mean + 0.1], **rest}
            for name, mean in means.items()
        ],
        "differences": [{"from": a, "to": b, "mean": means[b] - means[a], "interval": [-0.1, 0.2]} for a, b in steps],
        "fidelity": {"level": "q8_0", "tokens": 99, "pairs": {"merged": _far(0.0, 1.0), "level": _far(1e-3, 0.99)}},
    }


def _far(kl: float, same: float) -> dict[str, float]:
    return {"kl": kl, "same_top1": same}
