"""deploy/.env: made once with passwords of its own, and checked before anything starts."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from deploy.settings import Refused, settings


def test_a_missing_file_is_made_with_random_passwords_for_nobody_else_to_read(tmp_path: Path) -> None:
    first, second = settings(tmp_path / "first"), settings(tmp_path / "second")
    words = {first.postgres_password, first.prefect_password, second.postgres_password, second.prefect_password}
    assert len(words) == 4 and min(len(word) for word in words) >= 32
    assert stat.S_IMODE((tmp_path / "first").stat().st_mode) == 0o600
    assert settings(tmp_path / "first") == first


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PREFECT_PASSWORD=\nMLFLOW_PORT=many\nWORKER_LIMIT=0\n")
    with pytest.raises(Refused) as refused:
        settings(tmp_path / ".env")
    said = str(refused.value)
    assert "add the line POSTGRES_PASSWORD=" in said and "add the line PREFECT_PASSWORD=" in said
    assert "MLFLOW_PORT=many: give a number such as 5000." in said and "WORKER_LIMIT=0" in said


def test_the_shell_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings(tmp_path / ".env")
    monkeypatch.setenv("PREFECT_PORT", "4999")
    assert settings(tmp_path / ".env").client["PREFECT_API_URL"] == "http://127.0.0.1:4999/api"


def test_what_is_for_runs_is_kept_apart_from_passwords(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("POSTGRES_PASSWORD=p$x  # a word\nPREFECT_PASSWORD='q'\nHF_TOKEN=t\n")
    now = settings(tmp_path / ".env")
    assert (now.postgres_password, now.prefect_password, now.others) == ("p$x", "q", {"HF_TOKEN": "t"})
