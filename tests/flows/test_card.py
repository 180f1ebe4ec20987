"""The model card: true to the manifests, fit for a hub, and silent about the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from flows import card, usage
from flows.story import Story
from tasks.runtime.catalogue import Catalogue
from tests.flows import stories

COMMAND = "python -m flows.sft_then_dpo runtime.root=/tmp/mine download.path=/home/me/models/small dpo.args.beta=0.3"


@pytest.fixture
def told(tmp_path: Path) -> Story:
    return stories.told(tmp_path / "store")


def written(told: Story, beside: usage.Beside | None = None) -> str:
    return card.text(told, card.Origin("a-run", COMMAND), beside or usage.Beside())


def made(told: Story, stage: str) -> dict[str, Any]:
    return told.of(stage)[-1]


def front(text: str) -> Any:
    return OmegaConf.to_container(OmegaConf.create(text.split("---\n")[1]))  # it reads YAML


def test_the_front_matter_is_what_a_hub_reads(told: Story) -> None:
    found = front(written(told))
    assert (found["license"], found["base_model"]) == ("apache-2.0", "Small-Instruct")
    assert (found["library_name"], found["pipeline_tag"]) == ("transformers", "text-generation")
    assert found["tags"] == ["sft", "dpo", "lora", "gguf", "posttrain"]
    assert "datasets" not in found  # it came from a file


def test_what_ppo_learned_is_told_and_its_judge_is_no_part_of_the_model(told: Story) -> None:
    told.manifests[told.manifests.index(made(told, "dpo"))] |= {"stage": "ppo", "fields": {"method": "lora"}}
    asked = {"method": "lora", "args": {"max_steps": 2}}
    told.manifests.insert(0, stories.manifest(told.store, "reward_model", "RewardModel", fields=asked))
    text = card.text(told, card.Origin("a-run", "python -m flows.rlhf debug=rlhf/smoke"), usage.Beside())
    assert "# Small-Instruct + SFT, PPO\n" in text and "small-instruct-ppo/" in text
    assert front(text)["tags"] == ["sft", "ppo", "lora", "gguf", "posttrain"]
    assert "| reward_model | method lora, max_steps 2 |" in text, "what judged it is told where it was made"
    assert "`debug=rlhf/smoke`" in text


def test_a_base_and_rows_of_a_hub_are_named_as_the_hub_does(told: Story) -> None:
    place = told.content(made(told, "download")) / "origin.json"
    place.write_text(json.dumps({"repo": "acme/small", "license": "mit", "revision": "abc"}))
    made(told, "preprocess")["config"] = {"kind": "chats", "repo": "acme/rows", "path": ""}
    found = front(written(told))
    assert (found["base_model"], found["datasets"], found["license"]) == ("acme/small", ["acme/rows"], "mit")


def test_nothing_of_the_machine_is_told(told: Story) -> None:
    text = written(told)
    assert "/home" not in text and "/tmp" not in text and "runtime.root" not in text
    assert "`prompts.jsonl`" in text
    assert "python -m flows.sft_then_dpo download.path=small dpo.args.beta=0.3" in text
    assert "put your own folders in front" in text and "wants `--root`" in text
    assert "python -m flows.store reproduce a-run" in text
    assert "debug=smoke" not in text


def test_a_trial_of_the_machinery_is_called_one(told: Story) -> None:
    text = card.text(told, card.Origin("a-run", "python -m flows.sft_then_dpo debug=smoke"), usage.Beside())
    assert "* Made with `debug=smoke`" in text.split("## Limitations")[1]
    assert "your own folders" not in text


def test_scores_forms_gates_and_settings_are_the_manifests_own(told: Story) -> None:
    text = written(told)
    assert "| SFT | 0.125 [0.025, 0.225] | 1.000 | 0.500 | 0.750 |" in text
    assert "base -> SFT: +0.125 [-0.100, +0.200], within chance" in text
    assert "| f16 -> q8_0 | 0.001 | 99.00% |" in text
    assert "| merged_kl_max | 0 | 0.005 | passed |" in text
    (settings,) = (line for line in text.splitlines() if line.startswith("| dpo |"))
    assert "beta 0.1" in settings and "rank 16" in settings
    assert "logging_steps" not in settings and "dropout" not in settings  # it changes no result; it is off


def test_the_limitations_follow_from_the_numbers(told: Story) -> None:
    text = written(told).split("## Limitations")[1]
    assert "62% of its answers to held-out prompts miss exact_match" in text
    assert "25.0% of its answers did not end by themselves" in text
    assert "Measured on 8 prompts of `prompts.jsonl`" in text
    assert "2 training rows were longer than the cutoff" in text


def test_a_failed_gate_is_said_first(tmp_path: Path) -> None:
    text = written(stories.told(tmp_path / "store", passed=False))
    assert "A gate FAILED" in text.split("## Scores")[0]
    assert "* The gate stopped_min: measured 0.75, limit 0.9. Train on." in text


def test_what_was_kept_of_the_base_is_told(told: Story) -> None:
    assert told.verdict
    step = {"from": "download", "to": "dpo", "metric": "loss", "prompts": 50, "mean": 0.02, "interval": [0.01, 0.03]}
    told.verdict["retention"] = step
    text = written(told)
    assert "50 general rows, base -> DPO: loss +0.020 [+0.010, +0.030]" in text
    assert "Other tasks but for the general rows above" in text


def test_each_form_is_told_how_to_run_it(told: Story) -> None:
    whole = written(told)
    assert all(word in whole for word in ("llama-cli", "ollama create", "from llama_cpp", "AutoModelForCausalLM"))
    file = written(told, usage.Beside(made(told, "quantize"), "small.gguf"))
    assert "llama-cli -m small.gguf" in file and "-f small.Modelfile" in file and "from_pretrained" not in file
    adapter = written(told, usage.Beside(made(told, "dpo")))
    assert "PeftModel" in adapter and front(adapter)["library_name"] == "peft"


def test_what_was_trained_later_is_not_said_of_what_came_before(told: Story) -> None:
    text = written(told, usage.Beside(made(told, "sft")))
    assert "# Small-Instruct + SFT\n" in text and front(text)["tags"] == ["sft", "lora", "posttrain"]


def test_an_artifact_finds_the_verdict_of_its_road(told: Story, tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    found = card.beside(catalogue, catalogue.one("dpo"))
    assert list(found) == ["README.md"] and "The files beside this card are DPO" in found["README.md"]
    assert card.beside(catalogue, catalogue.one("download")) == {}  # the base is somebody else's
    assert card.beside(catalogue, catalogue.one("encode")) == {}


def test_what_no_run_judged_has_no_card(told: Story, tmp_path: Path) -> None:
    for place in (tmp_path / "store" / "manifests" / "compare").iterdir():
        place.unlink()
    catalogue = Catalogue(tmp_path)
    assert card.beside(catalogue, catalogue.one("dpo")) == {}
