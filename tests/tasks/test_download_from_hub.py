"""The download stage on a hub: what tests/tasks/llm/test_hub.py shows of the client, seen from the stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.download import DownloadConfig, Source, download
from tasks.llm import models
from tasks.llm.hub import HubError
from tasks.runtime import Moving, Run, keys
from tests import hand
from tests.fake_hub import FakeHub, content


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return hand.run(tmp_path / "run")


def _from_hub(run: Run, repo: str, commit: str) -> dict[str, float]:
    return download.body(run, DownloadConfig(Source.hub, repo=repo, revision=commit))


def test_the_whole_folder_of_a_hub_arrives_and_loads(hub: FakeHub, run: Run, tiny_model: Path) -> None:
    files = content(tiny_model)
    commit = hub.push("acme/tiny", files | {"README.md": b"hi", "pytorch_model.bin": b"x"})
    _from_hub(run, "acme/tiny", commit)
    assert {name: (run.out / name).read_bytes() for name in files} == files
    assert not (run.out / "pytorch_model.bin").exists()
    assert models.origin(run.out) == {
        "source": "hub",
        "repo": "acme/tiny",
        "commit": commit,
        "license": "",
        "trust_remote_code": False,
    }
    assert hand.turns(run.out) == hand.turns(tiny_model)


def test_a_branch_is_asked_for_when_the_key_is_made_and_not_for_other_sources(hub: FakeHub) -> None:
    commit = hub.push("acme/tiny", {"config.json": b"{}"})

    class World:
        def hash_file(self, path: Path) -> str:
            return "h"

        def resolve(self, moving: Moving) -> str:
            assert moving.name == "model acme/tiny@main"
            return moving.ask()

    cfg = DownloadConfig(Source.hub, repo="acme/tiny")
    assert keys.keyed_fields(cfg, World())["revision"] == commit
    assert keys.settled(cfg, World())["revision"] == commit
    assert keys.keyed_fields(DownloadConfig(), World())["revision"] == ""


def test_a_gated_repo_says_how_to_get_in(hub: FakeHub, run: Run) -> None:
    commit = hub.push("acme/gated", {"config.json": b"{}", "model.safetensors": b"x"}, gated=True)
    with pytest.raises(HubError, match=r"acme/gated.*HF_TOKEN"):
        _from_hub(run, "acme/gated", commit)
    assert not list(run.out.iterdir())


def test_a_repo_that_is_not_there_is_final(hub: FakeHub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(HubError, match="acme/nowhere"):
        _from_hub(run, "acme/nowhere", "0" * 40)


def test_a_repo_without_config_json_is_no_model(hub: FakeHub, run: Run) -> None:
    commit = hub.push("acme/odd", {"model.safetensors": b"x"})
    with pytest.raises(ValueError, match=r"acme/odd.* config.json"):
        _from_hub(run, "acme/odd", commit)
