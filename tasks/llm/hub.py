"""The model hub: from a repo's name to a folder of real files, every byte of which was checked.

Token and endpoint come from the environment only (HF_TOKEN, HF_ENDPOINT), read at every call. What can pass by itself
is raised as `Unreachable` (a ConnectionError, worth another try), everything else as `HubError`.

Listings, addresses, headers and error types are huggingface_hub's. The bodies are read here, because its own
`hf_hub_download` begins an interrupted file from zero in every new attempt and checks a file's size, not its hash.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tasks.llm.hub_errors import HubError, Kind, Unreachable, check_endpoint, explained, host, offline
from tasks.llm.hub_files import data_files, model_files, some

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, HfApi, ModelInfo
    from huggingface_hub.hf_api import RepoSibling

__all__ = ["HubError", "Kind", "RemoteFile", "Unreachable", "download", "files", "resolve"]

PATIENCE = 30.0
"""Seconds to wait for a connection or for the next bytes of a body."""


@dataclass(frozen=True)
class RemoteFile:
    """One file as the hub reports it."""

    name: str
    """Path inside the repo, with forward slashes."""
    size: int
    """Bytes."""
    digest: str
    """64 hex digits: the SHA-256 of an LFS file. 40: the git blob id of a small one."""


def resolve(repo: str, revision: str, kind: Kind = "model") -> str:
    """The commit (40 hex digits) that a branch or tag points at now. A commit is returned as it is, without network."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    commit = _info(repo, revision, kind, listing=False).sha
    if not commit:
        raise HubError(f"{host()} names no commit for {repo} at {revision!r}: {check_endpoint()}")
    return commit


def files(
    repo: str, commit: str, kind: Kind = "model", patterns: Sequence[str] | None = None, ignore: Sequence[str] = ()
) -> list[RemoteFile]:
    """What `download` would fetch.

    Of a model: the files of the top folder, with safetensors as the only weights. Of a data set: json, jsonl, csv and
    parquet in any folder. `patterns` narrows that and `ignore` takes from it: shell patterns over the whole path.
    """
    remote = {entry.rfilename: entry for entry in _info(repo, commit, kind, listing=True).siblings or ()}
    usable = model_files(repo, list(remote)) if kind == "model" else data_files(repo, list(remote))
    wanted = [name for name in usable if patterns is None or any(fnmatch(name, pattern) for pattern in patterns)]
    wanted = [name for name in wanted if not any(fnmatch(name, pattern) for pattern in ignore)]
    if not wanted:
        raise HubError(f"patterns {patterns or '*'} without {ignore} leave no file of {repo}; it has {some(usable)}.")
    return [_described(repo, remote[name]) for name in wanted]


def download(
    repo: str,
    commit: str,
    folder: Path,
    progress: Callable[[int, int, str], None],
    kind: Kind = "model",
    patterns: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    *,
    work: Path,
) -> None:
    """Fills `folder` with the files of `files(...)`, once all of them have arrived and have the hub's size and hash.

    `work` keeps finished and half-arrived files between attempts; best on the same disk as `folder`. `progress` is
    called with bytes done, bytes in all, and the name of the file being fetched.
    """
    remote = files(repo, commit, kind, patterns, ignore)
    arriving = work / f"{kind}-{commit}"
    total = sum(file.size for file in remote)
    _check_room(repo, arriving, total - sum(_size(arriving / file.name) for file in remote))
    done = 0
    for file in remote:
        _fetch(repo, commit, kind, file, arriving / file.name, partial(_tell, progress, done, total, file.name))
        done += file.size
    for file in remote:
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(arriving / file.name, folder / file.name)
    shutil.rmtree(arriving)


def _tell(progress: Callable[[int, int, str], None], before: int, total: int, name: str, here: int) -> None:
    progress(before + here, total, name)


