"""Which estimators a recipe uses, and the clip's depth in metres once the scale is known."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ...dataset.strict import Strict
from .base import DepthMaps, FloatArray, MetricAnchor, SequenceGeometry
from .given import GivenAnchor, GivenConfig, GivenGeometrySource
from .rendered import RenderedAnchor, RenderedConfig, RenderedGeometrySource


class GeometryConfig(Strict):
    """Estimators of structure and of metric scale."""

    sequence: Literal["given", "rendered"] = "given"
    """Source of depth that is consistent over the clip."""
    anchor: Literal["none", "given", "rendered"] = "none"
    """Source of metric depth on single frames; `none` where the sequence declares its unit."""
    anchor_fps: Annotated[float, Field(gt=0, le=60)] = 1.0
    """Anchor frames per second of video: scale has one degree of freedom, more frames only cost time."""
    given: GivenConfig = GivenConfig()
    rendered: RenderedConfig = RenderedConfig()


def sequence_geometry(config: GeometryConfig) -> SequenceGeometry:
    """The configured sequence estimator."""
    if config.sequence == "given":
        return GivenGeometrySource(config.given)
    return RenderedGeometrySource(config.rendered)


def metric_anchor(config: GeometryConfig) -> MetricAnchor | None:
    """The configured anchor, or None."""
    if config.anchor == "given":
        return GivenAnchor()
    if config.anchor == "rendered":
        return RenderedAnchor(config.rendered)
    return None


class MetricDepth:
    """Sequence depth times the scale of its frame: metres, read lazily."""

    def __init__(self, depth: DepthMaps, metres_per_unit: FloatArray) -> None:
        if len(depth) != len(metres_per_unit):
            raise ValueError(f"{len(depth)} depth maps but {len(metres_per_unit)} scales")
        self._depth = depth
        self._scale = np.asarray(metres_per_unit, np.float64)

    def __len__(self) -> int:
        return len(self._scale)

    def read(self, frame: int) -> FloatArray | None:
        """(h, w) z-depth in metres of clip frame `frame`, as `DepthMaps.read`."""
        depth = self._depth.read(frame)
        return None if depth is None else depth * np.float32(self._scale[frame])
