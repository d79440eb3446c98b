"""What a reading of depth leaves unexplained: the motion of each pair found anew, and what remains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ...dataset.arrays import BoolArray, FloatArray, IntArray
from ...dataset.cameras.rotations import so3_exp
from ..geometry.base import DepthMaps
from ..sfm.bundle.lens import LensModel, straightened
from .depth_pairs import MIN_POINTS, Pairs, sampled
from .readings import Reading

WORKING_PX = 640.0
FOCAL, _FOCAL_SIGMA, _CHANGE_SIGMA = 0.9, 0.4, 0.3
"""What is expected of a lens: focal length over the longer image side unless it is known, its spread and that of its
change in a pair, in logs."""
_FLOOR_PX, _FLOOR_LOG = 0.35, 0.004
"""What the best depth leaves: pixels of a 640 px image, and log depth. Differences below are none."""
LEAST_PARALLAX_PX2 = 1.5
"""Square of parallax (pixels of a 640 px image) below which nothing is said of how much of it depth explains."""


@dataclass(frozen=True)
class BentLens:
    """A lens that is no pinhole; focal length over the longer image side."""

    model: LensModel
    k1: float
    focal: float = FOCAL

    def near(self) -> tuple[BentLens, BentLens]:
        """One that bends a little less, and one a little more."""
        if self.model == "fisheye":
            return replace(self, focal=1.08 * self.focal), replace(self, focal=self.focal / 1.08)
        return replace(self, k1=self.k1 - 0.06), replace(self, k1=self.k1 + 0.06)


BENT_LENSES = (
    *(BentLens("radial", k1) for k1 in (-0.6, -0.4, -0.25, -0.12, 0.12, 0.25, 0.5)),
    *(BentLens("fisheye", 0.0, focal) for focal in (0.32, 0.42, 0.55, 0.7)),
)
"""Distortion like that of a wide lens and of its opposite; fisheyes of 180 to 80 degrees across the longer side."""


@dataclass(frozen=True, kw_only=True)
class _Motion:
    misfit_px: FloatArray  # (B,) median, pixels of a 640 px image
    depth: FloatArray  # (B, n) in the second frame, NaN where unused
    focal: FloatArray  # (B,)


def _row_median(x: FloatArray, ok: BoolArray) -> FloatArray:
    """Median of each row over `ok`; NaN for an empty one."""
    ordered = np.sort(np.where(ok, x, np.inf), 1)
    count = ok.sum(1)
    middle = ordered[np.arange(len(x)), np.maximum(count - 1, 0) // 2]
    return np.where(count > 0, middle, np.nan)


def _fit_motion(
    a: FloatArray,
    b: FloatArray,
    z: FloatArray,
    ok: BoolArray,
    *,
    focal: FloatArray,
    change: FloatArray,
    iterations: int = 10,
) -> _Motion:
    """Robust motion of B pairs at once: turn, translation, focal length and its change, by Gauss-Newton.

    Args:
        a, b: (B, n, 2) points about the principal point. z: (B, n) depth in the first frame, of median about 1.
        ok: (B, n) points to use.
        focal, change: (B,) what is expected of the focal length and of the log of its change.
    """
    count, points = ok.shape
    z = np.where(ok, z, 1.0)
    ax, ay = a[..., 0], a[..., 1]
    turn = np.tile(np.eye(3), (count, 1, 1))
    shift = np.zeros((count, 3))
    log_focal = expected = np.log(focal)
    log_change = change.copy()
    jacobian = np.zeros((count, points, 2, 8))
    middle, ahead = np.full(count, np.nan), z
    for iteration in range(iterations + 1):
        f, g = np.exp(log_focal)[:, None], np.exp(log_focal + log_change)[:, None]
        x, y = ax / f * z, ay / f * z
        flat = [turn[:, None, i, 0] * x + turn[:, None, i, 1] * y for i in range(3)]
        p, q, s = (flat[i] + turn[:, None, i, 2] * z for i in range(3))
        ahead = np.maximum(s + shift[:, 2:], 0.05 * z)
        gain = g / ahead  # pixels that a unit across moves
        u, v = gain * (p + shift[:, :1]), gain * (q + shift[:, 1:2])
        residual = np.stack([u, v], -1) - b
        error = np.sqrt((residual**2).sum(-1))
        middle = _row_median(error, ok)
        if iteration == iterations:
            break
        scale = np.maximum(1.0, (2.0 if iteration == 0 else 1.5) * middle)[:, None]
        weight = np.where(ok, (1 + (error / scale) ** 2) ** -2, 0.0)
        weight = weight / np.maximum(0.5, middle)[:, None] ** 2
        uz, vz = u / ahead, v / ahead
        j = jacobian
        j[..., 0, 0], j[..., 0, 1], j[..., 0, 2] = -q * uz, s * gain + p * uz, -q * gain
        j[..., 1, 0], j[..., 1, 1], j[..., 1, 2] = -s * gain - q * vz, p * vz, p * gain
        j[..., 0, 3], j[..., 0, 5], j[..., 1, 4], j[..., 1, 5] = gain, -uz, gain, -vz
        j[..., 0, 6], j[..., 1, 6] = u - gain * flat[0] + uz * flat[2], v - gain * flat[1] + vz * flat[2]
        j[..., 0, 7], j[..., 1, 7] = u, v
        rows = j.reshape(count, 2 * points, 8)
        weighted = np.swapaxes((j * weight[:, :, None, None]).reshape(rows.shape), 1, 2)
        normal = weighted @ rows
        gradient = (weighted @ residual.reshape(count, -1, 1))[..., 0]
        for k, value, prior, wide in (
            (6, log_focal, expected, _FOCAL_SIGMA),
            (7, log_change, change, _CHANGE_SIGMA),
        ):
            normal[:, k, k] += wide**-2
            gradient[:, k] += (value - prior) / wide**2
        normal += np.eye(8) * (1e-4 * np.einsum("bii->bi", normal) + 1e-9)[:, :, None]
        step = np.clip(-np.linalg.solve(normal, gradient[..., None])[..., 0], -0.3, 0.3)
        turned = so3_exp(step[:, :3])
        turn = turned @ turn
        shift = (turned @ shift[..., None])[..., 0] + step[:, 3:6]
        log_focal = np.clip(log_focal + step[:, 6], expected - 1.2, expected + 1.2)
        log_change = log_change + step[:, 7]
    return _Motion(misfit_px=middle, depth=np.where(ok, ahead, np.nan), focal=np.exp(log_focal))


@dataclass(frozen=True, kw_only=True)
class Fits:
    """How well each reading fits each pair; all (R, P), NaN where too few points have depth."""

    misfit_px: FloatArray
    inconsistency: FloatArray
    gain: FloatArray
    focal: FloatArray
    signal: FloatArray
    relief: FloatArray

    def cost(self) -> FloatArray:
        """Twice the negative log likelihood of a point, about: of its place and of its depth."""
        places, depth = self.costs()
        return places + depth

    def costs(self) -> FloatArray:
        """(2, R, P) the same of its place and of its depth, each by itself."""
        places = np.log(np.hypot(self.misfit_px, _FLOOR_PX))
        return np.stack([places, np.log(np.hypot(self.inconsistency, _FLOOR_LOG))])


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A clip's pairs with what is known of its lens; points in pixels of a 640 px image about the principal point."""

    depth: DepthMaps
    pairs: Pairs
    a: FloatArray
    b: FloatArray
    focal: FloatArray  # (P,) of the first frame
    change: FloatArray  # (P,) log of second over first

    def some(self, chosen: IntArray, points: int | None = None) -> Scene:
        """Some of the pairs, with the first `points` points of each (None: all)."""
        return Scene(
            depth=self.depth,
            pairs=self.pairs.some(chosen, points),
            a=self.a[chosen, :points],
            b=self.b[chosen, :points],
            focal=self.focal[chosen],
            change=self.change[chosen],
        )

    def through(self, lens: BentLens) -> Scene:
        """The same as a pinhole would have shown it, were the pictures taken through `lens`."""
        focal = lens.focal * WORKING_PX
        k1 = torch.tensor(lens.k1, dtype=torch.float64)

        def straight(xy: FloatArray) -> FloatArray:
            seen = torch.from_numpy(xy.reshape(-1, 2) / focal)
            return straightened(lens.model, seen, k1, 0 * k1).numpy().reshape(xy.shape) * focal

        return replace(self, a=straight(self.a), b=straight(self.b), focal=np.full(len(self.pairs), focal))

    def fits(self, readings: Sequence[Reading], *, shared: bool = False) -> Fits:
        """Try the readings. Rays need a focal length: the one that the first of the other readings found. `shared`: by
        points alone that have depth in all of them."""
        stored = sampled(self.depth, self.pairs, readings)
        if shared:
            for z in stored:
                z[:, np.isnan(z).any(0)] = np.nan
        along = np.array([reading.value in ("ray", "axis") for reading in readings])
        split = (
            [r for r in readings if r.value not in ("ray", "axis")],
            [r for r in readings if r.value in ("ray", "axis")],
        )
        plain = self._fit(split[0], stored[0][~along], stored[1][~along])
        if not along.any():
            return plain
        focal = plain.focal[0][:, None, None]
        rays = [np.sqrt(1 + ((x / focal) ** 2).sum(-1)) for x in (self.a, self.b)]
        turned = self._fit(split[1], stored[0][along], stored[1][along], rays)
        out = {}
        for name in vars(plain):
            whole = np.empty((len(readings), len(self.pairs)))
            whole[~along], whole[along] = getattr(plain, name), getattr(turned, name)
            out[name] = whole
        return Fits(**out)

    def _fit(
        self,
        readings: Sequence[Reading],
        first: FloatArray,
        second: FloatArray,
        rays: Sequence[FloatArray] = (),
    ) -> Fits:
        """Fits of stored depth (R, P, n); `rays` are the lengths of rays (P, n) that end at depth 1."""
        for r, reading in enumerate(readings):
            if reading.value == "inverse":
                first[r], second[r] = 1 / first[r], 1 / second[r]
            elif reading.value == "ray":
                first[r], second[r] = first[r] / rays[0], second[r] / rays[1]
            elif reading.value == "axis":
                first[r], second[r] = first[r] * rays[0], second[r] * rays[1]
            elif reading.value == "constant":
                first[r] = np.where(np.isfinite(first[r]), 1.0, np.nan)
        shape = first.shape[:2]
        z1, z2 = (z.reshape(-1, z.shape[-1]) for z in (first, second))
        ok = np.isfinite(z1)
        usual = _row_median(z1, ok)[:, None]
        a, b, focal, change = (
            np.tile(x, (len(readings), *(1,) * (x.ndim - 1)))
            for x in (self.a, self.b, self.focal, self.change)
        )
        motion = _fit_motion(a, b, z1 / usual, ok, focal=focal, change=change)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.log(z2 / usual) - np.log(motion.depth)
        both = np.isfinite(ratio)
        relief = _row_median(np.abs(z1 / usual - 1), ok)
        gain = _row_median(ratio, both)
        apart = _row_median(np.abs(ratio - gain[:, None]), both)
        enough = ok.sum(1) >= MIN_POINTS
        enough_both = enough & (both.sum(1) >= MIN_POINTS // 2)
        return Fits(
            misfit_px=np.where(enough, motion.misfit_px, np.nan).reshape(shape),
            inconsistency=np.where(enough_both, apart, np.nan).reshape(shape),
            gain=np.where(enough_both, gain, np.nan).reshape(shape),
            focal=motion.focal.reshape(shape),
            relief=np.where(enough, relief, np.nan).reshape(shape),
            signal=np.where(enough_both, _signal(a, b, z1, z2, both), np.nan).reshape(shape),
        )


def _off_plane(xy: FloatArray, z: FloatArray, ok: BoolArray) -> FloatArray:
    """(B, n) relative inverse depth off its best plane (which turns and zooms can explain, too), signed."""
    design = np.concatenate([np.ones((*ok.shape, 1)), xy / (WORKING_PX / 2)], -1)
    target = np.where(ok, _row_median(z, ok)[:, None] / np.where(ok, z, 1.0), 0.0)
    weight = ok.astype(float)
    left = target
    for _ in range(4):
        weighted = np.swapaxes(design * weight[..., None], 1, 2)
        plane = np.linalg.solve(weighted @ design + 1e-9 * np.eye(3), weighted @ target[..., None])
        left = target - (design @ plane)[..., 0]
        scale = 1.5 * np.maximum(_row_median(np.abs(left), ok), 1e-6)[:, None]
        weight = ok * (1 + (left / scale) ** 2) ** -2
    return left


def _signal(a: FloatArray, b: FloatArray, z1: FloatArray, z2: FloatArray, ok: BoolArray) -> FloatArray:
    """(B,) share of the relief that both frames of a pair show alike: 1 for depth without noise, 0 for noise alone."""
    first, second = _off_plane(a, z1, ok), _off_plane(b, z2, ok)
    usual = _row_median(np.abs(first), ok), _row_median(np.abs(second), ok)
    x, y = (
        np.clip(v / np.maximum(m, 1e-9)[:, None], -4, 4) * ok
        for v, m in zip((first, second), usual, strict=True)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        alike = (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return alike
