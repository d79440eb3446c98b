"""What a benchmark measures, and what it found, sequence by sequence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Status = Literal["scored", "rejected", "failed", "missing", "no_truth"]
STATUSES: dict[Status, str] = {
    "scored": "Accepted and compared with the truth.",
    "rejected": "Judged unusable by the annotation itself; scored where it has cameras, in the second means alone.",
    "failed": "Media, truth or run are damaged or do not fit; not scored.",
    "missing": "The protocol counts it, and it is not there.",
    "no_truth": "Its truth is not published, or not here; not scored, in no mean.",
}
Better = Literal["less", "more", ""]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of a sequence, and how those of a set become one.

    Attributes:
        name, unit, better, meaning: as a table shows it.
        weight: what each sequence counts in the mean: 1, or the number of that name among its counts.
        total: the set's figure is the sum over its sequences, not their mean.
        absent: value of a sequence that failed, is missing or (in the first means) was rejected, where the protocol
            counts it; None: it is left out.
    """

    name: str
    unit: str
    better: Better
    meaning: str
    weight: str | None = None
    total: bool = False
    absent: float | None = None


@dataclass(frozen=True, kw_only=True)
class SequenceScore:
    """What became of one sequence.

    Attributes:
        sequence: its id.
        status, reasons, detail: what became of it, and why.
        counts: whole numbers of it, such as frames compared; weights of means.
        values: metrics, those that the data do not determine left out.
        frames: columns of a table with a row a frame, all of one length.
    """

    sequence: str
    status: Status
    reasons: tuple[str, ...] = ()
    detail: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    frames: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One metric over a set.

    Attributes:
        value: mean (weighted, where the metric says so) or sum; None where no sequence has it.
        median: of the sequences' values.
        num, of: sequences that it stands on, and those that it should: all with a published truth.
        num_absent: of `num`, those that count as the protocol counts what is not there.
    """

    value: float | None
    median: float | None
    num: int
    of: int
    num_absent: int = 0


def figure(metric: Metric, scores: Iterable[SequenceScore], *, with_rejected: bool = False) -> Figure:
    """The metric over a set.

    Args:
        with_rejected: rejected sequences that have cameras count as the others.
    """
    expected = [s for s in scores if s.status != "no_truth"]
    values: list[float] = []
    weights: list[float] = []
    absent = 0
    for score in expected:
        counts = score.status == "scored" or (with_rejected and score.status == "rejected")
        known = score.values.get(metric.name) if counts else None
        there = known is not None and np.isfinite(known)
        value = known if there else metric.absent
        weight = 1.0 if metric.weight is None else float(score.counts.get(metric.weight, 0))
        if value is not None and weight > 0:
            values.append(float(value))
            weights.append(weight)
            absent += not there
    if not values:
        return Figure(value=None, median=None, num=0, of=len(expected))
    whole = float(np.sum(values)) if metric.total else float(np.average(values, weights=weights))
    return Figure(
        value=whole, median=float(np.median(values)), num=len(values), of=len(expected), num_absent=absent
    )
