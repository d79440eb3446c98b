"""How far estimated cameras are from the truth: ATE, RPE, rotation and focal errors.

Positions are in metres when both trajectories are. Every figure says which alignment was made: `none`
compares numbers as they are; `first` moves the estimate rigidly so that its first pose is the truth's; `se3`
moves it rigidly by least squares over the camera centres; `sim3` also scales it. A metric method must not
need `sim3`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ..arrays import F64
from ..cameras.alignment import umeyama
from ..cameras.rotations import orthonormalise, rotation_angle, so3_exp
from ..cameras.transforms import relative_to_first, se3_inverse, transform

AlignmentKind = Literal["none", "first", "se3", "sim3"]

_LEAST_TURN = 0.02
"""Root mean square change of orientation (radians, about its least axis) that tells a constant offset."""
_OFFSET_STEPS = 20


def _pair(estimated: ArrayLike, truth: ArrayLike) -> tuple[F64, F64]:
    e, t = np.asarray(estimated, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if e.shape != t.shape or e.ndim != 3 or e.shape[1:] != (4, 4) or len(e) == 0:
        raise ValueError(
            f"estimated {e.shape} and truth {t.shape} must both be (F, 4, 4), frame by frame, F >= 1"
        )
    if not (np.isfinite(e).all() and np.isfinite(t).all()):
        raise ValueError("poses must be finite; drop unsolved frames from both trajectories first")
    return e, t


def align_trajectory(
    estimated: ArrayLike, truth: ArrayLike, *, alignment: AlignmentKind
) -> tuple[F64, float]:
    """Estimated poses (F, 4, 4) moved onto the truth, and the scale that was applied (1.0 unless `sim3`).

    Raises:
        ValueError: centres that coincide or lie on a line for `se3` and `sim3` (use `first`), or fewer than
            3.
    Source: Umeyama 1991 over camera centres, as evo does.
    """
    e, t = _pair(estimated, truth)
    if alignment == "none":
        return e, 1.0
    if alignment == "first":
        return t[0] @ se3_inverse(e[0]) @ e, 1.0
    if alignment not in ("se3", "sim3"):
        raise ValueError(f"alignment: expected none, first, se3 or sim3, found {alignment!r}")
    fit = umeyama(e[:, :3, 3], t[:, :3, 3], with_scale=alignment == "sim3")
    return fit.apply_to_poses(e), fit.scale


def as_truth_camera(
    estimated: ArrayLike, truth: ArrayLike, *, alignment: Literal["se3", "sim3"]
) -> tuple[F64, F64]:
    """Poses of the camera that the truth is of, where the estimate is of another one fixed beside it: with the constant
    transform between the two left free, as hand-eye calibration finds it.

    A path of a camera beside the true one is off by how far the two are apart wherever they turn. What is free takes
    other errors along: look at how long the offset is, and compare methods with the same freedom.

    Args:
        estimated, truth: (F, 4, 4) camera-to-world.
        alignment: of the two worlds, found together with the offset; `sim3` scales the estimate's centres.
    Returns:
        (F, 4, 4) in the estimate's world, in the unit of the truth: to be aligned by `se3`. And (4, 4), the true
        camera in the axes of the estimated one: the shift that brings centres closest, by least squares, and the
        mean turn between orientations.
    Raises:
        ValueError: as `align_trajectory`, and orientations that hardly differ, or do about one axis alone: they do not
            determine the offset.
    """
    e, t = _pair(estimated, truth)
    if alignment not in ("se3", "sim3"):
        raise ValueError(f"alignment: expected se3 or sim3, found {alignment!r}")
    fit = umeyama(e[:, :3, 3], t[:, :3, 3], with_scale=alignment == "sim3")
    axes, spread = e[:, :3, :3], (e[:, :3, :3] - e[:, :3, :3].mean(0)).reshape(-1, 3)
    if np.linalg.svd(spread, compute_uv=False)[-1] < _LEAST_TURN * len(e) ** 0.5:
        raise ValueError(
            "the camera turns too little to tell how far it is from the one that the truth is of"
        )
    turn, scale, origin, offset = fit.rotation, fit.scale, fit.translation, np.zeros(3)
    for _ in range(_OFFSET_STEPS):
        centre = e[:, :3, 3] @ turn.T
        placed = scale * centre + (axes @ offset) @ turn.T
        columns = [
            np.cross(np.eye(3)[:, None], placed[None]).transpose(1, 2, 0),
            np.broadcast_to(np.eye(3), (len(e), 3, 3)),
            turn @ axes,
            *([centre[:, :, None]] if alignment == "sim3" else []),
        ]
        design = np.concatenate(columns, axis=2).reshape(3 * len(e), -1)
        step = np.linalg.lstsq(design, (t[:, :3, 3] - placed - origin).ravel(), rcond=None)[0]
        turn = so3_exp(step[:3]) @ turn
        origin, offset = origin + step[3:6], offset + step[6:9]
        scale += float(step[9:].sum())
    between = orthonormalise((np.swapaxes(turn @ axes, 1, 2) @ t[:, :3, :3]).mean(axis=0))
    scaled = e.copy()
    scaled[:, :3, 3] *= scale
    found = transform(between, offset)
    return scaled @ found, found


def path_length(camera_to_world: ArrayLike) -> float:
    """Length of the polyline through the camera centres of (F, 4, 4) poses."""
    poses = np.asarray(camera_to_world, dtype=np.float64)
    return float(np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).sum())


@dataclass(frozen=True, kw_only=True)
class TrajectoryError:
    """Absolute errors after `alignment`.

    Attributes:
        alignment, scale: what was done to the estimate; scale multiplies it (1.0 unless sim3).
        ate_rmse_m, ate_mean_m, ate_median_m, ate_max_m: distance between camera centres.
        rotation_rmse_rad, rotation_mean_rad, rotation_max_rad: angle between orientations, same alignment.
        path_length_m: of the truth; num_frames: poses compared.
        position_error_m, rotation_error_rad: (F,) per frame.
    """

    alignment: AlignmentKind
    scale: float
    ate_rmse_m: float
    ate_mean_m: float
    ate_median_m: float
    ate_max_m: float
    rotation_rmse_rad: float
    rotation_mean_rad: float
    rotation_max_rad: float
    path_length_m: float
    num_frames: int
    position_error_m: F64
    rotation_error_rad: F64

    @property
    def ate_percent_of_path(self) -> float:
        """ATE RMSE over the length of the true path, in percent; NaN for a camera at rest."""
        return 100.0 * self.ate_rmse_m / self.path_length_m if self.path_length_m > 0 else float("nan")


def _rms(values: F64) -> float:
    return float(np.sqrt(np.mean(values * values)))


def trajectory_error(
    estimated: ArrayLike, truth: ArrayLike, *, alignment: AlignmentKind = "se3"
) -> TrajectoryError:
    """ATE and absolute rotation error of (F, 4, 4) camera-to-world poses, frame by frame.

    Raises:
        ValueError: shapes differ, non-finite poses, or an alignment the trajectory does not determine.
    Source: Sturm et al., IROS 2012 (ATE); equal to evo's APE (translation part, rotation angle).
    """
    e, t = _pair(estimated, truth)
    aligned, scale = align_trajectory(e, t, alignment=alignment)
    position = np.linalg.norm(aligned[:, :3, 3] - t[:, :3, 3], axis=1)
    rotation = rotation_angle(np.swapaxes(t[:, :3, :3], 1, 2) @ aligned[:, :3, :3])
    return TrajectoryError(
        alignment=alignment,
        scale=scale,
        ate_rmse_m=_rms(position),
        ate_mean_m=float(position.mean()),
        ate_median_m=float(np.median(position)),
        ate_max_m=float(position.max()),
        rotation_rmse_rad=_rms(rotation),
        rotation_mean_rad=float(rotation.mean()),
        rotation_max_rad=float(rotation.max()),
        path_length_m=path_length(t),
        num_frames=len(t),
        position_error_m=position,
        rotation_error_rad=rotation,
    )


def rotation_error(
    estimated: ArrayLike, truth: ArrayLike, *, gauge: Literal["none", "first", "mean"] = "mean"
) -> F64:
    """(F,) angles in radians between orientations, with the free world rotation removed by orientations
    alone.

    Unlike `trajectory_error` this also works for a camera that does not move.

    Args:
        gauge: `mean` removes the rotation that fits all frames best (chordal mean of R_truth R_estimated^T);
            `first` makes the first frames equal; `none` compares as given.
    """
    e, t = _pair(estimated, truth)
    re, rt = e[:, :3, :3], t[:, :3, :3]
    if gauge == "mean":
        world = orthonormalise((rt @ np.swapaxes(re, 1, 2)).mean(axis=0))
    elif gauge == "first":
        world = rt[0] @ re[0].T
    elif gauge == "none":
        world = np.eye(3)
    else:
        raise ValueError(f"gauge: expected none, first or mean, found {gauge!r}")
    return rotation_angle(np.swapaxes(rt, 1, 2) @ world @ re)


@dataclass(frozen=True, kw_only=True)
class RelativeError:
    """RPE over pairs of frames `delta_frames` apart; needs no alignment, but translations need the same unit.

    Attributes:
        translation_rmse_m, translation_mean_m, translation_max_m: length of the difference of motions.
        rotation_rmse_deg, rotation_mean_deg, rotation_max_deg: angle of the difference of motions, degrees.
        num_pairs: pairs compared. translation_m, rotation_deg: (num_pairs,).
    """

    delta_frames: int
    translation_rmse_m: float
    translation_mean_m: float
    translation_max_m: float
    rotation_rmse_deg: float
    rotation_mean_deg: float
    rotation_max_deg: float
    num_pairs: int
    translation_m: F64
    rotation_deg: F64


def relative_pose_error(
    estimated: ArrayLike,
    truth: ArrayLike,
    *,
    delta_frames: int = 1,
    all_pairs: bool = True,
    scale: float = 1.0,
) -> RelativeError:
    """RPE of (F, 4, 4) poses: motion over `delta_frames` in the estimate against the truth.

    Args:
        all_pairs: every start frame; False takes consecutive, non-overlapping pairs as evo does by default.
        scale: multiplies estimated positions first (the scale of a `sim3` alignment).
    Raises:
        ValueError: fewer than delta_frames + 1 poses.
    Source: Sturm et al., IROS 2012, equation 1; equal to evo's RPE.
    """
    e, t = _pair(estimated, truth)
    if delta_frames < 1 or len(e) <= delta_frames:
        raise ValueError(f"relative_pose_error: {len(e)} poses give no pair {delta_frames} frames apart")
    e = e.copy()
    e[:, :3, 3] *= scale
    start = np.arange(0, len(e) - delta_frames, 1 if all_pairs else delta_frames)
    end = start + delta_frames
    motion_e, motion_t = se3_inverse(e[start]) @ e[end], se3_inverse(t[start]) @ t[end]
    difference = se3_inverse(motion_t) @ motion_e
    translation = np.linalg.norm(difference[:, :3, 3], axis=1)
    rotation = np.rad2deg(rotation_angle(difference[:, :3, :3]))
    return RelativeError(
        delta_frames=delta_frames,
        translation_rmse_m=_rms(translation),
        translation_mean_m=float(translation.mean()),
        translation_max_m=float(translation.max()),
        rotation_rmse_deg=_rms(rotation),
        rotation_mean_deg=float(rotation.mean()),
        rotation_max_deg=float(rotation.max()),
        num_pairs=len(start),
        translation_m=translation,
        rotation_deg=rotation,
    )


KITTI_LENGTHS_M = (100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0)


@dataclass(frozen=True, kw_only=True)
class SegmentError:
    """Errors over stretches of the true path of some lengths.

    Attributes:
        translation_percent: mean length of the difference of motions over the stretch's length; NaN without a stretch.
        rotation_deg_per_100m: mean angle of the difference of motions over that length; NaN without a stretch.
        num_segments: stretches compared; the means of KITTI's table weigh each alike, whatever its sequence.
    """

    translation_percent: float
    rotation_deg_per_100m: float
    num_segments: int


def segment_error(
    estimated: ArrayLike,
    truth: ArrayLike,
    *,
    lengths_m: Sequence[float] = KITTI_LENGTHS_M,
    step_frames: int = 10,
    scale: float = 1.0,
) -> SegmentError:
    """KITTI's errors of (F, 4, 4) poses of consecutive frames: from every tenth frame on, over stretches of the true
    path that are just longer than 100, 200 ... 800 m. No alignment.

    Args:
        lengths_m: of the stretches.
        step_frames: from one start to the next (KITTI: a second).
        scale: multiplies estimated positions first.
    Source: Geiger et al., CVPR 2012; evaluate_odometry.cpp of the odometry development kit.
    """
    e, t = _pair(estimated, truth)
    e = e.copy()
    e[:, :3, 3] *= scale
    travelled = np.r_[0.0, np.cumsum(np.linalg.norm(np.diff(t[:, :3, 3], axis=0), axis=1))]
    starts = np.arange(0, len(t), step_frames)
    first, last, length = [], [], []
    for metres in lengths_m:
        end = np.searchsorted(travelled, travelled[starts] + metres, side="right")  # the first frame beyond
        there = end < len(t)
        first.append(starts[there])
        last.append(end[there])
        length.append(np.full(int(there.sum()), float(metres)))
    i, j, metres = np.concatenate(first), np.concatenate(last), np.concatenate(length)
    if not len(i):
        return SegmentError(translation_percent=np.nan, rotation_deg_per_100m=np.nan, num_segments=0)
    difference = se3_inverse(se3_inverse(e[i]) @ e[j]) @ (se3_inverse(t[i]) @ t[j])
    translation = np.linalg.norm(difference[:, :3, 3], axis=1) / metres
    rotation = np.rad2deg(rotation_angle(difference[:, :3, :3])) / metres
    return SegmentError(
        translation_percent=float(100 * translation.mean()),
        rotation_deg_per_100m=float(100 * rotation.mean()),
        num_segments=len(i),
    )


def focal_mape_percent(estimated_focal_px: ArrayLike, true_focal_px: ArrayLike) -> float:
    """Mean absolute percentage error of focal lengths, over frames and axes.

    Args:
        estimated_focal_px, true_focal_px: (F,) or (F, 2) pixels of the same image size.
    Raises:
        ValueError: shapes differ, or a value that is not positive and finite.
    """
    e, t = np.asarray(estimated_focal_px, dtype=np.float64), np.asarray(true_focal_px, dtype=np.float64)
    if e.shape != t.shape or e.size == 0:
        raise ValueError(
            f"focal lengths: estimated {e.shape} and true {t.shape} must have the same, non-empty shape"
        )
    if not (np.isfinite(e).all() and np.isfinite(t).all() and (e > 0).all() and (t > 0).all()):
        raise ValueError("focal lengths must be positive and finite; drop unsolved frames from both first")
    return float(100.0 * np.mean(np.abs(e - t) / t))


@dataclass(frozen=True, kw_only=True)
class CameraControlError:
    """How well a video follows the cameras that were asked for, as world models are scored.

    Attributes:
        rot_err_deg: mean geodesic angle between orientations, degrees.
        trans_err: mean distance between camera centres, in units of the truth.
        cam_mc: mean Frobenius distance between 3x4 camera-to-world matrices.
        scale: factor that the alignment applied to the estimate.
    """

    rot_err_deg: float
    trans_err: float
    cam_mc: float
    scale: float


def camera_control_error(
    estimated: ArrayLike,
    truth: ArrayLike,
    *,
    variant: Literal["paper", "bench"] = "paper",
) -> CameraControlError:
    """RotErr, TransErr and CamMC of estimated poses (F, 4, 4) against requested ones (F, 4, 4).

    Args:
        variant: `paper` aligns by Sim(3) over camera centres (Umeyama); `bench` does what NVIDIA's released
            code for SANA-WM-Bench does and calls TransErr_rel and CamMC_rel: both trajectories relative to
            their first frame, world rotation from the mean of relative orientations, then scale and shift
            from centres seen in the axes of the estimate.
    Raises:
        ValueError: shapes differ, non-finite poses, or (paper) centres that determine no Sim(3).
    Source: SANA-WM (arXiv 2605.15178), section on evaluation; NVlabs/Sana,
    tools/metrics/sana_wm/pose_utils.py.
    """
    e, t = _pair(estimated, truth)
    if variant == "paper":
        aligned, scale = align_trajectory(e, t, alignment="sim3")
    elif variant == "bench":
        e, t = relative_to_first(e), relative_to_first(t)
        aligned, scale = _bench_alignment(e, t)
    else:
        raise ValueError(f"variant: expected paper or bench, found {variant!r}")
    angle = rotation_angle(np.swapaxes(t[:, :3, :3], 1, 2) @ aligned[:, :3, :3])
    return CameraControlError(
        rot_err_deg=float(np.rad2deg(angle).mean()),
        trans_err=float(np.linalg.norm(aligned[:, :3, 3] - t[:, :3, 3], axis=1).mean()),
        cam_mc=float(np.linalg.norm((aligned - t)[:, :3].reshape(len(t), 12), axis=1).mean()),
        scale=scale,
    )


def _bench_alignment(estimated: F64, truth: F64) -> tuple[F64, float]:
    """Estimate moved onto the truth as NVIDIA's benchmark code does, and its scale factor."""
    e_w2c, t_w2c = se3_inverse(estimated), se3_inverse(truth)
    world = np.mean(np.swapaxes(t_w2c[:, :3, :3], 1, 2) @ e_w2c[:, :3, :3], axis=0)
    u, _s, vt = np.linalg.svd(world)
    turn = (
        u @ vt
    ).T  # their code has no guard against a reflection, which needs rotations spread over more than pi
    a = np.einsum("fji,fj->fi", e_w2c[:, :3, :3], e_w2c[:, :3, 3])
    b = np.einsum("fji,fj->fi", e_w2c[:, :3, :3], t_w2c[:, :3, 3])
    da, db = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = float((da * db).mean() / max((da * da).mean(), 1e-9))
    shift = b.mean(axis=0) - scale * a.mean(axis=0)
    rotation = e_w2c[:, :3, :3] @ turn
    translation = e_w2c[:, :3, :3] @ shift + scale * e_w2c[:, :3, 3]
    return se3_inverse(transform(rotation, translation)), scale
