"""Poses that the source gives: checked against what the images say, brought to metres, then kept as they are.

A file of poses says neither its axes nor its direction nor, often, its unit; and a wrong guess looks plausible. So
the clip is solved without them and the two are compared as motions between pairs of frames, seen from the camera:
that is blind to the world's frame and sees flipped axes, world-to-camera poses and a wrong unit alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..dataset.cameras import interpolate_poses, se3_inverse, so3_log, umeyama
from .clip import ClipRejection
from .solve import GIVEN, CameraSolution

FloatArray = NDArray[np.floating]


@dataclass(frozen=True)
class GivenPoseCheck:
    """Given against solved motion over pairs of frames; medians.

    Attributes:
        rotation_rad: angle between the two relative rotations.
        direction_rad: angle between the two translations, both in the axes of the first camera of the pair.
        scale: solved over given length of the path between the two, in the units in which they came.
        num_pairs: pairs whose translation is large enough to have a direction.
    """

    rotation_rad: float
    direction_rad: float
    scale: float
    num_pairs: int


def compare_poses(solved: FloatArray, given: FloatArray, position_sigma: FloatArray) -> GivenPoseCheck:
    """Compare camera-to-world poses (F, 4, 4) of the same frames.

    Args:
        position_sigma: (F,) of the solved camera centres; pairs that moved by less than five of them are left out.
    """
    count = len(solved)
    rotation, direction, ratio = [], [], []
    for lag in sorted({max(1, count // 16), max(1, count // 6)}):
        a = se3_inverse(solved[:-lag]) @ solved[lag:]
        b = se3_inverse(given[:-lag]) @ given[lag:]
        rotation.append(np.linalg.norm(so3_log(np.swapaxes(a[:, :3, :3], 1, 2) @ b[:, :3, :3]), axis=1))
        ta, tb = np.linalg.norm(a[:, :3, 3], axis=1), np.linalg.norm(b[:, :3, 3], axis=1)
        moved = (ta > 5 * np.maximum(position_sigma[:-lag], position_sigma[lag:])) & (tb > 0)
        cosine = (a[moved, :3, 3] * b[moved, :3, 3]).sum(1) / (ta * tb)[moved]
        direction.append(np.arccos(np.clip(cosine, -1, 1)))
        ratio.append(ta[moved] / tb[moved])
    angles, ratios = np.concatenate(direction), np.concatenate(ratio)
    return GivenPoseCheck(
        rotation_rad=float(np.median(np.concatenate(rotation))),
        direction_rad=float(np.median(angles)) if len(angles) else float("nan"),
        scale=float(np.exp(np.median(np.log(ratios)))) if len(ratios) else float("nan"),
        num_pairs=len(angles),
    )


def similarity_scale(solved: FloatArray, given: FloatArray) -> float:
    """Solved over given unit: Sim(3) on camera centres, again on those below the 80th percentile of the residual.

    Source: SANA-WM (arXiv 2605.15178) appendix B.1, the mode with given poses.

    Args:
        solved, given: (F, 4, 4) camera-to-world.
    Raises:
        ClipRejection: `given_poses_degenerate`: the centres coincide.
    """
    x, y = given[:, :3, 3], solved[:, :3, 3]
    try:
        first = umeyama(x, y, with_scale=True, allow_collinear=True)
        keep = first.residual <= np.percentile(first.residual, 80)
        return umeyama(x[keep], y[keep], with_scale=True, allow_collinear=True).scale
    except ValueError as error:
        raise ClipRejection("given_poses_degenerate", f"no scale from the given poses: {error}") from error


def keep_given_poses(
    cameras: CameraSolution, given: FloatArray, *, unit_to_metres: float | None
) -> tuple[CameraSolution, GivenPoseCheck]:
    """The solution with the given poses in place of its own.

    Args:
        cameras: solved without them, in metres.
        given: (F, 4, 4) camera-to-world in a unit of their own, OpenCV axes; NaN rows where none.
        unit_to_metres: factor on their translations; None: unknown, taken from `similarity_scale`.
    Returns:
        Cameras relative to the first frame as everywhere; frames without a given pose keep the solved motion from
        their nearest given neighbours, and their own pose source. And the comparison that justifies it.
    Raises:
        ClipRejection: `given_poses_too_few` (fewer than three frames have one), `given_poses_degenerate`.
    """
    known = np.flatnonzero(np.isfinite(given).all((1, 2)))
    if len(known) < 3:
        raise ClipRejection(
            "given_poses_too_few", f"{len(known)} of {len(given)} frames have a given pose, need 3"
        )
    solved = cameras.camera_to_world
    factor = similarity_scale(solved[known], given[known]) if unit_to_metres is None else unit_to_metres
    metric = np.array(given[known], np.float64)
    metric[:, :3, 3] *= factor
    check = compare_poses(solved[known], metric, cameras.position_sigma[known])
    # Where none is given, the solved pose, moved by the correction that the given neighbours make on either side.
    correction = metric @ se3_inverse(solved[known])
    at = np.clip(np.arange(len(given)), known[0], known[-1]).astype(np.float64)
    poses = interpolate_poses(known.astype(np.float64), correction, at) @ solved
    poses[known] = metric
    source = np.array(cameras.pose_source, dtype=object)
    source[known] = GIVEN
    return replace(
        cameras, camera_to_world=se3_inverse(poses[:1]) @ poses, pose_source=source.astype(str)
    ), check
