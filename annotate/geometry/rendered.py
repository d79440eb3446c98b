"""Geometry of the built-in renderer: frames, true depth in a unit of our choice, and an anchor with known error.

The media of a rendered clip is a YAML file with the fields of `RenderConfig`; `clip.render_seed` overrides its
seed. The unit is hidden on purpose (`metres_per_unit` is not passed on unless `declare_metric`), so that the scale
stage has something to find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from ..frames.base import ClipFrames
from ..frames.rendered import render_config_of
from ..rendered.render import RenderedClip, render_clip
from ..sources.clip import ClipRef
from .base import AnchorFrame, KnownAnchors, KnownGeometry, SequenceGeometryResult
from .config import RenderedConfig


@dataclass(frozen=True, kw_only=True)
class RenderedDepth:
    """True z-depth of a rendered clip in units of `metres_per_unit`; the `DepthMaps` of `geometry/base.py`."""

    rendered: RenderedClip
    frame_index: NDArray[np.int64]
    metres_per_unit: float

    def __len__(self) -> int:
        return len(self.frame_index)

    def read(self, frame: int) -> NDArray[np.float32]:
        """(h, w) float32 z-depth of clip frame `frame`."""
        return self.rendered.depth_m(int(self.frame_index[frame])) / np.float32(self.metres_per_unit)


class RenderedGeometrySource:
    """Sequence geometry of a rendered clip: true depth in a unit of its own, no poses, no intrinsics."""

    name = "rendered"

    def __init__(self, config: RenderedConfig | None = None) -> None:
        self.config = config or RenderedConfig()
        if self.config.declare_metric and self.config.metres_per_unit != 1.0:
            raise ValueError(
                f"declare_metric with metres_per_unit {self.config.metres_per_unit}: a source that declares metric"
                " depth ships metres; set metres_per_unit to 1"
            )

    def start(self, clip: ClipRef, frames: ClipFrames) -> KnownGeometry:
        """See `read`."""
        return KnownGeometry(self.read(clip, frames))

    def read(self, clip: ClipRef, frames: ClipFrames) -> SequenceGeometryResult:
        """True depth of `clip`.

        Raises:
            ClipRejection: as `render_config_of`.
        """
        depth = RenderedDepth(
            rendered=render_clip(render_config_of(clip)),
            frame_index=frames.timing.frame_index,
            metres_per_unit=self.config.metres_per_unit,
        )
        return SequenceGeometryResult(
            depth=depth,
            depth_sigma_log=0.005,  # exact but for the nearest-pixel look-up of sloping surfaces
            metres_per_unit=1.0 if self.config.declare_metric else None,
        )


class RenderedAnchor:
    """Metric depth of single rendered frames with seeded errors, as a monocular estimator would make them."""

    name = "rendered"

    def __init__(self, config: RenderedConfig | None = None) -> None:
        self.config = config or RenderedConfig()

    def start(self, clip: ClipRef, frames: ClipFrames, anchor_frames: Sequence[int]) -> KnownAnchors:
        """See `read`."""
        return KnownAnchors(partial(self.read, clip, frames, anchor_frames))

    def read(self, clip: ClipRef, frames: ClipFrames, anchor_frames: Sequence[int]) -> list[AnchorFrame]:
        """Depth in metres at `anchor_frames`.

        Raises:
            ClipRejection: as `render_config_of`.
        """
        rendered = render_clip(render_config_of(clip))
        return [
            AnchorFrame(
                frame=int(frame),
                depth_m=disturb_anchor_depth(
                    rendered.depth_m(int(frames.timing.frame_index[frame])), int(frame), self.config
                ),
            )
            for frame in anchor_frames
        ]


def disturb_anchor_depth(
    depth_m: NDArray[np.float32], frame: int, config: RenderedConfig
) -> NDArray[np.float32]:
    """True depth made as wrong as a monocular metric estimate: one factor a frame, smooth errors, holes.

    Args:
        depth_m: (h, w) metres.
        frame: makes the errors of frames independent of each other.
        config: sizes of the errors and their seed.
    Returns:
        (h, w) metres, NaN in the holes.
    """
    rng = np.random.default_rng([config.anchor_seed, frame])
    height, width = depth_m.shape
    common = rng.normal(0.0, config.anchor_sigma_log)

    def smooth_field() -> NDArray[np.float32]:
        field = cv2.resize(
            rng.standard_normal((9, 16), dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
        return (field - field.mean()) / field.std()

    wrong = depth_m * np.exp(common + config.anchor_pixel_sigma_log * smooth_field())
    if config.anchor_invalid_share > 0:
        holes = smooth_field()
        wrong[holes < np.quantile(holes, config.anchor_invalid_share)] = np.nan
    return wrong.astype(np.float32)
