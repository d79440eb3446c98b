"""What the bundle minimises: observations, unknowns, and the residuals between the two."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ....dataset.arrays import FloatArray
from ....dataset.cameras.rotations import so3_exp
from ..config import BundleConfig
from .lens import NEAR_PINHOLE, Lens, bending, straightened

CAMERA_DOF = 7  # of a frame: turn, move, log focal; an eighth, the log gain of its depth, where that is free
FOCAL_COLUMN, GAIN_COLUMN = 6, 7  # columns


@dataclass(frozen=True)
class Problem:
    """Observations, sorted by point then frame.

    Attributes:
        frame, point: (N,) int64.
        uv_px: (N, 2) observed position, pixel centres at +0.5.
        sigma_px: (N,) standard deviation of each position.
        log_depth: (N,) log z-depth in geometry units; any value where `sigma_log_depth` is infinite.
        sigma_log_depth: (N,) relative error; inf = no depth.
        num_frames, num_points: sizes.
        centre_px: (2,) image centre in pixels; of each observation (2, N) where clips are stacked.
        focal_scale_px: image diagonal, to normalise the lens terms.
        clip: (N,) int64 number of the clip of each observation where clips are stacked; None: one clip.
        lens: how the lens bends, and with which terms cameras are begun.
    """

    frame: Tensor
    point: Tensor
    uv_px: Tensor
    sigma_px: Tensor
    log_depth: Tensor
    sigma_log_depth: Tensor
    num_frames: int
    num_points: int
    centre_px: Tensor
    focal_scale_px: float
    clip: Tensor | None = None
    lens: Lens = NEAR_PINHOLE


@dataclass(frozen=True)
class State:
    """Unknowns.

    Attributes:
        rotation, translation: (F, 3, 3) and (F, 3) world to camera.
        log_focal: (F,) of fx in pixels.
        lens: (5,), or (B, 5) of stacked clips: see `Lens.terms`.
        points: (P, 3) in the world.
        log_gain: (F,) of measured over true depth in each frame; None where the depth of all frames is in one unit
            exactly.
    """

    rotation: Tensor
    translation: Tensor
    log_focal: Tensor
    lens: Tensor
    points: Tensor
    log_gain: Tensor | None = None

    @property
    def camera_dof(self) -> int:
        """Free numbers of a frame."""
        return CAMERA_DOF if self.log_gain is None else CAMERA_DOF + 1


@dataclass(frozen=True)
class Solution:
    """Result of `solve_bundle`.

    Attributes:
        state: the unknowns at the optimum.
        cost: robust negative log likelihood including priors.
        data_cost: its reprojection and depth part.
        iterations: accepted and rejected steps.
        converged: the last relative decrease fell below tolerance.
        residual_px: (N,) reprojection error of each observation.
        residual_log_depth: (N,) log depth error; 0 where none.
        weight: (N,) robust weight of the reprojection in [0, 1].
        covariance: (F, D, D) of (rotation vector rad, translation, log focal and, where it is free, log gain) of
            world_to_camera, perturbed from the left, gauge fixed at the first frame; None unless asked for.
    """

    state: State
    cost: float
    data_cost: float
    iterations: int
    converged: bool
    residual_px: Tensor
    residual_log_depth: Tensor
    weight: Tensor
    covariance: Tensor | None = None


def lens_of(problem: Problem, state: State) -> Tensor:
    """(5,) lens of a clip, or (5, N) of each observation where clips are stacked."""
    return state.lens if problem.clip is None else state.lens[problem.clip].T


def project(problem: Problem, state: State) -> tuple[Tensor, Tensor]:
    """Predicted positions (N, 2) in pixels and camera-frame points (N, 3) of all observations."""
    f = problem.frame
    p = (state.rotation[f] @ state.points[problem.point][:, :, None])[:, :, 0] + state.translation[f]
    z = p[:, 2].clamp_min(1e-6)
    n = p[:, :2] / z[:, None]
    focal, lens = state.log_focal[f].exp(), lens_of(problem, state)
    radial = bending(problem.lens.model, (n * n).sum(1), lens[3], lens[4])[0]
    aspect = lens[2].exp()
    u = focal * n[:, 0] * radial + problem.centre_px[0] + lens[0]
    v = focal * aspect * n[:, 1] * radial + problem.centre_px[1] + lens[1]
    return torch.stack([u, v], 1), p


def seen_rays(problem: Problem, state: State) -> Tensor:
    """(N, 2) = (X/Z, Y/Z) of the ray of each observation, in its camera. A lens near a pinhole counts as one."""
    lens, focal = state.lens, state.log_focal[problem.frame].exp()
    n = (problem.uv_px - problem.centre_px - lens[:2]) / focal[:, None]
    if problem.lens.model == "near_pinhole":
        return n
    n = n / torch.stack([torch.ones_like(lens[2]), lens[2].exp()])
    return straightened(problem.lens.model, n, lens[3], lens[4])


def straight(problem: Problem, log_focal: FloatArray | float) -> Problem:
    """The observations as a pinhole would have shown them, with the lens that the problem begins with.

    Args:
        log_focal: of all frames, or (F,) of each.
    """
    if problem.lens.is_pinhole:
        return problem
    focal = torch.as_tensor(np.broadcast_to(log_focal, problem.num_frames).copy())
    state = replace(state_at_origin(problem, focal), points=problem.uv_px[:0])
    pinhole = seen_rays(problem, state) * focal.exp()[problem.frame][:, None] + problem.centre_px
    return replace(problem, uv_px=pinhole, lens=NEAR_PINHOLE)


def whitened_residuals(problem: Problem, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Whitened residuals: uv (N, 2), depth (N,); behind-camera flag (N,); camera points (N, 3)."""
    uv, p = project(problem, state)
    r_uv = (uv - problem.uv_px) / problem.sigma_px[:, None]
    behind = p[:, 2] <= 1e-6
    log_depth = p[:, 2].clamp_min(1e-6).log()
    if state.log_gain is not None:
        log_depth = log_depth + state.log_gain[problem.frame]
    r_d = (log_depth - problem.log_depth) / problem.sigma_log_depth
    return r_uv, torch.where(torch.isinf(problem.sigma_log_depth), torch.zeros_like(r_d), r_d), behind, p


