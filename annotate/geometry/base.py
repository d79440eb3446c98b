"""The two seams behind which every geometry estimator lives: sequence geometry and metric anchor.

*Sequence geometry* is consistent over the frames of a clip but in a unit of its own: Pi3X, depth shipped with a
recording, or the built-in renderer. A *metric anchor* judges single frames in metres: MoGe-2, or given depth.
The scale stage compares the two; nobody else turns units into metres.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ...dataset.arrays import I64, U8, FloatArray
from ..frames.base import ClipFrames
from ..sources.clip import ClipRef, ClipRejection


class DepthMaps(Protocol):
    """Lazily read depth: at most a few maps are in memory at a time."""

    def __len__(self) -> int:
        """Number of clip frames F (not of source frames)."""
        ...

    def read(self, frame: int) -> FloatArray | None:
        """(h, w) float32 z-depth of clip frame `frame` in the sequence's unit; NaN where invalid, +inf for sky.

        The map covers exactly the stored image, at any resolution. None: this frame carries no depth (Pi3X runs
        on keyframes only).

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
        weights, weight_licences, stand_in: see `Provenance`.
        depths_per_frame: independent errors in a frame's depth, where depth errs alike over parts of the image as a
            network's does; None if every pixel errs on its own.
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
    depths_per_frame: float | None = None
    own_metres_per_unit: float | None = None
    diagnostics: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_depth(self) -> bool:
        """False of a clip whose cameras alone are given."""
        return not isinstance(self.depth, NoDepth)


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


class Provenance(Protocol):
    """Whose answers they are.

    Attributes:
        weights: names and revisions of network weights; empty for given and rendered geometry.
        weight_licences: their licences, in the same order.
        stand_in: True if any weight was random or simulated; such rows can never be exported.
    """

    @property
    def weights(self) -> tuple[str, ...]: ...
    @property
    def weight_licences(self) -> tuple[str, ...]: ...
    @property
    def stand_in(self) -> bool: ...


class Stream(Provenance, Protocol):
    """An estimator at work on one clip: it is shown the frames as they go by, each once, in order.

    Attributes:
        watches: False if it knows its answer before any frame is shown.
        busy_s: seconds that its network ran so far.
    """

    @property
    def watches(self) -> bool: ...
    @property
    def busy_s(self) -> float: ...

    def add(self, frame: int, rgb: U8) -> None:
        """Take clip frame `frame`, (height, width, 3) uint8 RGB."""
        ...

    def close(self) -> None:
        """The end, or an early one: nothing that has not begun is begun."""
        ...


class SequenceStream(Stream, Protocol):
    """A sequence geometry at work on one clip.

    Attributes:
        depth_frames: (K,) int64 clip frames that will carry depth.
    """

    @property
    def depth_frames(self) -> I64: ...

    def finish(self) -> SequenceGeometryResult:
        """Geometry of the clip, after its last frame.

        Raises:
            ClipRejection: there is none that could be used.
        """
        ...


class MetricStream(Stream, Protocol):
    """A metric anchor at work on one clip."""

    def finish(self, focal_px: FloatArray | None) -> list[AnchorFrame]:
        """Metric depth of the chosen frames, after the last frame; those without any are left out.

        Args:
            focal_px: (F, 2) current focal estimate in pixels of the stored size, NaN rows where unknown; or None.
        """
        ...


class SequenceGeometry(Protocol):
    """Estimator of consistent structure for a whole clip."""

    name: str

    def start(self, clip: ClipRef, frames: ClipFrames) -> SequenceStream:
        """Begin with a clip.

        Raises:
            ClipRejection: what is given for the clip cannot be used; `depth_missing` if nothing is.
        """
        ...


class MetricAnchor(Protocol):
    """Estimator of metric depth for single frames."""

    name: str

    def start(self, clip: ClipRef, frames: ClipFrames, anchor_frames: Sequence[int]) -> MetricStream:
        """Begin with a clip, of which the frames `anchor_frames` are to be judged."""
        ...


class _NothingToWatch:
    """The parts of a `Stream` that needs no frames."""

    watches = False
    busy_s = 0.0
    weights: tuple[str, ...] = ()
    weight_licences: tuple[str, ...] = ()
    stand_in = False

    def add(self, frame: int, rgb: U8) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class KnownGeometry(_NothingToWatch):
    """The `SequenceStream` of geometry that is known before any frame is seen."""

    def __init__(self, result: SequenceGeometryResult) -> None:
        self._result = result
        self.weights, self.weight_licences = result.weights, result.weight_licences
        self.stand_in = result.stand_in

    @property
    def depth_frames(self) -> I64:
        """All of them."""
        return np.arange(len(self._result.depth))

    def finish(self) -> SequenceGeometryResult:
        """What is known."""
        return self._result


class NoGeometry(_NothingToWatch):
    """The `SequenceStream` of a clip without any depth, whose frames are looked at all the same: what they show is
    worth knowing.

    Args:
        why: raised at the end.
    """

    watches = True

    def __init__(self, why: ClipRejection) -> None:
        self._why = why

    @property
    def depth_frames(self) -> I64:
        """None."""
        return np.zeros(0, np.int64)

    def finish(self) -> SequenceGeometryResult:
        """Raises `why`."""
        raise self._why


class KnownAnchors(_NothingToWatch):
    """The `MetricStream` of metric depth that needs no frames.

    Args:
        read: the depth, when it is asked for.
    """

    def __init__(self, read: Callable[[], list[AnchorFrame]]) -> None:
        self._read = read

    def finish(self, focal_px: FloatArray | None) -> list[AnchorFrame]:
        """What is known, whatever the focal length."""
        return self._read()
