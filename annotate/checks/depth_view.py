"""The field of view that given depth shows, by the images.

Depth of a camera of its own beside the colour's, which nobody registered, shows another field of view. Read at places
that are nearer to the middle, or further from it, such maps fit the images better. `look_at_view` looks whether they
do, for every clip; where it is likely, `measure_view` finds by how much, and how surely: it compares points that have
depth at every size alone (else a smaller picture fits better for its lens, which bends less there), and leaves parts of
the clip out for how far the answer is one of chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...dataset.arrays import FloatArray, IntArray
from .depth_pairs import Wanted
from .depth_scene import Fits, Scene
from .leads import FITTED_PX, Lead, lead_of
from .readings import GIVEN, VIEW_SCALES, VIEW_SWEEP, framed_reading

_SURE = 2.5
"""Standard errors by which another field of view fits better before the maps are taken to show it. It is one of six
that are tried, and decides no more than what is said of the focal length."""
_COARSE_LOG = np.linspace(-0.12, 0.12, 7)
"""Views by which the neighbourhood of the best is found: the same for every clip, so that nothing hangs on a start."""
_STEPS_LOG = np.linspace(-0.06, 0.06, 7)
"""Views about the best one. One parabola through all: costs of neighbouring views jitter, as medians of points do, so
that one through three tells where that jitter is least: thirds of redkitchen differed by 0.045, now by 0.02."""
_ROUNDS, _NEAR_LOG = 4, 0.02
"""How often views are laid about what the last ones found, until that is near their middle."""
_BLOCKS = 8
WANTED, _LEAST_PAIRS = Wanted(pairs=96, shared=100, points=250), 20
"""Pairs that measure a field of view: to be asked for, with enough points that those with depth at every size are
enough where much of the depth is absent; and that have to tell."""
_FLOOR_LOG = 0.012
"""What is left of errors that all pairs share, as places of maps are read to half of a pixel and the way between the
two cameras is not modelled."""
_CLEAR, _LEAD_CLEAR, _PLACES_CLEAR, _DEPTH_CLEAR = 3.5, 2.0, 2.0, 0.5
"""Standard errors that the view is off by, and that the maps fit better by at it: all in all, in places and in depth
alone. Where half of the depth is absent, or it is late, the fit changes little, and yet says where it is best."""
_LEAST_LOG, _MOST_LOG = 0.03, 0.17
"""Smallest and largest view that is believed."""
_APART_LOG = 0.08
"""By how much less places or depth may say that the view is another, and what a third of the clip may say otherwise at
most. The way between the two cameras, which is not modelled, makes places say more: by 0.02 to 0.05 in redkitchen."""
_THIRD_LOG, _THIRD_APART = 0.03, 3.0
"""What a third may always, and in standard deviations of a third."""


@dataclass(frozen=True, kw_only=True)
class ViewFound:
    """A field of view measured by pairs of frames.

    Attributes:
        log, sigma_log: of the maps' over the images', and its standard deviation.
        parts_log: what the places of points say by themselves, and their depth.
        thirds_log: what the first, middle and last pairs of the clip say.
        leads: by how much depth at that view fits better than as it is: all in all, in places, in depth.
        num_pairs: that tell.
    """

    log: float
    sigma_log: float
    parts_log: tuple[float, float]
    thirds_log: tuple[float, float, float]
    leads: tuple[Lead, Lead, Lead]
    num_pairs: int

    @property
    def view(self) -> float:
        """Field of view of the maps over the images'."""
        return float(np.exp(self.log))

    @property
    def sure(self) -> bool:
        """Whether the view is not the images' for certain, be it clear or not how large it is."""
        return _fits_better(self.leads[0], _SURE)

    @property
    def clear(self) -> bool:
        """Whether nothing speaks against it: it is another view by far more than it is unsure; places and depth both
        fit better at it and agree on how large it is (where depth errs in another way places fit worse), and so do all
        parts of the clip (the view of a camera whose colours alone zoom changes)."""
        whole, places, depth = self.leads
        of_third = max(_THIRD_LOG, min(_THIRD_APART * 3**0.5 * self.sigma_log, _APART_LOG))
        parts_agree = all((self.log - x) * np.sign(self.log) <= _APART_LOG for x in self.parts_log)
        thirds_agree = all(abs(x - self.log) <= of_third for x in self.thirds_log)
        return (
            self.num_pairs >= _LEAST_PAIRS
            and max(_LEAST_LOG, _CLEAR * self.sigma_log) <= abs(self.log) <= _MOST_LOG
            and thirds_agree
            and parts_agree
            and _fits_better(whole, _LEAD_CLEAR)
            and _fits_better(places, _PLACES_CLEAR)
            and _fits_better(depth, _DEPTH_CLEAR)
        )


@dataclass(frozen=True, kw_only=True)
class ViewLook:
    """What a few pairs of frames and a few sizes say of the field of view of maps.

    Attributes:
        log: of its width over the images'.
        lead: by how much depth at the best of the sizes fits better than as it is.
    """

    log: float
    lead: Lead

    @property
    def sure(self) -> bool:
        """Whether the view is not the images' for certain."""
        return _fits_better(self.lead, _SURE)

    @property
    def likely(self) -> bool:
        """Whether it is worth to measure the view by more pairs."""
        return _fits_better(self.lead, 1.0)


