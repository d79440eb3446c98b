"""The two seams behind which every geometry estimator lives: sequence geometry and metric anchor.

*Sequence geometry* is consistent over the frames of a clip but in a unit of its own: Pi3X, depth shipped with a
recording, or the built-in renderer. A *metric anchor* judges single frames in metres: MoGe-2, or given depth.
The scale stage compares the two; nobody else turns units into metres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import FloatArray
from ..frames.base import ClipFrames
from ..sources.clip import ClipRef


class DepthMaps(Protocol):
    """Lazily read depth: at most a few maps are in memory at a time."""

    def __len__(self) -> int:
        """Number of clip frames F (not of source frames)."""
        ...

    def read(self, frame: int) -> FloatArray | None:
        """(h, w) float32 z-depth of clip frame `frame` in the sequence's unit; NaN where invalid, +inf for sky.

        The map covers exactly the stored image, at any resolution. None: this frame carries no depth (Pi3X runs
        on anchors only).

        Raises:
            ClipRejection: the file is missing, unreadable or of another size than the first.
        """
        ...


@dataclass(frozen=True)
class NoDepth:
    """The `DepthMaps` of a clip of `num_frames` without any depth."""

    num_frames: int

    def __len__(self) -> int:
        return self.num_frames

    def read(self, frame: int) -> None:
        """Nothing, whatever the frame."""
        return None


@dataclass(frozen=True, kw_only=True)
class SequenceGeometryResult:
    """Geometry of a clip in one common unit.

    Attributes:
        depth: z-depth per clip frame.
        depth_sigma_log: expected relative depth error (standard deviation of log depth) of a trusted pixel.
        metres_per_unit: declared by the source (given metric depth: 1.0), or None when it must be estimated.
        camera_to_world: (F, 4, 4) initial poses in the same unit, OpenCV axes, NaN rows where none; or None.
        focal_px: (F, 2) initial fx, fy in pixels of the stored size, NaN rows where none; or None.
        confidence: optional per-frame maps in [0, 1], same access as depth.
        weights: names and revisions of network weights used; empty for given and rendered geometry.
        weight_licences: their licences, in the same order.
        stand_in: True if any weight was random or simulated; such rows can never be exported.
        own_metres_per_unit: what the estimator itself believes its unit to be worth, without any metric anchor; an
            opinion to be compared, never a declaration. None where it has none.
        diagnostics: numbers for the row's `metrics`, by name with unit suffix.
    """

    depth: DepthMaps
    depth_sigma_log: float
    metres_per_unit: float | None
    camera_to_world: FloatArray | None = None
    focal_px: FloatArray | None = None
    confidence: DepthMaps | None = None
    weights: tuple[str, ...] = ()
    weight_licences: tuple[str, ...] = ()
    stand_in: bool = False
    own_metres_per_unit: float | None = None
    diagnostics: Mapping[str, float] = field(default_factory=dict)


class SequenceGeometry(Protocol):
    """Estimator of consistent structure for a whole clip."""

    name: str

    def run(self, clip: ClipRef, frames: ClipFrames) -> SequenceGeometryResult: ...


@dataclass(frozen=True, kw_only=True)
class AnchorFrame:
    """Metric depth of one clip frame.

    Attributes:
        frame: clip frame index.
        depth_m: (h, w) float32 metres along z; NaN invalid, +inf sky.
        focal_px: focal in pixels of the stored size if the estimator gives one.
    """

    frame: int
    depth_m: FloatArray
    focal_px: float | None = None


@runtime_checkable
class MetricAnchor(Protocol):
    """Estimator of metric depth for single frames."""

    name: str

    def run(
        self, clip: ClipRef, frames: ClipFrames, anchor_frames: Sequence[int], focal_px: FloatArray | None
    ) -> list[AnchorFrame]:
        """Metric depth at `anchor_frames`; frames without any are left out.

        Args:
            focal_px: (F, 2) current focal estimate for the stored size, or None.
        """
        ...


class SequenceStream(Protocol):
    """A sequence geometry at work on one clip: it is shown the frames as they go by."""

    busy_s: float
    """Seconds that its network ran so far."""
    weights: tuple[str, ...]
    weight_licences: tuple[str, ...]
    stand_in: bool

    def add(self, frame: int, rgb: NDArray[np.uint8]) -> None:
        """Take clip frame `frame`, (height, width, 3) uint8 RGB; every frame is shown once, in order."""
        ...

    def finish(self) -> SequenceGeometryResult:
        """Geometry of the clip, after its last frame."""
        ...

    def close(self) -> None:
        """Stop early; nothing that has not begun is begun."""
        ...


class StreamedGeometry(Protocol):
    """A sequence geometry that needs no pass over the frames of its own: decoding, tracking and it share one."""

    name: str

    def start(self, clip: ClipRef, frames: ClipFrames) -> SequenceStream: ...

    def wanted(self, frames: ClipFrames) -> NDArray[np.int64]:
        """Clip frames that will carry depth."""
        ...


class AnchorStreamOf(Protocol):
    """A metric anchor at work on one clip."""

    busy_s: float
    weights: tuple[str, ...]
    weight_licences: tuple[str, ...]
    stand_in: bool

    def add(self, frame: int, rgb: NDArray[np.uint8]) -> None: ...

    def finish(self, focal_px: FloatArray | None) -> list[AnchorFrame]:
        """Metric depth of the chosen frames, after the last frame.

        Args:
            focal_px: (F, 2) as for `MetricAnchor.run`, NaN rows where unknown.
        """
        ...

    def close(self) -> None: ...


class StreamedAnchor(Protocol):
    """A metric anchor that shares the pass over the frames."""

    name: str

    def start(self, clip: ClipRef, frames: ClipFrames, anchor_frames: Sequence[int]) -> AnchorStreamOf: ...
