"""Does the lens zoom? Constant, smooth and piecewise focal lengths against each other."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...dataset.arrays import FloatArray
from ...dataset.words import FocalModel
from .bundle.priors import EXPECTED_FOCAL_SIGMA, ExpectedFocal, FocalPrior, GainPrior, focal_prior
from .bundle.problem import Problem, Solution, project
from .bundle.solve import Effort, solve_bundle
from .config import BundleConfig
from .records import TOLERANCE, CameraSolution

log = logging.getLogger(__name__)


_WIGGLE_SHARE = 0.08
"""Share of the cost of a constant focal length that a varying one saves where the lens does not zoom: rolling shutter,
blur, distortion and blotches of depth all ask for wiggles. Recordings: 0.014 to 0.017, with depth that errs by 10 % in
blotches 0.053. A zoom in and out by 3 % is worth 0.84 on rendered clips."""
_LOST_SHARE = 0.5
"""Share of the smooth solution's cost by which another model may lie above it on its way before it is given up, while
it comes down slowly. With depth that errs by 10 % in blotches a constant focal length began with cameras of an invented
zoom and was given up at 0.14, from where it came down to nothing."""
LEAST_LIKENESS = 5.0
"""Observations that count as one at least where focal models are compared."""


_STEP_FRAMES, _LEVEL_FRAMES, _LEVEL_SHARE = 3, 11, 0.1
"""Frames on either side of the middle of a step that it may take, those up to which the lens keeps its level, and the
share of the step by which it may leave that. An even zoom changes by as much before and after as in between."""
_COMMON_SHARE = 0.6
"""Errors that all measurements of one view have in common, along the very change of the focal length, as a share of
what single ones err by: lens distortion, shutter, bias of depth. Seen on clips of 12 to 80 frames: office-a 0.3 (root
mean square, at most 0.5), rendered 0.5 (1.0), rgbd-tum-mini 1.6, whose lens distorts more than the model holds."""


def common_focal_error(cameras: CameraSolution, expected: ExpectedFocal | None) -> float:
    """Standard deviation of log focal by errors that do not average out over measurements.

    `log_focal_sigma` falls with the root of the number of measurements that a focal length rests on. What they err by
    in common averages out over views alone: as often as other points have come into sight.
    """
    freedom = 1.0 if cameras.focal_model == "constant" else 1.0 + len(cameras.focal_px) / 16.0
    count = cameras.num_inliers.sum() / freedom
    views = max(1.0, cameras.num_tracks / max(1.0, float(cameras.num_inliers.mean())) / freedom)
    found = _COMMON_SHARE * float(np.median(cameras.log_focal_sigma)) * float(count / views) ** 0.5
    if expected is None:
        return found
    return float((found**-2 + EXPECTED_FOCAL_SIGMA**-2) ** -0.5)


def choose_focal_model(
    problem: Problem,
    smooth: Solution,
    config: BundleConfig,
    expected: ExpectedFocal | None = None,
    gain: GainPrior | None = None,
) -> tuple[Solution, FocalPrior, dict[str, float], float]:
    """Constant, smooth or piecewise focal by the Bayesian information criterion.

    The smooth solution stands; a simpler model replaces it when its likelihood is nearly as good. Degrees of freedom:
    1 for constant, one per piece, and for smooth one per second (16 frames), about what its prior leaves free.
    Besides, a focal that varies must be worth more than what it makes of errors that no focal has (`_WIGGLE_SHARE`).

    Returns:
        The solution, the prior of its model, the cost of each model, and the standard deviation of what the smooth
        solution's log focal wiggles about the chosen model: what an imperfect lens, shutter and depth make a focal
        length do.
    """
    candidates = _Candidates(problem, smooth, config, expected, gain)
    wanted = ("smooth", "constant", "piecewise") if config.focal_model == "auto" else (config.focal_model,)
    breaks = _find_breaks(smooth.state.log_focal)
    if "smooth" in wanted:
        candidates.fit("smooth", None, 1.0 + problem.num_frames / 16.0)
    if "constant" in wanted:
        candidates.fit("constant", None, 1.0)
    if "piecewise" in wanted and (len(breaks) or config.focal_model == "piecewise"):
        candidates.fit("piecewise", breaks, 1.0 + 2.0 * len(breaks))
    model = candidates.best()
    log.debug("focal models, %.1f alike: %s -> %s", candidates.alike, candidates.costs, model)
    # Once more from its own optimum: it ends where single outliers alone change sides.
    best = solve_bundle(
        problem,
        candidates.solutions[model].state,
        candidates.priors[model],
        config,
        effort=Effort(tolerance=TOLERANCE),
        gain=gain,
    )
    free = smooth.state.log_focal
    if model == "smooth":
        apart = _beside_zoom(free.numpy(), breaks.tolist())
    else:
        apart = (free - _flatten(free, breaks if model == "piecewise" else None)).numpy()
    return best, candidates.priors[model], candidates.costs, float(apart.std())


class _Candidates:
    """Focal models that were tried, by the Bayesian information criterion.

    Attributes:
        alike: observations that count as one independent one. Tracks repeat much of what they say from frame to frame,
            and neighbours err alike; without it the criterion would buy any wiggle.
        costs, solutions, priors: of each model.
    """

    def __init__(
        self,
        problem: Problem,
        smooth: Solution,
        config: BundleConfig,
        expected: ExpectedFocal | None,
        gain: GainPrior | None,
    ) -> None:
        self.problem, self.smooth, self.config = problem, smooth, config
        self.expected, self.gain = expected, gain
        self.alike = max(LEAST_LIKENESS, likeness(problem, smooth))
        self.unit = float(np.log(max(2, len(problem.frame) / self.alike)))
        self.costs: dict[str, float] = {}
        self.solutions: dict[FocalModel, Solution] = {}
        self.priors: dict[FocalModel, FocalPrior] = {}

    def fit(self, model: FocalModel, breaks: Tensor | None, freedom: float) -> None:
        """Solve with one model of `freedom` degrees, beginning with the smooth solution."""
        prior = focal_prior(model, self.problem.num_frames, self.config, breaks=breaks)
        self.priors[model] = prior = replace(prior, expected=self.expected)
        solution = self.smooth
        if model != "smooth":
            solution = solve_bundle(
                self.problem,
                replace(solution.state, log_focal=_flatten(solution.state.log_focal, breaks)),
                prior,
                self.config,
                effort=Effort(tolerance=TOLERANCE, hopeless_above=self._hopeless_above(freedom)),
                gain=self.gain,
            )
        self.costs[model] = solution.data_cost / self.alike + freedom * self.unit
        self.solutions[model] = solution

    def _hopeless_above(self, freedom: float) -> float | None:
        if not self.costs:
            return None
        least = (min(self.costs.values()) - freedom * self.unit) * self.alike
        return max(least, (1 + _LOST_SHARE) * self.smooth.data_cost)

    def best(self) -> FocalModel:
        """The model of least cost; one that varies only if that is worth it."""
        model: FocalModel = min(self.solutions, key=lambda name: self.costs[name])
        if model != "constant" and "constant" in self.costs:
            worth = self.solutions["constant"].data_cost / self.solutions[model].data_cost - 1
            spread = float(self.solutions[model].state.log_focal.std())
            if worth < _WIGGLE_SHARE or spread < self.config.focal_floor:
                return "constant"
        return model


def _beside_zoom(log_focal: FloatArray, breaks: list[int]) -> FloatArray:
    """What log focal (F,) does beside zooming, of the frames of which that can be said.

    A zoom is even for a second, or it steps from one level to another within a few frames: those belong to neither.
    """
    steps = [i for i in breaks if _is_step(log_focal, i)]
    edges = [-_STEP_FRAMES, *steps, len(log_focal) + _STEP_FRAMES]
    pieces = [log_focal[a + _STEP_FRAMES : b - _STEP_FRAMES] for a, b in itertools.pairwise(edges)]
    return np.concatenate([piece - _running_mean(piece) for piece in pieces if len(piece) > 1])


def _is_step(log_focal: FloatArray, i: int) -> bool:
    """Whether log focal steps about frame `i`, between levels that it keeps."""
    before = log_focal[max(0, i - _LEVEL_FRAMES) : max(0, i - _STEP_FRAMES)]
    after = log_focal[i + _STEP_FRAMES : i + _LEVEL_FRAMES]
    if min(len(before), len(after)) < _STEP_FRAMES:
        return False
    step = abs(float(np.median(after) - np.median(before)))
    return max(float(np.ptp(before)), float(np.ptp(after))) < _LEVEL_SHARE * step


def _running_mean(log_focal: FloatArray) -> FloatArray:
    """Over a second: a zoom is even that long; what is not is no zoom."""
    width = min(17, len(log_focal) - 1 + len(log_focal) % 2)
    padded = np.pad(log_focal, width // 2, mode="reflect", reflect_type="odd")
    return np.convolve(padded, np.full(width, 1 / width), mode="valid")


_CELLS = (8, 5)  # across and down the image, within which errors are compared


def likeness(problem: Problem, solution: Solution) -> float:
    """Observations for one independent one: how alike the errors of neighbours are, in the image and along tracks.

    Within cells of the image: the variance of their means over what independent errors leave. Along tracks: the sum
    of the autocorrelation, as far as it is positive.
    """
    uv, _ = project(problem, solution.state)
    inlier = (solution.weight > 0.3).numpy()
    error = ((uv - problem.uv_px) / problem.sigma_px[:, None]).numpy()[inlier]
    if len(error) < 100:
        return 1.0
    frame, point = problem.frame.numpy()[inlier], problem.point.numpy()[inlier]
    variance = float((error**2).mean())
    place = problem.uv_px.numpy()[inlier] / (2 * problem.centre_px.numpy()) * _CELLS
    column, row = np.clip(place.astype(int), 0, np.array(_CELLS) - 1).T
    cell = (frame * _CELLS[0] + column) * _CELLS[1] + row
    count = np.bincount(cell)
    full = count >= 4
    total = np.stack([np.bincount(cell, weights=error[:, k]) for k in (0, 1)], 1)[full]
    beside = float((total**2 / count[full, None]).mean()) / variance if full.any() else 1.0
    along = 1.0
    for lag, share in ((1, 1), (2, 1), (4, 2), (8, 4)):  # each stands for the lags since the one before
        same = point[lag:] == point[:-lag]
        if same.sum() < 100:
            break
        correlation = float((error[lag:] * error[:-lag])[same].mean()) / variance
        along += 2 * share * float(np.clip(correlation, 0, 1))
    return max(1.0, beside) * along


def _flatten(log_focal: Tensor, breaks: Tensor | None) -> Tensor:
    out = log_focal.clone()
    edges = [0, *([] if breaks is None else breaks.tolist()), len(log_focal)]
    for a, b in itertools.pairwise(edges):
        out[a:b] = log_focal[a:b].median()
    return out


def _find_breaks(log_focal: Tensor, threshold: float = 0.04) -> Tensor:
    """Frames at which log focal steps by more than `threshold` between otherwise flat stretches."""
    x = log_focal.cpu().numpy()
    if len(x) < 16:
        return torch.zeros(0, dtype=torch.long)
    before = np.array([np.median(x[max(0, i - 6) : i]) for i in range(1, len(x))])
    after = np.array([np.median(x[i : i + 6]) for i in range(1, len(x))])
    jump = np.abs(after - before)
    breaks = []
    while jump.max() > threshold and len(breaks) < 6:
        i = int(jump.argmax())
        breaks.append(i + 1)
        jump[max(0, i - 8) : i + 9] = 0
    return torch.as_tensor(sorted(breaks), dtype=torch.long)
