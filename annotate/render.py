"""Renderer of an indoor clip with exact truth: per-frame camera, focal length and z-depth.

The scene is a set of textured parallelograms: a room, furniture and, on request, one object that moves on
its own. A parallelogram `o + s a + t b` is seen through `M = K R^T [a, b, o - c]`: with `q = M^-1 [u, v, 1]`
the inverse depth is exactly `q_2` and the texture coordinates are `q_0 / q_2`, `q_1 / q_2`, so depth and image
come from one closed form and there is no mesh, no ray marching and no graphics driver. Textures are filtered
by mipmaps with two taps along the longer axis of a pixel's footprint; pixels on the border of two faces are
averaged over 16 exact samples.

Conventions: world z up, metres; camera axes OpenCV (x right, y down, z forward); pixel centres at +0.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from ..dataset.arrays import F32, F64, U8
from ..dataset.cameras import resize_intrinsics
from ..dataset.frames import VideoWriter
from ..dataset.strict import Strict
from .render_scene import ROOM_SIZE_M, WALK_RADIUS_M, Quads, Scene, Texture, build_scene

Motion = Literal["handheld", "rotation", "static"]
Zoom = Literal["none", "ramp", "in_out", "step"]

_NEAR_M = 0.02
_EDGE_GRID = 4


class RenderConfig(Strict):
    """What to render; the same values give the same bytes."""

    width: Annotated[int, Field(ge=32, le=4096)] = 1280
    height: Annotated[int, Field(ge=32, le=4096)] = 720
    num_frames: Annotated[int, Field(ge=1)] = 161
    fps: Annotated[float, Field(gt=0)] = 16.0
    seed: Annotated[int, Field(ge=0)] = 0
    """Chooses textures, furniture, path and noise."""
    motion: Motion = "handheld"
    """`handheld` walks and pans, `rotation` pans about a fixed centre, `static` does not move at all."""
    speed: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Factor on all motion; 1.0 walks about 0.4 m/s and pans at up to 20 degrees per second."""
    horizontal_fov_deg: Annotated[float, Field(ge=20, le=120)] = 62.0
    """Field of view at zoom 1."""
    zoom: Zoom = "none"
    """`ramp` zooms once over the middle of the clip, `in_out` there and back every `zoom_period_s`, `step`
    jumps in the middle."""
    zoom_factor: Annotated[float, Field(gt=0.25, le=8)] = 2.0
    zoom_period_s: Annotated[float, Field(gt=0)] = 10.0
    moving_object: bool = False
    """A person-sized textured box that walks through the view on its own path."""
    shutter: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the frame interval that the shutter is open (motion blur); truth is that of its middle."""
    exposure_stops: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Amplitude of a slow change of exposure, in powers of two."""
    noise_sigma: Annotated[float, Field(ge=0, le=50)] = 0.0
    """Standard deviation of sensor noise in grey levels of 0..255."""
    depth_width: Annotated[int, Field(ge=16, le=4096)] | None = None
    depth_height: Annotated[int, Field(ge=16, le=4096)] | None = None
    """Size of the depth maps (default: that of the image). They cover exactly the image and are sampled at
    their own pixel centres."""

    @model_validator(mode="after")
    def _depth_size_is_whole(self) -> RenderConfig:
        if (self.depth_width is None) != (self.depth_height is None):
            raise ValueError("depth_width and depth_height: give both or neither")
        return self


