"""What a sweep came to: its trials best first, as a table for people, for programs and for both UIs."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from flows.trials import State, Trial


@dataclass
class Board:
    name: str
    metric: str
    """The objective; empty where the flow has none."""
    maximize: bool
    knobs: list[str]
    trials: list[Trial]

    @property
    def ranked(self) -> list[Trial]:
        """Passed ones best first, then those whose verdict failed, best first, then those without a score."""

        def place(trial: Trial) -> tuple[int, float, int]:
            if trial.score is None:
                return 2, 0.0, trial.number
            kept = 0 if trial.state is State.passed else 1
            return kept, -trial.score if self.maximize else trial.score, trial.number

        return sorted(self.trials, key=place)

    @property
    def best(self) -> Trial | None:
        """The best of those whose verdict passed: no other may be used."""
        first = self.ranked[0] if self.trials else None
        return first if first and first.state is State.passed and first.score is not None else None

    def rank(self, trial: Trial) -> str:
        if trial.state is not State.passed or trial.score is None:
            return ""
        return str(self.ranked.index(trial) + 1)


_COLUMNS = ["rank", "state", "time", "run"]


def short(knobs: list[str]) -> dict[str, str]:
    """Each knob by the shortest end of its name that nothing else in the table has: beta, sft.seed, lora.rank."""

    def tail(knob: str, parts: int) -> str:
        return ".".join(knob.split(".")[-parts:])

    def shortest(knob: str) -> str:
        for parts in range(1, knob.count(".") + 1):
            if [*_COLUMNS, *(tail(other, parts) for other in knobs)].count(tail(knob, parts)) == 1:
                return tail(knob, parts)
        return knob

    return {knob: shortest(knob) for knob in knobs}


def words(board: Board, trial: Trial) -> str:
    """What a trial turned, as one reads it: beta=0.1 learning_rate=1e-4."""
    names = short(board.knobs)
    return " ".join(f"{names[knob]}={trial.swept[knob]}" for knob in board.knobs)


def rows(board: Board) -> list[dict[str, str]]:
    """A row per trial, best first, everything that is known of it."""
    found = []
    for trial in board.ranked:
        states = Counter(stage["state"] for stage in trial.stages)
        low, high = trial.interval or ("", "")
        found.append(
            {
                "rank": board.rank(trial),
                "trial": str(trial.number),
                board.metric or "score": "" if trial.score is None else f"{trial.score:.6g}",
                "low": f"{low:.6g}" if trial.interval else "",
                "high": f"{high:.6g}" if trial.interval else "",
                **{knob: trial.swept[knob] for knob in board.knobs},
                "state": trial.state.value,
                "seconds": f"{trial.seconds:.1f}",
                "made": str(states["made"]),
                "cached": str(states["cached"]),
                "run": trial.run,
                "error": trial.error,
            }
        )
    return found


def lines(board: Board) -> list[list[str]]:
    """A header and a line per trial for people: score and interval in one column, knobs by their short names."""
    names = short(board.knobs)
    score = f"{board.metric} [95 % interval]" if board.metric else "score"
    found = [["rank", score, *names.values(), "state", "time", "made/cached", "run"]]
    for trial, row in zip(board.ranked, rows(board), strict=True):
        low_high = "[{:.3f}, {:.3f}]".format(*trial.interval) if trial.interval else ""
        measured = "" if trial.score is None else f"{trial.score:.3f} {low_high}".strip()
        counts = f"{row['made']}/{row['cached']}"
        turned = [trial.swept[knob] for knob in board.knobs]
        found.append([row["rank"], measured, *turned, row["state"], f"{trial.seconds:.0f} s", counts, trial.run])
    return found


def sentences(board: Board) -> list[str]:
    """The best, what went wrong, and how much work the trials shared."""
    best = board.best
    if best and best.score is not None:
        span = "[{:.3f}, {:.3f}]".format(*best.interval) if best.interval else ""
        which = words(board, best) or f"trial {best.number}"
        told = [f"best: {which}, {board.metric} {best.score:.3f} {span}".rstrip() + f" (run {best.run})"]
    else:
        told = ["best: none; no trial passed its verdict with a score"]
    lost = [t for t in board.trials if t.state is State.failed]
    told += [f"failed: trial {t.number}, {words(board, t)}: {t.error}" for t in lost]
    unfit = sum(t.state is State.refused for t in board.trials)
    if unfit:
        told.append(f"verdict failed in {unfit} of {len(board.trials)}: it keeps its score and is never the best")
    calls = sum(len(t.stages) for t in board.trials)
    ran = ", ".join(f"{count} {stage}" for stage, count in executions(board.trials).items())
    return [*told, f"of {calls} stage calls ran: {ran or 'none'}; the rest was found"] if calls else told


def executions(trials: list[Trial]) -> dict[str, int]:
    """How often each stage ran, over all trials."""
    return dict(Counter(s["stage"] for t in trials for s in t.stages if s["state"] == "made"))


def markdown(board: Board) -> str:
    head, *body = lines(board)
    table = "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body])
    told = "".join(f"* {sentence}\n" for sentence in sentences(board))
    return f"# {board.name}\n\n{told}\n{table}\n"


def write(board: Board, folder: Path) -> list[Path]:
    """`leaderboard.csv` and `leaderboard.md`."""
    table, text = folder / "leaderboard.csv", folder / "leaderboard.md"
    found = rows(board)
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(found[0]) if found else ["rank"])
        writer.writeheader()
        writer.writerows(found)
    text.write_text(markdown(board), encoding="utf-8")
    return [table, text]


def show_table(console: Console, head: list[str], *body: list[str]) -> None:
    table = Table(box=box.SIMPLE)
    for name in head:
        table.add_column(name, no_wrap=True)
    for line in body:
        table.add_row(*line)
    widths = (max(len(line[n]) for line in [head, *body]) for n in range(len(head)))
    console.width = max(console.width, sum(widths) + 3 * len(head) + 2)  # a narrow window wraps; nothing is cut
    console.print(table)


def show(console: Console, board: Board, folder: Path) -> None:
    show_table(console, *lines(board))
    for sentence in sentences(board):
        console.print(f"  {sentence}", markup=False, soft_wrap=True)
    console.print(f"  leaderboard  {folder}", soft_wrap=True)
