"""How given depth errs, measured: along tracks before anything is solved, and by the bundle afterwards.

Depth errs in three ways that a solver must not confuse. A pixel errs on its own; that averages out over an image. A
whole frame errs by one factor (networks that judge frame by frame, exposure of a sensor): hundreds of observations
that agree with each other and are all wrong. And the factor may wander along the clip (a sensor that warms up, a unit
that drifts). Where a frame's factor is not an unknown of its own, the bundle bends cameras and focal lengths to please
it: camera nearer and lens shorter look alike.

So every size is measured. Second differences of depth along a track cancel even motion: what their median over a
frame does from frame to frame is the frame's factor, what is left of a single one is the observation's error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...dataset.arrays import FloatArray, IntArray
from ...dataset.robust import MAD_TO_SIGMA
from ..geometry.base import DepthMaps
from ..tracks.records import Tracks, indices_by_group
from .bundle.priors import GainPrior
from .bundle.problem import Problem, Solution

_MIN_PER_FRAME = 8  # observations with depth that judge a frame

_QUIET_MAP = 0.015
"""Noise of a depth map below which its values are taken as they are. Recordings of sensors: 0.0005 to 0.005."""
_WANTED_NOISE = 0.01
"""What medians of noisy maps are to come down to, with windows of up to 9 x 9 pixels."""
_LARGEST_RADIUS = 4
_EDGE = 0.08
"""Relative step of depth within a window that makes it an edge."""

_CALM = 0.01
"""Factor of whole frames up to which the way to the first bundle takes depth as it is."""
_STEADY = 0.003
"""Factor of whole frames that is not told from none: tracks alone place a frame no better. Recordings of sensors have
0.0013 to 0.0025."""
_FIRST_STEP, _FIRST_SIGMA = 0.01, 0.15
"""Freedom of the factors until they have been measured: from frame to frame, and in all."""
_LEAST_FRAME = 0.001
_LEAST_OBSERVATION = 0.004
TRACK_DRIFT = 0.02
"""Slow factors as small as this are not told from what tracks alone drift by."""


# --- depth at the tracks ---------------------------------------------------------------------------------


def sample_depth(tracks: Tracks, depth: DepthMaps) -> FloatArray:
    """Depth of each observation (N,), NaN where there is none or where it lies on a depth edge.

    The map covers the stored image at any resolution. A pixel is trusted if the valid depths in its 3x3
    neighbourhood (at least 5) differ by less than 8 % in all: tracks cling to corners, corners to depth edges. Of a
    map whose pixels are noisier than that, a median over a window stands for its middle. A value at which a map is
    cut off is no measurement.
    """
    out = np.full(len(tracks.frame), np.nan)
    for frame, indices in enumerate(indices_by_group(tracks.frame, tracks.num_frames)):
        if not len(indices):
            continue
        z = depth.read(frame)
        if z is None:
            continue
        xy = tracks.xy_px[indices] / (tracks.width, tracks.height)
        noise = map_noise(z)
        found = _look_up(z, xy) if not noise > _QUIET_MAP else _look_up_noisy(z, xy, noise)
        low, high = cut_off(z)
        with np.errstate(invalid="ignore"):
            out[indices] = np.where((found > low) & (found < high), found, np.nan)
    return out


def map_noise(z: FloatArray) -> float:
    """Relative noise of single pixels of a depth map (h, w), from second differences along its rows; NaN without any.

    Edges and slopes are few or straight: they do not move the median.
    """
    rows = z[:: max(1, z.shape[0] // 120)]
    with np.errstate(invalid="ignore", divide="ignore"):
        log = np.log(np.where(np.isfinite(rows) & (rows > 0), rows, np.nan))
    bend = log[:, 1:-1] - 0.5 * (log[:, :-2] + log[:, 2:])
    bend = bend[np.isfinite(bend)]
    return float(MAD_TO_SIGMA * np.median(np.abs(bend)) / 1.5**0.5) if len(bend) >= 50 else float("nan")


def cut_off(z: FloatArray) -> tuple[float, float]:
    """Values at or beyond which a map (h, w) is cut off below and above: 0 and infinity where it is not.

    A range that ends shows as many pixels of exactly the extreme value (2 % at least), and many more than there are
    of the next values inwards; a wall that fills the end of the range is followed by its own neighbours.
    """
    step = max(1, int((z.size / 20_000) ** 0.5))
    some = z[::step, ::step]
    some = some[np.isfinite(some) & (some > 0)]
    if len(some) < 100:
        return 0.0, np.inf
    ends, least = (some.min(), some.max()), max(0.02 * len(some), 1)
    # Hardly a map is cut off, and to count all of its values takes a hundred times as long as those at its ends.
    if ends[0] == ends[1] or max(np.count_nonzero(some == end) for end in ends) <= least:
        return 0.0, np.inf
    value, count = np.unique(some, return_counts=True)

    def spike(first: int, next_ones: NDArray) -> bool:
        return first > least and first > 5 * next_ones.max(initial=0)

    low = float(value[0]) if spike(count[0], count[1:6]) else 0.0
    high = float(value[-1]) if spike(count[-1], count[-6:-1]) else np.inf
    return low, high


def _patches(z: FloatArray, xy: FloatArray, radius: int) -> tuple[NDArray, ...]:
    height, width = z.shape
    x, y = xy[:, 0] * width, xy[:, 1] * height
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    inside = (column >= 0) & (row >= 0) & (column < width) & (row < height)
    side = 2 * radius + 1
    dy, dx = np.mgrid[-radius : radius + 1, -radius : radius + 1].reshape(2, side * side)
    r = np.clip(row[:, None] + dy, 0, height - 1)
    c = np.clip(column[:, None] + dx, 0, width - 1)
    patch = z[r, c].astype(np.float64)
    good = np.isfinite(patch) & (patch > 0)
    return (
        patch,
        good,
        inside,
        dy,
        dx,
        column[:, None] + dx + 0.5 - x[:, None],
        row[:, None] + dy + 0.5 - y[:, None],
    )


def _look_up(z: FloatArray, xy: FloatArray) -> FloatArray:
    """Depth (n,) of image points `xy` (n, 2) in shares of width and height; NaN where not trusted."""
    patch, good, inside, _, _, off_x, off_y = _patches(z, xy, 1)
    low = np.where(good, patch, np.inf).min(1)
    high = np.where(good, patch, -np.inf).max(1)
    trusted = inside & good[:, 4] & (good.sum(1) >= 5) & (high < (1 + _EDGE) * low)
    # Bilinear weights around the exact position, over the valid pixels.
    weight = np.maximum(1 - np.abs(off_x), 0) * np.maximum(1 - np.abs(off_y), 0)
    weight = np.where(good, weight, 0)
    value = (weight * np.where(good, patch, 0)).sum(1) / np.maximum(weight.sum(1), 1e-12)
    return np.where(trusted, value, np.nan)


def _look_up_noisy(z: FloatArray, xy: FloatArray, noise: float) -> FloatArray:
    """The same for a map whose pixels err by `noise` each: medians over windows, edges told by their halves."""
    radius = int(np.clip(np.ceil((1.25 * noise / _WANTED_NOISE - 1) / 2), 1, _LARGEST_RADIUS))
    patch, good, inside, dy, dx, _, _ = _patches(z, xy, radius)
    log = np.where(good, np.log(np.where(good, patch, 1.0)), np.nan)

    def median(which: NDArray[np.bool_]) -> FloatArray:
        part = np.sort(log[:, which], axis=1)  # NaN last
        count = np.isfinite(part).sum(1)
        row = np.arange(len(part))
        middle = (
            part[row, np.maximum(count - 1, 0) // 2] + part[row, np.minimum(count // 2, part.shape[1] - 1)]
        ) / 2
        return np.where(count >= max(2, 0.4 * which.sum()), middle, np.nan)

    whole = median(np.ones(len(dy), bool))
    step = np.zeros(len(xy))
    for along in (dx, dy):
        step = np.maximum(step, np.abs(median(along > 0) - median(along < 0)))  # NaN stays
    # Medians of the halves err by this much, three standard deviations.
    doubt = 3 * 1.25 * noise * np.sqrt(2 / (radius * (2 * radius + 1)))
    trusted = inside & (good.mean(1) >= 0.5) & (step < np.log1p(_EDGE) + doubt)
    return np.where(trusted, np.exp(whole), np.nan)


# --- how it errs -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DepthNoise:
    """Standard deviations of log depth.

    Attributes:
        observation: of one observed depth, the factor of its frame aside.
        frame: of the factor of a whole frame, from one frame to the next.
        slow: of the part of the factor that changes slowly along the clip, beyond what tracks drift by alone.
        wander: of all that changed slowly when the factors were free, whether depth or tracks are to blame.
        patch: correlation of the errors of observations that lie in one patch of one frame, the factor of the frame
            aside: maps err in blotches, and the observations of a blotch are one measurement.
    """

    observation: float
    frame: float
    slow: float
    wander: float = 0.0
    patch: float = 0.0

    def scale_sigma_log(self, num_frames: int) -> float:
        """Standard deviation of the log of the unit that a clip of `num_frames` takes from its depth.

        White factors average out; a slow one has one value or two in a clip, and nothing says which is right.
        """
        return float(np.hypot(self.frame / max(1, num_frames) ** 0.5, max(self.slow, self.wander)))

    def metrics(self, num_frames: int) -> dict[str, float]:
        """Values of a row's `metrics`."""
        return {
            "depth_sigma_log": self.observation,
            "depth_frame_sigma_log": self.frame,
            "depth_wander_log": self.wander,
            "depth_patch_correlation": self.patch,
            "depth_scale_sigma_log": self.scale_sigma_log(num_frames),
        }

    @property
    def calm(self) -> bool:
        """Whether frames agree well enough to be taken as they are on the way to the first bundle."""
        return self.frame < _CALM

    @property
    def gain_sigma(self) -> float | None:
        """Standard deviation of a frame's log factor, None if calm."""
        return None if self.calm else self.frame

    def gain_prior(self, num_frames: int) -> GainPrior | None:
        """Prior of the factors: white, slow, or both, by the autoregressive series of the same two sizes.

        None where the depth of all frames has one unit, as far as can be told: then it ties the clip together.
        """
        if self.frame < _STEADY and self.slow == 0:
            return None
        white = max(self.frame, _LEAST_FRAME)
        variance = white**2 + self.slow**2
        return GainPrior(
            sigma=variance**0.5,
            keep=torch.full((max(0, num_frames - 1),), self.slow**2 / variance, dtype=torch.float64),
        )


