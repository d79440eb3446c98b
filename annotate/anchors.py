"""Anchors: a few frames a second that a sequence network sees in large windows, brought into one gauge.

Frames go by once, in order. Every window of anchors is handed to the network as soon as its last frame is there, so
images are held for the windows in flight and for the one spread window only, and memory on the device does not grow
with the clip. What is kept of a window is small: poses, focal lengths, and depth and confidence at half size.

Windows overlap by half; one more window holds frames from all over the clip, which a network without frame order
takes like any other and which closes the loop over the whole clip at once. `align` brings all of them together.
What the windows then still disagree about is the uncertainty.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from ..dataset.arrays import F64, I64, FloatArray
from ..dataset.cameras.rotations import orthonormalise
from ..dataset.strict import Strict
from .align import AlignConfig, Aligned, Window, align_connected
from .frames.base import ClipFrames
from .geometry.base import SequenceGeometryResult
from .networks.images import upload
from .networks.lane import lane, next_turn, taken_over, uploading
from .reporting import counted
from .sources.clip import ClipRef, ClipRejection

WINDOWS_IN_FLIGHT = 2
"""Windows handed over and not yet done; with more, a fast decoder would fill the memory."""


class AnchorsConfig(Strict):
    """Which frames the sequence network sees, in which windows, and which of its pixels count."""

    fps: Annotated[float, Field(gt=0, le=60)] = 4.0
    """Anchors per second of video; the bundle gives the frames between them their cameras."""
    max_one_pass: Annotated[int, Field(ge=2)] = 96
    """A clip with at most so many anchors is one window: nothing has to be joined."""
    window: Annotated[int, Field(ge=4)] = 64
    """Anchors in a window of longer clips. Cost grows with the square; published accuracy falls below about 60. Longer
    ones start the bundle from a better place for up to 1.7 times the cost (`estimate_simulated.py windows`)."""
    step: Annotated[int, Field(ge=1)] = 32
    """Anchors from one window's start to the next, at most."""
    spread_window: bool = True
    """One more window of `window` anchors from all over the clip: a loop edge to every other window."""
    min_confidence: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Pixels whose confidence is below this are not used."""
    edge_depth_ratio: Annotated[float, Field(gt=0)] = 0.03
    """A pixel lies on an edge if depth in its 3x3 neighbourhood varies by more than this share of it, and ..."""
    edge_angle_deg: Annotated[float, Field(gt=0, lt=180)] = 5.0
    """... normals next to it differ by more than this."""
    far_ratio: Annotated[float, Field(gt=1)] = 30.0
    """Further than this times the frame's median depth counts as sky."""
    kept_side_px: Annotated[int, Field(ge=32)] = 336
    """Long side of the depth that is kept."""
    align: AlignConfig = AlignConfig()

    @model_validator(mode="after")
    def _windows_overlap(self) -> AnchorsConfig:
        if self.step > self.window // 2:
            raise ValueError(
                f"step {self.step}: windows of {self.window} must overlap by at least half to be joined"
            )
        return self


def choose_anchors(num_frames: int, fps: float, anchor_fps: float) -> I64:
    """Clip frames of the anchors: evenly spread, first and last frame included.

    Args:
        num_frames: F >= 1. fps: of the clip.
        anchor_fps: wanted; at most every frame is an anchor.
    """
    step = max(1.0, fps / anchor_fps)
    count = max(2, round((num_frames - 1) / step) + 1)
    return np.unique(np.round(np.linspace(0, num_frames - 1, count)).astype(np.int64))


