"""Given poses in a unit of their own, brought to metres by a network: window by window, then by what windows agree on.

A sequence network sees the same frames in a unit of its own, and a metric anchor says what that unit is worth. Along
the clip, window by window: the similarity between the network's cameras and the given ones, robustly; the metres of
the network's unit from the anchors inside; and from both the metres of a given unit. Windows err each in their own
way, so their logarithms are compared: what they agree on is the unit, how far they lie apart is how sure it is, and
where they disagree there is no unit that the clip could state.

The rotation of the similarity is taken from the orientations, not from the camera centres: centres of a straight path
leave the turn about it open, and centres alone do not see a flipped axis. Scale and shift are then linear.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...dataset.arrays import F64, I64, BoolArray, FloatArray
from ...dataset.cameras.rotations import orthonormalise, rotation_angle
from ...dataset.cameras.transforms import interpolate_poses
from .ratio import weighted_median
from .records import BridgeConfig, ScaleEstimate
from .shape import autocorrelation, mad

STRAIGHT = 0.02
"""Second over first spread of camera centres below which a path is a line."""


@dataclass(frozen=True, kw_only=True)
class Bridge:
    """What the windows say. All logs are natural.

    Attributes:
        frame: (W,) clip frame in the middle of each window.
        log_network: (W,) log of network units of a given unit; sigma_log: (W,) its standard error.
        log_metres: (W,) log of metres of a network unit.
        inlier_share: (W,) of the network's poses.
        used: (W,) windows that say something.
        metres_per_unit: consensus; None without enough windows.
        sigma_log: its standard error, without what all anchors have wrong in common.
        spread_log: robust standard deviation of the windows about it.
        network_spread_log: the same of `log_network` alone: whether one similarity holds along the clip.
        change_log: change of `log_network` from the first third of the windows to the last.
        change_sigma_log: standard error of that, and of `network_spread_log`.
    """

    frame: I64
    log_network: F64
    sigma_log_window: F64
    log_metres: F64
    inlier_share: F64
    used: BoolArray
    metres_per_unit: float | None
    sigma_log: float
    spread_log: float
    network_spread_log: float
    change_log: float
    change_sigma_log: float

    @property
    def value(self) -> F64:
        """(n,) metres of a given unit, by each window that is used."""
        return np.exp(self.log_network + self.log_metres)[self.used]


def path_spread(camera_to_world: FloatArray) -> float:
    """Second over first spread of camera centres (F, 4, 4): 0 on a line; NaN where they do not move."""
    centre = camera_to_world[:, :3, 3]
    spread = np.linalg.svd(centre - centre.mean(0), compute_uv=False)
    still = spread[0] <= 1e-9 * max(1.0, float(np.abs(centre).max()))
    return float("nan") if still or len(spread) < 2 else float(spread[1] / spread[0])


def bridge_to_metres(
    network: FloatArray,
    given: FloatArray,
    position: FloatArray,
    scale: ScaleEstimate,
    *,
    fps: float,
    config: BridgeConfig | None = None,
) -> Bridge | None:
    """Metres of a unit of the given poses.

    Args:
        network: (F, 4, 4) camera-to-world of the sequence network in its unit, NaN rows where it has none.
        given: (N, 4, 4) camera-to-world in a unit of their own.
        position: (N,) clip frames of the given poses, increasing.
        scale: metres of the network's unit, with its raw series.
        fps: of the clip.
    Returns:
        None where there are too few poses of either to make windows.
    """
    config = config or BridgeConfig()
    frame, ours, theirs = _on_same_frames(np.asarray(network, np.float64), given, position)
    size = 5
    if len(frame) < size + config.min_windows - 1 or scale.metres_per_unit is None:
        return None
    rate = (len(frame) - 1) / max((frame[-1] - frame[0]) / fps, 1e-9)
    size = int(np.clip(round(config.window_s * rate), size, len(frame) - config.min_windows + 1))
    count = max(config.min_windows, len(frame) // size)
    starts = np.unique(np.linspace(0, len(frame) - size, count).round().astype(int))
    found = [_fit_window(ours[s : s + size], theirs[s : s + size]) for s in starts]
    log_network, sigma, share = (np.array(values) for values in zip(*found, strict=True))
    middle = frame[starts + size // 2].round().astype(np.int64)
    metres, metres_sigma = _metres(scale, frame[starts], frame[starts + size - 1])
    used = (share >= config.min_inlier_share) & (sigma <= config.max_window_sigma_log) & np.isfinite(metres)
    return _consensus(
        middle,
        (log_network, sigma, share),
        (metres, metres_sigma),
        used,
        independent=len(frame) / size / max(len(starts), 1),
        config=config,
    )


def _on_same_frames(network: F64, given: FloatArray, position: FloatArray) -> tuple[F64, F64, F64]:
    """(n,) clip frames, and both paths there: at the poses of the sparser one, the denser interpolated."""
    known = np.flatnonzero(np.isfinite(network[:, 0, 0]))
    inside = known[(known >= position[0]) & (known <= position[-1])] if len(position) else known[:0]
    if len(known) < 2 or len(inside) < 2:
        return np.zeros(0), np.zeros((0, 4, 4)), np.zeros((0, 4, 4))
    if len(position) >= len(inside):
        at = inside.astype(np.float64)
        return at, network[inside], interpolate_poses(position, np.asarray(given, np.float64), at)
    within = (position >= known[0]) & (position <= known[-1])
    at = np.asarray(position, np.float64)[within]
    ours = interpolate_poses(known.astype(np.float64), network[known], at)
    return at, ours, np.asarray(given, np.float64)[within]


def _fit_window(network: F64, given: F64) -> tuple[float, float, float]:
    """Log of network units of a given unit, its standard error, share of inliers.

    The given centres are exact and the network's err, so the unit is the slope of the latter over the former.
    """
    turn = network[:, :3, :3] @ given[:, :3, :3].swapaxes(1, 2)
    weight = np.ones(len(turn))
    rotation = orthonormalise(turn.sum(0))
    for _ in range(5):
        rotation = orthonormalise((weight[:, None, None] * turn).sum(0))
        angle = np.asarray(rotation_angle(rotation.T @ turn))
        weight = 1 / (1 + (angle / max(2 * float(np.median(angle)), 1e-6)) ** 2)
    y, x = network[:, :3, 3], given[:, :3, 3] @ rotation.T
    weight, slope = np.ones(len(x)), 0.0
    dx, left = x - x.mean(0), np.zeros(len(x))
    for _ in range(15):
        total = weight.sum()
        dx, dy = x - weight @ x / total, y - weight @ y / total
        energy = float(weight @ (dx * dx).sum(1))
        if energy <= 0:
            return float("nan"), float("inf"), 0.0
        slope = float(weight @ (dx * dy).sum(1)) / energy
        left = np.linalg.norm(dy - slope * dx, axis=1)
        noise = max(float(np.median(left)) / 1.54, 1e-12)  # median of the length of a 3-D Gaussian
        weight = 1 / (1 + (left / (2.5 * noise)) ** 2)
    if slope <= 0:
        return float("nan"), float("inf"), 0.0
    energy = float(weight @ (dx * dx).sum(1))
    # Neighbouring poses of a network err alike: one in two speaks for itself.
    sigma = np.sqrt(2.0) * noise / np.sqrt(energy) / slope
    return float(np.log(slope)), float(sigma), float((left < 4 * noise).mean())


def _metres(scale: ScaleEstimate, first: F64, last: F64) -> tuple[F64, F64]:
    """(W,) log metres of a network unit by the anchors in each window (the three nearest at least), and the standard
    error; the clip's own where its unit is declared."""
    assert scale.metres_per_unit is not None
    usable = np.isfinite(scale.raw)
    if scale.model == "declared" or not usable.any():
        middle = ((first + last) / 2).round().astype(int)
        return np.log(np.asarray(scale.metres_per_unit, np.float64)[middle]), np.zeros(len(first))
    at, logs = scale.frame[usable].astype(np.float64), np.log(scale.raw[usable])
    noise = max(mad(logs - np.median(logs)), 0.01)
    found, sigma = np.empty(len(first)), np.empty(len(first))
    for i, (a, b) in enumerate(zip(first, last, strict=True)):
        away = np.maximum(np.maximum(a - at, at - b), 0)
        near = away <= max(0.0, float(np.sort(away)[min(2, len(away) - 1)]))
        found[i] = weighted_median(logs[near], np.ones(int(near.sum())))
        sigma[i] = noise / np.sqrt(near.sum())
    return found, sigma