def first_noise(tracks: Tracks, z: FloatArray, declared: float) -> DepthNoise:
    """Noise from depth (N,) along tracks alone; factors are left free to wander until the bundle has judged them.

    Even motion cancels in second differences; uneven motion does not, so the factor of frames is an upper bound (0.4 %
    on hand-held recordings).

    Args:
        declared: relative error of a depth that the source declares, for want of observations.
    """
    has = np.isfinite(z)
    frame, track, log = tracks.frame[has], tracks.track[has], np.log(z[has])
    even = (track[2:] == track[:-2]) & (frame[2:] - frame[1:-1] == frame[1:-1] - frame[:-2])
    bend = (log[2:] - 2 * log[1:-1] + log[:-2])[even]
    middle = frame[1:-1][even]
    of_frame = [
        bend[indices]
        for indices in indices_by_group(middle, tracks.num_frames)
        if len(indices) >= _MIN_PER_FRAME
    ]
    white, observation = 0.0, declared
    if len(of_frame) >= 5:
        centre = np.array([np.median(b) for b in of_frame])
        rest = np.concatenate([b - c for b, c in zip(of_frame, centre, strict=True)])
        white = float(MAD_TO_SIGMA * np.median(np.abs(centre)) / 6**0.5)
        observation = float(MAD_TO_SIGMA * np.median(np.abs(rest)) / 6**0.5)
    return DepthNoise(
        observation=max(observation, declared), frame=max(white, _FIRST_STEP / 2**0.5), slow=_FIRST_SIGMA
    )


