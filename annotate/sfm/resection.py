"""The camera of one frame from known points."""

from __future__ import annotations

# OpenCV types every image as MatLike and leaves functions out of its stubs.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...dataset.arrays import FloatArray, IntArray
from .bundle.lens import LENS_DOF
from .bundle.pace import Effort
from .bundle.problem import Problem, State
from .bundle.single import resect
from .config import BundleConfig


def absolute_pose(
    xyz: FloatArray, uv: FloatArray, focal: float, centre: FloatArray, threshold_px: float
) -> tuple[FloatArray, FloatArray, IntArray] | None:
    """Robust perspective-n-point (RANSAC over SQPnP, Terzakis and Lourakis 2020).

    Args:
        xyz: (n, 3) world points; uv: (n, 2) where they were seen, pixels.
        focal: pixels; centre: (2,) principal point.
    Returns:
        Rotation (3, 3) and translation (3,) world to camera, and (m,) inlier numbers; None if it fails.
    """
    if len(xyz) < 6:
        return None
    camera = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1.0]])
    try:
        ok, rvec, tvec, inliers = cv2.solvePnPRansac(
            xyz,
            uv,
            camera,
            None,
            iterationsCount=200,
            reprojectionError=threshold_px,
            confidence=0.999,
            flags=cv2.SOLVEPNP_SQPNP,
        )
    except cv2.error:
        return None
    if not ok or inliers is None or len(inliers) < 6:
        return None
    return cv2.Rodrigues(rvec)[0], tvec[:, 0], inliers[:, 0]


def inlier_mask(
    xyz: FloatArray,
    uv: FloatArray,
    pose: tuple[FloatArray, FloatArray, IntArray],
    focal: float,
    centre: FloatArray,
    threshold_px: float,
) -> NDArray[np.bool_]:
    """(n,) bool: world points `xyz` (n, 3) that project within `threshold_px` of where they were seen, `uv` (n, 2)."""
    local = xyz @ pose[0].T + pose[1]
    ahead = np.maximum(local[:, 2], 1e-6)
    error = np.linalg.norm(local[:, :2] / ahead[:, None] * focal + centre - uv, axis=1)
    return (local[:, 2] > 0) & (error < threshold_px)


@dataclass(frozen=True, kw_only=True)
class SeenPoints:
    """Known points in one frame.

    Attributes:
        xyz: (n, 3) in the world.
        uv_px: (n, 2) where they were seen.
        depth: (n,) z-depth in the points' unit, NaN where none.
    """

    xyz: FloatArray
    uv_px: FloatArray
    depth: FloatArray


@dataclass(frozen=True, kw_only=True)
class FrameCamera:
    """One camera: rotation (3, 3) and translation (3,) world to camera, focal length in pixels."""

    rotation: FloatArray
    translation: FloatArray
    focal_px: float


def refine_single(
    seen: SeenPoints,
    camera: FrameCamera,
    problem: Problem,
    config: BundleConfig,
    *,
    focal_step_sigma: float,
    gain_sigma: float | None = None,
) -> tuple[FrameCamera, int]:
    """Pose and focal of one frame against fixed points; the tiny case of `bundle.resect`.

    Args:
        seen: the points.
        camera: where to begin.
        problem: whose standard deviations and image centre hold for this frame too.
        focal_step_sigma: how far log focal may move.
        gain_sigma: by how much the depth of a whole frame is wrong; None: not at all.
    Returns:
        The camera, and the number of inliers.
    """
    n, has = len(seen.xyz), np.isfinite(seen.depth)
    single = Problem(
        frame=torch.zeros(n, dtype=torch.long),
        point=torch.arange(n),
        uv_px=torch.as_tensor(seen.uv_px),
        sigma_px=torch.full((n,), float(problem.sigma_px.median()), dtype=torch.float64),
        log_depth=torch.as_tensor(np.log(np.where(has, seen.depth, 1.0))),
        sigma_log_depth=torch.as_tensor(np.where(has, _finite_median(problem.sigma_log_depth), np.inf)),
        num_frames=1,
        num_points=n,
        centre_px=problem.centre_px,
        focal_scale_px=problem.focal_scale_px,
    )
    state = State(
        rotation=torch.as_tensor(camera.rotation)[None],
        translation=torch.as_tensor(camera.translation)[None],
        log_focal=torch.tensor([np.log(camera.focal_px)], dtype=torch.float64),
        lens=torch.zeros(LENS_DOF, dtype=torch.float64),
        points=torch.as_tensor(seen.xyz),
    )
    state, inliers = resect(
        single,
        state,
        config,
        free_frames=torch.ones(1, dtype=torch.bool),
        focal_guess=state.log_focal.clone(),
        focal_sigma=focal_step_sigma,
        effort=Effort(max_iterations=8, tolerance=0.0),
        gain_sigma=gain_sigma,
    )
    found = FrameCamera(
        rotation=state.rotation[0].cpu().numpy(),
        translation=state.translation[0].cpu().numpy(),
        focal_px=float(state.log_focal[0].exp()),
    )
    return found, int(inliers[0])


def _finite_median(x: Tensor) -> float:
    finite = x[torch.isfinite(x)]
    return float(finite.median()) if len(finite) else float("inf")
