"""A reward that a server gives: one POST of JSON for a batch of answers.

    asked   {"prompts": [[{"role", "content"}, ...], ...], "answers": [str, ...], "wanted": [str, ...]}
    given   {"scores": [number, ...]}                              one for each answer, in their order

When the environment holds POSTTRAIN_REWARD_TOKEN, it is sent as `Authorization: Bearer ...`; no config holds it, and no
message shows it.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from itertools import count
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qsl, urljoin, urlsplit

TOKEN = "POSTTRAIN_REWARD_TOKEN"
_SECRET = re.compile("token|key|secret|passw|auth|signature", re.IGNORECASE)
"""What the name of a secret looks like in a query."""
_LONGEST_PAUSE = 60.0
"""Seconds."""


class ServerError(RuntimeError):
    """No scores from the server. The message says what it answered and what to do."""


def is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def unfit(url: str) -> str:
    """What is wrong with an address, without repeating a password; empty when nothing is."""
    if not url.isascii() or not url.isprintable() or " " in url:
        return "holds a character that no URL may hold; write it as %.."
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        return f"is no URL ({error}); give one such as http://localhost:8000/score"
    if parts.username is not None or parts.password is not None:
        return f"holds a user or a password, and a config is no place for secrets; set {TOKEN} in the environment"
    if secret := next((name for name, _ in parse_qsl(parts.query) if _SECRET.search(name)), ""):
        return f"holds {secret}=, and a config is no place for secrets; set {TOKEN} in the environment"
    return "" if named else "names no server; give a URL such as http://localhost:8000/score"


@dataclass
class Server:
    """Asks for scores; called as a user's own function would be.

    A server that cannot be reached, is too slow, is busy (429) or stumbles (5xx) is asked `retries` times more, after
    1, 2, 4, ... seconds. Any other refusal is final. Redirects are refused: a token is for the address that was named.
    """

    url: str
    timeout: float
    """Seconds without a sign of the server."""
    retries: int
    wait: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = lambda text: None
    """Told when trouble begins: once, until the server answers at the first asking again."""
    troubled: bool = False
    here: str = "ppo.rewards.NAME"
    """What stands before its knobs where they are typed."""

    def __call__(self, prompts: Sequence[Any], answers: Sequence[str], wanted: Sequence[str]) -> Any:
        """The value under `scores`. Raises ServerError."""
        body = json.dumps({"prompts": prompts, "answers": answers, "wanted": wanted}).encode()
        for attempt in count():
            try:
                scores = self._scores(self._post(body))
                self.troubled = attempt > 0
                return scores
            except _Passing as said:
                if attempt == self.retries:
                    attempts = f" ({attempt + 1} attempts)" if attempt else ""
                    remedy = said.remedy.format(here=self.here)
                    raise ServerError(f"{self.url} {said}{attempts}. {remedy}, then start again.") from None
                self._pause(attempt, said)

    def _pause(self, attempt: int, said: _Passing) -> None:
        pauses = [min(2.0**n, _LONGEST_PAUSE) for n in range(self.retries)]
        if not self.troubled:
            self.troubled, again = True, "once more" if self.retries == 1 else f"up to {self.retries} times more"
            patience = f"with {sum(pauses):g} s of pauses and up to {self.timeout:g} s for each answer"
            self.say(f"{self.url} {said}. It is asked {again}, {patience}; then the run ends.")
        self.wait(pauses[attempt])

    def _post(self, body: bytes) -> bytes:
        token = _token()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        request = urllib.request.Request(self.url, body, headers)
        try:
            with _OPENER.open(request, timeout=self.timeout) as reply:
                content: bytes = reply.read()
                return content
        except HTTPError as error:
            said = f"answered {error.code}: {_beginning(_body(error))}"
            if error.code == 429 or error.code >= 500:
                raise _Passing(said) from None
            remedy = _REMEDIES.get(error.code, _REMEDY).format(here=self.here, there=self._pointed(error))
            raise ServerError(f"{self.url} {said}. {remedy}") from None
        except TimeoutError:
            raise _Slow(f"did not answer within {self.timeout:g} s") from None
        except (OSError, HTTPException) as error:
            raise _Absent(f"cannot be reached: {getattr(error, 'reason', None) or repr(error)}") from None

    def _pointed(self, error: HTTPError) -> str:
        """Where a redirect leads, without its query, which may hold a secret; empty when that is no address to give."""
        there = error.headers.get("Location", "")
        bare = re.split("[?#]", hidden(urljoin(self.url, there)))[0]
        return f", {bare}" if there and not unfit(bare) else ""

    def _scores(self, content: bytes) -> Any:
        try:
            return json.loads(content)["scores"]
        except (ValueError, TypeError, KeyError, RecursionError):
            said = _beginning(content)
            raise ServerError(f'{self.url} must answer {{"scores": [...]}}, and answered: {said}') from None


class _Passing(Exception):
    """What may be over in a moment."""

    remedy = "See to the server"


class _Slow(_Passing):
    remedy = "Set a longer {here}.timeout, or see to the server"


class _Absent(_Passing):
    remedy = "Start the server or mend its address"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would take the token along to any other host."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)
_REMEDY = "See to the server, or to what it expects."
_REMEDIES = {
    **dict.fromkeys((301, 302, 303, 307, 308), "Redirects are not followed: give the address it points to{there}."),
    **dict.fromkeys((401, 403), f"Set {TOKEN} in the environment of the run to a token it accepts."),
    404: "Mend the path of the URL.",
    413: "Set a smaller {here}.batch_size.",
}


def _token() -> str:
    token = os.environ.get(TOKEN, "").strip()
    if not token.isascii() or not token.isprintable():  # http.client would quote it
        raise ServerError(f"{TOKEN} holds a character that a header cannot; set it anew, on one line.")
    return token


def _body(error: HTTPError) -> bytes:
    with suppress(OSError, HTTPException):
        return error.read()
    return b""


def _beginning(content: bytes) -> str:
    return hidden(content.decode(errors="replace"))[:200].strip() or "(nothing)"


def hidden(text: str) -> str:
    """What a server said, which may have repeated the token, without it."""
    token = _token()
    return text.replace(token, "***") if token else text
