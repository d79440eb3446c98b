"""How clips ended, and counts of that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...dataset.parquet import read_table
from ...dataset.reasons import Status, status_of
from ...dataset.rows import Row
from ...dataset.store import list_parts


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


@dataclass(kw_only=True)
class Tally:
    """Counts of a run or a dataset.

    Attributes:
        accepted: accepted clips.
        rejected: clips by first reason, failed ones left out.
        failed: the clips that failed.
    """

    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            match outcome.status:
                case "accepted":
                    self.accepted += 1
                case "rejected":
                    self.rejected[outcome.reasons[0]] += 1
                case "failed":
                    self.failed.append(outcome)

    def take(self, other: Tally) -> None:
        """Add the counts of another tally."""
        self.accepted += other.accepted
        self.rejected.update(other.rejected)
        self.failed += other.failed

    @property
    def done(self) -> int:
        """Clips with a row."""
        return self.accepted + sum(self.rejected.values()) + len(self.failed)

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.rejected.most_common())
        rejected = f"{sum(self.rejected.values())} rejected" + (f" ({reasons})" if reasons else "")
        return f"{self.accepted} accepted, {rejected}, {len(self.failed)} failed"


def read_outcomes(out: Path) -> Iterator[Outcome]:
    """How every clip of a dataset ended, in order of the part files."""
    for path in list_parts(out):
        yield from part_outcomes(path)


def part_outcomes(path: Path) -> Iterator[Outcome]:
    table = read_table(path, ["clip_id", "verdict", "reasons", "reason_details"])
    for row in table.to_pylist():
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
