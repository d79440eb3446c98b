"""How clips ended, and counts of that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from .reasons import Status, status_of

OUTCOME_COLUMNS = ("clip_id", "verdict", "reasons", "reason_details")
"""What `outcomes_of` reads."""
MAX_FAILED = 50
"""Failed clips that a tally remembers by name: a storage that is away fails all of them."""


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
        failed_for: failed clips by first reason.
        failed: the first `MAX_FAILED` of them.
    """

    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    failed_for: Counter[str] = field(default_factory=Counter)
    failed: list[Outcome] = field(default_factory=list)

    def add(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            first = outcome.reasons[0] if outcome.reasons else ""
            match outcome.status:
                case "accepted":
                    self.accepted += 1
                case "rejected":
                    self.rejected[first] += 1
                case "failed":
                    self.failed_for[first] += 1
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

    def to_json(self) -> dict[str, Any]:
        """For `from_json`."""
        return {
            "accepted": self.accepted,
            "rejected": dict(self.rejected),
            "failed_for": dict(self.failed_for),
            "failed": [[o.clip_id, o.verdict, list(o.reasons), o.detail] for o in self.failed],
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Tally:
        """Raises TypeError, ValueError, KeyError, AttributeError or OverflowError for anything else."""
        counts = [
            Counter({str(reason): int(count) for reason, count in found[name].items()})
            for name in ("rejected", "failed_for")
        ]
        failed = [
            Outcome(clip_id=str(i), verdict=str(v), reasons=tuple(map(str, reasons)), detail=str(d))
            for i, v, reasons, d in found["failed"]
        ]
        tally = cls(accepted=int(found["accepted"]), rejected=counts[0], failed_for=counts[1], failed=failed)
        if min(tally.accepted, *tally.rejected.values(), *tally.failed_for.values(), 0) < 0:
            raise ValueError("negative counts")
        return tally


def outcomes_of(table: pa.Table) -> Iterator[Outcome]:
    """How the clips of a table with `OUTCOME_COLUMNS` ended."""
    known = [name for name in OUTCOME_COLUMNS if name in table.schema.names]
    for batch in table.select(known).to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            details = row.get("reason_details")
            yield Outcome(
                clip_id=row["clip_id"],
                verdict=row["verdict"],
                reasons=tuple(row["reasons"] or ()),
                detail=details[0] if details else "",
            )


def tally_of(table: pa.Table) -> Tally:
    """Counts of a table with `OUTCOME_COLUMNS`."""
    tally = Tally()
    tally.add(outcomes_of(table))
    return tally
