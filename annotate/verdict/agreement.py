"""Do independent estimates of one clip agree? The sequence network against the bundle, metres against metres, focal
against focal.

The bundle measures image positions; the sequence network has learnt shapes; the metric anchor judges frames one by
one. What two of them say alike is probably so, and that needs no ground truth. `confidence` turns the numbers into a
probability that was calibrated on clips with truth (`benchmarks/estimate_calibration.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from ...dataset.arrays import FloatArray
from ...dataset.cameras.rotations import orthonormalise, rotation_angle
from ...dataset.rows import Row
from ..geometry.base import AnchorFrame, SequenceGeometryResult
from ..scale.records import ScaleEstimate
from ..sfm.records import CameraSolution

_BASELINE_S = 1.0
"""Directions and lengths of travel are compared over this time."""
_MIN_TRAVEL = 0.02
"""... where the camera moved at least this share of the median depth; less has no direction."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Differences between estimates, medians over the clip; NaN where one of the two is missing.

    Attributes:
        rotation_rad: angle between the sequence network's orientations and the bundle's, best common turn removed.
        direction_rad: angle between their directions of travel over a second, each in its own camera.
        scale_log: log of the network's travel (in metres by the clip's scale) over the bundle's.
        metric_log: log of the clip's scale by the metric anchor over the network's own metric factor.
        focal_rays_log: log of the focal length of the network's rays over the bundle's, before that leant on them.
        focal_anchor_log: log of the metric anchor's own focal length over the bundle's, likewise.
    """

    rotation_rad: float = math.nan
    direction_rad: float = math.nan
    scale_log: float = math.nan
    metric_log: float = math.nan
    focal_rays_log: float = math.nan
    focal_anchor_log: float = math.nan

    @staticmethod
    def of_row(row: Row) -> Agreement:
        """What a row says of it."""
        found = {f.name: getattr(row, f"agreement_{f.name}") for f in fields(Agreement)}
        return Agreement(
            **{name: math.nan if value is None else float(value) for name, value in found.items()}
        )

    def columns(self) -> dict[str, float | None]:
        """Values of the row's columns `agreement_*`, null where not finite."""
        found = {f"agreement_{f.name}": getattr(self, f.name) for f in fields(self)}
        return {name: value if math.isfinite(value) else None for name, value in found.items()}


def compare(
    geometry: SequenceGeometryResult,
    scale: ScaleEstimate,
    anchors: Sequence[AnchorFrame],
    cameras: CameraSolution,
    *,
    fps: float,
) -> Agreement:
    """Agreement of a solved clip.

    Args:
        geometry: of the sequence network, its cameras estimates.
        scale: metres per unit.
        anchors: of the metric anchor, with its own focal where it has one.
        cameras: of the bundle, in metres.
        fps: of the clip.
    """
    found: dict[str, float] = {}
    if geometry.camera_to_world is not None and scale.metres_per_unit is not None:
        known = np.flatnonzero(np.isfinite(geometry.camera_to_world[:, 0, 0]))
        if len(known) >= 3:
            theirs = np.asarray(geometry.camera_to_world, np.float64)[known].copy()
            theirs[:, :3, 3] *= scale.metres_per_unit[known, None]
            found |= _compare_paths(
                theirs, cameras.camera_to_world[known], known / fps, travel=_MIN_TRAVEL * cameras.median_depth
            )
    if geometry.own_metres_per_unit is not None and scale.value is not None and scale.model != "declared":
        found["metric_log"] = math.log(scale.value / geometry.own_metres_per_unit)
    # What leans on rays agrees with them: asked is what images and depth say without.
    ours = np.log(cameras.focal_px).mean(1) - cameras.focal_leant_log
    if geometry.focal_px is not None:
        rays = np.log(geometry.focal_px).mean(1)
        if np.isfinite(rays).any():
            found["focal_rays_log"] = float(np.nanmedian(rays - ours))
    own = [math.log(a.focal_px) - ours[a.frame] for a in anchors if a.focal_px is not None and a.focal_px > 0]
    if own:
        found["focal_anchor_log"] = float(np.median(own))
    return Agreement(**found)


