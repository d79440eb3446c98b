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
intrinsics per frame."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..config import BundleConfig
from .normal import Normal, layout_of, linearise
from .priors import FocalPrior, GainPrior, Priors, total_cost
from .problem import Problem, Solution, State, moved_by, residuals, whitened_residuals, with_true_rotations

_GROWTH = 2.0  # of the damping after a step that did not help, doubled at each further one


def solve_bundle(
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
    priors = Priors(
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
    layout = layout_of(problem, band_frames or config.band_frames)
    cost, data = total_cost(problem, state, priors, config.robust_scale)
    if not bool(torch.isfinite(cost)):
        raise FloatingPointError("bundle: the cost is not finite at the start")

    def lengthen(
        state: State, step: tuple[Tensor, Tensor, Tensor], found: tuple[State, Tensor, Tensor]
    ) -> tuple[State, Tensor, Tensor]:
        # Reweighted least squares steps too short along every direction in which outliers lose weight as the state
        # improves. Looking further along the step costs a hundredth of the next linearisation.
        for factor in (1.5, 2.0, 3.0, 4.0):
            camera, lens, points = (factor * part for part in step)
            further = moved_by(state, camera, lens, points, free)
            further_cost, further_data = total_cost(problem, further, priors, config.robust_scale)
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
        linear, _ = linearise(problem, state, config.robust_scale, free)
        normal = Normal(problem, layout, linear, state, priors, free, hold_poses=hold_poses)
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
            trial = moved_by(state, camera, lens, points, free)
            new_cost, new_data = total_cost(problem, trial, priors, config.robust_scale)
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
        state = with_true_rotations(state)
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


def _covariance(
    problem: Problem,
    state: State,
    priors: Priors,
    free: Tensor,
    config: BundleConfig,
    band_frames: int,
    *,
    hold_poses: bool = False,
) -> Tensor:
    """(F, D, D) marginal covariance of the cameras at an optimum, scaled by the robust residual variance."""
    linear, _ = linearise(problem, state, config.robust_scale, free)
    wide = layout_of(problem, max(config.covariance_band_frames, band_frames))
    normal = Normal(problem, wide, linear, state, priors, free, hold_poses=hold_poses)
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
    r_uv = whitened_residuals(problem, state)[0]
    # Median of a squared 2-D Gaussian norm is 1.386 times its variance per axis.
    variance = float((r_uv * r_uv).sum(1).median()) / 1.386
    # Unknowns soak up part of the noise.
    equations = 2 * len(problem.frame) + int(torch.isfinite(problem.sigma_log_depth).sum())
    unknowns = linear.jc.shape[2] * problem.num_frames + 3 * problem.num_points
    variance *= equations / max(equations - unknowns, 0.1 * equations)
    return normal.covariance() * max(variance, 1e-6)
