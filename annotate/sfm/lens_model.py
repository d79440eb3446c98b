"""Is the principal point off the centre, does the lens distort strongly, or is it a fisheye? Models of lenses against
each other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..sources.clip import ClipRejection
from .bundle.lens import NEAR_PINHOLE, Lens, LensModel
from .bundle.problem import Problem, Solution, State
from .config import BundleConfig
from .focal_model import LEAST_LIKENESS, likeness
from .keyframes import SETTLED, KeyframeProblem
from .triangulation import back_project

log = logging.getLogger(__name__)

_STRAINED = 2.5
"""Standard deviations of the prior on k1 beyond which a lens near a pinhole is in doubt: 0.05. Recordings of phones and
sensors, undistorted or not, show up to 0.04."""
_OFF_CENTRE = 3.0
"""The same of the prior on the principal point: 12 px of 640x480. Where images and depth disagree a little it is found
up to 8 px off its place."""
_LEAST_PLACED = 0.8
"""Share of the keyframes that are placed by a model that fits."""
_MOST_FISHEYE_TERMS = 0.15, 0.06
"""Of k1 and k2, three standard deviations of their priors: what needs more is another lens in a fisheye's terms. A lens
with the radial term -0.3 asks for a k2 of -0.28, equidistant ones for 0.001."""
_LEFT_OUT = 5.7
"""Cost of an observation that a model leaves out: an error of eight standard deviations, as robustly as others."""


@dataclass(frozen=True, kw_only=True)
class KeyframeFit:
    """Keyframes solved with one model of the lens.

    Attributes:
        state, placed: of all keyframes, and (K,) which of them have a camera.
        problem, solution: what was solved.
    """

    state: State
    placed: NDArray[np.bool_]
    problem: Problem
    solution: Solution

    @property
    def model(self) -> LensModel:
        """Of the lens."""
        return self.problem.lens.model

    @property
    def prior_cost(self) -> float:
        """The part of the solution's cost that no observation has."""
        return self.solution.cost - self.solution.data_cost

    def cost(self, observations: int) -> float:
        """Of the solution and of those of so many observations that it leaves out."""
        return self.solution.cost + _LEFT_OUT * (observations - len(self.problem.frame))


def choose_lens(keys: KeyframeProblem, near: KeyframeFit | None) -> KeyframeFit | None:
    """A fit with another model of the lens, where one near a pinhole does not do; `keys` then has that model.

    A principal point well off the centre, strong distortion (two radial terms) and an equidistant fisheye are tried
    only where the lens near a pinhole is strained that way or fails. Like a focal model, another lens has to be worth
    its freedom by the Bayesian information criterion, observations counted as many as are independent.

    Args:
        near: fit of a lens near a pinhole; None: there was none.
    Returns:
        The other fit; None if there is no better one, and `keys` is as it was.
    """
    config = keys.given.config
    if config.lens_model != "auto" or keys.given.held_lens is not None or config.radial_sigma == 0:
        return None
    if near is not None:
        if not _strained(near, config):
            return None
        near = _settled(keys, near)
    observations = len(keys.problem.frame)
    best = near
    for fit in _others(keys, near):
        log.debug("lens %s: cost %.0f, %s", fit.problem.lens, fit.cost(observations), fit.solution.state.lens)
        if fit.placed.mean() < _LEAST_PLACED or not _believable(fit):
            continue
        if best is None or best.cost(observations) - fit.cost(observations) > _price(best, fit, near or fit):
            best = fit
    if best is None or best is near:
        if keys.lens is not NEAR_PINHOLE:
            keys.take_lens(NEAR_PINHOLE)
        return None
    keys.take_lens(replace(best.problem.lens, terms=best.solution.state.lens))
    return best


def _believable(fit: KeyframeFit) -> bool:
    terms = fit.solution.state.lens[3:].abs().tolist()
    return fit.model != "fisheye" or all(x <= y for x, y in zip(terms, _MOST_FISHEYE_TERMS, strict=True))


