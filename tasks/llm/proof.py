"""What encoded rows hold, counted on the rows themselves: that they teach what was meant.

stop_trained   share of the answers in rows that were not cut whose last trained token is the stop token: all
fully_masked   kept rows without one trained token: none
spelled        control tokens spelled in messages; `leaked` counts the rows where these did not stay text
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.llm.masks import IGNORED, Encoded

_BINS = 24


@dataclass
class Proof:
    """Told of every row, it has the figures at the end."""

    stop: int
    """The token that ends an answer."""
    cutoff: int
    counts: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    """Of the rows to train on, as cut."""
    packed: int = 0
    """Rows that those to train on were packed into."""

    def add(self, split: str, row: Encoded) -> dict[str, list[int]] | None:
        """The row as it is kept, cut to the cutoff, and noted; None where no trained token is left."""
        self.counts["truncated"] += len(row.ids) > self.cutoff
        self.counts["spelled"] += row.spelled if row.part == row.parts - 1 else 0
        self.counts["leaked"] += not row.kept
        self.counts["conversations_in_parts"] += row.parts > 1 and row.part == 0
        self.counts["parts"] += row.parts > 1
        ids, labels = row.ids[: self.cutoff], row.labels[: self.cutoff]
        if all(label == IGNORED for label in labels):
            self.counts["no_label"] += 1
            return None
        self._seen(split, ids, labels, whole=len(row.ids) <= self.cutoff)
        return {"input_ids": ids, "labels": labels}

    def _seen(self, split: str, ids: list[int], labels: list[int], whole: bool) -> None:
        trained = len(labels) - labels.count(IGNORED)
        self.counts[split] += 1
        self.counts["tokens"] += len(ids)
        self.counts["trained"] += trained
        self.counts["fully_masked"] += not trained
        if whole:
            ends = [a for a, b in zip(labels, [*labels[1:], IGNORED], strict=True) if a != IGNORED and b == IGNORED]
            self.counts["ends"] += len(ends)
            self.counts["stops"] += ends.count(self.stop)
        if split == "train":
            self.lengths.append(len(ids))

    def check(self) -> None:
        """Raises ValueError where something else would be taught than what was meant."""
        if not self.counts["train"]:
            lost = f"{self.counts['no_label']} had no answer token within cutoff={self.cutoff}"
            raise ValueError(f"No row is left to train on; {lost}: raise encode.cutoff, or give rows to chats.")
        if self.counts["stops"] < self.counts["ends"]:
            never = self.counts["ends"] - self.counts["stops"]
            raise ValueError(f"{never} answers do not end with the stop token: look at the rows with flows.preview.")

    @property
    def metrics(self) -> dict[str, float]:
        count = self.counts
        ends = count["ends"]
        return {
            "rows": count["train"],
            "tokens": count["tokens"],
            "trained_share": count["trained"] / max(1, count["tokens"]),
            "stop_trained": count["stops"] / ends if ends else 0.0,
            "eval_rows": count["eval"],
            **{name: count[name] for name in ("truncated", "no_label", "fully_masked", "spelled", "leaked", "parts")},
            **({"packed_rows": self.packed, "fill": self.fill} if self.packed else {}),
        }

    @property
    def fill(self) -> float:
        """Share of the room in packed rows that tokens fill."""
        return sum(self.lengths) / (self.packed * self.cutoff)

    def report(self) -> dict[str, Any]:
        """For programs; `lengths` is a histogram of the rows to train on: `counts` between `edges`."""
        rows = self.counts["train"] + self.counts["eval"]
        return {
            "cutoff": self.cutoff,
            **self.metrics,
            "conversations_in_parts": self.counts["conversations_in_parts"],
            "truncated_share": self.counts["truncated"] / max(1, rows + self.counts["no_label"]),
            "lengths": histogram(self.lengths),
        }

    def words(self, stop: str) -> Iterator[str]:
        """For people."""
        count, figures = self.counts, self.metrics
        yield f"{count['train']:,} rows to train on, {count['eval']:,} held out."
        yield f"{count['tokens']:,} tokens, {figures['trained_share']:.1%} of them bear loss."
        yield f"Stop token {stop}: the last trained token of {count['stops']:,} of {count['ends']:,} whole answers."
        yield f"Rows without a trained token: {count['fully_masked']} kept, {count['no_label']:,} dropped."
        cost = ", which lost their end" if count["truncated"] else ""
        yield f"Cut at {self.cutoff:,} tokens: {count['truncated']:,} rows{cost}."
        kept = f"{count['leaked']:,} rows could not keep them as text" if count["leaked"] else "all stayed text"
        yield f"Control tokens spelled in messages: {count['spelled']:,}{', ' + kept if count['spelled'] else ''}."
        if count["parts"]:
            yield (
                f"{count['conversations_in_parts']:,} conversations took a row for each answer, {count['parts']:,} in "
                "all: the template shows earlier turns otherwise than it showed them as the last."
            )
        if self.packed:
            yield f"Packed into {self.packed:,} rows of {self.cutoff:,} tokens, {self.fill:.1%} full."


def histogram(lengths: Sequence[int]) -> dict[str, list[int]]:
    """`counts[n]` lengths are at least `edges[n]` and below `edges[n + 1]`; all edges are one width apart."""
    low, high = min(lengths, default=0), max(lengths, default=0)
    width = (high - low) // _BINS + 1
    low -= low % width
    bins = Counter((length - low) // width for length in lengths)
    last = (high - low) // width
    return {"edges": [low + n * width for n in range(last + 2)], "counts": [bins[n] for n in range(last + 1)]}
