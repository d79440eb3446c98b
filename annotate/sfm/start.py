"""Keyframe cameras to start the bundle from, taken from a sequence network and verified against tracks.

A network is right about most frames and wrong about some, and it says neither. So its cameras only place points:
each track's position is the median of what the frames that see it make of it. Then every keyframe is placed anew
against those points, from scratch where its own camera is of no use. Nothing is chained, so nothing drifts.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ...dataset.arrays import FloatArray, IntArray
from ...dataset.cameras.transforms import se3_inverse
from ...dataset.robust import MAD_TO_SIGMA
from ..geometry.base import DepthMaps
from ..tracks.records import ImageMeasurements, indices_by_group
from .bundle.problem import Problem, state_at_origin
from .config import BundleConfig
from .depth_noise import sample_depth
from .observations import build_problem, subset_frames
from .records import MIN_INLIERS, StartCameras
from .resection import absolute_pose, inlier_mask
from .triangulation import moving_together

log = logging.getLogger(__name__)


_WRONG_DEPTH_LOG = 0.04
"""Depth of a frame that is off by more than this as a whole, and by four times what is usual in the clip, is not used.
A frame lost costs little; one kept with a wrong factor pulls its camera and its focal length along."""


@dataclass(frozen=True, kw_only=True)
class VerifiedKeyframes:
    """What tracks make of the cameras to start from.

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
    start: StartCameras,
    config: BundleConfig,
    *,
    depth_sigma_log: float,
) -> VerifiedKeyframes:
    """Place every keyframe against points that the others agree on, and find frames whose depth is wrong.

    A frame's own depth has no say in its camera here: depth that is wrong by one factor over the whole frame would
    be taken for a dolly zoom, which the tracks of one frame hardly contradict.

    Args:
        measured: flow tracks and keyframes.
        depth: z-depth per frame in the unit of the cameras.
        start: approximate cameras, of a sequence network for instance.
        config: noise levels.
        depth_sigma_log: relative depth error that the source declares.
    """
    frames = _KeyframesOnPoints(measured, depth, start, config, depth_sigma_log=depth_sigma_log)
    # The later rounds judge with points that wrong cameras no longer touch.
    for tolerance in (3.0, 1.5, 1.0):
        bias = frames.place(tolerance)
        judged = np.isfinite(bias)
        if judged.sum() < 3:
            break
        usual = MAD_TO_SIGMA * np.median(np.abs(bias[judged]))
        off = np.abs(np.nan_to_num(bias)) > max(_WRONG_DEPTH_LOG, 4 * usual)
        frames.wrong = np.asarray(judged & off)
    placed, wrong = frames.placed, frames.wrong
    log.debug("%d of %d keyframes placed, %d with wrong depth", placed.sum(), len(placed), wrong.sum())
    number, keyframes = measured.flow.num_frames, measured.keyframes
    poses, focals = np.full((number, 4, 4), np.nan), np.full((number, 2), np.nan)
    matrices = np.tile(np.eye(4), (len(keyframes), 1, 1))
    matrices[:, :3, :3], matrices[:, :3, 3] = frames.rotation, frames.translation
    poses[keyframes[placed]] = se3_inverse(matrices[placed])
    focals[keyframes[placed]] = frames.focal[placed, None]
    wrong_depth = np.zeros(number, bool)
    wrong_depth[keyframes[wrong]] = True
    return VerifiedKeyframes(
        cameras=replace(start, camera_to_world=poses, focal_px=focals),
        wrong_depth=wrong_depth,
        placed_share=float(placed.mean()),
    )


