"""Poses that the source gives: checked against what the images say, brought to metres, then kept as they are.

A file of poses says neither its axes nor its direction nor, often, its unit; and a wrong guess looks plausible. So
the clip is solved without them and the two are compared as motions between pairs of frames, seen from the camera:
that is blind to the world's frame and sees flipped axes, world-to-camera poses and a wrong unit alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...dataset.arrays import FloatArray
from ...dataset.cameras.alignment import umeyama
from ...dataset.cameras.rotations import rotation_angle, so3_log
from ...dataset.cameras.transforms import interpolate_poses, se3_inverse
from ...dataset.robust import MAD_TO_SIGMA
from ..sfm.records import GIVEN, CameraSolution
from ..sources.clip import ClipRejection

LEAST_TURN_RAD = np.radians(3.0)
"""Turns smaller than this are not compared among themselves: solved and given rotations both err by tenths of a
degree."""
LEAST_MOTION = 0.02
"""Share of the usual depth that a camera must move for its direction and length of travel to be compared."""
_RMS_OF_MEDIAN = 1.13
"""Root mean square over median of the length of a 3-D Gaussian error."""
_OFFSET_LAG_S, _OFFSET_REACH_S = 0.25, 2.2
_OFFSET_FLOOR_PX2 = 0.02
"""Mean square difference of two motions that nothing can tell apart."""
_HALF_GAIN = 1.1
"""How many times worse the motions of each half of a clip must agree without a shift for it to count. The first 27
frames of kitti-straight, true poses, 0.8 s: 0.70; late by a frame: 1.3."""
_LEAST_HALF = 3
"""Pairs of poses of which half of a clip must consist to be asked whether it is late, too."""


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
        num_pairs: pairs whose translation is large enough to have a direction; without any, `direction_rad` and
            `scale` are NaN.
    """

    rotation_rad: float
    turn_share: float
    direction_rad: float
    scale: float
    num_pairs: int