def measured_noise(problem: Problem, solution: Solution, before: DepthNoise) -> DepthNoise:
    """Noise from what a bundle with free factors left of the depth.

    Args:
        before: what it was solved with.
    """
    inlier = (solution.weight > 0.3) & torch.isfinite(problem.sigma_log_depth)
    frame = problem.frame[inlier].numpy()
    residual = solution.residual_log_depth[inlier].numpy()
    if solution.state.log_gain is None:
        return before
    if len(residual) < 100:
        return replace(before, slow=0.0)
    count = np.bincount(frame, minlength=problem.num_frames)
    gain = solution.state.log_gain.numpy()[count >= _MIN_PER_FRAME]
    observation = MAD_TO_SIGMA * float(np.median(np.abs(residual)))
    if len(gain) < 5:
        return DepthNoise(observation=observation, frame=before.frame, slow=0.0)
    white = MAD_TO_SIGMA * float(np.median(np.abs(np.diff(gain)))) / 2**0.5
    smooth = np.array([np.median(gain[max(0, i - 2) : i + 3]) for i in range(len(gain))])
    # A median of five has variance 0.29 of one.
    wander = max(0.0, _wander(smooth) ** 2 - 0.29 * white**2)
    return DepthNoise(
        observation=max(observation, _LEAST_OBSERVATION),
        frame=max(white, _LEAST_FRAME),
        slow=max(0.0, wander - TRACK_DRIFT**2) ** 0.5,
        wander=wander**0.5,
        patch=_patch_correlation(problem, inlier, residual),
    )


