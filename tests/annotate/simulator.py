"""Networks that err as Pi3X and MoGe-2 are known to, over clips whose truth is known.

They stand where the networks stand (`window_maps.WindowNetwork`, `moge2` predictions), so everything behind them is the
production path. The kinds of error follow what users and papers report: every window has a gauge and a unit of its
own, the unit drifts along a window, depth is off, edges bleed, sky gets a depth, moving things get a wrong one, some
frames are wrong altogether, and single-image metres flicker. Where a size has been published it is taken; the others
are assumed, and say so (`Errors`). A drift and a bend are drawn per window, however long it is: that favours long
windows, as published results do (DA3-Streaming on TUM: 0.23 m at 30 frames, 0.13 at 60, 0.09 at 90 and 120).
Rows made with them are stand-ins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from theodolite.annotate.geometry.base import Provenance
from theodolite.annotate.geometry.config import KeyframesConfig, MoGe2Config
from theodolite.annotate.geometry.estimators import Estimators
from theodolite.annotate.geometry.moge2 import MoGe2Stream, RawImages
from theodolite.annotate.geometry.window_maps import RawWindow
from theodolite.annotate.geometry.windows import KeyframeStream
from theodolite.annotate.rendered import render
from theodolite.annotate.rendered.render import RenderedClip
from theodolite.dataset.cameras.rotations import so3_exp

SIZE = (108, 192)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A clip whose cameras and depth are known.

    Attributes:
        camera_to_world: (F, 4, 4). focal_px: (F,) in stored pixels. height, width: of the stored frames.
        depth_m: frame, (h, w) -> (h, w) float32 metres along z, NaN where unknown, +inf for sky.
        moving: frame, (h, w) -> (h, w) bool, or None where nothing moves.
    """

    camera_to_world: np.ndarray
    focal_px: np.ndarray
    height: int
    width: int
    depth_m: Callable[[int, tuple[int, int]], np.ndarray]
    moving: Callable[[int, tuple[int, int]], np.ndarray] | None = None


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Sizes of the errors; logs are natural, so 0.05 is about 5 %."""

    own_scale: float = 0.15
    """Of the network's idea of a metre, the same for all windows. Assumed: its authors call it approximate."""
    window_scale: float = 0.03
    """Of the unit from window to window. Assumed small: on KITTI windows of Pi3X joined as they come drift less (16 m)
    than with a free scale each (54 m; tables of Pi-Long)."""
    drift: float = 0.03
    """Of the unit from the first to the last frame of a window, smooth. Assumed; in a published run with short windows
    the fused scale wandered by 12 % within 20 s."""
    rotation_deg: float = 0.15
    """Of every orientation, and twice as much again as a smooth bend along a window. Assumed."""
    position: float = 0.004
    """Of every position, as a share of the median depth. Assumed."""
    depth: float = 0.05
    """Of depth: smooth fields over the image (most), a factor per frame and a little pixel noise. The 5 % that the
    comparison is asked for."""
    outlier_frames: float = 0.1
    """Share of frames with a wrong pose and depth off by a factor. The 10 % that the comparison is asked for."""
    focal: float = 0.02
    """Of the rays' focal length: half common to the clip, half per frame. MoGe-2's own solver is within 2 % from 60
    degrees on."""
    metric_frame: float = 0.10
    """Of a metric frame's scale; neighbours a second apart correlate by 0.6 (0.97 from frame to frame at 16 fps).
    Assumed: reports of rooms whose size changes from image to image come without numbers."""
    metric_outliers: float = 0.1
    """Share of metric frames whose scale is off by a factor of up to 2. Assumed."""
    sky_share: float = 0.0
    """Of the image, from its top: replaced by sky that the networks place at random far distances."""
    seed: int = 0