@dataclass(frozen=True, kw_only=True)
class RenderedFrame:
    """One frame with truth.

    Attributes:
        rgb: (height, width, 3) uint8.
        depth_m: (depth_height, depth_width) float32, z-depth in metres at pixel centres.
        moving: (height, width) bool, True on the independently moving object.
    """

    rgb: U8
    depth_m: F32
    moving: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class RenderedClip:
    """A clip that is rendered while it is iterated; nothing but the scene's textures stays in memory.

    Attributes:
        config: what was asked for.
        time_s: (F,) presentation times, first frame at 0.
        camera_to_world: (F, 4, 4) float64, OpenCV axes, metres; world z up.
        intrinsics: (F, 3, 3) float64, pixels of (height, width).
    """

    config: RenderConfig
    time_s: F64
    camera_to_world: F64
    intrinsics: F64

    def __len__(self) -> int:
        return self.config.num_frames

    def __iter__(self) -> Iterator[RenderedFrame]:
        return (self.frame(i) for i in range(len(self)))

    @cached_property
    def scene(self) -> Scene:
        config = self.config
        longest = config.zoom_factor if config.zoom != "none" else 1.0
        start = camera_path(config, np.zeros(1))[0]
        # The moving object starts where the first line of sight meets the circle that it walks on.
        from_middle = start[:2, 3] - np.array(ROOM_SIZE_M[:2]) / 2
        sight = start[:2, 2] / np.linalg.norm(start[:2, 2])
        along = from_middle @ sight
        meets = math.sqrt(along**2 - from_middle @ from_middle + WALK_RADIUS_M**2) - along
        place = from_middle + meets * sight
        return build_scene(
            seed=config.seed,
            longest_focal_px=intrinsics_path(config, np.zeros(1))[0, 0, 0] * max(1.0, longest),
            start_angle=math.atan2(place[1], place[0]),
            speed=config.speed,
            moving_object=config.moving_object,
        )

    @property
    def depth_size(self) -> tuple[int, int]:
        """(height, width) of the depth maps."""
        config = self.config
        return config.depth_height or config.height, config.depth_width or config.width

    def frame(self, frame: int) -> RenderedFrame:
        """Render frame `frame` (0-based)."""
        config = self.config
        time_s = float(self.time_s[frame])
        quads = self.scene.quads_at(time_s)
        camera_to_world, intrinsics = self.camera_to_world[frame], self.intrinsics[frame]
        view = _view(quads, intrinsics, camera_to_world)
        face = _rasterise(view, config.height, config.width)
        num_samples = 1
        if config.shutter > 0:
            # Enough samples that neighbouring ones lie about two pixels apart in a brisk pan.
            num_samples = 7
        image = np.zeros((config.height, config.width, 3), np.float32)
        for k in range(num_samples):
            if num_samples == 1:
                image = _shade(self.scene, view, face)
                break
            at_s = time_s + ((k + 0.5) / num_samples - 0.5) * config.shutter / config.fps
            pose = camera_path(config, np.array([at_s]))[0]
            sub_view = _view(self.scene.quads_at(at_s), intrinsics_path(config, np.array([at_s]))[0], pose)
            image += (
                _shade(self.scene, sub_view, _rasterise(sub_view, config.height, config.width)) / num_samples
            )
        image *= exposure_gain(config, time_s)
        if config.noise_sigma > 0:
            rng = np.random.default_rng([config.seed, 7, frame])
            image += config.noise_sigma * rng.standard_normal(image.shape, dtype=np.float32)
        rgb = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        if self.depth_size == (config.height, config.width):
            depth_m = _depth(view, face)
        else:
            depth_m = self.depth_m(frame)
        return RenderedFrame(rgb=rgb, depth_m=depth_m, moving=face >= self.scene.first_moving_quad)

    def depth_m(self, frame: int, *, size: tuple[int, int] | None = None) -> F32:
        """z-depth in metres of `frame`, without rendering its colours.

        Args:
            size: (height, width) of the map, default `depth_size`; it always covers exactly the image.
        Returns:
            (height, width) float32, exact at the map's own pixel centres.
        """
        height, width = size or self.depth_size
        intrinsics = resize_intrinsics(
            self.intrinsics[frame], from_size=(self.config.height, self.config.width), to_size=(height, width)
        )
        view = _view(self.scene.quads_at(float(self.time_s[frame])), intrinsics, self.camera_to_world[frame])
        return _depth(view, _rasterise(view, height, width))