def _compare_paths(
    theirs: FloatArray, ours: FloatArray, time_s: FloatArray, *, travel: float
) -> dict[str, float]:
    """Rotation, direction and scale between two paths of the same frames, each in a gauge of its own."""
    relative = theirs[:, :3, :3] @ ours[:, :3, :3].swapaxes(1, 2)
    weight = np.ones(len(relative))
    angle = np.zeros(len(relative))
    # Mean turn, without the frames that one of the two has wrong.
    for _ in range(5):
        mean = orthonormalise((weight[:, None, None] * relative).sum(0))
        angle = np.asarray(rotation_angle(mean.T @ relative))
        weight = 1 / (1 + (angle / max(2 * float(np.median(angle)), 1e-6)) ** 2)
    found = {"rotation_rad": float(np.median(angle))}
    later = np.searchsorted(time_s, time_s + _BASELINE_S - 1e-9)
    first = np.flatnonzero(later < len(time_s))
    if len(first) == 0:
        first, later = np.array([0]), np.array([len(time_s) - 1])
    second = later[first] if len(later) == len(time_s) else later
    steps = [
        np.einsum("nji,nj->ni", p[first, :3, :3], p[second, :3, 3] - p[first, :3, 3]) for p in (theirs, ours)
    ]
    length = [np.linalg.norm(s, axis=1) for s in steps]
    moving = (length[0] > travel) & (length[1] > travel)
    if moving.sum() >= 1:
        a, b = (s[moving] / n[moving, None] for s, n in zip(steps, length, strict=True))
        cosine = np.clip((a * b).sum(1), -1, 1)
        found["direction_rad"] = float(np.median(np.arccos(cosine)))
        found["scale_log"] = float(np.median(np.log(length[0][moving] / length[1][moving])))
    return found


FEATURES = ("rotation", "focal_rays", "focal_anchor")
"""What the confidence looks at, in order. Direction, scale of travel, spread of the scale and depth residuals added
nothing on scenes not fitted to."""

# Fitted to 167 simulated cases of 29 scenes (150 with cameras, 66 usable). Held out: 88 cases of other scenes, 74 with
# cameras. There: Brier score 0.163 (always the mean: 0.255); promised 0.08, 0.33, 0.52, 0.70 and 0.89 on average,
# usable were 0.11, 0.36, 0.56, 0.69 and 0.93.
_WEIGHTS = {"rotation": -2.060, "focal_rays": -0.688, "focal_anchor": -2.358}
_OFFSET = -5.645


def confidence_of(agreement: Agreement) -> float | None:
    """Probability that the cameras of a clip are usable, or None where what it is made of is missing.

    Usable: rotation within 1 degree, position within 2 % of the path (best similarity), focal within 3 %, scale within
    10 %. A logistic model of `features_of`, fitted and judged by `benchmarks/estimate_calibration.py`.
    """
    features = features_of(agreement)
    if features is None:
        return None
    score = _OFFSET + sum(_WEIGHTS[name] * value for name, value in zip(FEATURES, features, strict=True))
    return 1 / (1 + math.exp(-min(max(score, -50.0), 50.0)))


def features_of(agreement: Agreement) -> list[float] | None:
    """Numbers that the confidence is made of (`FEATURES`), or None if one is missing.

    All grow with disagreement; those that span decades enter as logarithms.
    """
    rotation, rays, anchor = agreement.rotation_rad, agreement.focal_rays_log, agreement.focal_anchor_log
    if not (math.isfinite(rotation) and math.isfinite(rays) and math.isfinite(anchor)):
        return None
    return [
        math.log10(math.degrees(rotation) + 0.05),
        math.log10(abs(rays) + 0.003),
        math.log10(abs(anchor) + 0.003),
    ]
