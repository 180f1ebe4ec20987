"""What can go wrong at a model hub, in sentences that say what to do. None of them can hold the token."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

Kind = Literal["model", "dataset"]


class HubError(ValueError):
    """Trying again will not help. The message says what was wrong and what to do."""


class Unreachable(ConnectionError):
    """The hub did not answer, or not to the end. What has arrived is kept, so the next attempt goes on from there."""


def offline() -> HubError:
    return HubError(
        "HF_HUB_OFFLINE is set, so the hub is not asked. Unset it, or use a model that is on this machine already "
        "(download=local or download=gguf)."
    )


def host() -> str:
    """Name and port of the hub in use. Not the whole address: a mirror's may hold a user and a password."""
    from huggingface_hub import constants

    address = urlsplit(os.environ.get("HF_ENDPOINT", "").strip() or constants.ENDPOINT)
    return address.netloc.rpartition("@")[2]


def check_endpoint() -> str:
    """The end of a message about an answer that came from the wrong place or not at all."""
    if os.environ.get("HF_ENDPOINT", "").strip():
        return "check HF_ENDPOINT, or unset it to use the public hub."
    return "check the network, a proxy or a log-in page in between; set HF_ENDPOINT to use a mirror."


@contextmanager
def explained(repo: str, revision: str, kind: Kind) -> Iterator[None]:
    """Raises HubError or Unreachable for what the client raises inside; its own texts may quote a request."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        raise offline() from None
    except httpx2.InvalidURL:
        raise HubError(f"the hub's address cannot be read: {check_endpoint()}") from None
    except HfHubHTTPError as error:
        raise _answered(error, repo, revision, kind) from None
    except httpx2.HTTPError as error:
        why = _without_token(f"{type(error).__name__}: {error}")
        raise Unreachable(f"{host()} did not give {repo} ({why}): {check_endpoint()}") from None


def _answered(error: HfHubHTTPError, repo: str, revision: str, kind: Kind) -> Exception:
    """What an answer with an error status means for the one who asked."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    token = bool(os.environ.get("HF_TOKEN", "").strip())
    if status >= 500 or status in (408, 429):
        return Unreachable(f"{host()} answered {status} for {repo}: it is busy or down, try again in a while.")
    if isinstance(error, GatedRepoError):
        return _gated(repo, kind, token, status)
    if isinstance(error, RevisionNotFoundError):
        return HubError(f"{repo} has no revision {revision!r} (404): take a branch, tag or commit of its page.")
    if status == 401 and token:
        return HubError(
            f"{host()} does not accept the token in HF_TOKEN (401): it is mistyped, expired or revoked. Make a new one "
            "in your account's settings (reading is enough), or unset HF_TOKEN if the repo is public."
        )
    if isinstance(error, RepositoryNotFoundError):
        return HubError(
            f"{host()} has no {kind} {repo!r} ({status}), or it is private. Check the spelling (owner/name, capitals "
            "count); for a private repo set HF_TOKEN to a token that may read it."
        )
    said = _without_token(error.server_message or "no reason given")
    return HubError(f"{host()} refused {repo} at {revision!r} ({status}: {said}). Check its page and HF_TOKEN.")


def _gated(repo: str, kind: Kind, token: bool, status: int) -> HubError:
    # The licence is accepted at the public hub even when the files come from a mirror.
    from huggingface_hub.constants import HUGGINGFACE_CO_URL_HOME as HOME

    page = f"{HOME}{'datasets/' if kind == 'dataset' else ''}{repo}"
    if not token:
        return HubError(
            f"{repo} is gated and no token is set ({status}). Log in and accept its licence on {page}, make an access "
            "token in your account's settings and set HF_TOKEN to it."
        )
    return HubError(
        f"{repo} is gated and the account behind HF_TOKEN may not read it ({status}). Accept its licence on {page} "
        "with that account, or set HF_TOKEN to a token of one that has. A fine-grained token must allow gated repos."
    )


def _without_token(text: str) -> str:
    token = os.environ.get("HF_TOKEN", "").strip()
    return text.replace(token, "***") if token else text