def _price(best: KeyframeFit, fit: KeyframeFit, first: KeyframeFit) -> float:
    """By how much the cost has to fall for `fit` to take the place of `best`."""
    alike, worth = _worth(first)
    if not fit.problem.lens.off_centre:
        return worth
    # What the prior at the centre costs is no sum over observations that err alike: it counts in full, as a deviation
    # of a principal point that is found to a fraction of the prior's.
    return 2 * worth - (alike - 1) * (best.prior_cost - fit.prior_cost)


def _worth(fit: KeyframeFit) -> tuple[float, float]:
    """Observations that count as one, and the decrease of the cost for which the criterion buys one degree of
    freedom."""
    alike = max(LEAST_LIKENESS, likeness(fit.problem, fit.solution))
    return alike, alike * float(np.log(max(2, len(fit.problem.frame) / alike)))


def _others(keys: KeyframeProblem, near: KeyframeFit | None) -> Iterator[KeyframeFit]:
    """The plainer one first."""
    config = keys.given.config
    if near is not None and _is_off_centre(near, config.principal_point_sigma):
        shifted = _refined(keys, Lens(off_centre=True), near)
        if shifted is not None:
            yield shifted
    if near is not None and not _in_doubt(near, config.radial_sigma):
        return
    radial = None if near is None else _refined(keys, Lens("radial"), near)
    if radial is not None:
        yield radial
    fisheye = _fisheye(keys) if near is None or float(near.solution.state.lens[3]) < 0 else None
    if fisheye is not None:
        yield fisheye


def _strained(near: KeyframeFit, config: BundleConfig) -> bool:
    return _is_off_centre(near, config.principal_point_sigma) or _in_doubt(near, config.radial_sigma)


def _settled(keys: KeyframeProblem, near: KeyframeFit) -> KeyframeFit:
    """At its optimum, where costs can be compared."""
    if keys.rough == SETTLED:
        return near
    try:
        state, problem, solution = keys.bundle(near.state, near.placed, 20)
    except (ClipRejection, FloatingPointError) as failure:
        log.debug("near pinhole: %s", failure)
        return near
    return KeyframeFit(state=state, placed=near.placed, problem=problem, solution=solution)


def _is_off_centre(near: KeyframeFit, sigma: float) -> bool:
    offset_px = float(near.solution.state.lens[:2].norm())
    return sigma > 0 and offset_px > _OFF_CENTRE * sigma * near.problem.focal_scale_px


def _in_doubt(near: KeyframeFit, sigma: float) -> bool:
    k1 = float(near.solution.state.lens[3])
    return abs(k1) > _STRAINED * sigma or near.placed.mean() < _LEAST_PLACED


def _refined(keys: KeyframeProblem, lens: Lens, near: KeyframeFit) -> KeyframeFit | None:
    """From the cameras of a lens near a pinhole on: its own terms have gone most of the way. None: no bundle."""
    keys.take_lens(replace(lens, terms=near.solution.state.lens))
    state = replace(near.state, points=back_project(keys.problem, near.state))
    try:
        return _bundled(keys, state, near.placed)
    except (ClipRejection, FloatingPointError) as failure:
        log.debug("%s: %s", lens, failure)
        return None


def _fisheye(keys: KeyframeProblem) -> KeyframeFit | None:
    """From the start on: as a pinhole a fisheye has another focal length. None: no cameras."""
    keys.take_lens(Lens("fisheye"))
    try:
        if keys.given.start is None:
            keys.choose_seed()
        state, placed = keys.place()
        return _bundled(keys, state, placed)
    except (ClipRejection, FloatingPointError) as failure:
        log.debug("fisheye: %s", failure)
        return None


def _bundled(keys: KeyframeProblem, state: State, placed: NDArray[np.bool_]) -> KeyframeFit:
    """Twice: tracks that a lens far from its terms left out come back."""
    state, _, _ = keys.bundle(state, placed, 12)
    state, problem, solution = keys.bundle(state, placed, 20)
    return KeyframeFit(state=state, placed=placed, problem=problem, solution=solution)
