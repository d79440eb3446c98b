"""Bundle adjustment with a focal length per frame: the solver.

Unknowns are, for every frame, a world-to-camera pose and one log focal length; for every track a 3-D point; for the
clip a few shared lens numbers (principal point, pixel aspect, radial term) under priors. Residuals are robust
reprojection errors, robust log-depth errors against the sequence geometry, and a prior on how the focal may change.

Points are eliminated (Schur complement). What remains couples frames that share points: mostly neighbours, so the
camera system is block tridiagonal and its factorisation costs a constant amount per frame. Loop closures and long
tracks fall outside that band; they stay exact, because the system is solved by conjugate gradients with the
factorised band (of the tracks cut to its width, which keeps it positive definite) as preconditioner.

Everything is float64; sparse products are scipy's, the rest is torch on the CPU. Frames: OpenCV axes; units: pixels,
radians, and the length unit of the depth that is given.

Sources: Triggs et al. 2000 (Schur complement, gauge), Agarwal et al. 2010 (preconditioned conjugate gradients),
Meurant 1992 (blocks of the inverse of a block tridiagonal matrix), SANA-WM (arXiv 2605.15178) appendix B.1 for
intrinsics per frame.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import bsr_array
from torch import Tensor

from ..dataset.cameras.rotations import so3_exp
from ..dataset.strict import Strict

FocalModel = Literal["constant", "smooth", "piecewise", "given"]
CAMERA_DOF = 7  # of a frame: turn, move, log focal; an eighth, the log gain of its depth, where that is free
_FOCAL, _GAIN = 6, 7  # columns
EXPECTED_FOCAL_SIGMA = 0.03  # of the logarithm: what the rays of networks err by ...
_EXPECTED_FOCAL_SHARE = 1 / 16  # ... and neighbouring frames err alike: one measurement a second
_GIVEN_FOCAL_SIGMA = 1e-5  # of the logarithm: held, without making the equations singular
_GROWTH = 2.0  # of the damping after a step that did not help, doubled at each further one
_GAIN_ROBUST_SCALE = 3.0  # of the Cauchy loss on changes of the gain, in standard deviations
PriorTerm = tuple[Tensor, Tensor, Tensor]
"""A prior's residuals (M,), whitened and weighted, with the frames (M, k) that each depends on and its derivatives
(M, k)."""
LENS_DOF = 4  # principal point x and y (pixels), log pixel aspect fy / fx, radial k1


class BundleConfig(Strict):
    """Noise levels, priors and limits of the bundle."""

    reprojection_sigma_px: Annotated[float, Field(gt=0)] = 0.6
    """Standard deviation of a flow observation, in pixels of a 640-pixel-long image (scaled to the stored size)."""
    descriptor_sigma_px: Annotated[float, Field(gt=0)] = 0.9
    """The same for descriptor matches."""
    robust_scale: Annotated[float, Field(gt=0)] = 1.0
    """Cauchy scale in standard deviations, for reprojection and depth alike."""
    depth_sigma_log: Annotated[float, Field(gt=0)] | None = None
    """Relative depth error per observation; None takes what the geometry source declares."""
    focal_model: Literal["auto", "constant", "smooth", "piecewise"] = "auto"
    """`auto` chooses by the Bayesian information criterion."""
    focal_floor: Annotated[float, Field(ge=0)] = 0.002
    """A focal whose logarithm varies by less than this (standard deviation) is called constant. What varies by more
    must be worth its freedom by the likelihood."""
    focal_smoothness: Annotated[float, Field(gt=0)] = 0.004
    """Standard deviation of the second difference of log focal per frame (model `smooth`), robust."""
    focal_prior_sigma: Annotated[float, Field(gt=0)] = 0.7
    """Weak prior on log focal around a 60 degree field of view; it decides only where the data say nothing."""
    principal_point_sigma: Annotated[float, Field(ge=0)] = 0.005
    """Prior on the principal point's offset from the centre, in image diagonals; 0 keeps it at the centre."""
    aspect_sigma: Annotated[float, Field(ge=0)] = 0.0
    """Prior on log(fy / fx) around square pixels; 0 ties fy to fx."""
    radial_sigma: Annotated[float, Field(ge=0)] = 0.02
    """Prior on the radial term k1 around a pinhole; 0 switches it off."""
    max_observations: Annotated[int, Field(ge=30)] = 160
    """Flow observations used in a frame between keyframes."""
    max_descriptor_observations: Annotated[int, Field(ge=30)] = 350
    """Descriptor observations used in a keyframe."""
    band_frames: Annotated[int, Field(ge=4, le=256)] = 16
    """Width of the factorised band; longer connections are handled by the conjugate gradients."""
    covariance_band_frames: Annotated[int, Field(ge=4, le=256)] = 31
    """The same for the uncertainty, which sees no connection that is longer."""
    max_iterations: Annotated[int, Field(ge=1, le=200)] = 30


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
        centre_px: (2,) image centre in pixels.
        focal_scale_px: image diagonal, to normalise the lens terms.
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


@dataclass(frozen=True)
class State:
    """Unknowns: rotation (F, 3, 3) and translation (F, 3) world to camera, log_focal (F,) of fx in pixels,
    lens (4,), points (P, 3) in the world, log_gain (F,) of measured over true depth in each frame; None where the
    depth of all frames is in one unit exactly."""

    rotation: Tensor
    translation: Tensor
    log_focal: Tensor
    lens: Tensor
    points: Tensor
    log_gain: Tensor | None = None


@dataclass(frozen=True)
class GainPrior:
    """What is known of the factor by which the depth of a whole frame is wrong: an autoregressive series.

    White factors (a network that judges frame by frame) and slow ones (a sensor that warms up, a unit that drifts) are
    its two ends. Changes are judged robustly: a single wrong frame or a step is paid for once.

    Attributes:
        sigma: standard deviation of the log factor.
        keep: (F-1,) correlation between neighbours, in [0, 1).
    """

    sigma: float
    keep: Tensor

    def terms(self, log_gain: Tensor, robust_scale: float) -> tuple[list[PriorTerm], Tensor]:
        """As `_Priors.focal_terms`, for the column of the gain."""
        index = torch.arange(len(log_gain))
        first = log_gain[:1] / self.sigma
        terms = [(index[:1, None], torch.full_like(first, 1 / self.sigma)[:, None], first)]
        change = self.sigma * (1 - self.keep**2).sqrt()
        r = (log_gain[1:] - self.keep * log_gain[:-1]) / change
        rho, weight = cauchy(r * r, robust_scale)
        root = weight.sqrt()
        c = torch.stack([-root * self.keep / change, root / change], 1)
        terms.append((torch.stack([index[:-1], index[1:]], 1), c, root * r))
        return terms, 0.5 * (first**2).sum() + rho.sum()


