"""Poses that the source gives: checked against what the images say, brought to metres, then kept as they are.

A file of poses says neither its axes nor its direction nor, often, its unit; and a wrong guess looks plausible. So
the clip is solved without them and the two are compared as motions between pairs of frames, seen from the camera:
that is blind to the world's frame and sees flipped axes, world-to-camera poses and a wrong unit alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..dataset.cameras import interpolate_poses, rotation_angle, se3_inverse, umeyama
from .clip import ClipRejection
from .solve import GIVEN, CameraSolution

FloatArray = NDArray[np.floating]

LEAST_TURN_RAD = np.radians(3.0)
"""Turns smaller than this are not compared among themselves: solved and given rotations both err by tenths of a
degree."""


@dataclass(frozen=True)
class GivenPoseCheck:
    """Given against solved motion over pairs of frames; medians.

    Attributes:
        rotation_rad: angle between the two relative rotations.
        turn_share: that angle as a share of how far the camera turned (of `LEAST_TURN_RAD` where it turned less), over
            a sixth and over half of the poses; the smaller of the two. Where a clip turns little, paths that differ by
            axes, order of numbers or time can be within a degree of each other, but never within a tenth of what they
            turn; a constant error (shutters out of step) weighs little over half a clip, slow drift over a sixth.
        direction_rad: angle between the two translations, both in the axes of the first camera of the pair.
        scale: solved over given length of the path between the two, in the units in which they came.
        num_pairs: pairs whose translation is large enough to have a direction.
    """

    rotation_rad: float
    turn_share: float
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
        rotation.append(_angle_between(a, b))
        ta, tb = np.linalg.norm(a[:, :3, 3], axis=1), np.linalg.norm(b[:, :3, 3], axis=1)
        moved = (ta > 5 * np.maximum(position_sigma[:-lag], position_sigma[lag:])) & (tb > 0)
        cosine = (a[moved, :3, 3] * b[moved, :3, 3]).sum(1) / (ta * tb)[moved]
        direction.append(np.arccos(np.clip(cosine, -1, 1)))
        ratio.append(ta[moved] / tb[moved])
    angles, ratios = np.concatenate(direction), np.concatenate(ratio)
    return GivenPoseCheck(
        rotation_rad=float(np.median(np.concatenate(rotation))),
        turn_share=min(_turn_share(solved, given, max(1, count // part)) for part in (6, 2)),
        direction_rad=float(np.median(angles)) if len(angles) else float("nan"),
        scale=float(np.exp(np.median(np.log(ratios)))) if len(ratios) else float("nan"),
        num_pairs=len(angles),
    )


def _angle_between(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray(rotation_angle(np.swapaxes(a[:, :3, :3], 1, 2) @ b[:, :3, :3]))


def _turn_share(solved: FloatArray, given: FloatArray, lag: int) -> float:
    a = se3_inverse(solved[:-lag]) @ solved[lag:]
    b = se3_inverse(given[:-lag]) @ given[lag:]
    turn = float(np.median(rotation_angle(a[:, :3, :3])))
    return float(np.median(_angle_between(a, b))) / max(turn, LEAST_TURN_RAD)


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
    cameras: CameraSolution,
    given: FloatArray,
    position: FloatArray,
    *,
    unit_to_metres: float | None,
) -> tuple[CameraSolution, GivenPoseCheck]:
    """The solution bent through the given poses.

    Frames with a given pose get it, exactly. The others keep what was measured on them: the motion that the images
    show, carried by the correction that the given neighbours on either side make to it (interpolated on the group, so
    rotations stay rotations). A gap is thus filled with measurement, never with a straight line, and such frames keep
    their own pose source; before the first and after the last given pose the nearest correction is held. How long a
    gap may last is a gate (`given_gap`).

    Args:
        cameras: solved without the given poses, in metres.
        given: (N, 4, 4) camera-to-world in a unit of their own, OpenCV axes.
        position: (N,) the clip frame of each, strictly increasing, within 0 and F - 1; not whole for a pose between
            two clip frames (the motion between neighbours 1/16 s apart is taken as even there).
        unit_to_metres: factor on their translations; None: unknown, taken from `similarity_scale`.
    Returns:
        Cameras relative to the first frame as everywhere. And the comparison that justifies them.
    Raises:
        ClipRejection: `given_poses_too_few` (fewer than three), `given_poses_degenerate`.
    """
    frames = len(cameras.camera_to_world)
    if len(given) < 3:
        raise ClipRejection(
            "given_poses_too_few", f"{len(given)} given poses within the clip's {frames} frames, need 3"
        )
    at = np.arange(frames, dtype=np.float64)
    solved = interpolate_poses(at, cameras.camera_to_world, position)
    factor = similarity_scale(solved, given) if unit_to_metres is None else unit_to_metres
    metric = np.array(given, np.float64)
    metric[:, :3, 3] *= factor
    check = compare_poses(solved, metric, np.interp(position, at, cameras.position_sigma))
    correction = metric @ se3_inverse(solved)
    poses = (
        interpolate_poses(position, correction, np.clip(at, position[0], position[-1]))
        @ cameras.camera_to_world
    )
    exact = np.flatnonzero(position == np.round(position))
    on = position[exact].astype(np.int64)
    poses[on] = metric[exact]
    source = np.array(cameras.pose_source, dtype=object)
    source[on] = GIVEN
    return replace(
        cameras, camera_to_world=se3_inverse(poses[:1]) @ poses, pose_source=source.astype(str)
    ), check


def longest_gap_s(position: FloatArray, time_s: FloatArray) -> float:
    """Longest time in a clip without a given pose, its beginning and end included.

    Args:
        position: (N,) as in `keep_given_poses`.
        time_s: (F,) of the clip's frames.
    """
    known = np.interp(position, np.arange(len(time_s)), time_s)
    return float(np.diff(np.concatenate([time_s[:1], known, time_s[-1:]])).max())
