"""Samples per second of our PPO beside the last PPO that TRL shipped, and where the time goes.

    pip install --no-deps --target FOLDER trl==1.12.0
    python -m tests.bench_ppo MODEL [--trl FOLDER] [--adapter POLICY] [--rounds N] [--sizes 4 8 16] [--sides ours trl]

Both draw the same number of tokens for the same prompts, the first of the bundled questions, and learn from them with
one optimizer step per epoch. Nobody has a stop token, so every answer has its full length. Policies are LoRA adapters
on MODEL in bf16 (or POLICY is continued), the judge is a classifier of the same size with a random head. Each side is a
process of its own that makes one update when it is told to: ours, theirs, ours, theirs ... The first update of each
is not counted. TRL gets the sizes that are fastest for it: every one is tried once, with the critic as TRL has it, and
the best for drawing need not be the best for learning. All sides stand in memory at once, about 5 GB each for a model
of 135M: where that is too much, name fewer.

What differs: our critic shares the policy's trunk unless it says `separate`, TRL's is a model of its own with all its
weights trained, or with an adapter as the policy has it. We score the answer's text, TRL its tokens. We run 16
sequences at once through a model, our default.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench_sweep import Clock

QUESTIONS = Path(__file__).parents[1] / "data" / "tickets" / "questions.jsonl"
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, critic separate": {"critic": "separate"},
    "ours, 4 answers per prompt": {"answers_per_prompt": 4},
}
"""Name -> knobs of PPOConfig."""
THEIRS = {"trl": "full", "trl, critic an adapter": "lora"}
"""Name -> how TRL's value model is trained. TRL gives only the policy an adapter, so the second is made for it."""
SIZES = (1, 2, 4, 8, 16)
PARTS = ("generation", "scoring", "looking", "learning")


@dataclass(frozen=True)
class Work:
    """What both sides do; as plain JSON between the processes."""

    model: str
    adapter: str
    """A policy to continue, or "" for a fresh adapter."""
    judge: str
    rows: list[dict[str, Any]]
    prompts: list[list[int]]
    """The rows in token ids."""
    tokens: int
    epochs: int
    rank: int = 16
    alpha: int = 32


class Worker(Clock):
    """The side of a process that updates when it is told to, and tells where the seconds went."""

    def __init__(self) -> None:
        super().__init__()
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print goes to the log

    def phase(self, cause: str) -> None:
        """Where time goes from here on that nobody watches."""
        self._turn()
        self.stack[0] = cause

    def wait(self) -> None:
        if not sys.stdin.readline():
            raise SystemExit
        self.phase("")
        self.spent.clear()

    def tell(self) -> None:
        self.phase("")
        print(json.dumps(self.spent), file=self.out, flush=True)


class Side:
    """A worker as its caller sees it."""

    def __init__(self, scratch: Path, module: str, arguments: list[str], env: dict[str, str] | None = None) -> None:
        self.log = scratch / f"{module}-{'-'.join(arguments)}.log"
        command = [sys.executable, "-m", module, str(scratch / "work.json"), *arguments]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false"} | (env or {}),
        )

    def update(self) -> dict[str, float]:
        """Seconds of one update, in all and by part."""
        assert self.process.stdin and self.process.stdout
        began = time.perf_counter()
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline()
        if not said:
            raise SystemExit(f"{self.log.name} ended:\n{self.log.read_text()[-3000:]}")
        return {"all": time.perf_counter() - began, **dict.fromkeys(PARTS, 0.0), **json.loads(said)}

    def __enter__(self) -> Side:
        self.update()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def prepared(scratch: Path, given: argparse.Namespace) -> None:
    """Write the work and a judge: the model with a random head, so that scores differ."""
    import torch

    from tasks.llm import chat, models, reward_models

    found = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()[: given.batch]]
    rows = [{"prompt": row["prompt"], "answer": row["completion"]} for row in found]
    chats = [row["prompt"] for row in rows], [row["answer"] for row in rows]
    tokenizer = reward_models.load_tokenizer(given.model)
    judge, base = reward_models.begun(given.model, given.model, "bf16", tokenizer.pad_token_id), str(given.model)
    torch.nn.init.normal_(judge.score.weight, std=0.02)
    reward_models.save(reward_models.finished(judge, "bf16"), scratch / "judge", given.model, tokenizer.pad_token)
    prompts = [turn.prompt for turn in chat.turns(models.load_tokenizer(given.model), *chats)]
    adapter = str(given.adapter or "")
    work = Work(base, adapter, str(scratch / "judge"), rows, prompts, given.tokens, given.epochs)
    (scratch / "work.json").write_text(json.dumps(asdict(work)), encoding="utf-8")
    length = sum(map(len, prompts)) / len(prompts)
    print(f"{given.batch} prompts of {length:.0f} tokens, {given.tokens} new tokens, {given.epochs} epochs", flush=True)


def read(place: str) -> Work:
    return Work(**json.loads(Path(place).read_text(encoding="utf-8")))