def render_clip(config: RenderConfig) -> RenderedClip:
    """Truth of a clip at once, frames on iteration.

    Args:
        config: size, number of frames, motion, zoom, disturbances.
    """
    time_s = np.arange(config.num_frames) / config.fps
    return RenderedClip(
        config=config,
        time_s=time_s,
        camera_to_world=camera_path(config, time_s),
        intrinsics=intrinsics_path(config, time_s),
    )


# --- cameras -----------------------------------------------------------------------------------


def camera_path(config: RenderConfig, time_s: F64) -> F64:
    """(F, 4, 4) camera-to-world at any times: a slow walk with pans plus a tremor of one to four hertz."""
    rng = np.random.default_rng([config.seed, 1])
    phase = rng.uniform(0, 2 * np.pi, 8)
    start_yaw = rng.uniform(0, 2 * np.pi)
    tremor_hz = np.array([1.3, 2.1, 3.4])
    tremor_phase = rng.uniform(0, 2 * np.pi, (6, 3))
    t = np.zeros_like(time_s) if config.motion == "static" else config.speed * np.asarray(time_s, np.float64)

    def wave(period_s: float, k: int) -> F64:
        return np.sin(2 * np.pi * t / period_s + phase[k])

    tremor = np.sin(2 * np.pi * t[:, None, None] * tremor_hz + tremor_phase).mean(-1)  # (F, 6)
    centre = np.array([ROOM_SIZE_M[0] / 2, ROOM_SIZE_M[1] / 2, 1.5])
    offset = (
        np.stack([1.2 * wave(15.0, 0), 1.0 * wave(11.0, 1), 0.12 * wave(5.3, 2)], -1) + 0.006 * tremor[:, :3]
    )
    if config.motion != "handheld":
        offset = np.broadcast_to(offset[:1], offset.shape)
    yaw = start_yaw + np.deg2rad(4.0) * t + np.deg2rad(35) * wave(13.0, 3) + np.deg2rad(0.4) * tremor[:, 3]
    pitch = np.deg2rad(-7) + np.deg2rad(6) * wave(7.0, 4) + np.deg2rad(0.4) * tremor[:, 4]
    roll = np.deg2rad(2) * wave(9.0, 5) + np.deg2rad(0.3) * tremor[:, 5]

    zero = np.zeros_like(t)
    forward = np.stack([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)], -1)
    right = np.stack([np.sin(yaw), -np.cos(yaw), zero], -1)
    down = np.cross(forward, right)
    right, down = (
        np.cos(roll)[:, None] * right + np.sin(roll)[:, None] * down,
        np.cos(roll)[:, None] * down - np.sin(roll)[:, None] * right,
    )
    camera_to_world = np.tile(np.eye(4), (len(t), 1, 1))
    camera_to_world[:, :3, 0], camera_to_world[:, :3, 1], camera_to_world[:, :3, 2] = right, down, forward
    camera_to_world[:, :3, 3] = centre + offset
    return camera_to_world


def zoom_path(config: RenderConfig, time_s: F64) -> F64:
    """(F,) focal length relative to zoom 1 at any times (geometric between 1 and `zoom_factor`)."""
    duration_s = max((config.num_frames - 1) / config.fps, 1e-9)
    t = np.asarray(time_s, np.float64)
    match config.zoom:
        case "none":
            amount = np.zeros_like(t)
        case "ramp":
            x = np.clip((t / duration_s - 0.2) / 0.6, 0, 1)
            amount = x * x * (3 - 2 * x)
        case "in_out":
            amount = 0.5 - 0.5 * np.cos(2 * np.pi * t / config.zoom_period_s)
        case "step":
            amount = (t >= duration_s / 2).astype(np.float64)
    return config.zoom_factor**amount


