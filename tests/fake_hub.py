"""A model hub on loopback: the part of the hub's API that a download uses, with the headers the real one answers with.

    with FakeHub() as hub:
        commit = hub.push("acme/tiny", {"config.json": b"{}", "model.safetensors": b"..."})
        hub.use(monkeypatch)            # HF_ENDPOINT and a clean environment
        hub.fail(503, times=2)          # or cut(...), corrupt(...), stall(...)

Weights and tables are LFS files: served by a second server (another origin, as the real storage is) behind a redirect.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

Get = Callable[..., dict[str, bytes]]
LFS = (".safetensors", ".parquet", ".bin", ".gguf")


@dataclass
class Repo:
    """`commits` holds every state ever pushed, `branches` the names that move."""

    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """Something that goes wrong the next few times a request's path ends in `where`."""

    what: str
    where: str
    times: int
    amount: float = 0


class FakeHub:
    """`seen` lists (server, path, headers) of every request, in order; server is "hub" or "storage"."""

    def __init__(self) -> None:
        self.hub, self.storage = _serve(self, "hub"), _serve(self, "storage")
        self.address = f"http://127.0.0.1:{self.hub.server_port}"
        self.reset()

    def reset(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, tuple[str, bytes]] = {}
        self.tokens: dict[str, bool] = {"hf_reader": False, "hf_licensed": True}  # may it read gated repos?
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str, Message]] = []
        self.ranges = True  # does the storage honour Range?

    def __enter__(self) -> FakeHub:
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self.hub, self.storage):
            server.shutdown()
            server.server_close()

    def use(self, monkeypatch: pytest.MonkeyPatch, token: str = "") -> None:
        """Points this process's hub client here, whatever the machine's environment says."""
        from huggingface_hub import close_session

        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # read at import
        monkeypatch.setenv("HF_ENDPOINT", self.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        close_session()

    def push(self, name: str, files: dict[str, bytes], kind: str = "model", gated: bool = False) -> str:
        """Adds a commit, moves main to it and returns its id."""
        repo = self.repos.setdefault(f"{kind}s/{name}", Repo())
        commit = hashlib.sha1(repr((name, len(repo.commits), sorted(files.items()))).encode()).hexdigest()
        repo.commits[commit], repo.branches["main"], repo.gated = files, commit, gated
        self.blobs.update({sha256(body): (path, body) for path, body in files.items()})
        return commit

    def fail(self, status: int, times: int, where: str = "") -> None:
        self.faults.append(Fault("fail", where, times, status))

    def cut(self, where: str, after: int, times: int = 1) -> None:
        """Closes the connection after so many bytes of the body."""
        self.faults.append(Fault("cut", where, times, after))

    def shorten(self, where: str, after: int, times: int = 1) -> None:
        """Sends so many bytes of the body and calls that the whole."""
        self.faults.append(Fault("shorten", where, times, after))

    def corrupt(self, where: str, times: int = 1) -> None:
        """Changes the first byte of the body."""
        self.faults.append(Fault("corrupt", where, times))

    def stall(self, where: str, seconds: float, times: int = 1) -> None:
        self.faults.append(Fault("stall", where, times, seconds))

    def take(self, what: str, path: str) -> float | None:
        for fault in self.faults:
            if fault.what == what and fault.times > 0 and path.endswith(fault.where):
                fault.times -= 1
                return fault.amount
        return None

    def paths(self, part: str = "") -> list[str]:
        return [path for _, path, _ in self.seen if part in path]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def blob_id(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _serve(hub: FakeHub, role: str) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": hub, "role": role}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    role: str
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.fake.seen.append((self.role, path, self.headers))
        if (seconds := self.fake.take("stall", path)) is not None:
            time.sleep(seconds)
        if (status := self.fake.take("fail", path)) is not None:
            return self._refuse(int(status), "", "try again later")
        answer: Callable[[str], None] = self._blob if self.role == "storage" else self._hub
        answer(path)

    def log_message(self, *_: Any) -> None:
        pass

    def _hub(self, path: str) -> None:
        """/api/{models,datasets}/NAME/revision/REVISION and /[datasets/]NAME/resolve/REVISION/FILE."""
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if token and token not in self.fake.tokens:
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        api, verb = path.startswith("/api/"), "/revision/" if path.startswith("/api/") else "/resolve/"
        name, _, rest = path.removeprefix("/api").partition(verb)
        key = name[1:] if api or name.startswith("/datasets/") else f"models{name}"
        repo = self.fake.repos.get(key)
        if repo is None:
            # The real hub does not tell a stranger whether a repo is missing or private.
            return self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        revision, _, file = (rest, "", "") if api else rest.partition("/")
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if api:
            return self._send(200, json.dumps(_info(key, commit, repo.commits[commit])).encode())
        if repo.gated and not self.fake.tokens.get(token):
            return self._refuse(403 if token else 401, "GatedRepo", f"Access to {key} is restricted")
        self._file(file, repo.commits[commit], commit)

    def _file(self, name: str, files: dict[str, bytes], commit: str) -> None:
        if name not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        if not name.endswith(LFS):
            return self._body(name, files[name], {"X-Repo-Commit": commit})
        storage = f"http://127.0.0.1:{self.fake.storage.server_port}/{sha256(files[name])}/{name}"
        self._send(302, b"", {"Location": storage, "X-Repo-Commit": commit, "X-Linked-Etag": sha256(files[name])})

    def _blob(self, path: str) -> None:
        name, body = self.fake.blobs[path.split("/")[1]]
        self._body(name, body, {})

    def _body(self, name: str, body: bytes, headers: dict[str, str]) -> None:
        asked = self.headers["Range"] if self.fake.ranges else None
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if self.fake.take("corrupt", name) is not None:
            body = bytes([body[0] ^ 1]) + body[1:]
        body = body[start:]
        if (length := self.fake.take("shorten", name)) is not None:
            body = body[: int(length)]
        after = self.fake.take("cut", name)
        self._send(206 if asked else 200, body, headers, None if after is None else int(after))

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, after: int | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # the client has given up
            self.wfile.write(body[:after])
        self.close_connection = after is not None


def _info(key: str, commit: str, files: dict[str, bytes]) -> dict[str, Any]:
    return {"id": key.partition("/")[2], "sha": commit, "siblings": [_entry(*item) for item in files.items()]}


def _entry(name: str, body: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": name, "size": len(body), "blobId": blob_id(body)}
    if name.endswith(LFS):
        entry["lfs"] = {"sha256": sha256(body), "size": len(body), "pointerSize": 134}
    return entry
