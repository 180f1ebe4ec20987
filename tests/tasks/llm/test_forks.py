"""What a model says of an answer that shares its prompt's row is what it says of prompt and answer alone."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tasks.llm import losses
from tasks.llm.actor import Actor
from tasks.llm.forks import forks, possible
from tests import toy_policy
from tests.toy_policy import HIDDEN, PAD

PROMPTS = [[2, 3, 4, 5], [6], [2, 3, 4, 5], [2, 3, 4, 5], [6], [7, 8]]
ANSWERS = [[9, 1], [4, 5, 6, 1], [3], [9, 9, 1], [2, 1], [8, 7, 1]]


@pytest.fixture(scope="module")
def policy() -> Any:
    made = toy_policy.model(3)
    for weight in made.parameters():
        weight.data *= 5  # far from uniform, so that who sees what is seen in the numbers
    return made


def actor(policy: Any, separate: bool = False) -> Actor:
    head = torch.nn.Linear(HIDDEN, 1)
    torch.nn.init.ones_(head.weight)
    return Actor(policy, head, copy.deepcopy(policy).get_decoder() if separate else None)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_every_answer_gets_what_it_gets_alone(policy: Any, shared: bool, separate: bool) -> None:
    asked, given = actor(policy, separate), forks(PROMPTS, ANSWERS, PAD, "cpu", shared)
    assert given.ids.shape[0] == (3 if shared else 6)
    with torch.no_grad():
        said = asked(given, entropy=True)
        for n, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
            whole = policy(torch.tensor([prompt + answer]), output_hidden_states=True)
            logits = whole.logits[0, len(prompt) - 1 : -1]
            wanted = losses.policy_log_probs(logits, torch.tensor(answer))
            values = asked.head(whole.hidden_states[-1][0, len(prompt) - 1 : -1]).squeeze(-1)
            size = len(answer)
            assert said.entropy is not None
            assert torch.allclose(said.log_probs[n, :size], wanted, atol=1e-5)
            assert torch.allclose(said.values[n, :size], values, atol=1e-5)
            assert torch.allclose(said.entropy[n, :size], losses.entropy(logits), atol=1e-5)
            assert not said.log_probs[n, size:].any() and not said.values[n, size:].any()


def test_gradients_are_the_same_too(policy: Any) -> None:
    found = []
    for shared in (False, True):
        policy.zero_grad()
        actor(policy)(forks(PROMPTS, ANSWERS, PAD, "cpu", shared)).log_probs.sum().backward()
        found.append([weight.grad.clone() for weight in policy.parameters()])
    for alone, together in zip(*found, strict=True):
        assert torch.allclose(alone, together, atol=1e-4)


def test_the_last_token_of_every_answer_is_found() -> None:
    for shared in (False, True):
        given = forks(PROMPTS, ANSWERS, PAD, "cpu", shared)
        assert given.last(given.ids).tolist() == [answer[-1] for answer in ANSWERS]


def test_an_answer_looks_at_no_other_answer_and_not_ahead() -> None:
    given = forks([[5, 6]] * 2, [[7, 8], [9]], PAD, "cpu")
    assert given.ids.tolist() == [[5, 6, 7, 8, 9]]
    assert given.positions.tolist() == [[0, 1, 2, 3, 2]]
    assert given.inputs()["attention_mask"][0, 0].long().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_a_prompt_or_an_answer_without_a_token_is_refused() -> None:
    for prompts, answers in (([[], [1]], [[1], [1]]), ([[1]], [[]])):
        with pytest.raises(ValueError, match="has no token"):
            forks(prompts, answers, PAD, "cpu")


def test_models_that_do_not_look_back_all_the_way_get_rows_of_their_own() -> None:
    def config(**kinds: Any) -> Any:
        text = SimpleNamespace(num_attention_heads=2, **kinds)
        return SimpleNamespace(get_text_config=lambda: text)

    assert possible(toy_policy.model().config)
    assert possible(config(layer_types=["full_attention"] * 2, sliding_window=512))
    assert not possible(config(layer_types=["sliding_attention", "full_attention"]))
    assert not possible(config(sliding_window=4096))
    assert not possible(SimpleNamespace(get_text_config=lambda: SimpleNamespace(state_size=16)))
