"""What an evaluation found, clip by clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..camera_files.match import Match
from .bootstrap import MeanWithInterval, bootstrap_mean
from .score import SCORES, ClipScore

_MAX_NAMED = 5
"""Clips named in a cell of a table; JSON names all."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of all clips that prediction and truth share, and what became of the others.

    Attributes:
        clips: scored clips in order of their id, rejected ones among them.
        only_predicted, only_truth: ids that only one of both has.
        rejected: reasons of clips that were rejected, by id; they are in no mean.
        failed: why a clip of both could not be compared, by id.
        notes: what reading had to decide, one sentence each.
        matches: pairs of poses behind the scores, by id.
    """

    clips: tuple[ClipScore, ...]
    only_predicted: tuple[str, ...] = ()
    only_truth: tuple[str, ...] = ()
    rejected: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    matches: Mapping[str, Match] = field(default_factory=dict, repr=False)

    def values(self, score: str, *, rejected: bool = False) -> dict[str, float]:
        """Score by clip id where it exists and is finite: of clips that were not rejected, or of those that were."""
        pairs = (
            (c.clip_id, getattr(c, score)) for c in self.clips if (c.clip_id in self.rejected) == rejected
        )
        return {clip_id: float(v) for clip_id, v in pairs if v is not None and np.isfinite(v)}

    def expected(self, *, rejected: bool = False) -> list[str]:
        """Clips that a mean should stand on: those of the truth that were not rejected, or those that were."""
        if rejected:
            return sorted(self.rejected)
        scored = {c.clip_id for c in self.clips} - self.rejected.keys()
        return sorted(scored | self.failed.keys() | set(self.only_truth))

    def missing(self, score: str, *, rejected: bool = False) -> list[str]:
        """Clips without a finite score that a mean should stand on."""
        have = self.values(score, rejected=rejected)
        return [c for c in self.expected(rejected=rejected) if c not in have]

    def summary(self, *, rejected: bool = False) -> dict[str, MeanWithInterval]:
        """Mean and 95 % bootstrap interval of each score that any clip has: of clips that were not rejected, or of
        those that were."""
        return {
            s: bootstrap_mean(list(v.values())) for s in SCORES if (v := self.values(s, rejected=rejected))
        }


def names_text(clips: Sequence[str]) -> str:
    more = len(clips) - _MAX_NAMED
    return " ".join(clips[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
