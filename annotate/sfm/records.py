"""What the solver is given and what it gives back: known lens, cameras to start from, solved cameras."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...dataset.arrays import FloatArray, IntArray
from ...dataset.cameras.rotations import so3_log
from ...dataset.cameras.transforms import interpolate_poses, se3_inverse
from ...dataset.words import FocalModel
from ..sources.clip import ClipRejection
from .bundle.lens import LensModel
from .bundle.problem import Problem, State, state_at_origin
from .config import BundleConfig
from .depth_noise import DepthNoise
from .shared_errors import SharedErrors
from .triangulation import back_project

SOLVED, INFILLED, GIVEN = "solved", "infilled", "given"
RMS_OF_MEDIAN = 1.2011
"""Root mean square over median of the length of a 2-D Gaussian error."""
MIN_INLIERS = 12
KNOWN_LENS_SIGMA = 1e-4  # freedom of a known log focal in the steps before the bundle
# Below this decrease of the cost in one step only single outliers change sides; the cameras stand still.
TOLERANCE = 5e-4


_STEP_BY_TURN = 3.0
"""Error of the path over what the shifts that are seen would move a point at the usual depth by: rendered walks that
were stabilised have 1.4 to 3.2; the most is feared."""


@dataclass(frozen=True, kw_only=True)
class CameraSolution:
    """Cameras of every frame, in the unit of the depth.

    Attributes:
        camera_to_world: (F, 4, 4), OpenCV axes, first frame at the origin.
        focal_px: (F, 2) fx, fy; principal_point_px: (F, 2); stored size.
        pose_source: (F,) "solved", "infilled", or "given" where `keep_given_poses` put a given one.
        focal_model: constant, smooth, piecewise or given.
        position_sigma: (F,) standard deviation of the camera centre along its worst axis, in depth units.
        rotation_sigma_rad: (F,) same for rotation.
        log_focal_sigma: (F,).
        reprojection_px: (F,) robust root mean square over a frame's inliers, stored pixels; of cameras that were not
            solved from them (given or bridged) over all observations, by their median.
        num_observations, num_inliers: (F,) observations, and those of them that agree.
        inlier_share: (F,) of all observations of the frame.
        num_joining: (F,) points that agree both before a frame and from it on; None where it was not counted.
        num_linked: (F,) the same with places that the alignment of whole images gives where there are no points.
        depth_log_residual: median absolute log difference between solved and given depth.
        parallax_rad: median over tracks of the largest angle between viewing rays.
        kept_share: (F,) of what agrees with the cameras before a frame or from it on, the share of the picture that
            agrees with both; NaN where too little is seen on both sides. None where it was not asked.
        moving_share: (F,) share of each picture, of what is tracked, that contradicts the cameras; None likewise.
        moving_masks: (F, 36, 64) bool, where in each picture that is; None unless it was asked for.
        rest_error_ratio: usual reprojection error of the best camera that stays in one place, over that of these; NaN
            where parallax leaves no doubt that the camera moved.
        lens_model: how the lens bends.
        radial_k2: its second term; None where it was not asked for.
        num_tracks, num_loops: totals.
        focal_cost: cost of each focal model that was tried (lower fits better); of one that was given up as hopeless,
            what it had come to.
        scale_sweep: (S, 2) factor on depth, mean cost; least at 1 when depth and poses agree. (0, 2) without depth.
        radial_k1: radial term of the lens that the bundle fitted, x' = x (1 + k1 r^2 + k2 r^4) in normalised
            coordinates; the pinhole cameras are those of the undistorted image.
        median_depth: median depth of all observations.
        focal_asked_log: where the lens is known, log of the focal length that images and depth ask for by themselves
            over the given one; NaN where the lens is unknown or the start came from elsewhere.
        focal_asked_sigma, focal_asked_gain: spread of that along the clip, and the cost of the keyframes with the given
            lens over that with the one asked for; NaN where a part of the clip confirmed the given one.
        evidence: what the cameras were solved from; None unless it was asked for.
        depth_noise: how the given depth errs, as measured; None where that is not asked (networks).
        depth_gain_log: (F,) log of measured over true depth of each frame; None where all have one unit.
        shared: covariances with what measurements have wrong in common; None where only independent errors are known.
        focal_doubt_log, scale_doubt_log: standard deviations of what is wrong with all focal lengths alike, and with
            the unit of the depth.
        centre_jitter_px: what the principal point shifts by from frame to frame (`centre_jitter.py`), in square pixels
            as high as the stored ones; NaN if unknown.
        focal_common_log: what the focal length is wrong by where measurements err alike, by their causes or by a share
            of what they err one by one, whichever is more, by a zoom that was taken for a constant lens, and by depth
            that may show another field of view: what rows state of the focal length, of the whole clip. A short path
            hardly resists that; NaN where it is not asked.
        focal_leant_log: by how much all log focal lengths were moved from where images and depth have them to where a
            network's rays do.
    """

    camera_to_world: FloatArray
    focal_px: FloatArray
    principal_point_px: FloatArray
    pose_source: NDArray
    focal_model: FocalModel
    position_sigma: FloatArray
    rotation_sigma_rad: FloatArray
    log_focal_sigma: FloatArray
    reprojection_px: FloatArray
    num_observations: IntArray
    num_inliers: IntArray
    inlier_share: FloatArray
    depth_log_residual: float
    parallax_rad: float
    num_tracks: int
    num_loops: int
    focal_cost: dict[str, float]
    scale_sweep: FloatArray
    radial_k1: float
    median_depth: float
    focal_asked_log: float = float("nan")
    depth_noise: DepthNoise | None = None
    depth_gain_log: FloatArray | None = None
    shared: SharedErrors | None = None
    focal_doubt_log: float = 0.0
    scale_doubt_log: float = 0.0
    focal_common_log: float = float("nan")
    focal_leant_log: float = 0.0
    focal_asked_sigma: float = float("nan")
    focal_asked_gain: float = float("nan")
    evidence: Evidence | None = None
    num_joining: IntArray | None = None
    num_linked: IntArray | None = None
    rest_error_ratio: float = float("nan")
    kept_share: FloatArray | None = None
    moving_share: FloatArray | None = None
    centre_jitter_px: float = float("nan")
    moving_masks: NDArray[np.bool_] | None = None
    lens_model: LensModel = "near_pinhole"
    radial_k2: float | None = None

    def stated_covariances(self, scale_sigma_log: float = 0.0) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Of position (F, 3, 3) in the axes of the first camera and rotation (F, 3, 3) about the camera's own, and the
        variance of log focal (F,).

        What is wrong with the lens or the unit of depth is wrong in all frames: a focal length that is too long by a
        share turns and moves the camera too little by that share, all along from the first frame on.

        Args:
            scale_sigma_log: standard deviation of the log of a metre's length.
        """
        poses = self.camera_to_world
        gone = poses[:, :3, 3] - poses[:1, :3, 3]
        turned = so3_log(poses[:1, :3, :3].swapaxes(1, 2) @ poses[:, :3, :3])
        of_path = self.focal_doubt_log**2 + self.scale_doubt_log**2 + scale_sigma_log**2
        position = self._at_least(None if self.shared is None else self.shared.position, self.position_sigma)
        rotation = self._at_least(
            None if self.shared is None else self.shared.rotation, self.rotation_sigma_rad
        )
        log_focal = self.log_focal_sigma**2
        if self.shared is not None:
            log_focal = np.maximum(log_focal, self.shared.log_focal)
        return (
            position + of_path * gone[:, :, None] * gone[:, None],
            rotation + self.focal_doubt_log**2 * turned[:, :, None] * turned[:, None],
            log_focal + self.focal_doubt_log**2,
        )

    @staticmethod
    def _at_least(covariance: FloatArray | None, sigma: FloatArray) -> FloatArray:
        """(F, 3, 3), where it is smaller at the worst axis widened to the deviation (F,) of independent errors: a frame
        that next to nothing is seen of has no residual to tell from."""
        if covariance is None:
            return sigma[:, None, None] ** 2 * np.eye(3)
        worst = np.linalg.eigvalsh(covariance)[:, -1]
        return covariance * np.maximum(1.0, sigma**2 / np.maximum(worst, 1e-30))[:, None, None]

    def expected_path_error(self) -> float:
        """Absolute trajectory error that is to be expected (root mean square over frames, after the best shift and
        turn), over the length of the path; NaN where only independent errors are known."""
        if self.shared is None:
            return float("nan")
        centre = self.camera_to_world[:, :3, 3]
        length = float(np.linalg.norm(np.diff(centre, axis=0), axis=1).sum())
        # A path that is too long by a share is off by that share of what it spreads.
        spread = float(np.sqrt(((centre - centre.mean(0)) ** 2).sum(1).mean()))
        too_long = float(np.hypot(self.focal_doubt_log, self.scale_doubt_log)) * spread
        return float(np.hypot(self.shared.path, too_long)) / max(length, 1e-9)

    def shifted_path_error(self) -> float:
        """What a picture that shifts (`centre_jitter_px`) makes of the path, over its length; NaN if unknown.

        The cameras take a shift for a turn and, where that does not fit at the sides, a step.
        """
        length = float(np.linalg.norm(np.diff(self.camera_to_world[:, :3, 3], axis=0), axis=1).sum())
        # By fy: the picture is measured in square pixels as high as the stored ones.
        turn = self.centre_jitter_px / float(np.median(self.focal_px[:, 1]))
        return _STEP_BY_TURN * turn * self.median_depth / max(length, 1e-9)

    def stated_sigmas(self, scale_sigma_log: float = 0.0) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Standard deviations that the row states, each (F,): position (depth units) and rotation (rad) at their worst
        axes, log focal; as `stated_covariances`."""
        *covariances, log_focal = self.stated_covariances(scale_sigma_log)
        position, rotation = (
            np.linalg.eigvalsh(covariance)[:, -1].clip(0) ** 0.5 for covariance in covariances
        )
        return position, rotation, log_focal**0.5


@dataclass(frozen=True)
class Evidence:
    """Observations behind a solution, so that other cameras can be measured on them.

    Attributes:
        problem: observations of all frames, in the pixels in which they were solved (square ones, and the principal
            point of a known lens at the centre).
        state: cameras and points at the optimum, in the world of `problem`.
        config: of the bundle.
    """

    problem: Problem
    state: State
    config: BundleConfig


@dataclass(frozen=True, kw_only=True)
class StartCameras:
    """Approximate cameras of some frames, for the bundle to begin with.

    Attributes:
        camera_to_world: (F, 4, 4) in the unit of the depth that the bundle is given; NaN rows where none.
        focal_px: (F, 2) fx, fy in pixels of the stored size; NaN rows where none.
        focal_asked_log: where the lens is held and these cameras come from a network: log of the focal length that the
            network sees over the given one; NaN without.
    """

    camera_to_world: FloatArray
    focal_px: FloatArray
    focal_asked_log: float = float("nan")

    def at(self, frames: IntArray) -> tuple[FloatArray, FloatArray]:
        """World-to-camera (n, 4, 4) and focal (n,) of `frames`; between known ones interpolated, beyond them held.

        The focal is a running median over five known ones: that of a single image errs.

        Raises:
            ValueError: fewer than two have a pose, or none a focal.
        """
        known = np.flatnonzero(np.isfinite(self.camera_to_world[:, 0, 0]))
        with_focal = np.flatnonzero(np.isfinite(self.focal_px).all(1))
        if len(known) < 2 or len(with_focal) < 1:
            raise ValueError(
                f"{len(known)} frames have a pose and {len(with_focal)} a focal; at least 2 and 1 are needed"
            )
        inside = np.clip(np.asarray(frames, np.float64), known[0], known[-1])
        poses = interpolate_poses(known.astype(np.float64), self.camera_to_world[known], inside)
        logs = np.log(self.focal_px[with_focal]).mean(1)
        smooth = [np.median(logs[max(0, i - 2) : i + 3]) for i in range(len(logs))]
        return se3_inverse(poses), np.exp(np.interp(frames, with_focal, smooth))

    def stretched(self, pixel_aspect: float) -> StartCameras:
        """The same in square pixels as high as the stored ones."""
        return replace(self, focal_px=self.focal_px * np.array([pixel_aspect, 1.0]))

    def state(self, problem: Problem, keyframes: IntArray) -> tuple[State, NDArray[np.bool_]]:
        """State of the keyframe problem, points back-projected by the known frames, and which keyframes those are."""
        world_to_camera, focal = self.at(keyframes)
        placed = np.isfinite(self.camera_to_world[keyframes, 0, 0])
        state = replace(
            state_at_origin(problem, torch.as_tensor(np.log(focal))),
            rotation=torch.as_tensor(np.ascontiguousarray(world_to_camera[:, :3, :3])),
            translation=torch.as_tensor(np.ascontiguousarray(world_to_camera[:, :3, 3])),
        )
        return replace(state, points=back_project(problem, state, known=torch.as_tensor(placed))), placed


@dataclass(frozen=True, kw_only=True)
class KnownLens:
    """Intrinsics that a source gives.

    Attributes:
        focal_px: (F, 2) fx, fy in pixels of the stored size.
        principal_point_px: (F, 2) cx, cy likewise.
        held: they are the cameras' intrinsics; False: only the focal length is expected, near the given one.
    """

    focal_px: FloatArray
    principal_point_px: FloatArray
    held: bool = True

    @property
    def pixel_aspect(self) -> float:
        """Width over height of a stored pixel, fy / fx.

        Raises:
            ClipRejection: `intrinsics_aspect_varies`: the ratio changes by more than 1 % over the clip.
        """
        ratio = self.focal_px[:, 1] / self.focal_px[:, 0]
        middle = float(np.median(ratio))
        if np.abs(ratio / middle - 1).max() > 0.01:
            raise ClipRejection(
                "intrinsics_aspect_varies",
                f"given fy / fx runs from {ratio.min():.4f} to {ratio.max():.4f}; pixels keep their shape in a clip",
            )
        return middle

    def stretched(self, pixel_aspect: float) -> KnownLens:
        """The same in square pixels as high as the stored ones."""
        stretch = np.array([pixel_aspect, 1.0])
        return replace(
            self, focal_px=self.focal_px * stretch, principal_point_px=self.principal_point_px * stretch
        )


def in_stored_pixels(square: CameraSolution, pixel_aspect: float) -> CameraSolution:
    """A solution found in square pixels as high as the stored ones, in stored pixels."""
    stored = np.array([1 / pixel_aspect, 1.0])
    return replace(
        square, focal_px=square.focal_px * stored, principal_point_px=square.principal_point_px * stored
    )


def with_lens(cameras: CameraSolution, lens: KnownLens | None) -> CameraSolution:
    """The solution with the known intrinsics exactly as they were given."""
    if lens is None:
        return cameras
    none = np.zeros(len(lens.focal_px))
    return replace(
        cameras,
        focal_px=np.array(lens.focal_px, np.float64),
        principal_point_px=np.array(lens.principal_point_px, np.float64),
        log_focal_sigma=none,
        shared=None if cameras.shared is None else replace(cameras.shared, log_focal=none),
    )