class _KeyframesOnPoints:
    """Keyframes against points that their depth places.

    Attributes:
        rotation, translation, focal: (K, 3, 3), (K, 3) world to camera, (K,) pixels.
        placed, wrong: (K,) bool, keyframes whose camera the points confirm, and those whose depth they refute.
    """

    def __init__(
        self,
        measured: ImageMeasurements,
        depth: DepthMaps,
        start: StartCameras,
        config: BundleConfig,
        *,
        depth_sigma_log: float,
    ) -> None:
        z = sample_depth(measured.flow, depth)
        self.tracks, self.z = subset_frames(measured.flow, z, measured.keyframes)
        problem = build_problem(self.tracks, self.z, config, depth_sigma_log=depth_sigma_log)
        world_to_camera, self.focal = start.at(measured.keyframes)
        self.rotation = world_to_camera[:, :3, :3].copy()
        self.translation = world_to_camera[:, :3, 3].copy()
        self.centre = problem.centre_px.numpy()
        self.threshold = 4.0 * float(problem.sigma_px.median())
        self.by_frame = indices_by_group(self.tracks.frame, problem.num_frames)
        self.placed = np.ones(problem.num_frames, bool)
        self.wrong = np.zeros(problem.num_frames, bool)
        self.moving = self._moving(problem)

    def _moving(self, problem: Problem) -> NDArray[np.bool_]:
        """(P,) tracks that move on their own under the network's cameras."""
        state = replace(
            state_at_origin(problem, torch.as_tensor(np.log(self.focal))),
            rotation=torch.as_tensor(self.rotation),
            translation=torch.as_tensor(self.translation),
            points=torch.as_tensor(self._median_points(self.placed)),
        )
        return moving_together(problem, state, self.placed)

    def place(self, tolerance: float) -> FloatArray:
        """Place every keyframe anew, errors up to `tolerance` thresholds; (K,) log factor of its depth, NaN if none."""
        xyz = self._median_points(self.placed & ~self.wrong)
        known = np.asarray(np.isfinite(xyz).all(1)) & ~self.moving
        bias = np.full(len(self.placed), np.nan)
        self.placed = np.zeros(len(self.placed), bool)
        for i, seen in enumerate(self.by_frame):
            bias[i] = self._place_one(i, seen[known[self.tracks.track[seen]]], xyz, tolerance)
        return bias

    def _place_one(self, i: int, seen: IntArray, xyz: FloatArray, tolerance: float) -> float:
        point, uv, focal, limit = (
            self.tracks.track,
            self.tracks.xy_px,
            self.focal[i],
            tolerance * self.threshold,
        )
        pose = absolute_pose(xyz[point[seen]], uv[seen], focal, self.centre, limit)
        if pose is None or len(pose[2]) < max(MIN_INLIERS, 0.25 * len(seen)):
            return float("nan")
        agree = seen[inlier_mask(xyz[point[seen]], uv[seen], pose, focal, self.centre, 2 * limit)]
        if len(agree) < MIN_INLIERS:
            return float("nan")
        rotation, translation = _refined(xyz[point[agree]], uv[agree], pose[0], pose[1], focal, self.centre)
        self.rotation[i], self.translation[i], self.placed[i] = rotation, translation, True
        ahead = (xyz[point[agree]] @ rotation.T + translation)[:, 2]
        has = np.isfinite(self.z[agree]) & (ahead > 0)
        if has.sum() < MIN_INLIERS:
            return float("nan")
        return float(np.median(np.log(self.z[agree][has] / ahead[has])))

    def _median_points(self, trusted: NDArray[np.bool_]) -> FloatArray:
        """(P, 3): the median, axis by axis, of where trusted keyframes with depth see each point; NaN without any."""
        used = np.flatnonzero(np.isfinite(self.z) & trusted[self.tracks.frame])
        frame, point, z = self.tracks.frame[used], self.tracks.track[used], self.z[used]
        ray = (self.tracks.xy_px[used] - self.centre) / self.focal[frame, None]
        local = np.concatenate([ray, np.ones((len(used), 1))], 1) * z[:, None]
        world = np.einsum("nji,nj->ni", self.rotation[frame], local - self.translation[frame])
        out = np.full((self.tracks.num_tracks, 3), np.nan)
        if not len(used):
            return out
        for axis in range(3):
            order = np.lexsort((world[:, axis], point))
            p, x = point[order], world[order, axis]
            first = np.flatnonzero(np.r_[True, p[1:] != p[:-1]])
            count = np.diff(np.r_[first, len(p)])
            out[p[first], axis] = (x[first + (count - 1) // 2] + x[first + count // 2]) / 2
        return out


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