def ours(work: Work, name: str) -> None:
    """Our PPO, as a worker."""
    worker = Worker()
    from tasks.llm import actor, models
    from tasks.llm.rewards import Reward
    from tasks.llm.rollouts import Sampling
    from tasks.llm.training import LoRA
    from tasks.ppo import PPOConfig, Scorer, begun
    from tasks.runtime import RewardModel, devices
    from tests import hand

    knobs = dict(OURS[name])
    critic = actor.Critic(knobs.pop("critic", "shared"))
    cfg = PPOConfig(
        updates=1000,  # learning rates never get to 0
        batch_size=len(work.prompts),
        minibatch_size=len(work.prompts),
        epochs=work.epochs,
        stop_kl=None,
        lora=LoRA(work.rank, work.alpha),
        sampling=Sampling(work.tokens),
        rewards={"model": Reward()},
        **knobs,
    )
    base, tokenizer = Path(work.model), models.load_tokenizer(Path(work.model))
    policy = Path(work.adapter or work.model)
    opening = actor.Opening(policy, base, False, cfg.lora, critic, "bf16", 1.0, cfg.seed)
    scorer = Scorer(cfg.rewards, tokenizer, hand.handle(RewardModel, Path(work.judge)), "bf16")
    trainer = begun(cfg, opening, *opening(), scorer, tokenizer, work.rows)
    trainer.sampler.stops = ()
    for part, cause in zip(("sampler", "scores", "_look", "_learn"), PARTS, strict=True):
        worker.watch(trainer, part, cause)
    with devices.memory_at_hand():  # as every stage has it
        for number in range(cfg.updates):
            worker.wait()
            told = trainer.update(number)
            assert told["length"] == work.tokens, told["length"]
            worker.tell()


def theirs(scratch: Path, given: argparse.Namespace, critic: str, draws: int, learns: int) -> Side:
    path = os.pathsep.join(filter(None, [str(given.trl), os.environ.get("PYTHONPATH")]))
    env = {"PYTHONPATH": path, "TRL_EXPERIMENTAL_SILENCE": "1"}
    return Side(scratch, "tests.bench_ppo_trl", [critic, str(draws), str(learns)], env)


def best(scratch: Path, given: argparse.Namespace) -> tuple[int, int]:
    """How many sequences at once are fastest for TRL, to draw and to learn."""
    draws, learns = {}, {}
    for size in (size for size in given.sizes if given.batch % size == 0):
        with theirs(scratch, given, "full", size, size) as side:
            told = side.update()
        draws[size], learns[size] = told["all"] - told["learning"], told["learning"]
        print(f"  {size:>2} at once: rollouts {draws[size]:.1f} s, learning {learns[size]:.1f} s", flush=True)
    fastest = min(draws, key=draws.__getitem__), min(learns, key=learns.__getitem__)
    print(f"trl draws {fastest[0]} and learns {fastest[1]} at once", flush=True)
    return fastest


def main(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        scratch = Path(place)
        prepared(scratch, given)
        sizes = best(scratch, given) if given.trl else (0, 0)
        sides: dict[str, Side] = {}
        for name in (name for name in given.sides if name in OURS):
            sides[name] = stack.enter_context(Side(scratch, "tests.bench_ppo", [name]))
        for name in (name for name in given.sides if name in THEIRS and given.trl):
            sides[name] = stack.enter_context(theirs(scratch, given, THEIRS[name], *sizes))
        told: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for _ in range(given.rounds):
            for name, side in sides.items():
                told[name].append(side.update())
                print(f"  {name}: {told[name][-1]['all']:.1f} s", flush=True)
    report(told, given.batch)


def report(told: dict[str, list[dict[str, float]]], batch: int) -> None:
    speeds = {name: statistics.median(batch / update["all"] for update in updates) for name, updates in told.items()}
    print(f"{'samples/s':>36}" + "".join(f"{part:>20}" for part in PARTS))
    for name, updates in told.items():
        whole = statistics.median(update["all"] for update in updates)
        seconds = [statistics.median(update[part] for update in updates) for part in PARTS]
        split = "".join(f"{spent:>12.1f} s ({spent / whole:4.0%})" for spent in seconds)
        print(f"{name:<26}{speeds[name]:>10.3f}{split}")
    for rival in (name for name in told if name in THEIRS):
        for name in (name for name in told if name in OURS):
            print(f"{name}: {speeds[name] / speeds[rival]:.2f} times {rival}")


if __name__ == "__main__":
    if sys.argv[2:] and sys.argv[2] in OURS:
        ours(read(sys.argv[1]), sys.argv[2])
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("model", type=Path, help="a full model with a chat template")
        parser.add_argument("--trl", type=Path, help="the folder that TRL 1.12.0 was installed into")
        parser.add_argument("--adapter", type=Path, help="an adapter on the model, to be continued")
        for knob, default in (("rounds", 5), ("batch", 16), ("tokens", 48), ("epochs", 4)):
            parser.add_argument(f"--{knob}", type=int, default=default)
        parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="to try for TRL, sequences at once")
        parser.add_argument(
            "--sides", nargs="+", default=[*OURS, *THEIRS], choices=[*OURS, *THEIRS], help="who competes"
        )
        main(parser.parse_args())