def cauchy(squared: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Cauchy cost and weight, both (N,), of squared whitened residuals (N,); `scale` in standard deviations."""
    c2 = scale * scale
    return 0.5 * c2 * torch.log1p(squared / c2), 1 / (1 + squared / c2)


def sum_by(index: Tensor, value: Tensor, size: int) -> Tensor:
    """Sums (size, ...) of the rows of `value` (N, ...) that share an `index` (N,)."""
    return value.new_zeros(size, *value.shape[1:]).index_add_(0, index, value)


def moved_by(state: State, camera: Tensor, lens: Tensor, points: Tensor, free: Tensor) -> State:
    delta = so3_exp(camera[:, :3])
    new_lens = state.lens.clone()
    new_lens[..., free] += lens
    return State(
        rotation=delta @ state.rotation,
        translation=(delta @ state.translation[:, :, None])[:, :, 0] + camera[:, 3:6],
        log_focal=state.log_focal + camera[:, 6],
        lens=new_lens,
        points=state.points + points,
        log_gain=None if state.log_gain is None else state.log_gain + camera[:, GAIN_COLUMN],
    )


def with_true_rotations(state: State) -> State:
    u, _, vt = torch.linalg.svd(state.rotation)
    return replace(state, rotation=u @ vt)


def residuals(problem: Problem, state: State, config: BundleConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Of each observation (N,): reprojection error in pixels, log depth error (0 where there is none), and robust
    weight of the reprojection in [0, 1]."""
    r_uv, r_d, behind, _ = whitened_residuals(problem, state)
    _, weight = cauchy((r_uv * r_uv).sum(1), config.robust_scale)
    log_depth = torch.where(
        torch.isinf(problem.sigma_log_depth),
        torch.zeros_like(r_d),
        r_d * problem.sigma_log_depth.nan_to_num(0, 0),
    )
    px = (r_uv * problem.sigma_px[:, None]).norm(dim=1)
    return px, log_depth, torch.where(behind, torch.zeros_like(weight), weight)


def state_at_origin(problem: Problem, log_focal: Tensor) -> State:
    frames = problem.num_frames
    return State(
        rotation=torch.eye(3, dtype=torch.float64).repeat(frames, 1, 1),
        translation=torch.zeros(frames, 3, dtype=torch.float64),
        log_focal=log_focal,
        lens=problem.lens.start().clone(),
        points=torch.zeros(problem.num_points, 3, dtype=torch.float64),
    )
