"""What answers are worth, each sum done by hand."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tasks.llm import reward_code, rewards
from tasks.llm.reward_calls import RewardError
from tasks.llm.rewards import Asked, Reward

GREET = [{"role": "user", "content": "Greet me."}]


def said(answer: str, wanted: str = "", tokens: int = 1) -> Asked:
    return Asked(prompt=GREET, answer=answer, wanted=wanted, tokens=tokens, finished=True)


def scored(reward: Reward, *asked: Asked, name: str = "it") -> list[float]:
    return rewards.scorers({name: reward}, None)[name](asked)


def written(folder: Path, body: str, name: str = "mine.py") -> Path:
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(body)
    return place


def from_file(folder: Path, returns: str) -> Reward:
    """A function of a user that returns this expression."""
    return Reward(source=f"{written(folder, f'def score(prompts, answers, wanted): return {returns}')}:score")


def test_the_metrics_of_the_evaluation_are_rewards() -> None:
    asked = [said(" Hi. ", "Hi."), said("Hi", "Hi."), said("[1]", ""), said("[1] yes", ""), said("", "")]
    assert scored(Reward(source="exact_match"), *asked) == [1, 0, 0, 0, 1]
    assert scored(Reward(), *asked, name="json_valid") == [0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ('{"a": 1, "b": "x", "c": [true]}', 3 / 3),
        (' {"c": [true], "b": "x", "a": 1.0}\n', 3 / 3),
        ('{"a": 1, "b": "y", "c": [true]}', 2 / 3),
        ('{"a": 1}', 1 / 3),
        ('{"a": 1, "b": "x", "c": [true], "d": 0}', 3 / 4),
        ('{"a": 1, "d": 0}', 1 / 4),
        ('{"a": true, "c": [1]}', 0 / 3),
        ("{}", 0),
        ("[1]", 0),
        ('{"a": 1', 0),
        ('So: {"a": 1, "b": "x", "c": [true]}', 0),
        ("", 0),
    ],
)
def test_field_match_is_the_share_of_all_fields_that_are_the_same(answer: str, share: float) -> None:
    asked = said(answer, wanted='{"a": 1, "b": "x", "c": [true]}')
    assert scored(Reward(source="field_match"), asked) == [pytest.approx(share)]


def test_field_match_looks_into_values() -> None:
    wanted = '{"who": {"name": "Ann", "ages": [1, 2]}, "ok": true}'
    assert scored(Reward(source="field_match"), said('{"who": {"ages": [1, 2], "name": "Ann"}, "ok": 1}', wanted)) == [
        0.5
    ]
    assert scored(
        Reward(source="field_match"), said('{"who": {"ages": [2, 1], "name": "Ann"}, "ok": true}', wanted)
    ) == [0.5]
    assert scored(Reward(source="field_match"), said("{}", "{}"), said("{}", "Hi")) == [1.0, 0.0]


@pytest.mark.parametrize("name", ["json_valid", "field_match"])
def test_a_policy_that_only_opens_brackets_ends_no_training(name: str) -> None:
    deep = '{"a":' * 20_000
    assert scored(Reward(source=name), said(deep, "{}"), said("[" * 20_000, "{}")) == [0, 0]


def test_regex_is_about_the_whole_answer() -> None:
    asked = [said(" id-12\n"), said("id-12 and so on"), said("id-"), said("ID-1")]
    assert scored(Reward(source="regex", pattern=r"id-\d+"), *asked) == [1, 0, 0, 0]
    assert scored(Reward(source="regex", pattern=r"(?si).*id-\d.*"), *asked) == [1, 1, 0, 1]


def test_length_is_best_at_the_target_and_nowhere_flat() -> None:
    asked = [said("", tokens=tokens) for tokens in (0, 5, 10, 20, 40)]
    assert scored(Reward(target=10), *asked, name="length") == [0, 5 / 10, 1, 10 / 20, 10 / 40]


def test_what_has_no_weight_is_left_out() -> None:
    chosen = {
        "exact_match": Reward(weight=0),
        "json_valid": Reward(),
        "theirs": Reward(weight=0, source="no.such:thing"),
    }
    assert list(rewards.scorers(chosen, None)) == ["json_valid"]
    assert list(rewards.problems(chosen, has_model=False)) == []
    assert rewards.identity(chosen) == {"json_valid": {"weight": 1.0, "reward": "json_valid"}}


def test_the_total_is_the_weighted_sum() -> None:
    chosen = {"a": Reward(weight=2.0), "b": Reward(weight=-0.5)}
    assert rewards.totals({"a": [1.0, 0.0, 3.0], "b": [1.0, 4.0, 0.0]}, chosen) == [1.5, -2.0, 6.0]
    assert rewards.totals({"a": [], "b": []}, chosen) == []
    with pytest.raises(ValueError, match="shorter"):
        rewards.totals({"a": [1.0, 2.0], "b": [1.0]}, chosen)


def test_the_trained_model_is_a_component_under_any_name() -> None:
    chosen = {"model": Reward(), "judge": Reward(source="model", weight=2), "length": Reward(target=3)}

    def model(asked: Sequence[Asked]) -> list[float]:
        return [float(len(one.answer)) for one in asked]

    opened = rewards.scorers(chosen, model)
    assert opened["model"]([said("abc")]) == opened["judge"]([said("abc")]) == [3.0]
    assert rewards.of_model(chosen) == ["model", "judge"]
    assert list(rewards.problems(chosen, has_model=True)) == []
    refused = list(rewards.problems(chosen, has_model=False))
    assert len(refused) == 2 and "rewards.judge asks the trained reward model, and there is none" in refused[1]
    with pytest.raises(RewardError, match="there is none"):
        rewards.scorers(chosen, None)


def test_a_function_of_yours_gets_the_batch_and_cannot_change_it(tmp_path: Path) -> None:
    place = written(
        tmp_path,
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Kept:\n    n: 'int' = 2\n"
        "def score(prompts, answers, wanted):\n"
        "    asks = [prompt.pop()['content'] for prompt in prompts]\n"
        "    return (len(a) + 10 * len(w) + 100 * len(q) * Kept().n for a, w, q in zip(answers, wanted, asks))\n",
    )
    asked = [said("ab", "c"), said("", "cde")]
    assert scored(Reward(source=f"{place}:score"), *asked) == [1812.0, 1830.0]
    assert asked[0].prompt == [{"role": "user", "content": "Greet me."}] == GREET
    assert scored(Reward(source=f"{place}:score")) == []


def test_a_function_of_a_module_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "raise RuntimeError('imported')", "bank_of_rewards/__init__.py")
    place = written(tmp_path, "def score(prompts, answers, wanted): return [1] * 3", "bank_of_rewards/inner/one.py")
    monkeypatch.syspath_prepend(tmp_path)
    chosen = {"it": Reward(source="bank_of_rewards.inner.one:score")}
    assert list(rewards.problems(chosen, True)) == []
    assert reward_code.locate("bank_of_rewards.inner.one:score") == (place, "score")
    assert "bank_of_rewards" not in sys.modules, "it was imported"
    with pytest.raises(reward_code.CodeError, match="cannot be imported: RuntimeError: imported"):
        rewards.scorers(chosen, None)
    written(tmp_path, "", "bank_of_rewards/__init__.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert scored(chosen["it"], *[said("")] * 3) == [1.0, 1.0, 1.0]
    for name in [name for name in sys.modules if name.startswith("bank_of_rewards")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("returns", "told"),
    [
        ("[1.0]", r"must return 2 scores, one for each answer, and returned 1: \[1.0\]"),
        ("[1.0, float('nan')]", "returned nan for answer 1 of 2; a score must be finite"),
        ("[float('inf'), 0]", "returned inf for answer 0 of 2"),
        ("['1', '2']", r"must return a list of 2 numbers, and returned \['1', '2'\]"),
        ("'12'", "must return a list of 2 numbers, and returned '12'"),
        ("{0: 1, 1: 2}", "must return a list of 2 numbers"),
        ("[[1], [2]]", "must return a list of 2 numbers"),
        ("0.5", "must return a list of 2 numbers, and returned 0.5"),
        ("None", "must return a list of 2 numbers, and returned None"),
        ("[None, 'x' * 999]", r"must return a list of 2 numbers, and returned \[None, 'x{192}\.\.\."),
        ("answers[7]", "stopped with IndexError: list index out of range"),
    ],
)
def test_what_a_function_returns_is_checked_and_named(tmp_path: Path, returns: str, told: str) -> None:
    with pytest.raises(RewardError, match=f"rewards.it: .*mine.py:score {told}"):
        scored(from_file(tmp_path, returns), said("a"), said("b"))


def test_arrays_tensors_and_truths_are_numbers_too(tmp_path: Path) -> None:
    pair = said("a"), said("b")
    assert scored(from_file(tmp_path, "[a == 'a' for a in answers]"), *pair) == [1.0, 0.0]
    assert scored(from_file(tmp_path, "__import__('numpy').array([1, 2], dtype='float32')"), *pair) == [1.0, 2.0]
    assert scored(from_file(tmp_path, "__import__('torch').tensor([0.5, 2])"), *pair) == [0.5, 2.0]


def only(reward: Reward, name: str = "it") -> str:
    (problem,) = rewards.problems({name: reward}, has_model=True)
    return problem


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        (Reward(source="exact_mach"), "rewards.it.source: there is no reward 'exact_mach'. Did you mean exact_match?"),
        (Reward(source="mine.py"), "rewards.it.source: there is no reward 'mine.py'."),
        (Reward(), "rewards.it: there is no reward 'it'."),
        (Reward(source="ftp://host/score"), "rewards.it.source: there is no reward 'ftp://host/score'."),
        (Reward(source="regex", pattern="a("), "rewards.it.pattern=a( is no regular expression: missing )"),
        (Reward(source="regex"), "rewards.it.pattern is empty"),
        (Reward(source="json_valid", pattern="x"), "rewards.it.pattern belongs to regex"),
        (Reward(source="length"), "rewards.it.target=0 is no length"),
        (Reward(source="json_valid", target=3), "rewards.it.target belongs to length"),
        (Reward(source="json_valid", weight=math.nan), "rewards.it.weight=nan is no weight"),
        (Reward(source="json_valid", weight=-math.inf), "rewards.it.weight=-inf is no weight"),
        (Reward(source="json_valid", timeout=0), "rewards.it.timeout=0 is no time"),
        (Reward(source="json_valid", timeout=math.inf), "rewards.it.timeout=inf is no time"),
        (Reward(source="json_valid", retries=-1), "rewards.it.retries=-1 is too small; give 0 or more"),
        (Reward(source="json_valid", batch_size=0), "rewards.it.batch_size=0 is too small; give 1 or more"),
        (Reward(source="json_valid", weight=0), "rewards: nothing has a weight"),
        (Reward(source="no/such.py:score"), "rewards.it.source: there is no file no/such.py; a path is relative to"),
        (Reward(source="no.such:score"), "rewards.it.source: no Python source of module no.such is found"),
        (Reward(source="json.decoder.more:score"), "no Python source of module json.decoder.more"),
        (Reward(source="json..decoder:score"), "no Python source of module json..decoder"),
        (Reward(source="sys:exit"), "no Python source of module sys"),
        (Reward(source="textwrap:scorn"), "no `def scorn` stands in"),
        (Reward(source="textwrap:indent"), ""),
        (Reward(source="textwrap:dedent"), "must be written `def dedent(prompts, answers, wanted)`"),
    ],
)
def test_mistakes_are_told_before_the_run(reward: Reward, told: str) -> None:
    if told:
        assert told in only(reward)
    else:
        assert list(rewards.problems({"it": reward}, has_model=True)) == []


def test_no_rewards_at_all_are_refused() -> None:
    assert "rewards: nothing has a weight" in next(rewards.problems({}, has_model=True))


def test_a_key_holds_what_changes_scores_and_nothing_else(tmp_path: Path) -> None:
    one = written(tmp_path, "def score(a, b, c): return [0.0 for _ in a]", "one.py")
    chosen = {
        "it": Reward(source=f"{one}:score", weight=2),
        "served": Reward(source="https://host/score", timeout=1, retries=1, batch_size=1),
        "regex": Reward(pattern="a+"),
        "length": Reward(target=9),
        "model": Reward(),
    }
    found = rewards.identity(chosen)
    assert json.loads(json.dumps(found)) == found
    assert str(tmp_path) not in json.dumps(found)
    assert found["served"] == {"weight": 1.0, "url": "https://host/score"}
    assert found["regex"] == {"weight": 1.0, "reward": "regex", "pattern": "a+"}
    assert found["length"] == {"weight": 1.0, "reward": "length", "target": 9}
    assert found["model"] == {"weight": 1.0, "reward": "model"}

    moved = written(tmp_path, one.read_text(), "elsewhere/two.py")
    assert rewards.identity(chosen | {"it": Reward(source=f"{moved}:score", weight=2)}) == found
    moved.write_text(one.read_text().replace("0.0", "1.0"))
    assert rewards.identity(chosen | {"it": Reward(source=f"{moved}:score", weight=2)}) != found
    with pytest.raises(reward_code.CodeError, match="there is no file"):
        rewards.identity({"it": Reward(source="gone.py:score")})


def test_rows_that_a_component_cannot_compare_with_are_told() -> None:
    wanted = ['{"a": 1}', "Hi", " ", "[1]"]
    chosen = {"field_match": Reward(), "same": Reward(source="exact_match"), "json_valid": Reward()}
    fields, same = rewards.unsuited(chosen, wanted)
    assert (
        "rewards.field_match compares" in fields and "not a JSON object in 3 of 4 rows, the first being 'Hi'" in fields
    )
    assert fields.endswith("or set ppo.rewards.field_match.weight=0")
    assert "rewards.same compares" in same and "not a text in 1 of 4 rows, the first being ' '" in same
    assert list(rewards.unsuited(chosen, wanted[:1])) == []
    assert list(rewards.unsuited({"field_match": Reward(weight=0)}, wanted)) == []


@pytest.mark.parametrize("name", ["os:system", "textwrap:indent", "http://localhost/score"])
def test_a_name_alone_is_never_code_or_an_address(name: str) -> None:
    """A form is looked through for values, and a name is none."""
    assert f"there is no reward '{name}'" in only(Reward(), name)
    with pytest.raises(KeyError):
        rewards.scorers({name: Reward()}, None)


def test_importing_rewards_is_cheap() -> None:
    code = "import sys, tasks.llm.rewards; print([n for n in ('torch', 'numpy', 'transformers') if n in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
