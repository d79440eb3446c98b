"""Keyframe cameras to start the bundle from, taken from a sequence network's anchors and proved against tracks.

A network is right about most frames and wrong about some, and it says neither. So its cameras only place points:
each track's position is the median of what the frames that see it make of it. Then every keyframe is placed anew
against those points, from scratch where its own anchor is of no use. Nothing is chained, so nothing drifts.
"""

# OpenCV types every image as MatLike.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

import logging
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import FloatArray, IntArray
from ...dataset.cameras.transforms import se3_inverse
from ..geometry.base import DepthMaps
from ..tracks.records import ImageMeasurements, indices_by_group
from .config import BundleConfig
from .depth_noise import sample_depth
from .observations import build_problem, subset_frames
from .records import StartCameras
from .resection import absolute_pose, inlier_mask

log = logging.getLogger(__name__)

_MIN_INLIERS = 12
_WRONG_DEPTH_LOG = 0.04
"""Depth of a frame that is off by more than this as a whole, and by four times what is usual in the clip, is not used.
A frame lost costs little; one kept with a wrong factor pulls its camera and its focal length along."""


@dataclass(frozen=True, kw_only=True)
class VerifiedKeyframes:
    """What tracks make of the anchors.

    Attributes:
        cameras: of the keyframes that could be placed.
        wrong_depth: (F,) bool, frames whose whole depth contradicts what the others make of the same points.
        placed_share: keyframes placed, of all.
    """

    cameras: StartCameras
    wrong_depth: NDArray[np.bool_]
    placed_share: float


def verify_keyframes(
    measured: ImageMeasurements,
    depth: DepthMaps,
    anchors: StartCameras,
    config: BundleConfig,
    *,
    depth_sigma_log: float,
) -> VerifiedKeyframes:
    """Place every keyframe against points that the others' anchors agree on, and find frames whose depth is wrong.

    A frame's own depth has no say in its camera here: depth that is wrong by one factor over the whole frame would
    be taken for a dolly zoom, which the tracks of one frame hardly contradict.

    Args:
        measured: flow tracks and keyframes.
        depth: z-depth per frame in the unit of the anchors.
        anchors: approximate cameras.
        config: noise levels.
        depth_sigma_log: relative depth error that the source declares.
    """
    keyframes = measured.keyframes
    tracks, z = subset_frames(measured.flow, sample_depth(measured.flow, depth), keyframes)
    problem = build_problem(tracks, z, config, depth_sigma_log=depth_sigma_log)
    world_to_camera, focal = anchors.at(keyframes)
    rotation, translation = world_to_camera[:, :3, :3].copy(), world_to_camera[:, :3, 3].copy()
    frame, point = tracks.frame, tracks.track
    uv, centre = tracks.xy_px, problem.centre_px.numpy()
    threshold = 4.0 * float(problem.sigma_px.median())
    by_frame = indices_by_group(frame, problem.num_frames)
    placed = np.ones(problem.num_frames, bool)
    wrong = np.zeros(problem.num_frames, bool)
    # The later rounds judge with points that wrong anchors no longer touch.
    for tolerance in (3.0, 1.5, 1.0):
        xyz = median_points(
            frame, point, uv, z, rotation, translation, focal, centre, placed & ~wrong, problem.num_points
        )
        known = np.asarray(np.isfinite(xyz).all(1))
        bias = np.full(problem.num_frames, np.nan)
        placed = np.zeros(problem.num_frames, bool)
        for i, all_of in enumerate(by_frame):
            of = all_of[known[point[all_of]]]
            pose = absolute_pose(xyz[point[of]], uv[of], focal[i], centre, tolerance * threshold)
            if pose is None or len(pose[2]) < max(_MIN_INLIERS, 0.25 * len(of)):
                continue
            agree = of[inlier_mask(xyz[point[of]], uv[of], pose, focal[i], centre, 2 * tolerance * threshold)]
            if len(agree) < _MIN_INLIERS:
                continue
            r, t = _refined(xyz[point[agree]], uv[agree], pose[0], pose[1], focal[i], centre)
            rotation[i], translation[i], placed[i] = r, t, True
            seen = (xyz[point[agree]] @ r.T + t)[:, 2]
            has = np.isfinite(z[agree]) & (seen > 0)
            if has.sum() >= _MIN_INLIERS:
                bias[i] = np.median(np.log(z[agree][has] / seen[has]))
        judged = np.isfinite(bias)
        if judged.sum() < 3:
            break
        usual = 1.4826 * np.median(np.abs(bias[judged]))
        wrong = np.asarray(judged & (np.abs(np.nan_to_num(bias)) > max(_WRONG_DEPTH_LOG, 4 * usual)))
    log.debug(
        "anchors: %d of %d keyframes placed, %d with wrong depth", placed.sum(), len(placed), wrong.sum()
    )
    frames = measured.flow.num_frames
    poses, focals, wrong_depth = (
        np.full((frames, 4, 4), np.nan),
        np.full((frames, 2), np.nan),
        np.zeros(frames, bool),
    )
    matrices = np.tile(np.eye(4), (problem.num_frames, 1, 1))
    matrices[:, :3, :3], matrices[:, :3, 3] = rotation, translation
    poses[keyframes[placed]] = se3_inverse(matrices[placed])
    focals[keyframes[placed]] = focal[placed, None]
    wrong_depth[keyframes[wrong]] = True
    return VerifiedKeyframes(
        cameras=StartCameras(camera_to_world=poses, focal_px=focals),
        wrong_depth=wrong_depth,
        placed_share=float(placed.mean()),
    )