def plan_windows(num_anchors: int, config: AnchorsConfig) -> list[I64]:
    """Anchor numbers of each window: one for short clips, else overlapping ones and the spread one, last.

    All are equally long; their starts are spread evenly, `step` apart at most, so that the last ends with the clip.
    """
    if num_anchors <= max(config.max_one_pass, config.window):
        return [np.arange(num_anchors)]
    last = num_anchors - config.window
    starts = np.round(np.linspace(0, last, -(-last // config.step) + 1)).astype(int)
    windows = [np.arange(s, s + config.window) for s in starts]
    if config.spread_window:
        windows.append(np.unique(np.round(np.linspace(0, num_anchors - 1, config.window)).astype(np.int64)))
    return windows


@dataclass(frozen=True, kw_only=True)
class RawWindow:
    """What a sequence network says about N frames, on its own device.

    Attributes:
        camera_to_world: (N, 4, 4) OpenCV axes, any world frame; unit about metres by the network's own judgement.
        points: (N, h, w, 3) camera-frame points in the same unit; z is the depth. They cover exactly the image.
        confidence: (N, h, w) in [0, 1].
    """

    camera_to_world: Tensor
    points: Tensor
    confidence: Tensor


class WindowNetwork(Protocol):
    """A sequence network: any number of frames at once, in any order.

    Attributes:
        name: for messages.
        device: where images are wanted.
        weights, weight_licences, stand_in: what goes into the row.
    """

    name: str
    device: torch.device
    weights: tuple[str, ...]
    weight_licences: tuple[str, ...]
    stand_in: bool

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the images that it takes for frames of (height, width)."""
        ...

    def predict(self, images: Tensor, frame: I64) -> RawWindow:
        """Geometry of (N, 3, h, w) uint8 RGB images of clip frames `frame` (N,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class _KeptWindow:
    """What stays of a window.

    Attributes:
        frame: (N,) clip frames.
        camera_to_world: (N, 4, 4) float64, rigid.
        depth: (N, h, w) float16 z-depth, NaN invalid, +inf sky.
        confidence: (N, h, w) uint8, 255 = 1.
        focal_px: (N, 2) fx, fy in pixels of the stored frames; NaN if a frame has too few usable pixels.
        points: (N, P, 3), weight: (N, P): the sample that alignment uses, the same pixels in every window.
    """

    frame: I64
    camera_to_world: F64
    depth: NDArray[np.float16]
    confidence: NDArray[np.uint8]
    focal_px: F64
    points: F64
    weight: F64


_GRID = (24, 40)  # rows and columns of the sample for alignment


def depth_edges(points: Tensor, valid: Tensor, config: AnchorsConfig) -> Tensor:
    """(N, h, w) bool: pixels at which a surface ends, where depth is a mixture of both sides.

    Both must hold: depth varies by more than `edge_depth_ratio` in the 3x3 neighbourhood, and normals within two
    pixels differ by more than `edge_angle_deg`; a slanted wall passes the second test only.

    Args:
        points: (N, h, w, 3). valid: (N, h, w) bool.
    """
    z = points[..., 2]
    high = F.max_pool2d(torch.where(valid, z, -torch.inf)[:, None], 3, 1, 1)[:, 0]
    low = -F.max_pool2d(torch.where(valid, -z, -torch.inf)[:, None], 3, 1, 1)[:, 0]
    jump = valid & ((high - low) > config.edge_depth_ratio * z)
    if not bool(jump.any()):
        return jump
    inner = points[:, 1:-1, 1:-1]
    normal = torch.linalg.cross(
        points[:, 1:-1, 2:] - points[:, 1:-1, :-2], points[:, 2:, 1:-1] - points[:, :-2, 1:-1], dim=-1
    )
    normal = F.normalize(torch.nan_to_num(normal), dim=-1)
    bent = torch.zeros(inner.shape[:3], dtype=torch.bool, device=z.device)
    limit = float(np.cos(np.radians(config.edge_angle_deg)))
    across = (normal[:, :, 1:] * normal[:, :, :-1]).sum(-1) < limit
    down = (normal[:, 1:] * normal[:, :-1]).sum(-1) < limit
    bent[:, :, 1:] |= across
    bent[:, :, :-1] |= across
    bent[:, 1:] |= down
    bent[:, :-1] |= down
    bent_all = F.pad(bent[:, None].float(), (1, 1, 1, 1), mode="replicate")
    return jump & (F.max_pool2d(bent_all, 3, 1, 1)[:, 0] > 0)


def fit_focal(points: Tensor, weight: Tensor, *, height: float, width: float) -> Tensor:
    """fx and fy of each frame, (N, 2), from camera-frame points whose pixels are known.

    Robust least squares of u - cx = fx x / z with the principal point in the middle, weights by confidence; the
    pixel centres are those of frames of (height, width), whatever the size of the maps.

    Args:
        points: (N, h, w, 3). weight: (N, h, w), 0 where not usable.
    Returns:
        NaN where less than 2 % of the pixels are usable.
    """
    _, h, w, _ = points.shape
    z = points[..., 2]
    usable = (weight > 0) & torch.isfinite(points).all(-1) & (z > 0)
    out = []
    for axis, (count, size) in enumerate(((w, width), (h, height))):
        pixel = ((torch.arange(count, device=z.device) + 0.5) / count - 0.5) * size
        pixel = pixel.expand(h, w) if axis == 0 else pixel[:, None].expand(h, w)
        x = torch.where(usable, points[..., axis] / torch.where(usable, z, 1.0), 0.0).double()
        base = torch.where(usable, weight, 0.0).double()
        # The middle of the image says nothing about scale; the median of the rest stands up to a third of nonsense.
        telling = usable & (pixel.abs() > 0.15 * size) & (x * pixel > 0)
        ratio = torch.where(telling, pixel / torch.where(telling, x, 1.0), torch.nan)
        focal = ratio.flatten(1).nanmedian(1).values
        for _ in range(3):
            residual = (pixel - focal[:, None, None] * x).abs()
            middle = torch.where(usable, residual, torch.nan).flatten(1).nanmedian(1).values
            sigma = (1.5 * middle).clamp_min(1e-4 * size)[:, None, None]
            by = base / (1 + (residual / (2 * sigma)) ** 2)
            focal = (by * x * pixel).sum((1, 2)) / (by * x * x).sum((1, 2)).clamp_min(1e-12)
        enough = (usable.float().mean((1, 2)) >= 0.02) & (focal > 0)
        out.append(torch.where(enough, focal, torch.nan))
    return torch.stack(out, 1)


def keep_window(raw: RawWindow, frame: I64, config: AnchorsConfig, *, height: int, width: int) -> _KeptWindow:
    """Masks, focal lengths and reduction of one window, on its device.

    Raises:
        ClipRejection: `geometry_not_finite` if a pose is not finite.
    """
    poses = raw.camera_to_world.detach().double().cpu().numpy()
    if not np.isfinite(poses).all():
        raise ClipRejection(
            "geometry_not_finite", f"the sequence network gave no finite pose for frames {frame}"
        )
    poses = poses.copy()
    poses[:, :3, :3] = orthonormalise(poses[:, :3, :3])
    depth, confidence, focal, points, weight = [], [], [], [], []
    _, h, w, _ = raw.points.shape
    shrink = min(1.0, config.kept_side_px / max(h, w))
    rows = _nearest(h, max(1, round(h * shrink)), raw.points.device)
    columns = _nearest(w, max(1, round(w * shrink)), raw.points.device)
    grid_rows = _nearest(h, min(h, _GRID[0]), raw.points.device)
    grid_columns = _nearest(w, min(w, _GRID[1]), raw.points.device)
    # A few frames at a time: the masks need several maps of the full size.
    for part, trust in zip(raw.points.split(16), raw.confidence.split(16), strict=True):
        part, trust = part.float(), trust.float()
        z = part[..., 2]
        valid = torch.isfinite(part).all(-1) & (z > 0)
        middle = torch.where(valid, z, torch.nan).flatten(1).nanmedian(1).values[:, None, None]
        sky = valid & (z > config.far_ratio * middle)
        good = valid & ~sky & (trust >= config.min_confidence)
        good &= ~depth_edges(part, valid, config)
        kept = torch.where(good, z, torch.nan)
        kept = torch.where(sky, torch.inf, kept)
        used = torch.where(good, trust, 0.0)
        depth.append(kept[:, rows][:, :, columns].half())
        confidence.append((255 * used[:, rows][:, :, columns]).round().to(torch.uint8))
        focal.append(
            fit_focal(part[:, rows][:, :, columns], used[:, rows][:, :, columns], height=height, width=width)
        )
        points.append(part[:, grid_rows][:, :, grid_columns].flatten(1, 2))
        weight.append(used[:, grid_rows][:, :, grid_columns].flatten(1, 2))
    return _KeptWindow(
        frame=frame,
        camera_to_world=poses,
        depth=torch.cat(depth).cpu().numpy(),
        confidence=torch.cat(confidence).cpu().numpy(),
        focal_px=torch.cat(focal).cpu().numpy(),
        points=torch.cat(points).double().cpu().numpy(),
        weight=torch.cat(weight).double().cpu().numpy(),
    )


def _nearest(size: int, samples: int, device: torch.device) -> Tensor:
    """Pixels nearest to the centres of `samples` equal parts."""
    return ((torch.arange(samples, device=device) + 0.5) * size / samples).long()


class AnchorStream:
    """Takes a clip's frames one by one and ends with its geometry.

    Args:
        network: what sees the windows.
        config: which frames and windows.
        clip: for messages.
        frames: sizes and timing; not iterated here.
    """

    def __init__(
        self, network: WindowNetwork, config: AnchorsConfig, clip: ClipRef, frames: ClipFrames
    ) -> None:
        self.network, self.config, self.clip = network, config, clip
        self.height, self.width, self.num_frames = frames.height, frames.width, len(frames)
        self.anchors = choose_anchors(len(frames), frames.timing.fps, config.fps)
        self.windows = plan_windows(len(self.anchors), config)
        self.size = network.input_size(frames.height, frames.width)
        self.weights, self.weight_licences = network.weights, network.weight_licences
        self.stand_in = network.stand_in
        self.busy_s = 0.0
        self._turn = next_turn()
        self._due = [int(w[-1]) for w in self.windows]
        self._users = np.bincount(np.concatenate(self.windows), minlength=len(self.anchors))
        self._images: dict[int, Tensor] = {}
        self._number = {int(f): i for i, f in enumerate(self.anchors)}
        self._pending: list[Future[_KeptWindow]] = []
        self._room = threading.Semaphore(WINDOWS_IN_FLIGHT)

    def add(self, frame: int, rgb: NDArray[np.uint8]) -> None:
        """Take clip frame `frame`, (height, width, 3) uint8 RGB; waits while too many windows are in flight.

        Raises:
            Exception: what a window's network raised.
        """
        number = self._number.get(frame)
        if number is None:
            return
        with uploading(self.network.device):
            self._images[number] = upload(rgb, self.network.device, self.size)
        for window, due in zip(self.windows, self._due, strict=True):
            if due == number:
                self._hand_over(window)

    def _hand_over(self, window: I64) -> None:
        for done in [p for p in self._pending if p.done()]:
            done.result()  # an error ends the clip now, not after its last frame
        self._room.acquire()
        with uploading(self.network.device, wait=True):
            images = torch.stack([self._images[int(i)] for i in window])
        self._users[window] -= 1
        for i in window:
            if self._users[i] == 0:
                del self._images[int(i)]
        frame = self.anchors[window]

        def work() -> _KeptWindow:
            start = time.perf_counter()
            try:
                raw = self.network.predict(taken_over(images), frame)
                return keep_window(raw, frame, self.config, height=self.height, width=self.width)
            finally:
                self.busy_s += time.perf_counter() - start
                self._room.release()

        self._pending.append(lane(str(self.network.device)).submit(self._turn, work))

    def close(self) -> None:
        """Give up: nothing that waits is started."""
        for pending in self._pending:
            pending.cancel()
        self._images.clear()

    def finish(self) -> SequenceGeometryResult:
        """The clip's geometry, in the unit of the best connected windows; waits for the network.

        Raises:
            ClipRejection: `geometry_not_finite`, `anchors_disconnected`, `too_few_anchors`.
        """
        waited_for = (pending.result() for pending in self._pending)
        kept = list(
            counted(self.clip.clip_id, "geometry", waited_for, len(self._pending), "windows of the network")
        )
        if len(kept) != len(self.windows):
            raise ClipRejection(
                "too_few_anchors",
                f"clip {self.clip.clip_id}: {len(self._number)} anchors are wanted, but the media ended before the"
                " last of them",
            )
        return join_windows(kept, self.config, self.network, self.clip, num_frames=self.num_frames)


@dataclass(frozen=True)
class _AnchorMaps:
    """Maps of the anchors, half-size and in few bits; the `DepthMaps` of base.py.

    Attributes:
        number: place of each anchor in `maps`, by clip frame.
        maps: (A, h, w) float16 depth or uint8 confidence (255 = 1).
        num_frames: of the clip.
    """

    number: dict[int, int]
    maps: NDArray
    num_frames: int

    def __len__(self) -> int:
        return self.num_frames

    def read(self, frame: int) -> FloatArray | None:
        """(h, w) float32 map of clip frame `frame`; None where it is no anchor."""
        if frame not in self.number:
            return None
        found = self.maps[self.number[frame]].astype(np.float32)
        return found / 255 if self.maps.dtype == np.uint8 else found


def _merged(
    kept: Sequence[_KeptWindow], log_scale: F64, where: dict[int, list[tuple[int, int]]], num_frames: int
) -> tuple[_AnchorMaps, _AnchorMaps]:
    """Depth and confidence of every anchor from all windows that hold it."""
    shape = (len(where), *kept[0].depth.shape[1:])
    depth, confidence = np.empty(shape, np.float16), np.empty(shape, np.uint8)
    number = {frame: i for i, frame in enumerate(sorted(where))}
    for frame, i in number.items():
        z, trust = merge_maps(
            np.stack([kept[w].depth[k].astype(np.float32) * np.exp(log_scale[w]) for w, k in where[frame]]),
            np.stack([kept[w].confidence[k].astype(np.float32) / 255 for w, k in where[frame]]),
        )
        depth[i], confidence[i] = z, np.round(255 * trust)
    return _AnchorMaps(number, depth, num_frames), _AnchorMaps(number, confidence, num_frames)


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
    kept: Sequence[_KeptWindow],
    config: AnchorsConfig,
    network: WindowNetwork,
    clip: ClipRef,
    *,
    num_frames: int,
) -> SequenceGeometryResult:
    """Windows in one gauge, as the sequence geometry of a clip.

    The unit is that of the network's metric factor, averaged over the windows (each window judges it anew).

    Raises:
        ClipRejection: `anchors_disconnected` if less than half of the anchors hang together.
    """
    anchors = np.unique(np.concatenate([k.frame for k in kept]))
    windows = [
        Window(frame=k.frame, camera_to_world=k.camera_to_world, points=k.points, weight=k.weight)
        for k in kept
    ]
    used, aligned = align_connected(windows, config.align)
    if len(aligned.frame) < max(2, 0.5 * len(anchors)):
        raise ClipRejection(
            "anchors_disconnected",
            f"clip {clip.clip_id}: {network.name}: only {len(aligned.frame)} of {len(anchors)} anchors lie in windows"
            " that share enough good points",
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
        weights=network.weights,
        weight_licences=network.weight_licences,
        stand_in=network.stand_in,
        own_metres_per_unit=1.0,
        diagnostics=_diagnostics(aligned, len(kept), len(anchors), disagreement),
    )


def depth_disagreement(
    kept: Sequence[_KeptWindow], log_scale: F64, where: dict[int, list[tuple[int, int]]]
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
    return float(1.4826 * np.median(np.abs(together)) / np.sqrt(2))


def _diagnostics(
    aligned: Aligned, num_windows: int, num_anchors: int, disagreement: float
) -> dict[str, float]:
    found = {
        "anchors": float(num_anchors),
        "anchor_windows": float(num_windows),
        "anchor_windows_joined": float(len(aligned.log_scale)),
        "anchor_depth_disagreement_log": disagreement,
        "anchor_window_log_scale_spread": float(np.std(aligned.log_scale)),
    }
    if len(aligned.edges):
        found["anchor_edge_residual_median"] = float(np.median(aligned.edge_residual))
        found["anchor_edge_residual_max"] = float(np.max(aligned.edge_residual))
    spread = aligned.pose_spread[np.isfinite(aligned.pose_spread)]
    if len(spread):
        found["anchor_pose_spread_median"] = float(np.median(spread))
    return {name: value for name, value in found.items() if np.isfinite(value)}
