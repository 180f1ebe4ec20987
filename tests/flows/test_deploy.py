"""The second door: what the form offers, what it refuses, and that a run from it is the run of the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from flows import deploy, form
from flows.compose import CONF, ConfigError
from flows.launch import Road
from flows.sft_then_dpo import SFTThenDPO
from tests import servers
from tests.flows import roads
from tests.patience import alive, below, wait_for

NAME = "sft_then_dpo"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """What Prefect's server knows of the form."""
    from prefect.utilities.callables import parameter_schema

    return parameter_schema(getattr(deploy, NAME)).model_dump_for_openapi()


def test_every_flow_with_a_config_of_its_name_is_served() -> None:
    found = deploy.roads()
    assert set(found) == {place.stem for place in CONF.glob("*.yaml")}
    assert all(issubclass(kind, Road) for _, kind in found.values())


def test_the_form_has_a_drop_down_for_every_choice(schema: dict[str, Any]) -> None:
    fields = schema["properties"]
    assert set(fields["quantize"]["enum"]) == {place.stem for place in (CONF / "quantize").glob("*.yaml")}
    assert fields["experiment"]["default"] == "none" and "bench" in fields["experiment"]["enum"]
    assert fields["general"]["enum"] == ["general_prompts", "tickets_prompts"]  # kinds that fit there
    assert "encode" not in fields  # nothing to choose from
    assert "config_dirs" not in fields
    assert all(field["enum"] for name, field in fields.items() if name != "overrides")


def test_the_form_explains_itself(schema: dict[str, Any]) -> None:
    fields = schema["properties"]
    assert all(len(field["description"]) > 20 for field in fields.values())
    assert "q4_k_m: A third of f16 and less" in fields["quantize"]["description"]
    page = getattr(deploy, NAME).description
    assert "`qwen3_0_6b` Qwen3-0.6B, on the hub." in page and "python -m" not in page


@pytest.mark.parametrize(
    ("override", "fits"),
    [
        *((fits, True) for fits in ("a.b=1", "+a.args.x=[1,2]", "preprocess@chats=mine", "~preprocess@general")),
        *((unfit, False) for unfit in ("a.b 1", "a b=1", "--help", "")),
    ],
)
def test_the_server_refuses_what_is_no_override(override: str, fits: bool, schema: dict[str, Any]) -> None:
    assert Draft202012Validator(schema).is_valid({"overrides": [override]}) == fits


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("runtime.root=/elsewhere", "runtime.root: where artifacts lie is for the server to say"),
        ("++runtime={root: /elsewhere}", "runtime.root: where artifacts lie"),
        ("download.trust_remote_code=true", "it lets code run that comes with a model"),
        ("convert.llama_cpp=/their/clone", "it names a program to run"),
        ("hydra.searchpath=[file:///theirs]", "Hydra's own settings"),
        ("+hydra/launcher=joblib", "Hydra's own settings"),
        ("dpo.args.reward=[theirs.module:score]", "theirs.module:score names code to run"),
        ("+ppo.rewards.theirs.source=my/rewards.py:score", "my/rewards.py:score names code to run"),
        ("+ppo.rewards={theirs: {source: '${.pattern}:score'}}", "is put together from other values"),
        ("+ppo.rewards.theirs={source: https://their.host/score}", "it names a server that is sent the answers"),
    ],
)
def test_a_form_may_not_say_what_is_for_the_owner_of_the_machine(override: str, reason: str) -> None:
    (problem,) = form.refused([override])
    assert reason in problem
    with pytest.raises(ConfigError, match=r"owner|server|command line"):
        form.read(NAME, SFTThenDPO, [override])


def test_an_ordinary_override_is_none_of_them() -> None:
    assert not form.refused(["dpo.args.beta=0.3", "sft.lora={rank: 3}", "chats.path=/a/b.jsonl", "~sft.args.warmup"])


