"""A PostgreSQL of our own: on a socket in its folder, so that no port is open, and with a password all the same."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.settings import Refused

USER = "posttrain"
_SQL = Path(__file__).with_name("databases.sql")
_LONGEST = 103
"""Bytes that every system takes as the path of a socket."""


@dataclass(frozen=True)
class Cluster:
    folder: Path
    programs: Path
    password: str = field(repr=False)

    @property
    def command(self) -> list[str]:
        settings = ["listen_addresses=", f"unix_socket_directories={self.folder}"]
        return [str(self.programs / "postgres"), "-D", str(self.folder), *(w for s in settings for w in ("-c", s))]

    @property
    def env(self) -> dict[str, str]:
        """What a client needs: libpq and asyncpg both read it, and no address has to hold the password."""
        return {"PGPASSWORD": self.password}

    @property
    def end(self) -> signal.Signals:
        """Ends the sessions that are open, and then itself."""
        return signal.SIGINT

    def address(self, driver: str, database: str) -> str:
        return f"postgresql+{driver}://{USER}@/{database}?host={self.folder}"

    def make(self, log: Path) -> None:
        """Make the cluster with its databases if it is not there: whole under its final name, or not at all."""
        if self.folder.exists():
            return
        draft = self.folder.with_name("postgres.new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        with tempfile.NamedTemporaryFile("w") as password:  # not as a word: words are for all to see
            password.write(self.password)
            password.flush()
            if _owner():
                for place in (draft, password.name):
                    shutil.chown(place, _owner(), pwd.getpwnam(_owner()).pw_gid)
            made = ["-U", USER, "-A", "scram-sha-256", f"--pwfile={password.name}", "-E", "UTF8", "--no-locale"]
            self._run([str(self.programs / "initdb"), "-D", str(draft), *made], "", log)
        self._run([str(self.programs / "postgres"), "--single", "-D", str(draft), "postgres"], _SQL.read_text(), log)
        draft.rename(self.folder)

    def healthy(self) -> bool:
        """Whether it lets us in. Raises Refused where it never will."""
        command = [str(self.programs / "psql"), "-h", str(self.folder), "-U", USER, "-d", "mlflow", "-wc", "SELECT 1"]
        env = {**os.environ, **self.env, "LC_ALL": "C"}
        asked = subprocess.run(command, env=env, capture_output=True, text=True)
        if "password authentication failed" in asked.stderr:
            raise Refused(
                f"POSTGRES_PASSWORD is not the one that {self.folder} was made with: put that one back, or move the "
                "folder away to begin with empty databases."
            )
        return asked.returncode == 0

    def _run(self, command: list[str], said: str, log: Path) -> None:
        with open(log, "a") as output:
            done = subprocess.run(
                command, input=said, text=True, stdout=output, stderr=output, cwd=self.folder.parent, **as_owner()
            )
        if done.returncode:
            raise Refused(f"{Path(command[0]).name} failed; its words are in {log}.")


def found(folder: Path, password: str) -> tuple[Cluster | None, str]:
    """The cluster that is to be used, or none and why. Raises Refused where there is one that cannot run."""
    programs = _programs()
    if folder.exists():
        if programs is None:
            raise Refused(
                f"{folder} was made with PostgreSQL, which is not found here: install it, or move that folder away to "
                "begin anew with SQLite."
            )
        return Cluster(folder, programs, password), ""
    if programs is None:
        return None, "PostgreSQL is not installed"
    if (folder.parent / "prefect.db").exists():
        return None, f"it was begun with it; move {folder.parent}/*.db away to begin anew with PostgreSQL"
    if len(os.fsencode(folder / ".s.PGSQL.5432")) > _LONGEST:
        return None, f"{folder} is too long for PostgreSQL's socket"
    if _owner() and subprocess.run(["test", "-x", folder.parent], cwd="/", **as_owner()).returncode:
        return None, f"{folder.parent} is out of reach for the user {_owner()}, and PostgreSQL does not run as root"
    return Cluster(folder, programs, password), ""


def as_owner() -> dict[str, Any]:
    """Arguments of subprocess: PostgreSQL does not run as root."""
    if not _owner():
        return {}
    return {"user": _owner(), "group": pwd.getpwnam(_owner()).pw_gid, "extra_groups": []}


def _owner() -> str:
    """As whom it runs; empty for ourselves."""
    if os.getuid():
        return ""
    return "postgres" if "postgres" in {user.pw_name for user in pwd.getpwall()} else "nobody"


def _programs() -> Path | None:
    """The newest PostgreSQL: Debian keeps them apart from the path, where only `psql` and friends are."""
    on_path = [Path(place).resolve().parent for place in [shutil.which("initdb")] if place]
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: float(place.parent.name), reverse=True)
    whole = (folder for folder in (*on_path, *debian) if all((folder / n).exists() for n in ("postgres", "psql")))
    return next(whole, None)