def smooth_field(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """(h, w) of mean 0 and spread 1, varying over about a sixth of the image."""
    field = cv2.resize(rng.standard_normal((5, 8)), (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / field.std()


def bleed(depth: np.ndarray, radius: int) -> np.ndarray:
    """Depth mixed across edges, as a network's upsampling does."""
    valid = np.isfinite(depth)
    kernel = (2 * radius + 1, 2 * radius + 1)
    weight = cv2.blur(valid.astype(np.float32), kernel)
    mean = cv2.blur(np.where(valid, depth, 0).astype(np.float32), kernel) / np.maximum(weight, 1e-6)
    return np.where(valid, mean, np.nan)


def _with_sky(depth: np.ndarray, share: float) -> np.ndarray:
    rows = round(share * depth.shape[0])
    out = depth.copy()
    out[:rows] = np.inf
    return out


class SimulatedPi3X:
    """`WindowNetwork` with known errors; ignores the images."""

    name = "simulated Pi3X"
    device = torch.device("cpu")
    provenance = Provenance(("simulated:pi3x",), ("none, a simulation",), stand_in=True)

    def __init__(self, truth: Truth, errors: Errors, size: tuple[int, int] = SIZE) -> None:
        self.truth, self.errors, self.size = truth, errors, size
        clip = np.random.default_rng([errors.seed, 1])
        self.own_scale = np.exp(errors.own_scale * clip.standard_normal())
        self.focal_factor = np.exp(0.7 * errors.focal * clip.standard_normal())
        frames = len(truth.camera_to_world)
        self.wrong = np.random.default_rng([errors.seed, 2]).random(frames) < errors.outlier_frames

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.size

    def predict(self, images: torch.Tensor, frame: np.ndarray) -> RawWindow:
        e, truth = self.errors, self.truth
        h, w = self.size
        assert images.shape == (len(frame), 3, h, w)
        assert images.dtype == torch.uint8
        rng = np.random.default_rng([e.seed, 3, *map(int, frame[[0, -1]]), len(frame)])
        unit = self.own_scale * np.exp(e.window_scale * rng.standard_normal())
        poses = np.linalg.inv(truth.camera_to_world[frame[0]]) @ truth.camera_to_world[frame]
        time = np.linspace(-0.5, 0.5, len(frame))
        along = np.exp(e.drift * rng.standard_normal() * time)
        bend = np.deg2rad(2 * e.rotation_deg) * rng.standard_normal(3)
        steps = np.diff(poses[:, :3, 3], axis=0, prepend=np.zeros((1, 3))) * along[:, None]
        poses[:, :3, 3] = np.cumsum(steps, axis=0)
        points = np.zeros((len(frame), h, w, 3), np.float32)
        confidence = np.zeros((len(frame), h, w), np.float32)
        u = (np.arange(w) + 0.5) / w - 0.5
        v = ((np.arange(h) + 0.5) / h - 0.5)[:, None]
        for i, f in enumerate(map(int, frame)):
            # What a network gets wrong in an image it gets wrong in every window that holds the image.
            same, fresh = (
                np.random.default_rng([e.seed, 4, f]),
                np.random.default_rng([e.seed, 5, f, int(frame[0])]),
            )
            true = _with_sky(truth.depth_m(f, self.size), e.sky_share)
            sky = np.isposinf(true)
            depth = bleed(np.where(sky, np.nan, true), 1)
            median = float(np.nanmedian(depth))
            log_error = 0.9 * smooth_field(same, self.size) + 0.35 * smooth_field(fresh, self.size)
            log_error += 0.2 * same.standard_normal() + 0.05 * fresh.standard_normal(self.size)
            depth = depth * np.exp(e.depth * log_error) * along[i]
            trust = np.clip(0.75 + 0.15 * smooth_field(same, self.size), 0.05, 1)
            if truth.moving is not None:
                moving = truth.moving(f, self.size)
                depth = np.where(moving, depth * np.exp(0.25 * fresh.standard_normal()), depth)
            guess = np.isnan(depth) & ~sky
            depth = np.where(guess, median * np.exp(0.5 * smooth_field(fresh, self.size)), depth)
            trust = np.where(guess, 0.05 + 0.3 * fresh.random(), trust)
            depth = np.where(sky, median * fresh.uniform(5, 80), depth)
            trust = np.where(sky, 0.5 * fresh.random(), trust)
            if self.wrong[f]:
                depth = depth * np.exp(0.3 * same.standard_normal())
                poses[i, :3, :3] = poses[i, :3, :3] @ so3_exp(0.1 * same.standard_normal(3))
                poses[i, :3, 3] += 0.2 * median * same.standard_normal(3)
            turn = np.deg2rad(e.rotation_deg) * fresh.standard_normal(3) + bend * time[i]
            poses[i, :3, :3] = poses[i, :3, :3] @ so3_exp(turn)
            poses[i, :3, 3] += e.position * median * fresh.standard_normal(3)
            focal = truth.focal_px[f] * self.focal_factor * np.exp(0.7 * e.focal * same.standard_normal())
            points[i, ..., 0] = u * truth.width / focal * depth
            points[i, ..., 1] = v * truth.height / focal * depth
            points[i, ..., 2] = depth
            confidence[i] = trust
        points *= np.float32(unit)
        poses[:, :3, 3] *= unit
        gauge = np.eye(4)
        gauge[:3, :3], gauge[:3, 3] = so3_exp(rng.standard_normal(3)), 3 * rng.standard_normal(3)
        return RawWindow(
            camera_to_world=torch.from_numpy(gauge @ poses),
            points=torch.from_numpy(points),
            confidence=torch.from_numpy(confidence),
        )


class SimulatedMoGe2:
    """What `MoGe2Stream` asks of a network, with known errors; ignores the images."""

    device = torch.device("cpu")
    provenance = Provenance(("simulated:moge-2",), ("none, a simulation",), stand_in=True)

    def __init__(self, truth: Truth, errors: Errors, size: tuple[int, int] = SIZE, fps: float = 16.0) -> None:
        self.truth, self.errors, self.size = truth, errors, size
        rng = np.random.default_rng([errors.seed, 11])
        frames, keep = len(truth.camera_to_world), 0.97 ** (16.0 / fps)
        noise = rng.standard_normal(frames)
        for i in range(1, frames):
            noise[i] = keep * noise[i - 1] + np.sqrt(1 - keep**2) * noise[i]
        off = rng.random(frames) < errors.metric_outliers
        self.log_scale = errors.metric_frame * noise + off * rng.uniform(-0.2, 0.7, frames)

    def predict(self, images: torch.Tensor, frame: Sequence[int]) -> RawImages:
        h, w = self.size
        points = np.zeros((len(frame), h, w, 3), np.float32)
        valid = np.zeros((len(frame), h, w), bool)
        scale = np.zeros(len(frame), np.float32)
        u = (np.arange(w) + 0.5) / w - 0.5
        v = ((np.arange(h) + 0.5) / h - 0.5)[:, None]
        for i, f in enumerate(frame):
            rng = np.random.default_rng([self.errors.seed, 12, int(f)])
            true = _with_sky(self.truth.depth_m(int(f), self.size), self.errors.sky_share)
            depth = bleed(np.where(np.isfinite(true), true, np.nan), 1)
            depth = depth * np.exp(self.errors.depth * smooth_field(rng, self.size))
            valid[i] = np.isfinite(depth) & (smooth_field(rng, self.size) < 1.5)
            # Affine-invariant: unit and shift are the network's own.
            unit, shift = float(rng.uniform(0.3, 3)), float(rng.uniform(-0.3, 0.3)) * float(np.nanmin(depth))
            focal = self.truth.focal_px[f] * np.exp(0.5 * self.errors.focal * rng.standard_normal())
            points[i, ..., 0] = u * self.truth.width / focal * depth * unit
            points[i, ..., 1] = v * self.truth.height / focal * depth * unit
            points[i, ..., 2] = (depth + shift) * unit
            points[i][~valid[i]] = rng.choice([np.inf, np.nan, 1.0])
            scale[i] = np.exp(self.log_scale[f]) / unit
        return RawImages(
            points=torch.from_numpy(points),
            valid=torch.from_numpy(valid),
            metric_scale=torch.from_numpy(scale),
        )


class SimulatedGeometry:
    """`SequenceGeometry` around a simulated network."""

    name = "simulated"

    def __init__(self, network: SimulatedPi3X, config: KeyframesConfig) -> None:
        self.network, self.config = network, config

    def start(self, clip, frames) -> KeyframeStream:
        return KeyframeStream(self.network, self.config, clip, frames)


class SimulatedAnchor:
    """`MetricAnchor` around a simulated network."""

    name = "simulated"

    def __init__(self, network: SimulatedMoGe2) -> None:
        self.network = network

    def start(self, clip, frames, anchor_frames) -> MoGe2Stream:
        return MoGe2Stream(self.network, MoGe2Config(), clip, frames, anchor_frames)


def simulated(truth: Truth, errors: Errors, config: KeyframesConfig | None = None) -> Estimators:
    """Both networks of a clip, for `annotate_clip(..., estimators=)`."""
    return Estimators(
        sequence=SimulatedGeometry(SimulatedPi3X(truth, errors), config or KeyframesConfig()),
        anchor=SimulatedAnchor(SimulatedMoGe2(truth, errors)),
    )


# --- clips with truth --------------------------------------------------------------------------------


def rendered_truth(clip: RenderedClip, frame_index: np.ndarray | None = None) -> Truth:
    """Truth of a rendered clip, or of its frames `frame_index`."""
    index = np.arange(len(clip)) if frame_index is None else np.asarray(frame_index)

    def moving(frame: int, size: tuple[int, int]) -> np.ndarray:
        i = int(index[frame])
        quads = clip.scene.quads_at(float(clip.time_s[i]))
        intrinsics = clip.intrinsics[i] * np.array(
            [[size[1] / clip.config.width], [size[0] / clip.config.height], [1]]
        )
        view = render._view(quads, intrinsics, clip.camera_to_world[i])
        return render._rasterise(view, *size) >= clip.scene.first_moving_quad

    return Truth(
        camera_to_world=clip.camera_to_world[index],
        focal_px=clip.intrinsics[index, 0, 0],
        height=clip.config.height,
        width=clip.config.width,
        depth_m=lambda frame, size: clip.depth_m(int(index[frame]), size=size),
        moving=moving if clip.config.moving_object else None,
    )


def recorded_truth(
    folder: Path, *, frame_index: np.ndarray, focal_px: float, height: int, width: int
) -> Truth:
    """Truth of an RGB-D recording: `depth/NNNNNN.png` in millimetres and `poses_c2w.txt`, by source frame."""
    poses = np.loadtxt(folder / "poses_c2w.txt").reshape(-1, 4, 4)[frame_index]

    def depth(frame: int, size: tuple[int, int]) -> np.ndarray:
        raw = cv2.imread(str(folder / f"depth/{int(frame_index[frame]):06d}.png"), cv2.IMREAD_UNCHANGED)
        assert raw is not None
        rows = ((np.arange(size[0]) + 0.5) * raw.shape[0] / size[0]).astype(int)
        columns = ((np.arange(size[1]) + 0.5) * raw.shape[1] / size[1]).astype(int)
        z = raw[rows[:, None], columns].astype(np.float32) / 1000
        return np.where(z > 0, z, np.nan).astype(np.float32)

    return Truth(
        camera_to_world=poses,
        focal_px=np.full(len(poses), focal_px),
        height=height,
        width=width,
        depth_m=depth,
    )
