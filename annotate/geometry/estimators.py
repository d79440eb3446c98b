"""The estimators of a recipe, and how they go through one clip together: all are streams, whatever they know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...dataset.arrays import U8, FloatArray
from ..frames.base import ClipFrames
from ..sources.clip import ClipRef, ClipRejection
from .base import (
    AnchorFrame,
    KnownGeometry,
    MetricAnchor,
    MetricStream,
    NoDepth,
    NoGeometry,
    Provenance,
    SequenceGeometry,
    SequenceGeometryResult,
    SequenceStream,
)
from .choose import metric_anchor, sequence_geometry
from .config import GeometryConfig


@dataclass(frozen=True, kw_only=True)
class Estimators:
    """What judges structure and metric scale."""

    sequence: SequenceGeometry
    anchor: MetricAnchor | None

    @staticmethod
    def of(config: GeometryConfig) -> Estimators:
        """Those that a recipe names; networks are loaded once a process."""
        return Estimators(sequence=sequence_geometry(config), anchor=metric_anchor(config))

    def start(
        self, clip: ClipRef, frames: ClipFrames, config: GeometryConfig, *, poses_suffice: bool
    ) -> Running:
        """Begin with a clip; to be used as a context, which ends the networks' work.

        Args:
            config: how many frames the metric anchor judges.
            poses_suffice: the source's cameras need no depth, so that a clip without any goes on.
        Raises:
            ClipRejection: what is given for the clip cannot be used.
        """
        try:
            sequence = self.sequence.start(clip, frames)
        except ClipRejection as rejection:
            if rejection.reason != "depth_missing":
                raise
            # Poses and intrinsics can be checked by the images alone; their unit is the source's word.
            nothing = SequenceGeometryResult(
                depth=NoDepth(len(frames)), depth_sigma_log=1.0, metres_per_unit=1.0
            )
            sequence = KnownGeometry(nothing) if poses_suffice else NoGeometry(rejection)
        metric = isinstance(sequence, KnownGeometry) and sequence.declares_metres
        if self.anchor is None or metric or not len(sequence.depth_frames):
            return Running(sequence, None)
        # Only frames that carry sequence depth can be compared with it: those nearest to an even spread.
        even = np.asarray(metric_frames(frames, config))
        with_depth = sequence.depth_frames
        chosen = np.unique(with_depth[np.abs(with_depth[None] - even[:, None]).argmin(1)]).tolist()
        return Running(sequence, self.anchor.start(clip, frames, chosen))


def metric_frames(frames: ClipFrames, config: GeometryConfig) -> list[int]:
    """Clip frames, evenly spread, that the metric anchor judges where all carry depth."""
    sparse = round(frames.timing.fps / config.anchor_fps)
    step = max(1, min(sparse, len(frames) // config.min_anchor_frames))
    return list(range(step // 2, len(frames), step))


@dataclass(frozen=True)
class Running:
    """The estimators at work on one clip.

    Attributes:
        sequence, metric: their streams; no `metric` where nothing tells metres but the sequence itself.
    """

    sequence: SequenceStream
    metric: MetricStream | None

    @property
    def streams(self) -> Sequence[SequenceStream | MetricStream]:
        """All of them."""
        return [self.sequence] if self.metric is None else [self.sequence, self.metric]

    @property
    def provenance(self) -> Provenance:
        """Whose answers they will be."""
        return Provenance.combined(stream.provenance for stream in self.streams)

    @property
    def watches(self) -> bool:
        """Whether frames have to be shown before anything can be said."""
        return any(stream.watches for stream in self.streams)

    @property
    def keyframes(self) -> frozenset[int]:
        """Clip frames that trackers should take as keyframes: those that carry depth, where not all do."""
        return frozenset(self.sequence.depth_frames.tolist() if self.sequence.watches else ())

    @property
    def busy_s(self) -> float:
        """Seconds that networks ran."""
        return sum(stream.busy_s for stream in self.streams)

    def add(self, frame: int, rgb: U8) -> None:
        """Take clip frame `frame`, (height, width, 3) uint8 RGB."""
        for stream in self.streams:
            stream.add(frame, rgb)

    def metric_depth(
        self, geometry: SequenceGeometryResult, focal_px: FloatArray | None
    ) -> list[AnchorFrame]:
        """Metric depth of single frames, after the last frame; none where the geometry is metric itself.

        Args:
            geometry: what the sequence said.
            focal_px: (F, 2) that is known of the lens; None: the geometry's own.
        """
        if self.metric is None or geometry.metres_per_unit is not None:
            return []
        return self.metric.finish(geometry.focal_px if focal_px is None else focal_px)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        for stream in self.streams:
            stream.close()