def compare_poses(
    solved: FloatArray, given: FloatArray, position_sigma: FloatArray, *, least_motion: float = 0.0
) -> GivenPoseCheck:
    """Compare camera-to-world poses (F, 4, 4) of the same frames.

    Args:
        position_sigma: (F,) of the solved camera centres; pairs that moved by less than five of them are left out.
        least_motion: and pairs that moved by less than this.
    """
    count = len(solved)
    rotation, direction, ratio = [], [], []
    for lag in sorted({max(1, count // 16), max(1, count // 6), max(1, count // 2)}):
        a = se3_inverse(solved[:-lag]) @ solved[lag:]
        b = se3_inverse(given[:-lag]) @ given[lag:]
        rotation.append(_angle_between(a, b))
        ta, tb = np.linalg.norm(a[:, :3, 3], axis=1), np.linalg.norm(b[:, :3, 3], axis=1)
        moved = ta > np.maximum(5 * np.maximum(position_sigma[:-lag], position_sigma[lag:]), least_motion)
        tb = np.maximum(tb, 1e-12)
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


@dataclass(frozen=True, kw_only=True)
class GivenPoseErrors:
    """What kind of error the given poses have, as far as images and depth can tell; NaN where they cannot.

    Attributes:
        noise_m: root mean square distance of a given camera from where its neighbours and the solved motion between
            them put it; noise_px: how far that, with the turn, moves the picture. What poses err by on their own.
        worst_px: the same of the worst pose, at `worst_frame`.
        time_offset_s: by how much the given series comes late; time_offset_sigma_s: its standard error.
        time_offset_gain: how many times worse (in mean square) the two motions agree without that shift; where one
            half of the clip says nothing of it, in that half.
        scale_ratio: solved over given length; scale_sigma: standard error of its logarithm.
        path_m: root mean square distance of the two paths, laid onto each other by a similarity: what they differ by
            beyond a length; path_sigma_m: of that, what the solved one may be wrong by.
        size_ratio: solved over given size of the path, which errors of single given poses do not change as they do
            lengths; size_sigma: what they leave open of its logarithm.
    """

    noise_m: float
    noise_px: float
    worst_px: float
    worst_frame: float
    time_offset_s: float
    time_offset_sigma_s: float
    time_offset_gain: float
    scale_ratio: float
    scale_sigma: float
    path_m: float
    path_sigma_m: float
    size_ratio: float
    size_sigma: float


def pose_noise(
    solved: FloatArray, given: FloatArray, *, focal_px: float, depth: float
) -> tuple[float, float, float, int]:
    """(noise_m, noise_px, worst_px, number of the worst) of `GivenPoseErrors`, by medians.

    Args:
        solved, given: (N, 4, 4) of the same moments, N at least 3.
        depth: usual distance of what is seen, in their unit.
    """
    forwards = given[:-2] @ (se3_inverse(solved[:-2]) @ solved[1:-1])
    backwards = given[2:] @ (se3_inverse(solved[2:]) @ solved[1:-1])
    middle = se3_inverse(given[1:-1])
    a, b = middle @ forwards, middle @ backwards
    turn = (so3_log(a[:, :3, :3]) + so3_log(b[:, :3, :3])) / 2
    shift = (a[:, :3, 3] + b[:, :3, 3]) / 2
    px = focal_px * np.sqrt((turn**2).sum(1) + (shift**2).sum(1) / depth**2)
    # Independent errors e of one pose and its neighbours: the difference to their mean varies by 1.5 e^2.
    own = 1 / np.sqrt(1.5)
    worst = int(px.argmax())
    return (
        _RMS_OF_MEDIAN * own * float(np.median(np.linalg.norm(shift, axis=1))),
        _RMS_OF_MEDIAN * own * float(np.median(px)),
        float(px[worst]),
        worst + 1,
    )


def time_offset(
    solved: FloatArray,
    time_s: FloatArray,
    given: FloatArray,
    given_time_s: FloatArray,
    *,
    focal_px: float,
    depth: float,
) -> tuple[float, float, float]:
    """(time_offset_s, time_offset_sigma_s, time_offset_gain) of `GivenPoseErrors`.

    The motion over a quarter of a second, turn and translation weighted as they move the picture, is compared at every
    shift up to two seconds. The given path is stretched to the length of the solved one each time: scale is another
    question. Motion that is even says nothing: then the standard error is large.

    Args:
        solved: (F, 4, 4) at `time_s` (F,); given: (N, 4, 4) at `given_time_s` (N,).
    """
    unknown = float("nan"), float("nan"), float("nan")
    if len(given) < 6:
        return unknown
    step = float(np.median(np.diff(given_time_s)))
    lag = max(1, min(round(_OFFSET_LAG_S / step), len(given) // 6))
    b = se3_inverse(given[:-lag]) @ given[lag:]
    length = np.linalg.norm(b[:, :3, 3], axis=1)
    grid = min(step, float(np.median(np.diff(time_s)))) / 4
    reach = min(_OFFSET_REACH_S, 0.45 * float(given_time_s[-1] - given_time_s[0]))
    shift = grid * np.arange(-np.floor(reach / grid), np.floor(reach / grid) + 1)
    cost = np.full(len(shift), np.nan)
    squares = np.full((len(shift), len(b)), np.nan)
    for k, late in enumerate(shift):
        frame_times = given_time_s - late
        inside = (frame_times >= time_s[0] - 1e-9) & (frame_times <= time_s[-1] + 1e-9)
        pairs = np.flatnonzero(inside[:-lag] & inside[lag:])
        if len(pairs) < max(4, 0.4 * len(b)):
            continue
        moved = interpolate_poses(time_s, solved, np.clip(frame_times, time_s[0], time_s[-1]))
        a = (se3_inverse(moved[:-lag]) @ moved[lag:])[pairs]
        stretch = np.linalg.norm(a[:, :3, 3], axis=1).sum() / max(length[pairs].sum(), 1e-12)
        turn = so3_log(np.swapaxes(a[:, :3, :3], 1, 2) @ b[pairs, :3, :3])
        apart = (a[:, :3, 3] - stretch * b[pairs, :3, 3]) / depth
        squares[k, pairs] = focal_px**2 * ((turn**2).sum(1) + (apart**2).sum(1))
        cost[k] = _mean_square(squares[k, pairs])
    zero = len(shift) // 2
    if not np.isfinite(cost[zero]):
        return unknown
    best = int(np.nanargmin(cost))
    gain, least = float(cost[zero] / max(cost[best], 1e-12)), _least_gain(squares[zero], squares[best])
    gain = min(gain, least) if least < _HALF_GAIN else gain
    if best in (0, len(cost) - 1) or not np.isfinite(cost[best - 1 : best + 2]).all():
        return float(shift[best]), float("nan"), gain
    wide = max(1, min(3, best, len(cost) - 1 - best))
    x, y = shift[best - wide : best + wide + 1] - shift[best], cost[best - wide : best + wide + 1]
    ok = np.isfinite(y)
    curve, slope, _ = np.polyfit(x[ok], y[ok], 2)
    if curve <= 0:
        return float(shift[best]), float("nan"), gain
    # Six numbers a pair; pairs that overlap say the same.
    independent = 6 * len(given) / (2 * lag)
    sigma = np.sqrt(cost[best] / (independent * curve))
    if least < 1 / _HALF_GAIN:  # halves that contradict each other err by more than single pairs tell
        sigma = np.nan
    return float(shift[best] + np.clip(-slope / (2 * curve), -grid, grid)), float(sigma), gain


def _mean_square(square: FloatArray) -> float:
    """Mean of the smaller four fifths, above what nothing can tell apart."""
    return _OFFSET_FLOOR_PX2 + float(np.sort(square)[: max(1, round(0.8 * len(square)))].mean())


def _least_gain(at_zero: FloatArray, shifted: FloatArray) -> float:
    """How many times worse two motions agree without a shift in that half of the clip which says least of it.

    A series that is late is late all along. Where the motion is nearly even, what the solved one errs by at one end of
    a clip makes a shift look right that the rest of the clip contradicts.

    Args:
        at_zero, shifted: (P,) squares of pairs of poses, NaN where one is not seen.
    """
    both = np.flatnonzero(np.isfinite(at_zero) & np.isfinite(shifted))
    halves = [half for half in np.array_split(both, 2) if len(half) >= _LEAST_HALF]
    return min((_mean_square(at_zero[h]) / _mean_square(shifted[h]) for h in halves), default=np.inf)


def path_scale(
    solved: FloatArray, given: FloatArray, position_sigma: FloatArray, *, least_motion: float
) -> tuple[float, float]:
    """(scale_ratio, scale_sigma) of `GivenPoseErrors` by the lengths of the two paths, at the lag that tells most."""
    count = len(solved)
    best = float("nan"), float("nan")
    for lag in sorted({max(1, count // 16), max(1, count // 6), max(1, count // 2)}):
        ta, tb = (
            np.linalg.norm((se3_inverse(p[:-lag]) @ p[lag:])[:, :3, 3], axis=1) for p in (solved, given)
        )
        moved = ta > np.maximum(5 * np.maximum(position_sigma[:-lag], position_sigma[lag:]), least_motion)
        if moved.sum() < 3:
            continue
        log = np.log(ta[moved] / np.maximum(tb[moved], 1e-12))
        middle = float(np.median(log))
        spread = MAD_TO_SIGMA * float(np.median(np.abs(log - middle)))
        sigma = spread / float(np.sqrt(max(1.0, moved.sum() / lag)))
        if not sigma >= best[1]:
            best = float(np.exp(middle)), sigma
    return best


def path_distance(solved: FloatArray, given: FloatArray) -> float:
    """Root mean square distance of the centres of two paths (F, 4, 4), the second laid onto the first by a similarity;
    NaN where a path has no length. Errors that come and go slowly are in no difference between neighbours."""
    try:
        fit = umeyama(given[:, :3, 3], solved[:, :3, 3], with_scale=True, allow_collinear=True)
    except ValueError:
        return float("nan")
    return float(np.sqrt(np.mean(fit.residual**2)))


def size_ratio(solved: FloatArray, given: FloatArray) -> tuple[float, float]:
    """(size_ratio, size_sigma) of `GivenPoseErrors`; NaN where a path has no length.

    The solved path is stretched onto the given one. The other way round, as with lengths between pairs of poses, errors
    of the given poses count as given size.

    Args:
        solved, given: (N, 4, 4) of the same moments.
    """
    centre = solved[:, :3, 3]
    try:
        fit = umeyama(centre, given[:, :3, 3], with_scale=True, allow_collinear=True)
    except ValueError:
        return float("nan"), float("nan")
    if not fit.scale > 0:
        return float("nan"), float("nan")
    each_axis = np.sqrt(np.mean(fit.residual**2) / 3)
    spread = np.linalg.norm(centre - centre.mean(0))
    return float(1 / fit.scale), float(each_axis / (fit.scale * spread))


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
        given_m, solved_m = (float(np.ptp(centre, axis=0).max()) for centre in (x, y))
        raise ClipRejection(
            "given_poses_degenerate",
            f"{len(x)} given camera centres lie within {given_m:.2g} of their units, those that the images ask for"
            f" within {solved_m:.2g} m: nothing says what a unit is worth",
        ) from error


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
    frame_times = np.arange(frames, dtype=np.float64)
    solved = interpolate_poses(frame_times, cameras.camera_to_world, position)
    factor = similarity_scale(solved, given) if unit_to_metres is None else unit_to_metres
    metric = np.array(given, np.float64)
    metric[:, :3, 3] *= factor
    check = compare_poses(
        solved,
        metric,
        np.interp(position, frame_times, cameras.position_sigma),
        least_motion=LEAST_MOTION * cameras.median_depth,
    )
    correction = metric @ se3_inverse(solved)
    poses = (
        interpolate_poses(position, correction, np.clip(frame_times, position[0], position[-1]))
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
