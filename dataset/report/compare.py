"""A clip's cameras beside their ground truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..arrays import FloatArray
from ..metrics.trajectory import (
    TrajectoryError,
    align_trajectory,
    rotation_error,
    trajectory_error,
)
from ..rows import Row
from .truth import Truth


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A clip beside its truth, on the frames that both have.

    Attributes:
        truth: as given, and whole (one entry a clip frame).
        both: (F,) frames with a camera on both sides.
        rigid, scaled: errors after SE(3) and Sim(3) alignment; None where the path does not determine them.
        undetermined: why.
        aligned: (F, 4, 4) truth moved rigidly onto the estimate, NaN elsewhere: the world is free, metres are not.
        rotation_deg: (F,) angle between orientations, NaN elsewhere.
    """

    truth: Truth
    both: NDArray[np.bool_]
    rigid: TrajectoryError | None = None
    scaled: TrajectoryError | None = None
    undetermined: str | None = None
    aligned: FloatArray | None = None
    rotation_deg: FloatArray | None = None


def compare(row: Row, truth: Truth | None) -> Comparison | None:
    if truth is None or not len(row.camera_to_world):
        return None
    _check_truth(row, truth)
    none = np.zeros(row.num_frames, bool)
    if truth.camera_to_world is None:
        return None if truth.focal_px is None else Comparison(truth=truth, both=none)
    both = _both_known(row, truth)
    if not both.any():
        return Comparison(truth=truth, both=both)
    estimated = row.camera_to_world[both].astype(np.float64)
    true = np.asarray(truth.camera_to_world)[both]
    rigid = scaled = undetermined = None
    try:
        rigid = trajectory_error(estimated, true, alignment="se3")
        scaled = trajectory_error(estimated, true, alignment="sim3")
        moved, _ = align_trajectory(true, estimated, alignment="se3")
    except ValueError as error:  # straight or resting cameras: say so instead of a number
        undetermined = str(error)
        # The rotation is free: start both at the same pose.
        moved, _ = align_trajectory(true, estimated, alignment="first")
    aligned = np.full((row.num_frames, 4, 4), np.nan)
    aligned[both] = moved
    rotation = np.full(row.num_frames, np.nan)
    rotation[both] = np.rad2deg(rotation_error(estimated, true))
    return Comparison(
        truth=truth,
        both=both,
        rigid=rigid,
        scaled=scaled,
        undetermined=undetermined,
        aligned=aligned,
        rotation_deg=rotation,
    )


def _both_known(row: Row, truth: Truth) -> NDArray[np.bool_]:
    assert truth.camera_to_world is not None
    known = np.isfinite(truth.camera_to_world).all(axis=(1, 2))
    return known & np.isfinite(row.camera_to_world).all(axis=(1, 2)) & (row.pose_source != 0)


def _check_truth(row: Row, truth: Truth) -> None:
    for name in ("camera_to_world", "focal_px"):
        value = getattr(truth, name)
        if value is not None and len(value) != row.num_frames:
            raise ValueError(
                f"clip {row.clip_id}: truth has {len(value)} {name}, the clip {row.num_frames} frames"
            )
