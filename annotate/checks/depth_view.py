"""The field of view that given depth shows, by the images.

Depth of a camera of its own beside the colour's, which nobody registered, shows another field of view. Read at places
that are nearer to the middle, or further from it, such maps fit the images better. `look_at_view` looks whether they
do, for every clip; where it is likely, `measure_view` finds by how much, and how surely: it compares points that have
depth at every size alone (else a smaller picture fits better for its lens, which bends less there), and draws pairs of
frames again for how far the answer is one of chance.
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
_STEPS_LOG = np.array([-0.08, -0.04, 0.0, 0.04, 0.08])
_ROUNDS = 3
_DRAWS = 200
WANTED, _LEAST_PAIRS = Wanted(pairs=96, shared=100, points=250), 20
"""Pairs that measure a field of view: to be asked for, with enough points that those with depth at every size are
enough where much of the depth is absent; and that have to tell."""
_ALIKE, _FLOOR_LOG = 2.0, 0.012
"""Pairs that overlap err alike: the spread of those drawn at random is so much too small. And what is left of errors
that all pairs share, as places of maps are read to half of a pixel."""
_CLEAR, _LEAD_CLEAR, _PLACES_CLEAR = 4.0, 2.5, 2.0
"""Standard errors that the view is off by, and that the maps fit better by at it: all in all, and in places alone;
depth alone by one. Where half of the depth is absent the fit changes little, and yet says where it is best."""
_LEAST_LOG, _MOST_LOG, _APART_LOG = 0.03, 0.17, 0.03
"""Smallest and largest view that is believed, and what parts of the measurement may differ by at least."""
_PART_APART, _MOST_APART_LOG = 1.5, 0.08
"""Standard deviations of its own by which places or depth alone may differ from both, and how much at most."""


@dataclass(frozen=True, kw_only=True)
class ViewFound:
    """A field of view measured by pairs of frames.

    Attributes:
        log, sigma_log: of the maps' over the images', and its standard deviation.
        parts_log: what the places of points say by themselves, and their depth; parts_sigma_log: standard deviations.
        thirds_log: what the first, middle and last pairs of the clip say.
        leads: by how much depth at that view fits better than as it is: all in all, in places, in depth.
        num_pairs: that tell.
    """

    log: float
    sigma_log: float
    parts_log: tuple[float, float]
    parts_sigma_log: tuple[float, float]
    thirds_log: tuple[float, float, float]
    leads: tuple[Lead, Lead, Lead]
    num_pairs: int

    @property
    def view(self) -> float:
        """Field of view of the maps over the images'."""
        return float(np.exp(self.log))

    @property
    def clear(self) -> bool:
        """Whether nothing speaks against it: it is another view by far more than it is unsure; places and depth both
        fit better at it and agree on how large it is (where depth errs in another way places fit worse), and so do all
        parts of the clip (the view of a camera whose colours alone zoom changes)."""
        whole, places, depth = self.leads
        apart = max(abs(x - self.log) for x in self.thirds_log)
        parts_agree = all(
            abs(x - self.log) <= max(_APART_LOG, min(_PART_APART * sigma, _MOST_APART_LOG))
            for x, sigma in zip(self.parts_log, self.parts_sigma_log, strict=True)
        )
        return (
            self.num_pairs >= _LEAST_PAIRS
            and max(_LEAST_LOG, _CLEAR * self.sigma_log) <= abs(self.log) <= _MOST_LOG
            and apart <= _APART_LOG
            and parts_agree
            and whole.mean + _LEAD_CLEAR * whole.sigma < 0
            and places.mean + _PLACES_CLEAR * places.sigma < 0
            and depth.mean + depth.sigma < 0
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
        return self.lead.mean + _SURE * self.lead.sigma < 0

    @property
    def likely(self) -> bool:
        """Whether it is worth to measure the view by more pairs."""
        return self.lead.mean + self.lead.sigma < 0


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


def measure_view(scene: Scene, start_log: float) -> ViewFound | None:
    """The field of view near `start_log`, from `NUM_PAIRS` pairs that a rigid scene explains; None where too few of
    them tell."""
    if len(scene.pairs) < _LEAST_PAIRS:
        return None
    log = start_log
    for _ in range(_ROUNDS - 1):
        costs, _ = _costs(scene, log + _STEPS_LOG)
        if costs.shape[2] < _LEAST_PAIRS:
            return None
        log = _lowest(costs[0, 1:].mean(1), log + _STEPS_LOG)
    steps = log + _STEPS_LOG
    costs, frame = _costs(scene, steps)
    count = costs.shape[2]
    if count < _LEAST_PAIRS:
        return None
    log, places, depth = (_lowest(part[1:].mean(1), steps) for part in costs)
    in_order = np.argsort(frame, kind="stable")
    first, middle, last = (
        _lowest(costs[0, 1:, third].mean(0), steps) for third in np.array_split(in_order, 3)
    )
    rng = np.random.default_rng(20260701)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    sigma, places_sigma, depth_sigma = (
        float(np.hypot(_ALIKE * np.std([_lowest(mean, steps) for mean in drawn @ part[1:].T]), _FLOOR_LOG))
        for part in costs
    )
    nearest = 1 + int(np.abs(steps - log).argmin())
    whole, by_places, by_depth = (lead_of(part[0], part[nearest]) for part in costs)
    return ViewFound(
        log=log,
        sigma_log=sigma,
        parts_log=(places, depth),
        parts_sigma_log=(places_sigma, depth_sigma),
        thirds_log=(first, middle, last),
        leads=(whole, by_places, by_depth),
        num_pairs=count,
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


def _lowest(values: FloatArray, steps: FloatArray) -> float:
    """Where a curve is lowest, by a parabola through three neighbours."""
    i = int(np.clip(np.argmin(values), 1, len(values) - 2))
    a, b, _ = np.polyfit(steps[i - 1 : i + 2] - steps[i], values[i - 1 : i + 2], 2)
    middle = steps[i] - b / (2 * a) if a > 0 else steps[np.argmin(values)]
    return float(np.clip(middle, steps[0], steps[-1]))