def intrinsics_path(config: RenderConfig, time_s: F64) -> F64:
    """(F, 3, 3) intrinsics in pixels at any times: square pixels, principal point in the middle."""
    focal_px = (
        config.width / 2 / math.tan(math.radians(config.horizontal_fov_deg) / 2) * zoom_path(config, time_s)
    )
    intrinsics = np.zeros((len(time_s), 3, 3))
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focal_px
    intrinsics[:, 0, 2], intrinsics[:, 1, 2], intrinsics[:, 2, 2] = config.width / 2, config.height / 2, 1.0
    return intrinsics


def exposure_gain(config: RenderConfig, time_s: float) -> float:
    """Factor on the image at `time_s`."""
    return 2.0 ** (-config.exposure_stops * (0.5 - 0.5 * math.cos(2 * math.pi * time_s / 4.0)))


# --- faces to pixels ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """Parallelograms as one camera sees them: `inverse[n] @ [u, v, 1]` = (s w, t w, w) with w = 1 / z."""

    inverse: F64  # (N, 3, 3)
    corners_cam: F64  # (N, 4, 3)
    project: F64  # (3, 3) intrinsics
    facing: NDArray[np.bool_]  # (N,)
    tolerance: F64  # (N,) by how much (in s and t) a face reaches over its border, so that no crack shows


def _view(quads: Quads, intrinsics: F64, camera_to_world: F64) -> _View:
    rotation, centre = camera_to_world[:3, :3], camera_to_world[:3, 3]
    origin = (quads.origin - centre) @ rotation
    a, b = quads.a @ rotation, quads.b @ rotation
    facing = np.einsum("ni,ni->n", np.cross(quads.b, quads.a), centre - quads.origin) > 1e-9
    matrix = intrinsics @ np.stack([a, b, origin], -1)
    matrix[~facing] = np.eye(3)  # an edge-on face has no inverse and no pixel
    corners = np.stack([origin, origin + a, origin + a + b, origin + b], 1)
    return _View(np.linalg.inv(matrix).astype(np.float64), corners, intrinsics, facing, quads.tolerance)


def _bounds(view: _View, n: int, height: int, width: int) -> tuple[int, int, int, int] | None:
    """Rows and columns (first, last + 1) whose pixel centres face `n` may cover; None if out of sight."""
    corners = view.corners_cam[n]
    points = []
    for i in range(4):
        p, q = corners[i], corners[(i + 1) % 4]
        if p[2] >= _NEAR_M:
            points.append(p)
        if (p[2] >= _NEAR_M) != (q[2] >= _NEAR_M):
            points.append(p + (q - p) * ((_NEAR_M - p[2]) / (q[2] - p[2])))
    if not points:
        return None
    pixels = np.asarray(points) @ view.project.T
    u, v = pixels[:, 0] / pixels[:, 2], pixels[:, 1] / pixels[:, 2]
    x0, x1 = max(0, math.floor(u.min() - 1)), min(width, math.ceil(u.max() + 1))
    y0, y1 = max(0, math.floor(v.min() - 1)), min(height, math.ceil(v.max() + 1))
    return (y0, y1, x0, x1) if x0 < x1 and y0 < y1 else None


def _rasterise(view: _View, height: int, width: int) -> NDArray[np.int16]:
    """(height, width) index of the nearest face at every pixel centre, -1 where there is none."""
    nearest = np.zeros((height, width), np.float32)
    face = np.full((height, width), -1, np.int16)
    u, v = np.arange(width) + 0.5, np.arange(height) + 0.5
    for n in np.flatnonzero(view.facing):
        bounds = _bounds(view, int(n), height, width)
        if bounds is None:
            continue
        y0, y1, x0, x1 = bounds
        inverse = view.inverse[n]
        row = (inverse[:, :1] * u[x0:x1] + inverse[:, 2:]).astype(np.float32)
        column = (inverse[:, 1:2] * v[y0:y1]).astype(np.float32)
        w = column[2][:, None] + row[2]
        behind = nearest[y0:y1, x0:x1]
        wins = w > behind
        reach = np.float32(view.tolerance[n])
        for k in range(2):
            q = column[k][:, None] + row[k]
            low = -reach * w
            wins &= q >= low
            wins &= q <= w - low
        np.copyto(behind, w, where=wins)
        face[y0:y1, x0:x1][wins] = n
    return face