@dataclass(frozen=True)
class ExpectedFocal:
    """What something else says of the focal length, within `EXPECTED_FOCAL_SIGMA`.

    Attributes:
        log_focal: (F,) log focal.
        share: independent measurements per frame: rays of a network err alike for about a second; what a source says
            of its lens is one word for all frames.
    """

    log_focal: Tensor
    share: float = _EXPECTED_FOCAL_SHARE

    def at(self, frames: NDArray[np.integer]) -> ExpectedFocal:
        """Of some frames only, each as much worth as if all were there."""
        return replace(self, log_focal=self.log_focal[torch.as_tensor(frames)])


@dataclass(frozen=True)
class FocalPrior:
    """How log focal may change between frames.

    Attributes:
        model: which of the four.
        first_difference_sigma: (F-1,) allowed step between neighbours; inf = free (`smooth`, breaks).
        second_difference_sigma: (F-2,) allowed change of slope; inf = free.
        given: (F,) log focal of every frame where the lens is known (`given`), else None.
        expected: what something else says of it; None: nothing is expected but about 60 degrees.
    """

    model: FocalModel
    first_difference_sigma: Tensor
    second_difference_sigma: Tensor
    given: Tensor | None = None
    expected: ExpectedFocal | None = None


@dataclass(frozen=True)
class Solution:
    """Result of `solve`.

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


def focal_prior(
    model: FocalModel,
    num_frames: int,
    config: BundleConfig,
    *,
    frame_gap: Tensor | None = None,
    breaks: Tensor | None = None,
    given: Tensor | None = None,
) -> FocalPrior:
    """Prior for one focal model.

    Args:
        frame_gap: (F-1,) frames between neighbours (keyframes are further apart than 1); the smoothness is scaled.
        breaks: (B,) frame numbers that start a new piece (`piecewise`).
        given: (F,) log focal, required by the model `given` and by no other.
    Raises:
        ValueError: `given` is there without its model, or missing with it.
    """
    if (model == "given") != (given is not None):
        raise ValueError(
            f"focal model {model!r} {'needs' if given is None else 'takes no'} given focal lengths"
        )
    one = torch.ones(max(0, num_frames - 1), dtype=torch.float64)
    gap = one if frame_gap is None else frame_gap.to(torch.float64)
    infinite = torch.full_like(one, torch.inf)
    none = torch.full((max(0, num_frames - 2),), torch.inf, dtype=torch.float64)
    if given is not None:
        return FocalPrior(model, infinite, none, given.to(torch.float64))
    if model == "smooth":
        curvature = config.focal_smoothness * (0.5 * (gap[1:] + gap[:-1])) ** 1.5
        return FocalPrior(model, infinite, curvature)
    stiff = torch.full_like(one, 1e-5)
    if model == "piecewise" and breaks is not None:
        stiff[breaks.long() - 1] = torch.inf
    return FocalPrior(model, stiff, none)


def project(problem: Problem, state: State) -> tuple[Tensor, Tensor]:
    """Predicted positions (N, 2) in pixels and camera-frame points (N, 3) of all observations."""
    f = problem.frame
    p = (state.rotation[f] @ state.points[problem.point][:, :, None])[:, :, 0] + state.translation[f]
    z = p[:, 2].clamp_min(1e-6)
    n = p[:, :2] / z[:, None]
    focal = state.log_focal[f].exp()
    radial = 1 + state.lens[3] * (n * n).sum(1)
    aspect = state.lens[2].exp()
    u = focal * n[:, 0] * radial + problem.centre_px[0] + state.lens[0]
    v = focal * aspect * n[:, 1] * radial + problem.centre_px[1] + state.lens[1]
    return torch.stack([u, v], 1), p


def _residuals(problem: Problem, state: State) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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


@dataclass
class _Priors:
    """Quadratic priors on the cameras and the lens: dense small pieces added to the normal equations."""

    focal: FocalPrior
    focal_centre: float
    focal_sigma: float
    lens_sigma: Tensor
    robust_scale: float
    gain: GainPrior | None = None

    def terms(self, state: State) -> list[tuple[int, PriorTerm]]:
        """All terms on the cameras, each with the column of the camera that it is about."""
        terms = [(_FOCAL, term) for term in self.focal_terms(state.log_focal)[0]]
        if self.gain is not None and state.log_gain is not None:
            terms += [(_GAIN, term) for term in self.gain.terms(state.log_gain, _GAIN_ROBUST_SCALE)[0]]
        return terms

    def focal_terms(self, log_focal: Tensor) -> tuple[list[PriorTerm], Tensor]:
        """Terms on log focal, and their cost."""
        terms: list[PriorTerm] = []
        num = len(log_focal)
        index = torch.arange(num)
        cost = log_focal.new_zeros(())
        given = self.focal.given
        expected = self.focal.expected
        centre, sigma = self.focal_centre, self.focal_sigma
        # One prior per clip, however many frames: a long clip must not be pulled harder.
        share = 1.0 / max(1, num)
        if given is not None:
            centre, sigma, share = given, _GIVEN_FOCAL_SIGMA, 1.0
        elif expected is not None:
            centre, sigma, share = expected.log_focal, EXPECTED_FOCAL_SIGMA, expected.share
        absolute = (log_focal - centre) / sigma
        terms.append((index[:, None], torch.full_like(absolute, 1 / sigma)[:, None], absolute))
        terms[-1] = (terms[-1][0], terms[-1][1] * share**0.5, terms[-1][2] * share**0.5)
        cost = cost + 0.5 * share * (absolute**2).sum()
        if num > 1:
            sigma = self.focal.first_difference_sigma
            r = (log_focal[1:] - log_focal[:-1]) / sigma
            c = torch.stack([-1 / sigma, 1 / sigma], 1)
            terms.append((torch.stack([index[:-1], index[1:]], 1), c, r))
            cost = cost + 0.5 * (r**2).sum()
        if num > 2:
            sigma = self.focal.second_difference_sigma
            r = (log_focal[2:] - 2 * log_focal[1:-1] + log_focal[:-2]) / sigma
            rho, weight = cauchy(r * r, self.robust_scale)
            root = weight.sqrt()
            c = torch.stack([root / sigma, -2 * root / sigma, root / sigma], 1)
            terms.append((torch.stack([index[:-2], index[1:-1], index[2:]], 1), c, root * r))
            cost = cost + rho.sum()
        return terms, cost


def _cost(problem: Problem, state: State, priors: _Priors, robust_scale: float) -> tuple[Tensor, Tensor]:
    """(total, data part)."""
    r_uv, r_d, behind, _ = _residuals(problem, state)
    rho_uv, _ = cauchy((r_uv * r_uv).sum(1), robust_scale)
    # A point behind the camera costs as much as a gross outlier, so that a step cannot hide errors there.
    rho_uv = torch.where(behind, cauchy(torch.full_like(rho_uv, 1e6), robust_scale)[0], rho_uv)
    rho_d, _ = cauchy(r_d * r_d, robust_scale)
    data = rho_uv.sum() + rho_d.sum()
    if priors.gain is not None and state.log_gain is not None:
        # What a model makes the depth's factors do is part of how well it explains the depth.
        data = data + priors.gain.terms(state.log_gain, _GAIN_ROBUST_SCALE)[1]
    _, focal_cost = priors.focal_terms(state.log_focal)
    free = priors.lens_sigma > 0
    lens_cost = 0.5 * ((state.lens[free] / priors.lens_sigma[free]) ** 2).sum()
    return data + focal_cost + lens_cost, data


@dataclass
class _Linear:
    """Whitened, robustly weighted Jacobians and residuals at one state, and what the solver derives from them."""

    jc: Tensor  # (N, 3, 7), or 8 where the depth of frames has a gain
    jp: Tensor  # (N, 3, 3)
    jg: Tensor  # (N, 3, G)
    r: Tensor  # (N, 3)


def _linearise(
    problem: Problem, state: State, robust_scale: float, free_lens: Tensor
) -> tuple[_Linear, Tensor]:
    r_uv, r_d, behind, p = _residuals(problem, state)
    _, w_uv = cauchy((r_uv * r_uv).sum(1), robust_scale)
    w_uv = torch.where(behind, torch.zeros_like(w_uv), w_uv)
    _, w_d = cauchy(r_d * r_d, robust_scale)
    w_d = torch.where(behind | torch.isinf(problem.sigma_log_depth), torch.zeros_like(w_d), w_d)
    x, y, z = p[:, 0], p[:, 1], p[:, 2].clamp_min(1e-6)
    a, b = x / z, y / z
    focal = state.log_focal[problem.frame].exp()
    fy = focal * state.lens[2].exp()
    k1 = state.lens[3]
    r2 = a * a + b * b
    radial = 1 + k1 * r2
    # d(u, v) / d(a, b) including the radial term
    ua, ub = focal * (radial + 2 * k1 * a * a), focal * 2 * k1 * a * b
    va, vb = fy * 2 * k1 * a * b, fy * (radial + 2 * k1 * b * b)
    iz = 1 / z
    zero = torch.zeros_like(z)
    du = torch.stack([ua * iz, ub * iz, -(ua * a + ub * b) * iz], 1)
    dv = torch.stack([va * iz, vb * iz, -(va * a + vb * b) * iz], 1)
    dd = torch.stack([zero, zero, iz], 1)
    su = (w_uv.sqrt() / problem.sigma_px)[:, None]
    sd = torch.where(torch.isinf(problem.sigma_log_depth), zero, w_d.sqrt() / problem.sigma_log_depth)[
        :, None
    ]
    dp = torch.stack([du * su, dv * su, dd * sd], 1)  # (N, 3, 3) by camera-frame point
    # Left perturbation: d p = -[p]x w + v
    cross = torch.stack([zero, p[:, 2], -p[:, 1], -p[:, 2], zero, p[:, 0], p[:, 1], -p[:, 0], zero], 1)
    jw = dp @ cross.reshape(-1, 3, 3)
    jf = torch.stack([focal * a * radial * su[:, 0], fy * b * radial * su[:, 0], zero], 1)
    columns = [jw, dp, jf[:, :, None]]
    if state.log_gain is not None:
        columns.append(torch.stack([zero, zero, sd[:, 0]], 1)[:, :, None])
    jc = torch.cat(columns, 2)
    jp = dp @ state.rotation[problem.frame]
    s = su[:, 0]
    lens = torch.stack(
        [
            torch.stack([s, zero, zero], 1),
            torch.stack([zero, s, zero], 1),
            torch.stack([zero, fy * b * radial * s, zero], 1),
            torch.stack([focal * a * r2 * s, fy * b * r2 * s, zero], 1),
        ],
        2,
    )
    r = torch.cat([r_uv * w_uv.sqrt()[:, None], (r_d * w_d.sqrt())[:, None]], 1)
    r = torch.where(behind[:, None], torch.zeros_like(r), r)
    return _Linear(jc, jp, lens[:, :, free_lens], r), w_uv


class _Frames:
    """Which observations belong to each frame."""

    def __init__(self, problem: Problem) -> None:
        self.order = torch.argsort(problem.frame, stable=True)
        self.counts = torch.bincount(problem.frame, minlength=problem.num_frames).tolist()

    def products(self, columns: Tensor) -> Tensor:
        """(F, K, K) sums over each frame's observations of `columns` (N, 3, K) transposed times themselves."""
        rows = columns[self.order].reshape(-1, columns.shape[2])
        return torch.stack([part.T @ part for part in rows.split([3 * count for count in self.counts])])


