"""The two seams behind which every geometry estimator lives: sequence geometry and metric anchor.

*Sequence geometry* is consistent over the frames of a clip but in a unit of its own: Pi3X, depth shipped with a
recording, or the built-in renderer. A *metric anchor* judges single frames in metres: MoGe-2, or given depth.
The scale stage compares the two; nobody else turns units into metres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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
class MetricDepth:
    """Depth in metres, as `DepthMaps`: a sequence's, each frame times what its unit is worth there, read lazily.

    Attributes:
        sequence: z-depth of F frames in the sequence's unit.
        metres_per_unit: (F,).
        usable: (F,) bool, frames that carry depth if the sequence has any; None: all.
    Raises:
        ValueError: they are not of as many frames.
    """

    sequence: DepthMaps
    metres_per_unit: FloatArray
    usable: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        number = len(self.sequence)
        if number != len(self.metres_per_unit):
            raise ValueError(f"{number} depth maps but {len(self.metres_per_unit)} scales")
        if self.usable is not None and number != len(self.usable):
            raise ValueError(f"{number} depth maps, but {len(self.usable)} are said to be usable or not")

    def __len__(self) -> int:
        return len(self.sequence)

    def read(self, frame: int) -> FloatArray | None:
        """(h, w) z-depth in metres of clip frame `frame`, as `DepthMaps.read`."""
        if self.usable is not None and not self.usable[frame]:
            return None
        depth = self.sequence.read(frame)
        return None if depth is None else depth * np.float32(self.metres_per_unit[frame])


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


@dataclass(frozen=True)
class Provenance:
    """Whose answers they are.

    Attributes:
        weights: names and revisions of network weights; empty for given and rendered geometry.
        weight_licences: their licences, in the same order.
        stand_in: True if any weight was random or simulated; such rows can never be exported.
    """

    weights: tuple[str, ...] = ()
    weight_licences: tuple[str, ...] = ()
    stand_in: bool = False

    @staticmethod
    def combined(parts: Iterable[Provenance]) -> Provenance:
        """Of answers that several had a part in."""
        parts = list(parts)
        return Provenance(
            weights=tuple(w for part in parts for w in part.weights),
            weight_licences=tuple(w for part in parts for w in part.weight_licences),
            stand_in=any(part.stand_in for part in parts),
        )


class Stream(Protocol):
    """An estimator at work on one clip: it is shown the frames as they go by, each once, in order.

    Attributes:
        watches: False if it knows its answer before any frame is shown.
        busy_s: seconds that its network ran so far.
        provenance: whose answer it will be; known from the start.
    """

    @property
    def watches(self) -> bool: ...
    @property
    def busy_s(self) -> float: ...
    @property
    def provenance(self) -> Provenance: ...

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
    provenance = Provenance()

    def add(self, frame: int, rgb: U8) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class KnownGeometry(_NothingToWatch):
    """The `SequenceStream` of geometry that is known before any frame is seen."""

    def __init__(self, result: SequenceGeometryResult) -> None:
        self._result = result

    @property
    def depth_frames(self) -> I64:
        """All of them."""
        return np.arange(len(self._result.depth))

    @property
    def declares_metres(self) -> bool:
        """Whether a metric anchor would be asked for nothing."""
        return self._result.metres_per_unit is not None

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
