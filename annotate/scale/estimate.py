"""The scale of a clip from its geometry and the metric depth of some of its frames."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..geometry.base import AnchorFrame, SequenceGeometryResult
from .ratio import frame_log_scale
from .records import ScaleConfig, ScaleEstimate
from .series import fit_scale


def estimate_scale(
    sequence: SequenceGeometryResult,
    anchors: Iterable[AnchorFrame],
    *,
    num_frames: int,
    config: ScaleConfig | None = None,
) -> ScaleEstimate:
    """Metres per unit of a clip.

    One sequence map and one anchor map are in memory at a time, provided that `anchors` is lazy.

    Args:
        sequence: depth, its unit if declared, and optionally confidence.
        anchors: metric depth of some frames; any number, in any order.
        num_frames: F, frames of the clip.
        config: method and thresholds.
    Raises:
        ValueError: an anchor lies outside the clip, or a frame has two.
    """
    config = config or ScaleConfig()
    found: dict[int, float] = {}
    for anchor in anchors:
        if not 0 <= anchor.frame < num_frames:
            raise ValueError(f"anchor frame {anchor.frame} lies outside the clip's {num_frames} frames")
        if anchor.frame in found:
            raise ValueError(f"anchor frame {anchor.frame} occurs twice")
        depth = sequence.depth.read(anchor.frame)
        confidence = None if sequence.confidence is None else sequence.confidence.read(anchor.frame)
        if depth is None:
            found[anchor.frame] = float("nan")
        else:
            found[anchor.frame] = frame_log_scale(depth, anchor.depth_m, confidence=confidence, config=config)
    frame = np.array(sorted(found), np.int64)
    log_raw = np.array([found[int(f)] for f in frame], np.float64)
    declared = sequence.metres_per_unit
    return fit_scale(frame, log_raw, num_frames=num_frames, config=config, declared_metres_per_unit=declared)