PATCHES = (8, 5)
"""Across and down the image."""
_QUIET_PATCH = 0.01
"""Error that a patch has in common below which every depth counts by itself: that of sensors, whose depth is what
separates a longer lens from a nearer camera."""
_CLIPPED = 3.0  # standard deviations at which a residual counts no more


def patch_numbers(problem: Problem) -> IntArray:
    """(N,) number of the patch of its frame in which each observation lies, different in every frame."""
    across, down = PATCHES
    place = problem.uv_px.numpy() / (2 * problem.centre_px.numpy()) * np.array(PATCHES)
    column, row = np.clip(place.astype(int), 0, np.array(PATCHES) - 1).T
    return (problem.frame.numpy() * across + column) * down + row


def _patch_correlation(problem: Problem, inlier: Tensor, residual: FloatArray) -> float:
    """Mean product of two different errors of one patch over the mean square; `residual` of the inliers."""
    sigma = max(MAD_TO_SIGMA * float(np.median(np.abs(residual))), 1e-9)
    error = np.clip(residual / sigma, -_CLIPPED, _CLIPPED)
    _, patch = np.unique(patch_numbers(problem)[inlier.numpy()], return_inverse=True)
    count = np.bincount(patch).astype(float)
    total, square = np.bincount(patch, error), np.bincount(patch, error**2)
    pairs = float((count * (count - 1)).sum())
    if pairs < 100:
        return 0.0
    return float(np.clip((total**2 - square).sum() / pairs / np.mean(error**2), 0.0, 1.0))


def count_patches(problem: Problem, noise: DepthNoise | None) -> Problem:
    """The problem with the depths of a patch weighted as what they are together, where they err by much; None changes
    nothing."""
    if noise is None or noise.observation * noise.patch**0.5 < _QUIET_PATCH:
        return problem
    has = torch.isfinite(problem.sigma_log_depth)
    patch = torch.as_tensor(patch_numbers(problem))
    count = torch.bincount(patch[has], minlength=int(patch.max()) + 1)[patch].double()
    factor = (1 + (count - 1).clamp_min(0) * noise.patch).sqrt()
    return replace(problem, sigma_log_depth=problem.sigma_log_depth * factor)


def _wander(x: FloatArray) -> float:
    """Spread of a series that few outliers do not move, but a step does, wherever it lies."""
    low, high = np.percentile(x, [10, 90])
    return float(high - low) / 2.563