def test_mistakes_and_refusals_are_told_together() -> None:
    with pytest.raises(ConfigError) as error:
        form.read(NAME, SFTThenDPO, ["runtime.root=/x", "sft.lora.rnk=8"])
    assert len(error.value.problems) == 2
    assert "Did you mean sft.lora.rank?" in error.value.problems[1]


def test_a_form_that_begins_with_some_words_asks_for_the_same() -> None:
    from flows.compose import choices

    words = ["quantize=q4_k_m", "preprocess@general=tickets_prompts", "dpo.args.beta=0.3", "experiment=bench"]
    filled = form.filled(NAME, words)
    assert filled["quantize"] == "q4_k_m" and filled["overrides"] == ["dpo.args.beta=0.3"]
    asked = form.asked(choices(NAME), filled)
    assert form.read(NAME, SFTThenDPO, asked) == form.read(NAME, SFTThenDPO, words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sft_then_dop"], "sft_then_dop: no such flow. There are: rlhf, sft_then_dpo."),
        (["sft.lora.rnk=8"], "Did you mean sft.lora.rank?"),
        (["runtime.root=/x"], "POSTTRAIN_ROOT in deploy/.env, or flows.deploy --root"),
    ],
)
def test_words_that_no_run_could_begin_with_are_refused(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert deploy.main(words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 1, "http://127.0.0.1:9/api does not answer. Start one (`make up`"),
        (
            ["--schedule", "nightly", "--at-once", "0"],
            2,
            "as in '0 3 * * *'.\n  2. --at-once 0: give 1 or more.",
        ),
    ],
)
def test_what_cannot_be_served_says_what_to_do(words: list[str], code: int, says: str, tmp_path: Path) -> None:
    env = {**os.environ, **servers.QUIET, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    line = [sys.executable, "-m", "flows.deploy", "--root", str(tmp_path), *words]
    done = subprocess.run(line, cwd=roads.ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr


@dataclass
class Door:
    """A served flow, its server's client, and the run that its schedule started."""

    client: Any
    id: Any
    root: Path
    process: subprocess.Popen[str]
    scheduled: Any

    def send(self, **given: Any) -> Any:
        """Fill in the form and send it."""
        return self.client.create_flow_run_from_deployment(self.id, parameters=given)

    def ended(self, run: Any) -> Any:
        return wait_for(lambda: (seen := self.client.read_flow_run(run.id)).state.is_final() and seen, seconds=120)

    def tasks(self, run: Any) -> list[Any]:
        from prefect.client.schemas.filters import FlowRunFilter

        mine = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
        return list(self.client.read_task_runs(flow_run_filter=mine))


@pytest.fixture(scope="module")
def door(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """Served by the clock until the first run, after the same run was made by hand."""
    from prefect.client.orchestration import SyncPrefectClient

    folder = tmp_path_factory.mktemp("door")
    root = folder / "data"
    roads.travelled(tiny_model, root)
    words = [*roads.overrides(tiny_model, root)[:-1], "--every", "5", "--root", str(root)]
    with servers.prefect(folder / "prefect") as url, SyncPrefectClient(url) as client:
        env = {**os.environ, **servers.QUIET, "PREFECT_API_URL": url, "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
        with open(folder / "log", "w") as log:
            line = [sys.executable, "-m", "flows.deploy", NAME, *words]
            process = subprocess.Popen(
                line, cwd=roads.ROOT, env=env, stdout=log, stderr=log, text=True, start_new_session=True
            )
        try:
            wait_for(lambda: client.read_deployments(), seconds=60)
            (served,) = client.read_deployments()
            run = wait_for(lambda: next((r for r in client.read_flow_runs() if r.state.is_final()), None), seconds=120)
            client.update_deployment_schedule(served.id, served.schedules[0].id, active=False)
            for late in client.read_flow_runs():
                if late.state.is_scheduled():
                    client.delete_flow_run(late.id)
            wait_for(lambda: all(r.state.is_final() for r in client.read_flow_runs()), seconds=60)
            yield Door(client, served.id, root, process, run)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def test_a_schedule_fires_and_finds_everything_in_the_store(door: Door) -> None:
    assert door.scheduled.auto_scheduled and door.scheduled.state.is_completed()
    tasks = servers.settled(lambda: door.tasks(door.scheduled), lambda seen: len(seen) > 16)
    assert {task.state.name for task in tasks} == {"Cached"}


def test_a_run_from_the_form_is_the_run_of_the_command_line(door: Door, tiny_model: Path) -> None:
    from mlflow import MlflowClient

    other = "compare.gates.f16_kl_max=0.5"
    run = door.ended(door.send(download="local", debug="smoke", overrides=[f"download.path={tiny_model}", other]))
    assert run.state.message == "verdict passed"
    assert roads.made(roads.states(door.root)) == {"compare"}
    roads.travelled(tiny_model, door.root, other)
    assert not roads.made(roads.states(door.root))
    client = MlflowClient(f"sqlite:///{door.root / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'posttrain'")
    by_hand, from_form = client.search_runs(
        [experiment.experiment_id], "tags.road != ''", order_by=["start_time DESC"], max_results=2
    )
    assert from_form.info.run_name == run.name
    assert from_form.data.tags["road"] == by_hand.data.tags["road"]


def test_the_page_of_a_run_shows_tables_pictures_and_where_mlflow_is(door: Door) -> None:
    from prefect.client.schemas.filters import ArtifactFilter

    mine = ArtifactFilter.model_validate({"flow_run_id": {"any_": [door.scheduled.id]}})
    (page,) = servers.settled(lambda: door.client.read_artifacts(artifact_filter=mine), lambda seen: len(seen) == 1)
    assert "| model | exact_match" in page.data and "| stage | state |" in page.data
    assert "![scores](data:image/png;base64," in page.data
    assert "mlflow ui --backend-store-uri" in page.data


def test_a_wrong_override_ends_the_run_before_its_first_stage(door: Door) -> None:
    before = len(list((door.root / "runs").iterdir()))
    run = door.ended(door.send(overrides=["sft.lora.rnk=8", "runtime.root=/elsewhere"]))
    assert (run.state.type, run.state.name) == ("FAILED", "Refused")
    assert "Did you mean sft.lora.rank?" in run.state.message
    assert "runtime.root: where artifacts lie" in run.state.message
    assert not door.tasks(run) and len(list((door.root / "runs").iterdir())) == before


def test_what_is_no_override_or_no_choice_does_not_become_a_run(door: Door) -> None:
    from prefect.exceptions import PrefectHTTPStatusError

    for given in ({"overrides": ["dpo.args.beta 0.3"]}, {"quantize": "q9"}):
        with pytest.raises(PrefectHTTPStatusError, match="409"):
            door.send(**given)


def test_a_plan_from_the_form_starts_nothing(door: Door, tiny_model: Path) -> None:
    words = [f"download.path={tiny_model}", "plan=true"]
    run = door.ended(door.send(download="local", debug="smoke", overrides=words))
    assert run.state.message == "a plan: nothing was run"
    assert not door.tasks(run)


def test_a_road_cancelled_in_the_ui_is_cancelled_everywhere(door: Door, tiny_model: Path) -> None:
    from prefect.states import Cancelling

    words = [f"download.path={tiny_model}", *roads.LONG]
    run = door.send(download="local", debug="smoke", overrides=words)
    wait_for(lambda: roads.checkpoint(door.root), seconds=120)
    family, before = below(door.process.pid), roads.checkpoint(door.root)
    door.client.set_flow_run_state(run.id, Cancelling())
    began = time.monotonic()
    assert door.ended(run).state.is_cancelled()
    assert time.monotonic() - began < 25  # the server polls for what is to be cancelled
    wait_for(lambda: not any(alive(pid) for pid in family))
    assert roads.checkpoint(door.root) > before
