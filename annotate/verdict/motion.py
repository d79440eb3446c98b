"""How far the picture moves."""

from __future__ import annotations

import numpy as np

from ..tracks.records import ImageMeasurements, indices_by_group


def image_motion(measured: ImageMeasurements) -> float:
    """Largest median displacement of the tracks from where each was first seen, as a share of the image diagonal.

    The median over tracks is blind to objects that move before a resting camera, as long as they cover less than
    half of the tracks.
    """
    flow = measured.flow
    if len(flow.frame) == 0:
        return float("nan")
    first = np.r_[True, flow.track[1:] != flow.track[:-1]]
    origin = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
    moved = np.linalg.norm(flow.xy_px - flow.xy_px[origin], axis=1)[~first]
    frame = flow.frame[~first]
    per_frame = [np.median(moved[rows]) for rows in indices_by_group(frame, flow.num_frames) if len(rows)]
    return float(max(per_frame) / np.hypot(flow.height, flow.width))