def _fetch(repo: str, commit: str, kind: Kind, file: RemoteFile, path: Path, tell: Callable[[int], None]) -> None:
    """One file, going on from what `path` holds already. A broken connection is taken up again while bytes come."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    while (had := _size(path)) < file.size:
        try:
            _stream(repo, commit, kind, file, path, tell)
        except Unreachable:
            if _size(path) <= had:
                raise
    tell(file.size)
    got, size = _digest(path, file.digest), _size(path)
    if got != file.digest:
        path.unlink()
        raise HubError(
            f"{file.name} of {repo} did not arrive as the hub describes it: expected {file.digest} ({file.size} bytes),"
            f" got {got} ({size} bytes). The copy was deleted. Run again; if it stays wrong: {check_endpoint()}"
        )


def _stream(repo: str, commit: str, kind: Kind, file: RemoteFile, path: Path, tell: Callable[[int], None]) -> None:
    """Adds to `path` what one request gives of the file. Raises Unreachable when that is not all the rest."""
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status

    api = _api()
    url = hf_hub_url(repo, file.name, repo_type=kind, revision=commit, endpoint=api.endpoint)
    headers = {"Accept-Encoding": "identity"}  # a zipped body has no place to go on from
    if api.token:
        headers["Authorization"] = f"Bearer {api.token}"
    if had := _size(path):
        headers["Range"] = f"bytes={had}-"
    with explained(repo, commit, kind), get_session().stream("GET", url, headers=headers, timeout=PATIENCE) as reply:
        hf_raise_for_status(reply)
        # 200 to a range: the server sends the whole file again.
        with path.open("ab" if reply.status_code == 206 else "wb") as out:
            for chunk in reply.iter_bytes():
                out.write(chunk)
                tell(out.tell())
    if _size(path) < file.size:
        raise Unreachable(f"{file.name} of {repo} ended after {_size(path)} of {file.size} bytes: {check_endpoint()}")


def _info(repo: str, revision: str, kind: Kind, listing: bool) -> ModelInfo | DatasetInfo:
    from huggingface_hub.errors import HFValidationError

    api = _api()
    ask = api.model_info if kind == "model" else api.dataset_info
    try:
        with explained(repo, revision, kind):
            return ask(repo, revision=revision, files_metadata=listing, timeout=PATIENCE)
    except HFValidationError:
        raise HubError(f"{repo!r} is no repo id: write it as owner/name, the end of its page's address.") from None
    except HubError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):  # some page, but not the JSON of a hub
        raise HubError(f"{host()} answered for {repo}, but not as a model hub does: {check_endpoint()}") from None


def _api() -> HfApi:
    """The client, with token and endpoint as the environment has them now: huggingface_hub's own are read at import."""
    from huggingface_hub import HfApi

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise offline()
    token = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch("[!-~]*", token):
        raise HubError("HF_TOKEN holds a space, a line break or a character that no token has: copy the token again.")
    endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/")
    if endpoint and not re.match("https?://[^/]", endpoint):
        raise HubError("HF_ENDPOINT is no web address: it begins with https:// or http://, or is left unset.")
    return HfApi(endpoint=endpoint or None, token=token or False)  # False: nor the token of some earlier log-in


def _described(repo: str, entry: RepoSibling) -> RemoteFile:
    """A listing's entry, refused when it could not be checked or would be written outside the folder."""
    name, digest = entry.rfilename, entry.lfs.sha256 if entry.lfs else entry.blob_id
    if entry.size is None or not digest:
        raise HubError(f"{host()} reports no size and hash for {name} of {repo} to check it by: {check_endpoint()}")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
        raise HubError(f"{repo} lists a file outside its own folder, {name!r}: do not use this repo.")
    return RemoteFile(name, entry.size, digest)


def _check_room(repo: str, arriving: Path, needed: int) -> None:
    arriving.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(arriving).free
    if free < needed:
        raise HubError(
            f"{repo} needs {needed / 1e9:.1f} GB more, but the disk of {arriving} has {free / 1e9:.1f} GB free: make "
            "room, or put the store on another disk."
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path, like: str) -> str:
    """The digest of a local file, of the sort that `like` is."""
    start = f"blob {_size(path)}\0".encode()
    make = hashlib.sha256 if len(like) == 64 else partial(hashlib.sha1, start, usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, make).hexdigest()
