"""How the clips of a run ended: from its rows, its parts, and its dataset."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...dataset.index import rows_by_folder
from ...dataset.outcomes import OUTCOME_COLUMNS, Outcome, Tally, outcomes_of
from ...dataset.parquet import read_table
from ...dataset.rows import Row

__all__ = ["Outcome", "Tally"]


def read_outcomes(out: Path) -> Iterator[Outcome]:
    """How every clip of a dataset ended, in order of the part files: from the index where it is up to date."""
    for table in rows_by_folder(out, OUTCOME_COLUMNS):
        yield from outcomes_of(table)


def part_outcomes(path: Path) -> Iterator[Outcome]:
    """How the clips of a part ended."""
    return outcomes_of(read_table(path, OUTCOME_COLUMNS))


def outcome_of(row: Row) -> Outcome:
    return Outcome(
        clip_id=row.clip_id,
        verdict=row.verdict,
        reasons=row.reasons,
        detail=row.reason_details[0] if row.reason_details else "",
    )