class WithoutFrames:
    """Depth maps of which some frames carry none; the `DepthMaps` of geometry/base.py."""

    def __init__(self, depth: DepthMaps, without: NDArray[np.bool_]) -> None:
        self._depth, self._without = depth, without

    def __len__(self) -> int:
        return len(self._depth)

    def read(self, frame: int) -> FloatArray | None:
        """As the maps beneath, None for the frames left out."""
        return None if self._without[frame] else self._depth.read(frame)


def _refined(
    xyz: FloatArray,
    uv: FloatArray,
    rotation: FloatArray,
    translation: FloatArray,
    focal: float,
    centre: FloatArray,
) -> tuple[NDArray, NDArray]:
    """World-to-camera rotation and translation of least reprojection error, focal held (that is the bundle's)."""
    camera = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1.0]])
    turn, move = cv2.solvePnPRefineLM(
        np.ascontiguousarray(xyz),
        np.ascontiguousarray(uv),
        camera,
        None,
        cv2.Rodrigues(rotation)[0],
        translation[:, None],
    )
    return np.asarray(cv2.Rodrigues(turn)[0]), np.asarray(move)[:, 0]


def median_points(
    frame: IntArray,
    point: IntArray,
    uv: FloatArray,
    z: FloatArray,
    rotation: FloatArray,
    translation: FloatArray,
    focal: FloatArray,
    centre: FloatArray,
    trusted: NDArray[np.bool_],
    num_points: int,
) -> FloatArray:
    """(P, 3) world points: the median, axis by axis, of where trusted frames with depth see each; NaN without any."""
    of = np.flatnonzero(np.isfinite(z) & trusted[frame])
    f = frame[of]
    local = np.concatenate([(uv[of] - centre) / focal[f, None], np.ones((len(of), 1))], 1) * z[of, None]
    world = np.einsum("nji,nj->ni", rotation[f], local - translation[f])
    out = np.full((num_points, 3), np.nan)
    if not len(of):
        return out
    for axis in range(3):
        order = np.lexsort((world[:, axis], point[of]))
        p, x = point[of][order], world[order, axis]
        first = np.flatnonzero(np.r_[True, p[1:] != p[:-1]])
        count = np.diff(np.r_[first, len(p)])
        out[p[first], axis] = (x[first + (count - 1) // 2] + x[first + count // 2]) / 2
    return out