@dataclass
class _Layout:
    """Index structure of a problem, computed once."""

    frames: _Frames
    column: NDArray[np.int32]  # (N,) frame of each observation
    point_start: NDArray[np.int32]  # (P + 1,) observations of point p are those from point_start[p] on
    piece: Tensor  # (N,) number of the band-limited piece of its track
    piece_start: NDArray[np.int32]
    superblock: int  # frames per diagonal block
    num_blocks: int
    exact: bool  # no track was cut: the band is the whole system

    @property
    def num_pieces(self) -> int:
        return len(self.piece_start) - 1


def _starts(group: Tensor, size: int) -> NDArray[np.int32]:
    counts = torch.bincount(group, minlength=size)
    return np.concatenate([[0], torch.cumsum(counts, 0).numpy()]).astype(np.int32)


def _layout(problem: Problem, band_frames: int) -> _Layout:
    n, frames = len(problem.frame), problem.num_frames
    num_blocks = -(-frames // band_frames)
    # One or two blocks hold every pair of frames; more are cut to the band.
    m = -(-frames // num_blocks) if num_blocks <= 2 else band_frames
    new_point = torch.ones(n, dtype=torch.bool)
    new_point[1:] = problem.point[1:] != problem.point[:-1]
    new_piece = new_point.clone()
    if num_blocks > 2:
        here = torch.arange(n)
        first = torch.cummax(torch.where(new_point, here, torch.zeros_like(here)), 0)[0]
        # A piece spans at most `m` frames beyond its first, so that its frames lie in one block or two neighbours.
        place = (problem.frame - problem.frame[first]) // (m + 1)
        new_piece[1:] |= place[1:] != place[:-1]
    piece = torch.cumsum(new_piece.long(), 0) - 1
    return _Layout(
        frames=_Frames(problem),
        column=problem.frame.numpy().astype(np.int32),
        point_start=_starts(problem.point, problem.num_points),
        piece=piece,
        piece_start=_starts(piece, int(piece[-1]) + 1),
        superblock=m,
        num_blocks=num_blocks,
        exact=bool((new_piece == new_point).all()),
    )


def _invert3(h: Tensor) -> Tensor:
    """Inverse of symmetric positive definite (..., 3, 3), in closed form: much faster than LAPACK in batches."""
    a, b, c, d, e, f = h[..., 0, 0], h[..., 0, 1], h[..., 0, 2], h[..., 1, 1], h[..., 1, 2], h[..., 2, 2]
    A, B, C = d * f - e * e, c * e - b * f, b * e - c * d
    det = (a * A + b * B + c * C).clamp_min(1e-300)
    inverse = torch.stack([A, B, C, B, a * f - c * c, b * c - a * e, C, b * c - a * e, a * d - b * b], -1)
    return (inverse / det[..., None]).reshape(*h.shape[:-2], 3, 3)


def _divide_by_root(w: Tensor, h: Tensor, group: Tensor) -> Tensor:
    """(N, 3, 7) of w (N, 3, 7), each multiplied by the inverse Cholesky factor of its group's `h` (G, 3, 3).

    Sums of products of the result are those of `w` with the inverse of `h` between.
    """
    tiny = 1e-150
    l00 = h[:, 0, 0].clamp_min(tiny).sqrt()
    l10, l20 = h[:, 1, 0] / l00, h[:, 2, 0] / l00
    l11 = (h[:, 1, 1] - l10 * l10).clamp_min(tiny).sqrt()
    l21 = (h[:, 2, 1] - l20 * l10) / l11
    l22 = (h[:, 2, 2] - l20 * l20 - l21 * l21).clamp_min(tiny).sqrt()
    l00, l10, l11, l20, l21, l22 = torch.stack([l00, l10, l11, l20, l21, l22])[:, group, None]
    u0 = w[:, 0] / l00
    u1 = (w[:, 1] - l10 * u0) / l11
    return torch.stack([u0, u1, (w[:, 2] - l20 * u0 - l21 * u1) / l22], 1)


def sum_by(index: Tensor, value: Tensor, size: int) -> Tensor:
    """Sums (size, ...) of the rows of `value` (N, ...) that share an `index` (N,)."""
    return value.new_zeros(size, *value.shape[1:]).index_add_(0, index, value)


class _BandFactor:
    """Cholesky factor of a symmetric block tridiagonal matrix, blocks of `size`; solves and inverts blocks."""

    def __init__(self, diagonal: Tensor, upper: Tensor) -> None:
        """`diagonal` (nb, size, size), `upper` (nb, size, size): block k of `upper` couples rows k, columns k+1."""
        self.factor: list[Tensor] = []
        self.coupling: list[Tensor] = []
        block = diagonal[0]
        for k in range(len(diagonal)):
            chol, info = torch.linalg.cholesky_ex(block)
            if int(info) != 0:
                raise FloatingPointError("the damped camera system is not positive definite")
            self.factor.append(chol)
            if k + 1 < len(diagonal):
                g = torch.linalg.solve_triangular(chol, upper[k], upper=False)
                self.coupling.append(g)
                block = diagonal[k + 1] - g.T @ g

    def solve(self, rhs: Tensor) -> Tensor:
        """Solve for (nb * size, columns)."""
        size = self.factor[0].shape[0]
        parts = list(rhs.reshape(len(self.factor), size, -1))
        for k, chol in enumerate(self.factor):
            if k:
                parts[k] = parts[k] - self.coupling[k - 1].T @ parts[k - 1]
            parts[k] = torch.linalg.solve_triangular(chol, parts[k], upper=False)
        for k in range(len(parts) - 1, -1, -1):
            if k + 1 < len(parts):
                parts[k] = parts[k] - self.coupling[k] @ parts[k + 1]
            parts[k] = torch.linalg.solve_triangular(self.factor[k].T, parts[k], upper=True)
        return torch.cat(parts, 0)

    def inverse_diagonal(self) -> Tensor:
        """Diagonal blocks (nb, size, size) of the inverse."""
        blocks: list[Tensor] = []
        following: Tensor | None = None
        for k in range(len(self.factor) - 1, -1, -1):
            inverse = torch.cholesky_inverse(self.factor[k])
            if following is not None:
                t = torch.linalg.solve_triangular(self.factor[k].T, self.coupling[k], upper=True)
                inverse = inverse + t @ following @ t.T
            blocks.append(inverse)
            following = inverse
        return torch.stack(blocks[::-1])


class _Normal:
    """Normal equations of one linearisation, points eliminated."""

    def __init__(
        self,
        problem: Problem,
        layout: _Layout,
        linear: _Linear,
        state: State,
        priors: _Priors,
        free: Tensor,
        *,
        hold_poses: bool = False,
    ) -> None:
        self.problem, self.layout = problem, layout
        frames, points = problem.num_frames, problem.num_points
        jc, jp, jg, r = linear.jc, linear.jp, linear.jg, linear.r
        self.num_lens, self.dof = jg.shape[2], jc.shape[2]
        # Everything that belongs to a frame is in the products of its columns with each other.
        of_frame = layout.frames.products(torch.cat([jc, jg, r[:, :, None]], 2))
        lens = slice(self.dof, self.dof + self.num_lens)
        self.hcc = of_frame[:, : self.dof, : self.dof]
        self.hcg = of_frame[:, : self.dof, lens]
        self.gc = of_frame[:, : self.dof, -1]
        self.hgg = of_frame[:, lens, lens].sum(0)
        self.gg = of_frame[:, lens, -1].sum(0)
        jpt = jp.transpose(1, 2)
        self.of_observation = jpt @ torch.cat([jp, jg, r[:, :, None]], 2)  # (N, 3, 3 + G + 1)
        of_point = sum_by(problem.point, self.of_observation, points)
        self.hpp, self.hpg, self.gp = of_point[:, :, :3], of_point[:, :, 3:-1], of_point[:, :, -1]
        self.wt = jpt @ jc  # (N, 3, D): how each observation couples its point to its frame
        self.coupling = self._sparse(self.wt, layout.point_start)
        self.coupling_t = self.coupling.T
        self.prior_terms = priors.terms(state)
        for column, (index, coefficient, residual) in self.prior_terms:
            finite = torch.nan_to_num(coefficient)
            self.gc[:, column].index_add_(0, index.reshape(-1), (finite * residual[:, None]).reshape(-1))
        sigma = priors.lens_sigma[free]
        self.hgg = self.hgg + torch.diag(1 / sigma**2)
        self.gg = self.gg + state.lens[free] / sigma**2
        # Gauge: the first frame does not move.
        self.fixed = torch.zeros(frames, self.dof, dtype=torch.bool)
        self.fixed[: frames if hold_poses else 1, :6] = True

    def _sparse(self, blocks: Tensor, start: NDArray[np.int32]) -> bsr_array:
        """(3 G, D F) matrix of the blocks (N, 3, D); group g of rows holds the observations from start[g] on."""
        shape = 3 * (len(start) - 1), self.dof * self.problem.num_frames
        return bsr_array((blocks.numpy(), self.layout.column, start), shape=shape, blocksize=(3, self.dof))

    def _to_points(self, c: Tensor) -> Tensor:
        """(P, 3) of camera steps (F, D)."""
        return torch.from_numpy(self.coupling @ c.reshape(-1).numpy()).reshape(-1, 3)

    def _to_cameras(self, z: Tensor) -> Tensor:
        """(F, D) of point steps (P, 3)."""
        return torch.from_numpy(self.coupling_t @ z.reshape(-1).numpy()).reshape(-1, self.dof)

    def _priors_times(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for column, (index, coefficient, _) in self.prior_terms:
            inner = (coefficient * x[index, column]).sum(1)
            out[:, column].index_add_(0, index.reshape(-1), (coefficient * inner[:, None]).reshape(-1))
        return out

    def damp(self, damping: float) -> None:
        """Levenberg-Marquardt damping; then factorises the band and inverts the point blocks."""
        problem, layout = self.problem, self.layout
        frames, m, nb = problem.num_frames, layout.superblock, layout.num_blocks
        diag_c = torch.diagonal(self.hcc, dim1=1, dim2=2)
        scale_c = diag_c.clamp_min(1e-8 * float(diag_c.max().clamp_min(1e-12)))
        self.damp_c = damping * scale_c + 1e-9 * diag_c.amax(0, keepdim=True).clamp_min(1e-9)
        self.damp_c = torch.where(self.fixed, torch.full_like(self.damp_c, 1e14), self.damp_c)
        diag_p = torch.diagonal(self.hpp, dim1=1, dim2=2)
        self.damp_p = damping * diag_p + 1e-9 * diag_p.amax(1, keepdim=True).clamp_min(1e-9)
        self.hpp_inv = _invert3(self.hpp + torch.diag_embed(self.damp_p))
        # Band: tracks cut into pieces, each piece with its own point block. Pieces share the damping.
        if layout.exact:
            hpp, pg, damp = self.hpp, self.hpg, self.damp_p
        else:
            of_piece = sum_by(layout.piece, self.of_observation, layout.num_pieces)
            hpp, pg = of_piece[:, :, :3], of_piece[:, :, 3:-1]
            damp = self.damp_p[problem.point[layout.piece_start[:-1]]]
        hpp = hpp + torch.diag_embed(damp)
        root = self._sparse(_divide_by_root(self.wt, hpp, layout.piece), layout.piece_start)
        removed = root.T @ root
        diagonal = self.hcc.new_zeros(nb, m, self.dof, m, self.dof)
        upper = torch.zeros_like(diagonal)
        row = torch.arange(frames).repeat_interleave(torch.from_numpy(np.diff(removed.indptr)).long())
        column = torch.from_numpy(removed.indices).long()
        block = row // m
        for into, apart in ((diagonal, 0), (upper, 1)):
            of = column // m - block == apart
            i, j = row[of] % m, column[of] % m
            into[block[of], i, :, j, :] = -torch.from_numpy(removed.data)[of]
        frame = torch.arange(frames)
        diagonal[frame // m, frame % m, :, frame % m, :] += self.hcc + torch.diag_embed(self.damp_c)
        for number, (index, coefficient, _) in self.prior_terms:
            at = torch.tensor(number)
            for a, b in itertools.product(range(index.shape[1]), repeat=2):
                fa, fb = index[:, a], index[:, b]
                for into, apart in ((diagonal, 0), (upper, 1)):
                    of = fb // m - fa // m == apart
                    where = (fa[of] // m, fa[of] % m, at, fb[of] % m, at)
                    into.index_put_(where, (coefficient[:, a] * coefficient[:, b])[of], accumulate=True)
        diagonal = diagonal.reshape(nb, m * self.dof, m * self.dof)
        upper = upper.reshape(nb, m * self.dof, m * self.dof)
        missing = nb * m - frames
        if missing:
            last = torch.arange((m - missing) * self.dof, m * self.dof)
            diagonal[-1, last, last] = 1.0
        self.padded = nb * m * self.dof
        self.band = _BandFactor(diagonal, upper)
        if self.num_lens:
            along = _invert3(hpp) @ pg
            cut = self._sparse(self.wt, layout.piece_start)
            spread = torch.from_numpy(cut.T @ along.reshape(-1, self.num_lens).numpy())
            hcg = self.hcg - spread.reshape(frames, self.dof, self.num_lens)
            hcg = torch.where(self.fixed[:, :, None], torch.zeros_like(hcg), hcg)
            self.border = self._pad(hcg.reshape(frames * self.dof, -1))
            self.border_solved = self.band.solve(self.border)
            hgg = self.hgg - (pg.transpose(1, 2) @ along).sum(0)
            self.border_schur = torch.linalg.inv(
                hgg - self.border.T @ self.border_solved + 1e-12 * torch.diag(torch.diagonal(self.hgg))
            )

    def _pad(self, x: Tensor) -> Tensor:
        if x.shape[0] == self.padded:
            return x
        return torch.cat([x, x.new_zeros(self.padded - x.shape[0], x.shape[1])], 0)

    def precondition(self, c: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Solve the band system for right-hand sides c (F, D), g (G,)."""
        frames = self.problem.num_frames
        y = self.band.solve(self._pad(c.reshape(-1, 1)))
        if len(g):
            g = self.border_schur @ (g - (self.border.T @ y)[:, 0])
            y = y - self.border_solved @ g[:, None]
        return y[: frames * self.dof, 0].reshape(frames, self.dof), g

    def times(self, c: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Damped Schur complement times (c, g), without forming it."""
        z = (self.hpp_inv @ (self._to_points(c) + self.hpg @ g)[:, :, None])[:, :, 0]
        out_c = (self.hcc @ c[:, :, None])[:, :, 0] + self.damp_c * c - self._to_cameras(z) + self.hcg @ g
        out_c += self._priors_times(c)
        out_g = self.hgg @ g + torch.einsum("fig,fi->g", self.hcg, c) - torch.einsum("pig,pi->g", self.hpg, z)
        return torch.where(self.fixed, self.damp_c * c, out_c), out_g

    def step(self, tolerance: float, max_iterations: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """Gauss-Newton step (camera (F, D), lens (G,), points (P, 3)) and the conjugate-gradient iterations used."""
        zp = (self.hpp_inv @ self.gp[:, :, None])[:, :, 0]
        bc = self._to_cameras(zp) - self.gc
        bc = torch.where(self.fixed, torch.zeros_like(bc), bc)
        bg = torch.einsum("pig,pi->g", self.hpg, zp) - self.gg
        xc, xg = self.precondition(bc, bg)
        used = 0
        if not self.layout.exact:
            ac, ag = self.times(xc, xg)
            rc, rg = bc - ac, bg - ag
            zc, zg = self.precondition(rc, rg)
            dc, dg = zc, zg
            rho = (rc * zc).sum() + (rg * zg).sum()
            b2c, b2g = self.precondition(bc, bg)
            start = (bc * b2c).sum() + (bg * b2g).sum()
            while used < max_iterations:
                used += 1
                if float(rho) <= tolerance**2 * float(start):
                    break
                ac, ag = self.times(dc, dg)
                alpha = rho / ((dc * ac).sum() + (dg * ag).sum())
                xc, xg = xc + alpha * dc, xg + alpha * dg
                rc, rg = rc - alpha * ac, rg - alpha * ag
                zc, zg = self.precondition(rc, rg)
                rho_next = (rc * zc).sum() + (rg * zg).sum()
                dc, dg = zc + rho_next / rho * dc, zg + rho_next / rho * dg
                rho = rho_next
        back = self._to_points(xc) + self.hpg @ xg
        xp = -(self.hpp_inv @ (self.gp + back)[:, :, None])[:, :, 0]
        return xc, xg, xp, used

    def covariance(self) -> Tensor:
        """(F, D, D) marginal covariance of the cameras from the band (lens held fixed)."""
        m, frames = self.layout.superblock, self.problem.num_frames
        blocks = self.band.inverse_diagonal().reshape(-1, m, self.dof, m, self.dof)
        i = torch.arange(m)
        return blocks[:, i, :, i, :].permute(1, 0, 2, 3).reshape(-1, self.dof, self.dof)[:frames]


def _apply(state: State, camera: Tensor, lens: Tensor, points: Tensor, free: Tensor) -> State:
    delta = so3_exp(camera[:, :3])
    new_lens = state.lens.clone()
    new_lens[free] += lens
    return State(
        rotation=delta @ state.rotation,
        translation=(delta @ state.translation[:, :, None])[:, :, 0] + camera[:, 3:6],
        log_focal=state.log_focal + camera[:, 6],
        lens=new_lens,
        points=state.points + points,
        log_gain=None if state.log_gain is None else state.log_gain + camera[:, _GAIN],
    )


def _orthonormal(state: State) -> State:
    u, _, vt = torch.linalg.svd(state.rotation)
    return replace(state, rotation=u @ vt)


def solve(
    problem: Problem,
    state: State,
    prior: FocalPrior,
    config: BundleConfig,
    *,
    max_iterations: int | None = None,
    tolerance: float = 1e-5,
    want_covariance: bool = False,
    band_frames: int | None = None,
    hopeless_above: float | None = None,
    gain: GainPrior | None = None,
    hold_poses: bool = False,
) -> Solution:
    """Minimise the robust cost from `state` by Levenberg-Marquardt.

    Args:
        problem: observations; must be sorted by point, then frame.
        state: start.
        prior: how the focal may change.
        max_iterations, tolerance: steps at most; stop when a step lowers the cost by less than this fraction.
        want_covariance: also return per-frame covariance, scaled by the robust residual variance.
        band_frames: overrides the configured band width.
        hopeless_above: give up, not converged, once the data cost is so far above this that five more steps as large
            as the last one would not bring it down there.
        gain: frees the gain of each frame's depth under this prior; None: all depth is in one unit.
        hold_poses: rotations and translations stay; only focal lengths, lens and points are free.
    Raises:
        ValueError: if the problem has no observation or is not sorted, or the state has gains without a prior.
        FloatingPointError: if the cost is not finite at the start.
    """
    if len(problem.frame) == 0:
        raise ValueError("bundle: no observations")
    key = problem.point * problem.num_frames + problem.frame
    if bool((key[1:] <= key[:-1]).any()):
        raise ValueError("bundle: observations must be sorted by point, then frame, each pair once")
    if gain is None and state.log_gain is not None:
        raise ValueError("bundle: the state has gains of the depth, but no prior says what they may be")
    diagonal = problem.focal_scale_px
    pp = config.principal_point_sigma * diagonal
    lens_sigma = torch.tensor([pp, pp, config.aspect_sigma, config.radial_sigma], dtype=torch.float64)
    free = lens_sigma > 0
    width = 2 * float(problem.centre_px[0])
    priors = _Priors(
        focal=prior,
        # 60 degrees across the longer side
        focal_centre=float(torch.tensor(max(width, 2 * float(problem.centre_px[1])) / (2 * 0.57735)).log()),
        focal_sigma=config.focal_prior_sigma,
        lens_sigma=lens_sigma,
        robust_scale=config.robust_scale,
        gain=gain,
    )
    if gain is not None and state.log_gain is None:
        state = replace(state, log_gain=torch.zeros_like(state.log_focal))
    layout = _layout(problem, band_frames or config.band_frames)
    cost, data = _cost(problem, state, priors, config.robust_scale)
    if not bool(torch.isfinite(cost)):
        raise FloatingPointError("bundle: the cost is not finite at the start")

    def lengthen(
        state: State, step: tuple[Tensor, Tensor, Tensor], found: tuple[State, Tensor, Tensor]
    ) -> tuple[State, Tensor, Tensor]:
        # Reweighted least squares steps too short along every direction in which outliers lose weight as the state
        # improves. Looking further along the step costs a hundredth of the next linearisation.
        for factor in (1.5, 2.0, 3.0, 4.0):
            camera, lens, points = (factor * part for part in step)
            further = _apply(state, camera, lens, points, free)
            further_cost, further_data = _cost(problem, further, priors, config.robust_scale)
            if not bool(further_cost < found[1]):
                break
            found = further, further_cost, further_data
        return found

    damping, growth = 1e-4, _GROWTH
    converged = False
    iteration = 0
    limit = max_iterations or config.max_iterations
    lost = False
    while iteration < limit and not converged and not lost:
        linear, _ = _linearise(problem, state, config.robust_scale, free)
        normal = _Normal(problem, layout, linear, state, priors, free, hold_poses=hold_poses)
        accepted = False
        while not accepted and iteration < limit:
            iteration += 1
            try:
                normal.damp(damping)
                camera, lens, points, _ = normal.step(0.1, 80)
            except FloatingPointError:
                damping *= growth * 10
                if damping > 1e8:
                    raise
                continue
            trial = _apply(state, camera, lens, points, free)
            new_cost, new_data = _cost(problem, trial, priors, config.robust_scale)
            if bool(new_cost < cost):
                trial, new_cost, new_data = lengthen(
                    state, (camera, lens, points), (trial, new_cost, new_data)
                )
                converged = float(cost - new_cost) < tolerance * float(cost)
                lost = hopeless_above is not None and float(new_data - 5 * (data - new_data)) > hopeless_above
                state, cost, data = trial, new_cost, new_data
                # A damping that was only just found to be enough is not given up at once.
                damping = max(damping / 5, 1e-9) if growth == _GROWTH else damping
                growth, accepted = _GROWTH, True
            else:
                if float(camera.abs().max()) < 1e-9 or damping > 1e6:
                    converged = True
                    break
                damping *= growth
                growth *= 2
        state = _orthonormal(state)
    residual_px, residual_log_depth, weight = residuals(problem, state, config)
    covariance = None
    if want_covariance:
        band = band_frames or config.band_frames
        covariance = _covariance(problem, state, priors, free, config, band, hold_poses=hold_poses)
    return Solution(
        state=state,
        cost=float(cost),
        data_cost=float(data),
        iterations=iteration,
        converged=converged,
        residual_px=residual_px,
        residual_log_depth=residual_log_depth,
        weight=weight,
        covariance=covariance,
    )


def residuals(problem: Problem, state: State, config: BundleConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Of each observation (N,): reprojection error in pixels, log depth error (0 where there is none), and robust
    weight of the reprojection in [0, 1]."""
    r_uv, r_d, behind, _ = _residuals(problem, state)
    _, weight = cauchy((r_uv * r_uv).sum(1), config.robust_scale)
    log_depth = torch.where(
        torch.isinf(problem.sigma_log_depth),
        torch.zeros_like(r_d),
        r_d * problem.sigma_log_depth.nan_to_num(0, 0),
    )
    px = (r_uv * problem.sigma_px[:, None]).norm(dim=1)
    return px, log_depth, torch.where(behind, torch.zeros_like(weight), weight)


def _covariance(
    problem: Problem,
    state: State,
    priors: _Priors,
    free: Tensor,
    config: BundleConfig,
    band_frames: int,
    *,
    hold_poses: bool = False,
) -> Tensor:
    """(F, D, D) marginal covariance of the cameras at an optimum, scaled by the robust residual variance."""
    linear, _ = _linearise(problem, state, config.robust_scale, free)
    wide = _layout(problem, max(config.covariance_band_frames, band_frames))
    normal = _Normal(problem, wide, linear, state, priors, free, hold_poses=hold_poses)
    damping = 1e-10
    while True:
        try:
            normal.damp(damping)
            break
        except FloatingPointError:
            # Directions that nothing determines: the least damping that factorises bounds their variance.
            damping *= 10
            if damping > 1e-2:
                raise
    r_uv = _residuals(problem, state)[0]
    # Median of a squared 2-D Gaussian norm is 1.386 times its variance per axis.
    variance = float((r_uv * r_uv).sum(1).median()) / 1.386
    # Unknowns soak up part of the noise.
    equations = 2 * len(problem.frame) + int(torch.isfinite(problem.sigma_log_depth).sum())
    unknowns = linear.jc.shape[2] * problem.num_frames + 3 * problem.num_points
    variance *= equations / max(equations - unknowns, 0.1 * equations)
    return normal.covariance() * max(variance, 1e-6)


def resect(
    problem: Problem,
    state: State,
    config: BundleConfig,
    *,
    free_frames: Tensor,
    focal_guess: Tensor,
    focal_sigma: float,
    gain_sigma: float | None = None,
    iterations: int = 12,
) -> tuple[State, Tensor]:
    """Pose and focal of single frames against fixed points, all frames at once.

    Args:
        free_frames: (F,) bool, which frames move.
        focal_guess: (F,) log focal that each frame is drawn to with `focal_sigma`.
        gain_sigma: how far the log gain of a frame's depth may lie from that of `state`; None: not at all.
    Returns:
        New state, and the number of inliers (robust weight above 0.3) per frame (F,).
    """
    frames = problem.num_frames
    lens_free = torch.zeros(LENS_DOF, dtype=torch.bool)
    # (column, log value that it is drawn to, standard deviation)
    drawn = [(_FOCAL, focal_guess, focal_sigma)]
    held = state.log_gain if gain_sigma is None else None
    if gain_sigma is not None:
        guess = torch.zeros_like(focal_guess) if state.log_gain is None else state.log_gain
        drawn.append((_GAIN, guess, gain_sigma))
        state = replace(state, log_gain=guess)
    elif held is not None:
        problem = replace(problem, log_depth=problem.log_depth - held[problem.frame])
        state = replace(state, log_gain=None)

    def value(s: State, column: int) -> Tensor:
        found = s.log_focal if column == _FOCAL else s.log_gain
        assert found is not None
        return found

    def frame_cost(s: State) -> Tensor:
        r_uv, r_d, behind, _ = _residuals(problem, s)
        rho, _ = cauchy((r_uv * r_uv).sum(1), config.robust_scale)
        rho = torch.where(behind, cauchy(torch.full_like(rho, 1e6), config.robust_scale)[0], rho)
        rho_d, _ = cauchy(r_d * r_d, config.robust_scale)
        prior = sum(0.5 * ((value(s, column) - centre) / sigma) ** 2 for column, centre, sigma in drawn)
        return sum_by(problem.frame, rho + rho_d, frames) + prior

    cost = frame_cost(state)
    damping = torch.full((frames,), 1e-3, dtype=torch.float64)
    members = _Frames(problem)
    no_points = torch.zeros_like(state.points)
    none = state.lens.new_zeros(0)
    for _ in range(iterations):
        linear, _ = _linearise(problem, state, config.robust_scale, lens_free)
        of_frame = members.products(torch.cat([linear.jc, linear.r[:, :, None]], 2))
        h, g = of_frame[:, :-1, :-1], of_frame[:, :-1, -1]
        for column, centre, sigma in drawn:
            h[:, column, column] += 1 / sigma**2
            g[:, column] += (value(state, column) - centre) / sigma**2
        diag = torch.diagonal(h, dim1=1, dim2=2)
        h = h + torch.diag_embed(damping[:, None] * diag + 1e-9 * diag.amax(1, keepdim=True) + 1e-12)
        step, info = torch.linalg.solve_ex(h, -g)
        step = torch.where((free_frames & (info == 0))[:, None], step, torch.zeros_like(step))
        trial = _apply(state, step, none, no_points, lens_free)
        new_cost = frame_cost(trial)
        better = new_cost < cost
        state = State(
            rotation=torch.where(better[:, None, None], trial.rotation, state.rotation),
            translation=torch.where(better[:, None], trial.translation, state.translation),
            log_focal=torch.where(better, trial.log_focal, state.log_focal),
            lens=state.lens,
            points=state.points,
            log_gain=None if gain_sigma is None else torch.where(better, trial.log_gain, state.log_gain),  # type: ignore[arg-type]
        )
        cost = torch.where(better, new_cost, cost)
        damping = torch.where(better, damping / 4, damping * 4).clamp(1e-9, 1e6)
    r_uv, _, behind, _ = _residuals(problem, state)
    _, weight = cauchy((r_uv * r_uv).sum(1), config.robust_scale)
    inlier = (weight > 0.3) & ~behind
    if held is not None:
        state = replace(state, log_gain=held)
    return _orthonormal(state), sum_by(problem.frame, inlier.double(), frames)


def intersect(problem: Problem, state: State, config: BundleConfig, *, iterations: int = 8) -> State:
    """Points against fixed cameras, each on its own: the counterpart of `resect`."""
    num = problem.num_points

    def point_cost(s: State) -> Tensor:
        r_uv, r_d, behind, _ = _residuals(problem, s)
        rho, _ = cauchy((r_uv * r_uv).sum(1), config.robust_scale)
        rho = torch.where(behind, cauchy(torch.full_like(rho, 1e6), config.robust_scale)[0], rho)
        rho_d, _ = cauchy(r_d * r_d, config.robust_scale)
        return sum_by(problem.point, rho + rho_d, num)

    lens_free = torch.zeros(LENS_DOF, dtype=torch.bool)
    cost = point_cost(state)
    damping = torch.full((num,), 1e-3, dtype=torch.float64)
    for _ in range(iterations):
        linear, _ = _linearise(problem, state, config.robust_scale, lens_free)
        jpt = linear.jp.transpose(1, 2)
        of_point = sum_by(problem.point, jpt @ torch.cat([linear.jp, linear.r[:, :, None]], 2), num)
        h, g = of_point[:, :, :3], of_point[:, :, 3:]
        diag = torch.diagonal(h, dim1=1, dim2=2)
        h = h + torch.diag_embed(damping[:, None] * diag + 1e-9 * diag.amax(1, keepdim=True) + 1e-12)
        trial = replace(state, points=state.points - (_invert3(h) @ g)[:, :, 0])
        new_cost = point_cost(trial)
        better = new_cost < cost
        state = replace(state, points=torch.where(better[:, None], trial.points, state.points))
        cost = torch.where(better, new_cost, cost)
        damping = torch.where(better, damping / 4, damping * 4).clamp(1e-9, 1e6)
    return state
