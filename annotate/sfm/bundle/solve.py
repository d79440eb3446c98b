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

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import BundleConfig
from .normal import Held, Normal, layout_of, linearise
from .priors import FocalPrior, GainPrior, Priors, total_cost
from .problem import Problem, Solution, State, moved_by, residuals, whitened_residuals, with_true_rotations

_TAN_30 = 0.57735  # half of the 60 degrees that are expected across the longer side
_GROWTH = 2.0  # of the damping after a step that did not help, doubled at each further one


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How far the bundle goes.

    Attributes:
        max_iterations: steps at most; None takes the configured number.
        tolerance: it stops when a step lowers the cost by less than this fraction.
        band_frames: width of the factorised band; None takes the configured one.
        hopeless_above: give up, not converged, once the data cost is so far above this that five more steps as large
            as the last one would not bring it down there.
    """

    max_iterations: int | None = None
    tolerance: float = 1e-5
    band_frames: int | None = None
    hopeless_above: float | None = None


def solve_bundle(
    problem: Problem,
    state: State,
    prior: FocalPrior,
    config: BundleConfig,
    *,
    effort: Effort = Effort(),
    gain: GainPrior | None = None,
    hold: Held = "first",
    want_covariance: bool = False,
) -> Solution:
    """Minimise the robust cost from `state` by Levenberg-Marquardt.

    Args:
        problem: observations; must be sorted by point, then frame.
        state: start.
        prior: how the focal may change.
        effort: how far to go.
        gain: frees the gain of each frame's depth under this prior; None: all depth is in one unit.
        hold: beside the first frame, `poses`: rotations and translations stay, only focal lengths, lens and points are
            free; `centres`: translations alone (zero ones are cameras in one place).
        want_covariance: also return per-frame covariance, scaled by the robust residual variance.
    Raises:
        ValueError: if the problem has no observation or is not sorted, or the state has gains without a prior.
        FloatingPointError: if the cost is not finite at the start.
    """
    _check(problem, state, gain)
    if gain is not None and state.log_gain is None:
        state = replace(state, log_gain=torch.zeros_like(state.log_focal))
    band = effort.band_frames or config.band_frames
    descent = _Descent(problem, state, _priors(problem, prior, config, gain), band, hold=hold)
    descent.run(effort.max_iterations or config.max_iterations, effort)
    state = descent.state
    residual_px, residual_log_depth, weight = residuals(problem, state, config)
    covariance = None
    if want_covariance:
        wide = max(config.covariance_band_frames, band)
        covariance = _covariance(problem, state, descent.priors, wide, hold=hold)
    return Solution(
        state=state,
        cost=float(descent.cost),
        data_cost=float(descent.data),
        iterations=descent.iteration,
        converged=descent.converged,
        residual_px=residual_px,
        residual_log_depth=residual_log_depth,
        weight=weight,
        covariance=covariance,
    )


def _check(problem: Problem, state: State, gain: GainPrior | None) -> None:
    if len(problem.frame) == 0:
        raise ValueError("bundle: no observations")
    key = problem.point * problem.num_frames + problem.frame
    if bool((key[1:] <= key[:-1]).any()):
        raise ValueError("bundle: observations must be sorted by point, then frame, each pair once")
    if gain is None and state.log_gain is not None:
        raise ValueError("bundle: the state has gains of the depth, but no prior says what they may be")


def _priors(problem: Problem, focal: FocalPrior, config: BundleConfig, gain: GainPrior | None) -> Priors:
    centre = config.principal_point_sigma * problem.focal_scale_px
    sigma = [centre, centre, config.aspect_sigma, config.radial_sigma]
    longer = 2 * float(problem.centre_px.max())
    return Priors(
        focal=focal,
        focal_centre=float(torch.tensor(longer / (2 * _TAN_30)).log()),
        focal_sigma=config.focal_prior_sigma,
        lens_sigma=torch.tensor(sigma, dtype=torch.float64),
        robust_scale=config.robust_scale,
        gain=gain,
    )


class _Descent:
    """Levenberg-Marquardt from one state.

    Attributes:
        state, cost, data: the best so far, its cost, and the part of reprojection and depth.
        iteration: accepted and rejected steps.
        converged: the last relative decrease fell below tolerance.
    """

    def __init__(
        self, problem: Problem, state: State, priors: Priors, band_frames: int, *, hold: Held
    ) -> None:
        self.problem, self.state, self.priors = problem, state, priors
        self.free = priors.lens_sigma > 0
        self.hold: Held = hold
        self.layout = layout_of(problem, band_frames)
        self.cost, self.data = self._cost(state)
        if not bool(torch.isfinite(self.cost)):
            raise FloatingPointError("bundle: the cost is not finite at the start")
        self.damping, self.growth = 1e-4, _GROWTH
        self.iteration, self.converged, self.lost = 0, False, False

    def _cost(self, state: State) -> tuple[Tensor, Tensor]:
        return total_cost(self.problem, state, self.priors, self.priors.robust_scale)

    def run(self, limit: int, effort: Effort) -> None:
        """Step until nothing improves, `limit` steps are done, or there is no hope."""
        while self.iteration < limit and not self.converged and not self.lost:
            linear, _ = linearise(self.problem, self.state, self.priors.robust_scale, self.free)
            normal = Normal(
                self.problem,
                self.layout,
                linear,
                self.state,
                self.priors,
                self.free,
                hold=self.hold,
            )
            accepted = False
            while not accepted and not self.converged and self.iteration < limit:
                self.iteration += 1
                accepted = self._try(normal, effort)
            self.state = with_true_rotations(self.state)

    def _try(self, normal: Normal, effort: Effort) -> bool:
        """One step; whether it was accepted."""
        try:
            normal.damp(self.damping)
            camera, lens, points, _ = normal.step(0.1, 80)
        except FloatingPointError:
            self.damping *= self.growth * 10
            if self.damping > 1e8:
                raise
            return False
        trial = moved_by(self.state, camera, lens, points, self.free)
        cost, data = self._cost(trial)
        if not bool(cost < self.cost):
            if float(camera.abs().max()) < 1e-9 or self.damping > 1e6:
                self.converged = True
                return False
            self.damping *= self.growth
            self.growth *= 2
            return False
        trial, cost, data = self._lengthened((camera, lens, points), (trial, cost, data))
        self.converged = float(self.cost - cost) < effort.tolerance * float(self.cost)
        hope = effort.hopeless_above
        self.lost = hope is not None and float(data - 5 * (self.data - data)) > hope
        self.state, self.cost, self.data = trial, cost, data
        # A damping that was only just found to be enough is not given up at once.
        self.damping = max(self.damping / 5, 1e-9) if self.growth == _GROWTH else self.damping
        self.growth = _GROWTH
        return True

    def _lengthened(
        self, step: tuple[Tensor, Tensor, Tensor], found: tuple[State, Tensor, Tensor]
    ) -> tuple[State, Tensor, Tensor]:
        # Reweighted least squares steps too short along every direction in which outliers lose weight as the state
        # improves. Looking further along the step costs a hundredth of the next linearisation.
        for factor in (1.5, 2.0, 3.0, 4.0):
            camera, lens, points = (factor * part for part in step)
            further = moved_by(self.state, camera, lens, points, self.free)
            cost, data = self._cost(further)
            if not bool(cost < found[1]):
                break
            found = further, cost, data
        return found


def _covariance(problem: Problem, state: State, priors: Priors, band_frames: int, *, hold: Held) -> Tensor:
    """(F, D, D) marginal covariance of the cameras at an optimum, scaled by the robust residual variance."""
    free = priors.lens_sigma > 0
    linear, _ = linearise(problem, state, priors.robust_scale, free)
    wide = layout_of(problem, band_frames)
    normal = Normal(problem, wide, linear, state, priors, free, hold=hold)
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
