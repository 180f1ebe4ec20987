"""What goes wrong at a model hub, and what is said about it."""

from __future__ import annotations

import logging
import shutil
import socket

import pytest

from tasks.llm import hub as ours
from tasks.llm.hub import HubError, Unreachable
from tests.fake_hub import FakeHub, Get

TINY = {"config.json": b"{}", "model.safetensors": b"weights"}
SECRET = "hf_reader"


def test_a_bad_token_is_called_that(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push("acme/tiny", TINY)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(HubError, match=r"does not accept the token in HF_TOKEN \(401\).*Make a new one") as error:
        ours.resolve("acme/tiny", "main")
    assert "hf_expired" not in str(error.value)


def test_a_gated_repo_names_its_page_and_the_token(hub: FakeHub, get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.push("acme/gated", TINY, gated=True)
    with pytest.raises(HubError, match=r"no token is set \(401\).*https://\S+/acme/gated.*set HF_TOKEN"):
        get("acme/gated", commit)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with pytest.raises(HubError, match=r"may not read it \(403\).*https://\S+/acme/gated .*HF_TOKEN"):
        get("acme/gated", commit)
    monkeypatch.setenv("HF_TOKEN", "hf_licensed")
    assert get("acme/gated", commit)["model.safetensors"] == b"weights"


def test_a_gated_data_set_names_the_page_of_the_data_set(hub: FakeHub, get: Get) -> None:
    commit = hub.push("acme/rows", {"a.csv": b"a"}, kind="dataset", gated=True)
    with pytest.raises(HubError, match=r"https://\S+/datasets/acme/rows"):
        get("acme/rows", commit, kind="dataset")


@pytest.mark.parametrize("token", ["", SECRET])
def test_a_missing_repo_is_no_missing_revision(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    hub.push("acme/tiny", TINY)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=r"has no model 'acme/tinny'.*Check the spelling.*private repo set HF_TOKEN"):
        ours.resolve("acme/tinny", "main")
    with pytest.raises(HubError, match=r"acme/tiny has no revision 'v2' \(404\)"):
        ours.resolve("acme/tiny", "v2")


@pytest.mark.parametrize("name", ["", "acme/tiny/main", "a tiny model", "acme/tiny--it"])
def test_a_repo_name_that_is_none_is_told_how_one_looks(hub: FakeHub, name: str) -> None:
    with pytest.raises(HubError, match=f"'{name}' is no repo id: write it as owner/name"):
        ours.resolve(name, "main")
    assert not hub.seen


def test_the_token_goes_to_the_hub_alone_and_into_no_message_or_log(
    hub: FakeHub, get: Get, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    get("acme/tiny", hub.push("acme/tiny", TINY))
    assert {headers["Authorization"] for server, _, headers in hub.seen if server == "hub"} == {f"Bearer {SECRET}"}
    assert {headers["Authorization"] for server, _, headers in hub.seen if server == "storage"} == {None}
    hub.fail(418, times=1)
    with pytest.raises(HubError, match="418: try again later") as error:
        ours.resolve("acme/tiny", "main")
    assert error.value.__suppress_context__
    assert SECRET not in str(error.value) + caplog.text


def test_a_token_with_a_line_break_is_refused_without_being_quoted(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_one\nhf_two")
    with pytest.raises(HubError, match="HF_TOKEN holds") as error:
        ours.resolve("acme/tiny", "main")
    assert "hf_one" not in str(error.value)


def test_the_endpoint_is_the_one_the_environment_names_now(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub() as mirror:
        commit = mirror.push("acme/tiny", TINY)
        monkeypatch.setenv("HF_ENDPOINT", mirror.address + "/")
        assert ours.resolve("acme/tiny", "main") == commit
        assert mirror.seen and not hub.seen
        monkeypatch.setenv("HF_ENDPOINT", mirror.address.replace("//", "//user:password@"))
        with pytest.raises(HubError) as error:
            ours.resolve("acme/none", "main")
        assert "password" not in str(error.value)


def test_an_endpoint_without_a_scheme_is_refused(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "mirror.example")
    with pytest.raises(HubError, match="begins with https://"):
        ours.resolve("acme/tiny", "main")


def test_a_refused_connection_is_unreachable(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(Unreachable, match=r"did not give acme/tiny \(ConnectError.*HF_ENDPOINT"):
            ours.resolve("acme/tiny", "main")


def test_silence_is_unreachable(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.push("acme/tiny", TINY)
    monkeypatch.setattr(ours, "PATIENCE", 0.1)
    hub.stall("main", seconds=0.3)
    with pytest.raises(Unreachable, match="ReadTimeout"):
        ours.resolve("acme/tiny", "main")
    assert ours.resolve("acme/tiny", "main") == commit


def test_offline_says_so_and_is_not_retried(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        ours.resolve("acme/tiny", "main")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # set when the client was imported
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        ours.resolve("acme/tiny", "main")
    assert not hub.seen


def test_a_disk_too_small_is_said_before_the_first_byte(
    hub: FakeHub, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.push("acme/tiny", TINY)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(HubError, match=r"0\.0 GB more, .* 0\.0 GB free: make room"):
        get("acme/tiny", commit)
    assert not hub.paths("/resolve/")


def test_a_file_that_would_land_outside_the_folder_is_refused(hub: FakeHub) -> None:
    commit = hub.push("acme/evil", {"data/../../row.json": b"x"}, kind="dataset")
    with pytest.raises(HubError, match="outside its own folder"):
        ours.files("acme/evil", commit, "dataset")


def test_something_that_is_no_hub_is_told_apart(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fake_hub._info", lambda *_: ["a log-in page"])
    hub.push("acme/tiny", TINY)
    with pytest.raises(HubError, match="not as a model hub does: check HF_ENDPOINT"):
        ours.resolve("acme/tiny", "main")
