"""preprocess: rows in, checked rows out.

Reads a file, a folder, a glob or a data set from a hub, brings every row into one of three forms (tasks/llm/rows.py),
leaves out what does not fit, counts all of it by reason, and splits off what is held out. The artifact is `train.jsonl`
and `eval.jsonl`, either of which may be empty; `notes/report.json` says what became of every row.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from tasks.llm.gather import Gather, Tally, few, lengths, prompt_key, sample, split
from tasks.llm.rows import Format, Kind, Row
from tasks.llm.tables import TableError, find, missing
from tasks.runtime import Dataset, Moving, Run, external, stage


class OnBadRows(StrEnum):
    """What a row that does not fit leads to; it is counted either way."""

    drop = "drop"
    fail = "fail"


def _commit(cfg: PreprocessConfig) -> Moving | str:
    """What `revision` means on the hub."""
    if not cfg.repo:
        return ""

    def ask() -> str:
        from tasks.llm import hub

        return hub.resolve(cfg.repo, cfg.revision, kind="dataset")

    return Moving(f"dataset {cfg.repo}@{cfg.revision}", ask)


@dataclass
class PreprocessConfig:
    kind: Kind = Kind.chats
    """chats: to learn from. pairs: to prefer by. questions: to practise on, with an answer or without.
    prompts: with answers, to be measured on, so all are held out."""
    path: str = external("path", default="")
    """A .json, .jsonl, .csv, .tsv or .parquet file, a folder or a glob of one of these kinds. Either this or `repo`."""
    eval_path: str = external("path", default="")
    """Held-out rows that have a file of their own. Rows of `path` that ask the same are left out."""
    repo: str = ""
    """Id of a data set on the hub, such as owner/name."""
    revision: str = external(_commit, default="main")
    """Branch, tag or commit of `repo`."""
    files: list[str] = field(default_factory=list)
    """Which files of `repo` to read, such as data/train-*.parquet."""
    format: Format = Format.auto
    """The shape of the rows. auto: by their columns."""
    eval_fraction: float = 0.0
    """Share of the rows to hold out. The same prompt never stands on both sides."""
    eval_rows: int = 0
    """The same as a number of rows."""
    max_rows: int = 0
    """Use a random sample of this size; 0 for all."""
    max_chars: int = 0
    """Leave out rows with more characters than this; 0 for no limit."""
    min_rows: int = 1
    """Fail when fewer rows are left than this."""
    drop_duplicates: bool = True
    """Keep the first of equal rows only."""
    on_bad_rows: OnBadRows = OnBadRows.drop
    """drop: leave out rows that do not fit. fail: stop when there is one."""
    seed: int = 0
    """Draws the sample and the split."""

    def problems(self) -> Iterator[str]:
        yield from self._source_problems()
        yield from self._split_problems()
        if self.format is not Format.auto and (self.format is Format.preference) != (self.kind is Kind.pairs):
            yield f"format={self.format.value} does not go with kind={self.kind.value}; use format=auto"
        for name, least in (("max_rows", 0), ("max_chars", 0), ("min_rows", 1)):
            if getattr(self, name) < least:
                yield f"{name}={getattr(self, name)} is too small; give {least} or more"

    def _source_problems(self) -> Iterator[str]:
        if not self.path and not self.repo:
            yield "no data given; set path to a file, a folder or a glob, or repo to a data set on the hub"
        if self.path and self.repo:
            yield f"both path={self.path} and repo={self.repo} are given; give one of them"
        for name in ("path", "eval_path"):
            if (place := getattr(self, name)) and (lost := missing(place)):
                yield f"{name}: {lost}"
        if self.repo and not self.files:
            yield f"files: say which files of {self.repo} to read, such as files=[data/train-*.parquet]"
        if self.files and not self.repo:
            yield "files belongs to repo; give a folder or a glob as path instead"

    def _split_problems(self) -> Iterator[str]:
        ways = [name for name in ("eval_path", "eval_fraction", "eval_rows") if getattr(self, name)]
        if not 0 <= self.eval_fraction < 1:
            yield f"eval_fraction={self.eval_fraction} is not a share; give 0 (none) to below 1, such as 0.05"
        if self.eval_rows < 0:
            yield f"eval_rows={self.eval_rows} is too small; give 0 or more"
        if self.kind is Kind.prompts and ways:
            yield f"{' and '.join(ways)}: kind=prompts holds out every row already; leave it away"
        elif len(ways) > 1:
            yield f"{' and '.join(ways)} each say what to hold out; give one of them"


@stage(makes=Dataset, version="1")
def preprocess(run: Run, cfg: PreprocessConfig) -> dict[str, float]:
    files = _hub_files(run, cfg) if cfg.repo else find(cfg.path)
    gather = Gather(cfg.kind, cfg.format, cfg.drop_duplicates, cfg.max_chars, _ticks(run))

    given, given_tally = gather(find(cfg.eval_path)) if cfg.eval_path else ([], Tally())
    rows, tally = gather(files, held_out={prompt_key(row) for row in given})
    if not tally.rows:
        raise TableError(f"{_named(files)} no rows: give rows with the columns that docs/data.md names.")
    _refuse(given_tally, 1 if cfg.eval_path else 0, cfg)
    _refuse(tally, cfg.min_rows, cfg)

    chosen = sample(rows, cfg.max_rows, cfg.seed) if cfg.max_rows else rows
    lost = f"{_faults(tally)} Mend them. Without them " if tally.bad else ""
    train, held = _divide(chosen, cfg, f"{lost}{_named(files)} {_counted(rows)}")
    held = given or held

    _write(run.out / "train.jsonl", train)
    _write(run.out / "eval.jsonl", held)
    report = {"kind": cfg.kind.value, **tally.report(), "not_sampled": len(rows) - len(chosen)}
    if cfg.eval_path:
        report["eval_path"] = given_tally.report()
    for name, part in (("train", train), ("eval", held)):
        report[name] = {"rows": len(part), "characters": lengths(part)}
    _write_report(run.notes / "report.json", report)
    seen, dropped = tally.rows + given_tally.rows, tally.dropped + given_tally.dropped
    return {"rows": seen, "dropped": dropped, "train": len(train), "eval": len(held)}


def _hub_files(run: Run, cfg: PreprocessConfig) -> dict[str, Path]:
    from tasks.llm import hub

    folder = run.work / "hub"
    commit = hub.resolve(cfg.repo, cfg.revision, kind="dataset")
    hub.download(cfg.repo, commit, folder, run.progress, kind="dataset", patterns=cfg.files, work=run.work)
    return find(str(folder))


def _ticks(run: Run) -> Any:
    """Progress in megabytes read; silent for what is read in a blink."""

    def tick(done: int, total: int) -> None:
        if total > 5_000_000:
            run.progress(done // 1_000_000, total // 1_000_000, "MB read")

    return tick


def _refuse(tally: Tally, least: int, cfg: PreprocessConfig) -> None:
    """Stop at bad rows where the config says so, and where fewer than `least` rows are left."""
    if cfg.on_bad_rows is OnBadRows.fail and tally.bad:
        raise TableError(f"{_faults(tally)} Mend them, or set on_bad_rows=drop.")
    if tally.kept < least:
        why = ", ".join(f"{reason} {left.rows}" for reason, left in tally.left.items())
        raise TableError(
            f"only {tally.kept} of {tally.rows} rows are left, and {least} must be (min_rows). "
            f"Left out: {why or 'none'}. Mend these, or give more rows."
        )


def _faults(tally: Tally) -> str:
    faults = "; ".join(f"{reason} ({left.rows}): {', '.join(left.examples)}" for reason, left in tally.bad.items())
    return f"{sum(left.rows for left in tally.bad.values())} of {tally.rows} rows do not fit. {faults}."


def _named(files: Collection[str]) -> str:
    return f"{next(iter(files))} has" if len(files) == 1 else f"{len(files)} files have"


def _counted(rows: Collection[Row]) -> str:
    return f"{len(rows)} row{'' if len(rows) == 1 else 's'}"


def _divide(rows: list[Row], cfg: PreprocessConfig, source: str) -> tuple[list[Row], list[Row]]:
    """Train and held-out rows. `source`: what is lost, and how many rows which files have."""
    if cfg.kind is Kind.prompts:
        return [], rows
    wanted = cfg.eval_rows or (max(1, round(cfg.eval_fraction * len(rows))) if cfg.eval_fraction else 0)
    if wanted >= len(rows):
        raise TableError(_too_few(rows, wanted, cfg, source))
    train, held = split(rows, wanted, cfg.seed)
    if wanted and not held:
        raise TableError(
            f"cannot hold out {wanted} of {len(rows)} rows: too many share one prompt, and a prompt stays on one side. "
            "Hold out more, or give held-out rows of their own as eval_path."
        )
    return train, held


def _too_few(rows: Collection[Row], wanted: int, cfg: PreprocessConfig, source: str) -> str:
    """Roads have a seat for each kind of rows, by its name."""
    taken = "" if source.endswith(f" {_counted(rows)}") else f", max_rows takes {len(rows)} of them,"
    if cfg.eval_rows:
        unless = "(what suits the bundled data, unless you set it)"
        better = f"set {cfg.kind.value}.eval_rows={few(len(rows))}"
        return f"{source}{taken} and eval_rows holds out {wanted} {unless}: {better}."
    more = f"give {cfg.kind.value} more rows, or set a smaller eval_fraction"
    return f"{source}{taken} and eval_fraction holds out {wanted}: {more}."


def _write(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)


def _write_report(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