def _consensus(
    frame: I64,
    fits: tuple[F64, F64, F64],
    metres: tuple[F64, F64],
    used: BoolArray,
    *,
    independent: float,
    config: BridgeConfig,
) -> Bridge:
    (log_network, sigma, share), (log_metres, metres_sigma) = fits, metres
    value = (log_network + log_metres)[used]
    enough = len(value) >= config.min_windows
    middle = spread = network_spread = error = change = change_sigma = float("nan")
    if enough:
        middle = weighted_median(value, 1 / (0.05**2 + sigma[used] ** 2 + metres_sigma[used] ** 2))
        spread = mad(value - middle)
        network = log_network[used]
        network_spread = mad(network - np.median(network))
        rho = autocorrelation(value - middle)
        effective = max(1.0, len(value) * min(1.0, independent) * (1 - rho) / (1 + rho))
        least = float(np.median(np.hypot(sigma[used], metres_sigma[used])))
        error = 1.2533 * max(spread, least) / float(np.sqrt(effective))
        third = max(1, len(network) // 3)
        change = float(np.median(network[-third:]) - np.median(network[:third]))
        change_sigma = float(np.median(sigma[used])) * float(np.sqrt(2 / third))
    return Bridge(
        frame=frame,
        log_network=log_network,
        sigma_log_window=sigma,
        log_metres=log_metres,
        inlier_share=share,
        used=used,
        metres_per_unit=float(np.exp(middle)) if enough else None,
        sigma_log=error,
        spread_log=spread,
        network_spread_log=network_spread,
        change_log=change,
        change_sigma_log=change_sigma,
    )
