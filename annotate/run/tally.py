"""How clips ended, and counts of that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from ...dataset.index import rows_by_folder
from ...dataset.parquet import read_table
from ...dataset.reasons import Status, status_of
from ...dataset.rows import Row


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one clip ended; `reasons` is empty for an accepted one."""

    clip_id: str
    verdict: str
    reasons: tuple[str, ...]
    detail: str

    @property
    def status(self) -> Status:
        """Accepted, rejected (judged) or failed."""
        return status_of(self.verdict, self.reasons)


MAX_FAILED = 50
"""Failed clips that a tally remembers by name: a storage that is away fails all of them."""


@dataclass(kw_only=True)
class Tally:
    """Counts of a run or a dataset.

    Attributes:
        accepted: accepted clips.
        rejected: clips by first reason, failed ones left out.
        failed_for: failed clips by first reason.
        failed: the first `MAX_FAILED` of them.
    """

    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    failed_for: Counter[str] = field(default_factory=Counter)
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            match outcome.status:
                case "accepted":
                    self.accepted += 1
                case "rejected":
                    self.rejected[outcome.reasons[0]] += 1
                case "failed":
                    self.failed_for[outcome.reasons[0]] += 1
                    if len(self.failed) < MAX_FAILED:
                        self.failed.append(outcome)

    def take(self, other: Tally) -> None:
        """Add the counts of another tally."""
        self.accepted += other.accepted
        self.rejected.update(other.rejected)
        self.failed_for.update(other.failed_for)
        self.failed = (self.failed + other.failed)[:MAX_FAILED]

    @property
    def num_failed(self) -> int:
        """Clips that failed."""
        return self.failed_for.total()

    @property
    def done(self) -> int:
        """Clips with a row."""
        return self.accepted + self.rejected.total() + self.num_failed

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.rejected.most_common())
        rejected = f"{sum(self.rejected.values())} rejected" + (f" ({reasons})" if reasons else "")
        return f"{self.accepted} accepted, {rejected}, {self.num_failed} failed"


_COLUMNS = ["clip_id", "verdict", "reasons", "reason_details"]


def read_outcomes(out: Path) -> Iterator[Outcome]:
    """How every clip of a dataset ended, in order of the part files: from the index where it is up to date."""
    for table in rows_by_folder(out, _COLUMNS):
        yield from _outcomes(table)


def part_outcomes(path: Path) -> Iterator[Outcome]:
    """How the clips of a part ended."""
    return _outcomes(read_table(path, _COLUMNS))


def _outcomes(table: pa.Table) -> Iterator[Outcome]:
    for batch in table.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            yield Outcome(
                clip_id=row["clip_id"],
                verdict=row["verdict"],
                reasons=tuple(row["reasons"]),
                detail=row["reason_details"][0] if row["reason_details"] else "",
            )


def outcome_of(row: Row) -> Outcome:
    return Outcome(
        clip_id=row.clip_id,
        verdict=row.verdict,
        reasons=row.reasons,
        detail=row.reason_details[0] if row.reason_details else "",
    )
