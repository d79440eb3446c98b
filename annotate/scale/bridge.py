"""Given poses in a unit of their own, brought to metres by a network: window by window, then by what windows agree on.

A sequence network sees the same frames in a unit of its own, and a metric anchor says what that unit is worth. Along
the clip, window by window: the similarity between the network's cameras and the given ones, robustly, and the metres of
the network's unit. Windows err each in their own way, so their logarithms are compared: what they agree on is the unit,
how far they lie apart is how sure it is, and where they disagree there is no unit that the clip could state.

The rotation of the similarity is taken from the orientations, not from the camera centres: centres of a straight path
leave the turn about it open, and centres alone do not see a flipped axis. Scale and shift are then linear.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
        log_network: (W,) log of network units of a given unit; sigma_log_window: (W,) its standard error.
        log_metres: (W,) log of metres of a network unit, by the anchors in the window alone.
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
    metres_per_unit: float | None = None
    sigma_log: float = float("nan")
    spread_log: float = float("nan")
    network_spread_log: float = float("nan")
    change_log: float = float("nan")
    change_sigma_log: float = float("nan")

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
    metres = _metres(scale, frame[starts], frame[starts + size - 1])
    used = (share >= config.min_inlier_share) & (sigma <= config.max_window_sigma_log) & np.isfinite(metres)
    fitted = np.log(np.asarray(scale.metres_per_unit, np.float64)[middle])
    return _consensus(
        Bridge(
            frame=middle,
            log_network=log_network,
            sigma_log_window=sigma,
            log_metres=metres,
            inlier_share=share,
            used=used,
        ),
        fitted,
        clip_sigma_log=float(np.nan_to_num(scale.sigma_log)),
        independent=len(frame) / size / len(starts),
        least=config.min_windows,
    )


def _on_same_frames(network: F64, given: FloatArray, position: FloatArray) -> tuple[F64, F64, F64]:
    """(n,) clip frames, and both paths there: at the poses of the sparser one, the denser interpolated."""
    known = np.flatnonzero(np.isfinite(network[:, 0, 0]))
    inside = known[(known >= position[0]) & (known <= position[-1])] if len(position) else known[:0]
    if len(known) < 2 or len(inside) < 2:
        return np.zeros(0), np.zeros((0, 4, 4)), np.zeros((0, 4, 4))
    if len(position) >= len(inside):
        frames = inside.astype(np.float64)
        return frames, network[inside], interpolate_poses(position, np.asarray(given, np.float64), frames)
    within = (position >= known[0]) & (position <= known[-1])
    frames = np.asarray(position, np.float64)[within]
    ours = interpolate_poses(known.astype(np.float64), network[known], frames)
    return frames, ours, np.asarray(given, np.float64)[within]


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
    weight, slope, noise = np.ones(len(x)), 0.0, 0.0
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


def _metres(scale: ScaleEstimate, first: F64, last: F64) -> F64:
    """(W,) log metres of a network unit by the anchors in each window (the three nearest at least); the clip's own
    where its unit is declared."""
    assert scale.metres_per_unit is not None
    usable = np.isfinite(scale.raw)
    if scale.model == "declared" or not usable.any():
        middle = ((first + last) / 2).round().astype(int)
        return np.log(np.asarray(scale.metres_per_unit, np.float64)[middle])
    frame, logs = scale.frame[usable].astype(np.float64), np.log(scale.raw[usable])
    found = np.empty(len(first))
    for i, (a, b) in enumerate(zip(first, last, strict=True)):
        away = np.maximum(np.maximum(a - frame, frame - b), 0)
        near = away <= max(0.0, float(np.sort(away)[min(2, len(away) - 1)]))
        found[i] = np.median(logs[near])
    return found


def _consensus(
    windows: Bridge, fitted: F64, *, clip_sigma_log: float, independent: float, least: int
) -> Bridge:
    """The windows with what those agree on that say something.

    The unit is the consensus of the similarities, in metres by the scale that all anchors of the clip agree on: two or
    three anchors a window would only add their noise. They say how far windows lie apart.

    Args:
        fitted: (W,) log metres of a network unit there, by the clip's scale; clip_sigma_log: its standard error.
        independent: share of the windows that would be there without overlap.
        least: windows that are needed.
    """
    used = windows.used
    if used.sum() < least:
        return windows
    network, sigma = windows.log_network[used], windows.sigma_log_window[used]
    value = network + fitted[used]
    middle = weighted_median(value, 1 / (0.02**2 + sigma**2))
    network_spread = mad(network - np.median(network))
    rho = autocorrelation(value - middle)
    effective = max(1.0, len(value) * min(1.0, independent) * (1 - rho) / (1 + rho))
    error = 1.2533 * max(mad(value - middle), float(np.median(sigma))) / float(np.sqrt(effective))
    third = max(1, len(network) // 3)
    return replace(
        windows,
        metres_per_unit=float(np.exp(middle)),
        sigma_log=float(np.hypot(error, clip_sigma_log)),
        spread_log=mad(network + windows.log_metres[used] - middle),
        network_spread_log=network_spread,
        change_log=float(np.median(network[-third:]) - np.median(network[:third])),
        change_sigma_log=float(np.median(sigma)) * float(np.sqrt(2 / third)),
    )
