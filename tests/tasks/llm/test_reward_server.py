"""Rewards from a server: a real one on loopback, that stumbles, dawdles and refuses as told."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tasks.llm import reward_server, reward_trial, rewards
from tasks.llm.reward_calls import RewardError
from tasks.llm.reward_server import Server, ServerError
from tasks.llm.rewards import Asked, Reward

SECRET = "tk-4711"


@dataclass
class Bank:
    """Gives each answer its length as score, after the `replies` that were told: (status, body, headers)."""

    replies: list[tuple[int, str, dict[str, str]]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    slow: int = 0
    """So many requests are answered only when `patience` is over."""
    patience: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def reply(self, status: int, body: str = "", **headers: str) -> None:
        self.replies.append((status, body, headers))


@pytest.fixture
def bank() -> Iterator[Bank]:
    kept = Bank()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            kept.bodies.append(body)
            kept.tokens.append(self.headers["Authorization"])
            if len(kept.bodies) <= kept.slow:
                kept.patience.wait(60)
                return
            usual = (200, json.dumps({"scores": [len(answer) for answer in body["answers"]]}), {})
            status, text, headers = kept.replies.pop(0) if kept.replies else usual
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_POST  # where a redirect would lead

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept.url = f"http://127.0.0.1:{server.server_port}/score"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield kept
    kept.patience.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _nothing_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(reward_server.TOKEN, raising=False)
    monkeypatch.setenv("no_proxy", "*")


def ask(bank: Bank, retries: int = 3, timeout: float = 30.0) -> tuple[Any, list[float]]:
    """The scores of two answers, and the pauses that were made for them."""
    pauses: list[float] = []
    scores = Server(bank.url, timeout, retries, wait=pauses.append)([[], []], ["a", "bcd"], ["", ""])
    return scores, pauses


def said(*answers: str) -> list[Asked]:
    return [Asked([{"role": "user", "content": f"{n}?"}], text, f"w{n}", 1, True) for n, text in enumerate(answers)]


def test_answers_are_sent_in_batches_and_scored_in_their_order(bank: Bank) -> None:
    scorer = rewards.scorers({"theirs": Reward(source=bank.url, batch_size=2)}, None)["theirs"]
    assert bank.bodies == [], "opening asks nothing"
    assert scorer(said("a", "bcd", "ü€")) == [1.0, 3.0, 2.0]
    assert bank.bodies == [
        {
            "prompts": [[{"role": "user", "content": "0?"}], [{"role": "user", "content": "1?"}]],
            "answers": ["a", "bcd"],
            "wanted": ["w0", "w1"],
        },
        {"prompts": [[{"role": "user", "content": "2?"}]], "answers": ["ü€"], "wanted": ["w2"]},
    ]
    assert scorer([]) == [] and len(bank.bodies) == 2


@pytest.mark.parametrize("status", [503, 500, 429])
def test_a_server_that_stumbles_is_asked_again_after_growing_pauses(bank: Bank, status: int) -> None:
    for _ in range(3):
        bank.reply(status, "busy")
    assert ask(bank) == ([1, 3], [1.0, 2.0, 4.0])
    assert len(bank.bodies) == 4 and bank.bodies[0] == bank.bodies[3]


def test_a_server_that_goes_on_stumbling_ends_it_with_its_words(bank: Bank) -> None:
    for _ in range(2):
        bank.reply(503, "warming up " + "x" * 500)
    with pytest.raises(ServerError) as error:
        ask(bank, retries=1)
    assert str(error.value).startswith(f"{bank.url} answered 503: warming up xxx")
    assert str(error.value).endswith("x (2 attempts). See to the server, then start again.")
    assert str(error.value).count("x") == 189


def test_who_is_waited_for_is_told_once_per_trouble(bank: Bank) -> None:
    told: list[str] = []
    server = Server(bank.url, 30, 2, wait=lambda pause: None, say=told.append)
    troubles = [503, 503, 200, 503, 200, 200, 429, 200]  # asked again twice, once, not at all, once
    for status in troubles:
        bank.reply(status, "warming up" if status == 503 else '{"scores": [1]}')
    for _ in range(4):
        assert server([[]], ["a"], [""]) == [1]
    assert len(bank.bodies) == len(troubles)
    patience = "up to 2 times more, with 3 s of pauses and up to 30 s for each answer; then the run ends."
    assert told[0] == f"{bank.url} answered 503: warming up. It is asked {patience}"
    assert len(told) == 2 and "answered 429" in told[1]


def test_before_the_run_a_server_is_asked_once_and_not_waited_for(bank: Bank) -> None:
    judge = {"judge": Reward(source=bank.url, retries=5)}
    assert list(reward_trial.problems(judge, [], "")) == [] and len(bank.bodies) == 1
    bank.reply(503, "warming up")
    (said,) = reward_trial.problems(judge, [], "")
    assert said == f"rewards.judge: {bank.url} answered 503: warming up. See to the server, then start again."
    assert len(bank.bodies) == 2
    (said,) = reward_trial.problems({"judge": Reward(source="http://127.0.0.1:9")}, [], "")
    assert "cannot be reached" in said and said.endswith("Start the server or mend its address, then start again.")


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (400, "See to the server"),
        (401, "Set POSTTRAIN_REWARD_TOKEN in the environment"),
        (404, "Mend the path"),
        (413, "Set a smaller ppo.rewards.NAME.batch_size"),
    ],
)
def test_a_refusal_is_final(bank: Bank, status: int, remedy: str) -> None:
    bank.reply(status, "no such field: wanted")
    with pytest.raises(ServerError, match=f"{bank.url} answered {status}: no such field: wanted. {remedy}"):
        ask(bank)
    assert len(bank.bodies) == 1


def test_a_slow_server_is_asked_again(bank: Bank) -> None:
    bank.slow = 1
    assert ask(bank, timeout=2.0) == ([1, 3], [1.0])
    assert len(bank.bodies) == 2


def test_a_server_that_is_not_there_is_named(bank: Bank) -> None:
    bank.slow = 5
    with pytest.raises(ServerError, match=rf"{bank.url} did not answer within 0.05 s \(2 attempts\)"):
        ask(bank, retries=1, timeout=0.05)
    with pytest.raises(ServerError, match=r"Set a longer ppo.rewards.x.timeout, or see to the server, then start"):
        rewards.scorers({"x": Reward(source=bank.url, timeout=0.05, retries=0)}, None)["x"](said("a"))
    with pytest.raises(ServerError, match=r"http://127.0.0.1:9 cannot be reached: .*refused.* Start the server"):
        Server("http://127.0.0.1:9", 30, 0)([], [], [])


def test_a_redirect_is_not_followed_since_the_token_would_go_along(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(reward_server.TOKEN, SECRET)
    bank.reply(302, "", Location=bank.url + "/elsewhere")
    with pytest.raises(ServerError, match=r"answered 302: .*Redirects are not followed"):
        ask(bank)
    assert len(bank.bodies) == 1


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("/v2/score?sig=tk-4711#x", r", http://127.0.0.1:\d+/v2/score\."),
        ("https://there/score?sig=tk-4711", r", https://there/score\."),
        ("https://me:tk-4711@there/score", r"\."),
        ("", r"\."),
    ],
)
def test_where_a_redirect_leads_is_told_without_its_secrets(bank: Bank, place: str, shown: str) -> None:
    bank.reply(307, "", **({"Location": place} if place else {}))
    with pytest.raises(ServerError, match=f"give the address it points to{shown}$") as error:
        ask(bank)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("body", ["", "fine", "[1, 2]", '{"score": [1, 2]}', "null", "[" * 20_000])
def test_an_answer_of_another_shape_is_shown(bank: Bank, body: str) -> None:
    bank.reply(200, body)
    with pytest.raises(ServerError) as error:
        ask(bank)
    assert f'{bank.url} must answer {{"scores": [...]}}, and answered: {body[:200] or "(nothing)"}' == str(error.value)


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ("[1]", r"must return 2 scores, one for each answer, and returned 1: \[1\]"),
        ("[1, NaN]", "returned nan for answer 1 of 2"),
        ('[1, "2"]', "must return a list of 2 numbers"),
        ("null", "must return a list of 2 numbers, and returned None"),
    ],
)
def test_scores_are_checked_batch_by_batch(bank: Bank, scores: str, told: str) -> None:
    """One too few and one too many would come to the right number."""
    for text in (scores, "[1, 2, 3]"):
        bank.reply(200, f'{{"scores": {text}}}')
    scorer = rewards.scorers({"theirs": Reward(source=bank.url, batch_size=2)}, None)["theirs"]
    with pytest.raises(RewardError, match=f"rewards.theirs: {bank.url} {told}"):
        scorer(said("a", "b", "c", "d"))


def test_a_token_comes_from_the_environment_and_is_shown_nowhere(
    bank: Bank, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ask(bank)
    monkeypatch.setenv(reward_server.TOKEN, f" {SECRET}\n")
    scorer = rewards.scorers({"theirs": Reward(source=bank.url, retries=0)}, None)["theirs"]
    assert scorer(said("a")) == [1.0]
    assert bank.tokens == [None, f"Bearer {SECRET}"]
    for status, body in ((400, "{}"), (503, "{}"), (200, "{}"), (200, '{{"scores": "{}"}}'), (200, "x" * 195 + "{}")):
        bank.reply(status, body.format(f"You sent Bearer {SECRET}"))
        with pytest.raises((ServerError, RewardError)) as error:
            scorer(said("a"))
        assert "tk-" not in str(error.value) + repr(error.value.__cause__) + caplog.text
    assert SECRET not in repr(scorer)


@pytest.mark.parametrize("token", ["two\nlines", "käse", "a\0b"])
def test_a_token_that_no_header_can_hold_is_not_quoted(bank: Bank, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setattr("os.environ", {reward_server.TOKEN: token})
    with pytest.raises(ServerError, match="POSTTRAIN_REWARD_TOKEN holds a character that a header cannot") as error:
        ask(bank)
    assert token not in str(error.value)
    assert bank.bodies == []


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://localhost:8000/score?v=2", ""),
        ("HTTPS://[::1]:8000", ""),
        ("http://", "names no server"),
        ("https:///score", "names no server"),
        ("http://host:99999/", "is no URL (Port out of range"),
        ("http://host:x/", "is no URL"),
        ("http://[::1/", "is no URL"),
        ("http://host/a b", "holds a character that no URL may hold"),
        ("http://höst/", "holds a character that no URL may hold"),
        ("http://me:s3cret@host/", "holds a user or a password"),
        ("http://s3cret@host/", "holds a user or a password"),
        ("http://:s3cret@host/", "holds a user or a password"),
        ("http://host/score?v=2&api_key=s3cret", "holds api_key=, and a config is no place for secrets"),
    ],
)
def test_an_address_is_looked_at_before_the_run(url: str, told: str) -> None:
    found = list(rewards.problems({"theirs": Reward(source=url)}, has_model=False))
    if not told:
        assert found == []
    else:
        (problem,) = found
        assert problem.startswith("rewards.theirs.source: the address ") and told in problem
        assert "s3cret" not in problem