def _fits_better(lead: Lead, sure: float) -> bool:
    """Whether depth at another view fits better by so many standard errors; not where it is unknown (NaN)."""
    return lead.mean + sure * lead.sigma < 0


UNSEEN = ViewLook(log=0.0, lead=Lead(float("nan"), float("nan"), 0))
"""Where too few pairs tell."""


def look_at_view(scene: Scene, given: Fits) -> ViewLook:
    """The field of view that the maps show, by six sizes. `given` are fits of which the first are of the maps as they
    are."""
    fits = scene.fits(VIEW_SWEEP)
    least = np.fmin(
        given.misfit_px[0], fits.misfit_px.min(0, where=np.isfinite(fits.misfit_px), initial=np.inf)
    )
    costs = np.where(least < FITTED_PX, fits.cost(), np.nan)
    leads = [lead_of(given.cost()[0], cost) for cost in costs]
    means = np.array([lead.mean for lead in leads])
    if not np.isfinite(means).all():
        return UNSEEN
    scales = np.log(np.array([*VIEW_SCALES[:3], 1.0, *VIEW_SCALES[3:]]))
    values = np.array([*means[:3], 0.0, *means[3:]])
    i = int(np.clip(values.argmin(), 1, len(values) - 2))
    a, b, _ = np.polyfit(scales[i - 1 : i + 2], values[i - 1 : i + 2], 2)
    middle = -b / (2 * a) if a > 0 else scales[values.argmin()]
    return ViewLook(log=-float(np.clip(middle, scales[0], scales[-1])), lead=leads[int(means.argmin())])


def measure_view(scene: Scene) -> ViewFound | None:
    """The field of view that maps show, from `WANTED` pairs that a rigid scene explains.

    Returns:
        None where too few pairs tell, or where none of the views within reach is the best.
    """
    costs, _ = _costs(scene, _COARSE_LOG)
    if costs.shape[2] < _LEAST_PAIRS:
        return None
    # Near the best of the coarse views: far from it costs are no parabola.
    i = int(np.clip(costs[0, 1:].mean(1).argmin(), 1, len(_COARSE_LOG) - 2))
    log = _lowest(costs[0, [0, i, i + 1, i + 2]], _COARSE_LOG[i - 1 : i + 2])
    for _ in range(_ROUNDS):
        steps = log + _STEPS_LOG
        costs, frame = _costs(scene, steps)
        if costs.shape[2] < _LEAST_PAIRS:
            return None
        log = _lowest(costs[0], steps)
        if abs(log - steps.mean()) < _NEAR_LOG:
            return _found(costs[:, :, np.argsort(frame, kind="stable")], steps)
    return None


def _found(costs: FloatArray, steps: FloatArray) -> ViewFound:
    """What costs (3, 1 + S, P) as of `_costs`, pairs in the order of time, say of the field of view."""
    log, places, depth = (_lowest(part, steps) for part in costs)
    first, middle, last = (_lowest(third, steps) for third in np.array_split(costs[0], 3, axis=1))
    nearest = 1 + int(np.abs(steps - log).argmin())
    whole, by_places, by_depth = (lead_of(part[0], part[nearest]) for part in costs)
    return ViewFound(
        log=log,
        sigma_log=_sigma(costs[0], steps),
        parts_log=(places, depth),
        thirds_log=(first, middle, last),
        leads=(whole, by_places, by_depth),
        num_pairs=costs.shape[2],
    )


def _costs(scene: Scene, steps: FloatArray) -> tuple[FloatArray, IntArray]:
    """(3, 1 + S, P) cost of the maps as they are and of S fields of view, over pairs that tell: all in all, of places,
    of depth; and (P,) the pairs' first frames."""
    fits = scene.fits([GIVEN, *(framed_reading(float(np.exp(-step))) for step in steps)], shared=True)
    parts = fits.costs()
    least = np.where(np.isfinite(fits.misfit_px), fits.misfit_px, np.inf).min(0)
    tell = np.isfinite(parts).all((0, 1)) & (least < FITTED_PX)
    parts = parts[:, :, tell]
    return np.concatenate([parts.sum(0)[None], parts]), scene.pairs.first[tell]


def _lowest(part: FloatArray, steps: FloatArray) -> float:
    """Where the mean cost (1 + S, P) over pairs is lowest, by a parabola through all views; an end of them where it
    lies beyond, or where there is no such place between them."""
    values, middle = part[1:].mean(1), steps.mean()
    a, b, _ = np.polyfit(steps - middle, values, 2)
    if a <= 0:
        return float(steps[0] if values[0] < values[-1] else steps[-1])
    return float(np.clip(middle - b / (2 * a), steps[0], steps[-1]))


def _sigma(part: FloatArray, steps: FloatArray) -> float:
    """Standard deviation of `_lowest`: each stretch of the clip left out in turn, so that pairs that overlap, and err
    alike, leave together, and that what parts of the clip differ by counts (a jackknife by blocks; Kunsch 1989)."""
    blocks = np.array_split(np.arange(part.shape[1]), _BLOCKS)
    without = np.array([_lowest(np.delete(part, block, axis=1), steps) for block in blocks])
    spread = ((_BLOCKS - 1) / _BLOCKS * ((without - without.mean()) ** 2).sum()) ** 0.5
    return float(np.hypot(spread, _FLOOR_LOG))
