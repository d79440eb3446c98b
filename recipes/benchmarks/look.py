"""Sequences of a set before any of them runs: which lie there, which count, and their truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ...annotate.sources.clip import ClipRef
from ...annotate.sources.entries import ReleaseSource
from ...annotate.sources.read import read_clips
from ...dataset.benchmarks.influx import Partition, find_partitions
from ...dataset.benchmarks.protocols import PROTOCOLS, SetName
from ...dataset.benchmarks.record import SequenceScore
from ...dataset.benchmarks.truth import Lenses, Sequence, true_cameras, true_lenses
from ...dataset.camera_files.record import ClipCameras


@dataclass(kw_only=True)
class Found:
    """What is known of a set before the run.

    Attributes:
        clips: all sequences that lie there, by id, in order.
        wanted: those that are run.
        poses, lenses: truth by id, of those that have some.
        rows: of the sequences that are not run.
        partitions, validation: of InFlux, and ids of its videos whose truth is published; else empty.
        untold: why a sequence has no truth where its set could tell one, by id.
    """

    clips: dict[str, ClipRef]
    wanted: list[str] = field(default_factory=list)
    poses: dict[str, ClipCameras] = field(default_factory=dict)
    lenses: dict[str, Lenses] = field(default_factory=dict)
    rows: dict[str, SequenceScore] = field(default_factory=dict)
    partitions: tuple[Partition, ...] = ()
    validation: frozenset[str] = frozenset()
    untold: dict[str, str] = field(default_factory=dict)

    def has_truth(self, name: str) -> bool:
        """Whether it can be scored."""
        return name in self.poses or name in self.lenses

    def num_truth(self, name: str) -> dict[str, int]:
        """Frames that the truth is of, as counts of a row."""
        if name in self.lenses:
            return {"num_truth": len(self.lenses[name].frame)}
        return {"num_truth": int(self.poses[name].posed.sum())} if name in self.poses else {}


def look(name: SetName, source: ReleaseSource, *, asked: tuple[str, ...] = (), every: bool = False) -> Found:
    """Sequences of a set and their truth.

    Args:
        asked: ids that are wanted; empty: those that the protocol counts.
        every: also those without a published truth.
    Raises:
        ValueError: nothing of the set lies there, an id that is neither there nor the protocol's, or no sequence to
            run.
    """
    root = source.root
    if not root.is_dir():
        raise ValueError(f"--root {root}: no such folder")
    counted = PROTOCOLS[name].sequences
    found = Found(clips=_by_id(source))
    unknown = [one for one in asked if one not in found.clips and one not in (counted or ())]
    if unknown:
        there = ", ".join(list(found.clips)[:8]) + (" ..." if len(found.clips) > 8 else "")
        raise ValueError(f"--sequences {','.join(unknown)}: not in {root}, which holds {there}")
    names: Iterable[str] = asked or counted or found.clips
    if not asked and counted is not None and every:  # figures stay those of the protocol
        names = [*counted, *(one for one, c in found.clips.items() if c.truth_camera_to_world_path is None)]
        names = dict.fromkeys(names)
    problems: dict[str, str] = {}
    if name == "influx":
        found.partitions = find_partitions(root)
        found.lenses, problems = true_lenses(found.partitions)
        for one in [one for one, lenses in found.lenses.items() if not len(lenses.frame)]:
            del found.lenses[one]
            found.untold[one] = "no frame has a true lens: all lie outside of what was calibrated"
        validation = {p.clip_id(v) for p in found.partitions for v in p.videos if v.split == "val"}
        found.validation = frozenset(validation - found.untold.keys())
    for one in names:
        _look_at(name, one, found, problems.get(one), root=root, every=every or bool(asked))
    if not found.wanted:
        why = next((f"; {row.sequence}: {row.detail}" for row in found.rows.values()), "")
        raise ValueError(f"{root}: no sequence of {PROTOCOLS[name].title} that can be run{why}")
    return found


def _by_id(source: ReleaseSource) -> dict[str, ClipRef]:
    """Sequences by id.

    Raises:
        ValueError: two have names that become the same id.
    """
    clips: dict[str, ClipRef] = {}
    for clip in read_clips(source):
        other = clips.setdefault(clip.clip_id, clip)
        if other is not clip:
            raise ValueError(
                f"{source.root}: {other.original_id} and {clip.original_id} are both called {clip.clip_id} here; rename"
                " one of them"
            )
    return clips


def _look_at(name: SetName, one: str, found: Found, problem: str | None, *, root: Path, every: bool) -> None:
    """Add a sequence to those that are run, or its row to those that are not."""
    clip = found.clips.get(one)
    if clip is None:
        found.rows[one] = SequenceScore(sequence=one, status="missing", detail=f"not below {root}")
        return
    if problem is None and clip.problem is None and clip.truth_camera_to_world_path is not None:
        true = Sequence(name=clip.original_id, media=clip.media_path, poses=clip.truth_camera_to_world_path)
        try:
            found.poses[one] = true_cameras(name, true)
        except ValueError as error:
            problem = str(error)
    reasons = ()
    if clip.problem is not None:
        reasons, problem = (clip.problem[0],), clip.problem[1]
    counted = PROTOCOLS[name].sequences
    published = clip.truth_camera_to_world_path is not None or one in found.validation
    if not published and counted is not None and one in counted:
        published = True
        problem = problem or f"{clip.media_path}: its truth is not below {root}; were all archives unpacked?"
    if problem is None and (found.has_truth(one) or every):
        found.wanted.append(one)
        return
    found.rows[one] = SequenceScore(
        sequence=one,
        status="failed" if published else "no_truth",
        reasons=reasons,
        detail=problem or found.untold.get(one, "its truth is not published"),
        counts=found.num_truth(one),
    )
