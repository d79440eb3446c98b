"""Windows of a sequence network joined into one geometry of the clip."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import F64, FloatArray
from ...dataset.robust import MAD_TO_SIGMA
from ..sources.clip import ClipRef, ClipRejection
from .align import DEPTHS_PER_FRAME, Aligned, Window, align_connected
from .base import SequenceGeometryResult
from .config import KeyframesConfig
from .window_maps import KeptWindow


@dataclass(frozen=True)
class _KeyframeMaps:
    """Maps of the keyframes, half-size and in few bits; the `DepthMaps` of `geometry/base.py`.

    Attributes:
        number: place of each keyframe in `maps`, by clip frame.
        maps: (A, h, w) float16 depth or uint8 confidence (255 = 1).
        num_frames: of the clip.
    """

    number: dict[int, int]
    maps: NDArray
    num_frames: int

    def __len__(self) -> int:
        return self.num_frames

    def read(self, frame: int) -> FloatArray | None:
        """(h, w) float32 map of clip frame `frame`; None where it is no keyframe."""
        if frame not in self.number:
            return None
        found = self.maps[self.number[frame]].astype(np.float32)
        return found / 255 if self.maps.dtype == np.uint8 else found


def _merged(
    kept: Sequence[KeptWindow], log_scale: F64, where: dict[int, list[tuple[int, int]]], num_frames: int
) -> tuple[_KeyframeMaps, _KeyframeMaps]:
    """Depth and confidence of every keyframe from all windows that hold it."""
    shape = (len(where), *kept[0].depth.shape[1:])
    depth, confidence = np.empty(shape, np.float16), np.empty(shape, np.uint8)
    number = {frame: i for i, frame in enumerate(sorted(where))}
    for frame, i in number.items():
        z, trust = merge_maps(
            np.stack([kept[w].depth[k].astype(np.float32) * np.exp(log_scale[w]) for w, k in where[frame]]),
            np.stack([kept[w].confidence[k].astype(np.float32) / 255 for w, k in where[frame]]),
        )
        depth[i], confidence[i] = z, np.round(255 * trust)
    return _KeyframeMaps(number, depth, num_frames), _KeyframeMaps(number, confidence, num_frames)


def merge_maps(depth: FloatArray, confidence: FloatArray) -> tuple[FloatArray, FloatArray]:
    """One depth and confidence map of a frame from those of several windows, already in one unit.

    Depth is the geometric mean weighted by confidence; where windows disagree, confidence falls: by half at 10 %.

    Args:
        depth: (n, h, w), NaN invalid, +inf sky. confidence: (n, h, w) in [0, 1].
    Returns:
        (h, w) float32 each. Sky where any window says sky and none sees a surface.
    """
    usable = np.isfinite(depth) & (depth > 0) & (confidence > 0)
    weight = np.where(usable, confidence, 0.0)
    logs = np.log(np.where(usable, depth, np.float32(1.0)))
    total = weight.sum(0)
    some = total > 0
    safe = np.where(some, total, 1.0)
    mean = (weight * logs).sum(0) / safe
    spread = np.sqrt((weight * (logs - mean) ** 2).sum(0) / safe)
    merged = np.where(some, np.exp(mean), np.where(np.isposinf(depth).any(0), np.inf, np.nan))
    trust = np.where(some, total / np.maximum(usable.sum(0), 1) / (1 + (spread / 0.1) ** 2), 0.0)
    return merged.astype(np.float32), trust.astype(np.float32)


def join_windows(
    kept: Sequence[KeptWindow],
    config: KeyframesConfig,
    network_name: str,
    clip: ClipRef,
    *,
    num_frames: int,
) -> SequenceGeometryResult:
    """Windows in one gauge, as the sequence geometry of a clip.

    The unit is that of the network's metric factor, averaged over the windows (each window judges it anew).

    Args:
        network_name: for messages.
    Raises:
        ClipRejection: `keyframes_disconnected` if less than half of the keyframes hang together.
    """
    keyframes = np.unique(np.concatenate([k.frame for k in kept]))
    windows = [
        Window(frame=k.frame, camera_to_world=k.camera_to_world, points=k.points, weight=k.weight)
        for k in kept
    ]
    used, aligned = align_connected(windows, config.align)
    if len(aligned.frame) < max(2, 0.5 * len(keyframes)):
        raise ClipRejection(
            "keyframes_disconnected",
            f"clip {clip.clip_id}: {network_name}: only {len(aligned.frame)} of {len(keyframes)} keyframes lie in"
            " windows that share enough good points",
        )
    # The gauge is window 0's; the common unit becomes the mean of what all windows call a metre.
    own = float(np.median(aligned.log_scale))
    log_scale = np.full(len(kept), np.nan)
    log_scale[used] = aligned.log_scale - own
    where: dict[int, list[tuple[int, int]]] = {}
    for w in used:
        for i, f in enumerate(kept[w].frame):
            where.setdefault(int(f), []).append((int(w), i))
    poses = np.full((num_frames, 4, 4), np.nan)
    in_unit = aligned.camera_to_world.copy()
    in_unit[:, :3, 3] *= np.exp(-own)
    poses[aligned.frame] = in_unit
    focal = np.full((num_frames, 2), np.nan)
    for f, places in where.items():
        logs = np.log(np.stack([kept[w].focal_px[i] for w, i in places]))
        if np.isfinite(logs).any(0).all():
            focal[f] = np.exp(np.nanmean(logs, axis=0))
    disagreement = depth_disagreement(kept, log_scale, where)
    depth, confidence = _merged(kept, log_scale, where, num_frames)
    return SequenceGeometryResult(
        depth=depth,
        # Windows share what the network gets wrong in an image, so their disagreement is only a lower bound.
        depth_sigma_log=float(np.clip(1.5 * disagreement, 0.05, 0.3)) if np.isfinite(disagreement) else 0.05,
        metres_per_unit=None,
        camera_to_world=poses,
        focal_px=focal,
        confidence=confidence,
        depths_per_frame=DEPTHS_PER_FRAME,
        own_metres_per_unit=1.0,
        diagnostics=_diagnostics(aligned, len(kept), len(keyframes), disagreement),
    )


def depth_disagreement(
    kept: Sequence[KeptWindow], log_scale: F64, where: dict[int, list[tuple[int, int]]]
) -> float:
    """Robust standard deviation of the log depth of one window, from frames that two windows hold; NaN without any."""
    ratios = []
    for places in where.values():
        for (a, i), (b, j) in itertools.pairwise(places):
            good = (kept[a].weight[i] > 0) & (kept[b].weight[j] > 0)
            za, zb = kept[a].points[i, good, 2], kept[b].points[j, good, 2]
            ok = np.isfinite(za) & np.isfinite(zb) & (za > 0) & (zb > 0)
            ratios.append(np.log(za[ok] / zb[ok]) + log_scale[a] - log_scale[b])
    together = np.concatenate(ratios) if ratios else np.zeros(0)
    if len(together) < 100:
        return float("nan")
    return float(MAD_TO_SIGMA * np.median(np.abs(together)) / np.sqrt(2))


def _diagnostics(
    aligned: Aligned, num_windows: int, num_keyframes: int, disagreement: float
) -> dict[str, float]:
    found = {
        "keyframes": float(num_keyframes),
        "keyframe_windows": float(num_windows),
        "keyframe_windows_joined": float(len(aligned.log_scale)),
        "keyframe_depth_disagreement_log": disagreement,
        "keyframe_window_log_scale_spread": float(np.std(aligned.log_scale)),
    }
    if len(aligned.edges):
        found["keyframe_edge_residual_median"] = float(np.median(aligned.edge_residual))
        found["keyframe_edge_residual_max"] = float(np.max(aligned.edge_residual))
    spread = aligned.pose_spread[np.isfinite(aligned.pose_spread)]
    if len(spread):
        found["keyframe_pose_spread_median"] = float(np.median(spread))
    return {name: value for name, value in found.items() if np.isfinite(value)}