def _groups(face: NDArray[np.int16]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Faces that own pixels, each with the flat indices of those pixels."""
    order = np.argsort(face, axis=None, kind="stable")
    values = face.ravel()[order]
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    for start, end in zip(starts, np.r_[starts[1:], len(values)], strict=True):
        if values[start] >= 0:
            yield int(values[start]), order[start:end]


def _depth(view: _View, face: NDArray[np.int16]) -> F32:
    """z-depth in metres at pixel centres, NaN where no face is hit (outside of a closed room: nowhere)."""
    height, width = face.shape
    depth_m = np.full(height * width, np.nan, np.float32)
    for n, index in _groups(face):
        y, x = np.divmod(index, width)
        w = view.inverse[n, 2]
        depth_m[index] = 1.0 / (w[0] * (x + 0.5) + w[1] * (y + 0.5) + w[2])
    return depth_m.reshape(height, width)


def _shade(scene: Scene, view: _View, face: NDArray[np.int16]) -> F32:
    """(height, width, 3) float32 colours in 0..255 before exposure and noise."""
    height, width = face.shape
    image = np.zeros((height * width, 3), np.float32)
    for n, index in _groups(face):
        y, x = np.divmod(index, width)
        image[index] = _colour(scene.textures[n], view.inverse[n], x + 0.5, y + 0.5, fine=False)
    border = _face_borders(face)
    if len(border):  # a long lens may see one face only
        image[border] = _supersample(scene, view, face, border)
    return image.reshape(height, width, 3)


def _face_borders(face: NDArray[np.int16]) -> NDArray[np.int64]:
    """Flat indices of pixels that touch a pixel of another face."""
    border = np.zeros(face.shape, bool)
    beside = face[:, 1:] != face[:, :-1]
    below = face[1:] != face[:-1]
    border[:, 1:] |= beside
    border[:, :-1] |= beside
    border[1:] |= below
    border[:-1] |= below
    return np.flatnonzero(border)


def _supersample(scene: Scene, view: _View, face: NDArray[np.int16], border: NDArray[np.int64]) -> F32:
    """(P, 3) mean colour of `_EDGE_GRID`² samples in each `border` pixel, over the faces of its 3x3."""
    width = face.shape[1]
    y, x = np.divmod(border, width)
    grid = (np.arange(_EDGE_GRID) + 0.5) / _EDGE_GRID
    du, dv = (g.ravel() for g in np.meshgrid(grid, grid))
    padded = np.pad(face, 1, mode="edge")
    near = np.stack([padded[y + dy, x + dx] for dy in range(3) for dx in range(3)], 1)  # (P, 9)
    best = np.zeros((len(border), len(du)), np.float64)
    winner = np.full((len(border), len(du)), -1, np.int16)
    for n in np.unique(near):
        if n < 0:
            continue
        rows = np.flatnonzero((near == n).any(1))
        q = view.inverse[n] @ np.stack(
            [
                (x[rows, None] + du).ravel(),
                (y[rows, None] + dv).ravel(),
                np.ones(len(rows) * len(du)),
            ]
        )
        low = -view.tolerance[n] * q[2]
        inside = (q[0] >= low) & (q[0] <= q[2] - low) & (q[1] >= low) & (q[1] <= q[2] - low)
        w = np.where(inside, q[2], 0.0).reshape(len(rows), -1)
        wins = w > best[rows]
        best[rows] = np.where(wins, w, best[rows])
        winner[rows] = np.where(wins, n, winner[rows])
    # A sample may fall on a face that owns no pixel near by; it then takes the pixel's own.
    winner = np.where(winner < 0, face.ravel()[border][:, None], winner)
    colour = np.zeros((winner.size, 3), np.float32)
    us, vs = (x[:, None] + du).ravel(), (y[:, None] + dv).ravel()
    for n, index in _groups(winner):
        colour[index] = _colour(scene.textures[n], view.inverse[n], us[index], vs[index], fine=True)
    return colour.reshape(len(border), -1, 3).mean(1)


def _colour(texture: Texture, inverse: F64, u: F64, v: F64, *, fine: bool) -> F32:
    """(P, 3) filtered colours at image points (u, v); `fine` for samples that are averaged afterwards."""
    height, width = texture.levels[0].shape[:2]
    i32 = inverse.astype(np.float32)
    q = inverse @ np.stack([u, v, np.ones_like(u)])
    w = q[2].astype(np.float32)
    s, t = (q[0] / q[2]).astype(np.float32), (q[1] / q[2]).astype(np.float32)
    # Footprint of a pixel in texels: columns are the steps along u and v.
    xu, xv = (i32[0, 0] - s * i32[2, 0]) * (width / w), (i32[0, 1] - s * i32[2, 1]) * (width / w)
    yu, yv = (i32[1, 0] - t * i32[2, 0]) * (height / w), (i32[1, 1] - t * i32[2, 1]) * (height / w)
    xx, yy, xy = xu * xu + xv * xv, yu * yu + yv * yv, xu * yu + xv * yv
    spread = np.sqrt(np.square(xx - yy) + 4 * xy * xy)
    major = np.sqrt(np.maximum((xx + yy + spread) / 2, 1e-12))
    minor = np.sqrt(np.maximum((xx + yy - spread) / 2, 1e-12))
    x, y = s * width, t * height
    if fine:
        return _sample(texture, x, y, np.log2(np.maximum(minor, major / 2)) - 1)
    angle = 0.5 * np.arctan2(2 * xy, xx - yy)
    step_x, step_y = 0.25 * major * np.cos(angle), 0.25 * major * np.sin(angle)
    level = np.log2(np.maximum(minor, major / 2))
    taps = _sample(
        texture,
        np.concatenate([x - step_x, x + step_x]),
        np.concatenate([y - step_y, y + step_y]),
        np.concatenate([level, level]),
    )
    return 0.5 * (taps[: len(x)] + taps[len(x) :])


def _sample(texture: Texture, x: F32, y: F32, level: F32) -> F32:
    """(P, 3) trilinear samples at texel positions (x, y) of level 0 (texel centres at +0.5)."""
    level = np.clip(level, 0, len(texture.levels) - 1.001)
    base = level.astype(np.int8)
    blend = (level - base)[:, None]
    colours = np.empty((len(x), 3), np.float32)
    for k in range(int(base.min(initial=0)), int(base.max(initial=0)) + 1):
        rows = np.flatnonzero(base == k)
        if len(rows) == 0:
            continue
        low, high = (_bilinear(texture.levels[j], x[rows] * 0.5**j, y[rows] * 0.5**j) for j in (k, k + 1))
        colours[rows] = low + blend[rows] * (high - low)
    return colours


def _bilinear(image: U8, x: F32, y: F32) -> F32:
    columns = 1024
    num_rows = -(-len(x) // columns)
    map_x, map_y = np.zeros((2, num_rows * columns), np.float32)
    map_x[: len(x)], map_y[: len(x)] = x - 0.5, y - 0.5
    shape = (num_rows, columns)
    out = cv2.remap(
        image, map_x.reshape(shape), map_y.reshape(shape), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return out.reshape(-1, 3)[: len(x)].astype(np.float32)


# --- files -------------------------------------------------------------------------------------


def depth_to_uint16(depth_m: F32, *, units_per_metre: float) -> NDArray[np.uint16]:
    """(h, w) uint16 depth as RGB-D recordings store it, 0 = no value.

    Args:
        depth_m: (h, w) metres; NaN, infinite and non-positive values become 0.
        units_per_metre: stored value of one metre (1000 for millimetres).
    Raises:
        ValueError: a finite depth does not fit into 16 bits.
    """
    usable = np.isfinite(depth_m) & (depth_m > 0)
    stored = np.rint(np.where(usable, depth_m, 0.0) * units_per_metre)
    if stored.max(initial=0) > 65535:
        raise ValueError(
            f"depth of {float(depth_m[usable].max()):.3f} m at {units_per_metre} units per metre does not"
            " fit into 16 bits; use fewer units per metre"
        )
    return stored.astype(np.uint16)


def write_depth_png(path: Path, depth_m: F32, *, units_per_metre: float) -> None:
    """Write (h, w) metres as 16-bit PNG; see `depth_to_uint16`."""
    write_png(path, depth_to_uint16(depth_m, units_per_metre=units_per_metre))


def write_png(path: Path, image: NDArray) -> None:
    """Write (h, w, 3) uint8 RGB or (h, w) uint16 to `path`.

    Raises:
        ValueError: the file cannot be written.
    """
    stored = image[..., ::-1] if image.ndim == 3 else image
    if not cv2.imwrite(str(path), stored, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise ValueError(f"{path}: cannot write the image; does the folder exist?")


@dataclass(frozen=True, kw_only=True)
class RenderedFiles:
    """Where `write_clip` put things.

    Attributes:
        media_path: the mp4, or the folder of PNG frames.
        depth_pattern: path with a `{frame:06d}` field, or None if no depth was asked for.
        camera_to_world_path: (F) rows of 16 numbers, 4x4 row by row, metres.
        intrinsics_path: CSV with columns fx, fy, cx, cy.
    """

    media_path: Path
    depth_pattern: str | None
    camera_to_world_path: Path
    intrinsics_path: Path


def write_clip(
    clip: RenderedClip,
    folder: Path,
    *,
    media: Literal["video", "images"] = "video",
    depth_units_per_metre: float | None = 1000.0,
) -> RenderedFiles:
    """Render `clip` once into `folder`: colour, depth PNGs, poses and intrinsics.

    Args:
        clip: what to write.
        folder: made if missing.
        media: `rgb.mp4`, or `rgb/000000.png` and so on.
        depth_units_per_metre: stored depth value of one metre; None writes no depth.
    """
    config = clip.config
    folder.mkdir(parents=True, exist_ok=True)
    depth_folder, image_folder = folder / "depth", folder / "rgb"
    if depth_units_per_metre is not None:
        depth_folder.mkdir(exist_ok=True)
    media_path = folder / "rgb.mp4" if media == "video" else image_folder

    def write_depth(i: int, frame: RenderedFrame) -> None:
        if depth_units_per_metre is not None:
            write_depth_png(
                depth_folder / f"{i:06d}.png", frame.depth_m, units_per_metre=depth_units_per_metre
            )

    if media == "video":
        with VideoWriter(media_path, width=config.width, height=config.height, fps=config.fps) as video:
            for i, frame in enumerate(clip):
                video.write(frame.rgb)
                write_depth(i, frame)
    else:
        image_folder.mkdir(exist_ok=True)
        for i, frame in enumerate(clip):
            write_png(image_folder / f"{i:06d}.png", frame.rgb)
            write_depth(i, frame)

    poses_path, intrinsics_path_ = folder / "poses_c2w.txt", folder / "intrinsics.csv"
    np.savetxt(poses_path, clip.camera_to_world.reshape(len(clip), 16), fmt="%.12g")
    rows = clip.intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]]
    np.savetxt(intrinsics_path_, rows, fmt="%.9g", delimiter=",", header="fx,fy,cx,cy", comments="")
    return RenderedFiles(
        media_path=media_path,
        depth_pattern=str(depth_folder / "{frame:06d}.png") if depth_units_per_metre is not None else None,
        camera_to_world_path=poses_path,
        intrinsics_path=intrinsics_path_,
    )
