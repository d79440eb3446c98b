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

import cv2
import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import F32, F64, U8
from ...dataset.cameras.intrinsics import resize_intrinsics
from .cameras import RenderConfig, camera_path, exposure_gain, intrinsics_path
from .scene import ROOM_SIZE_M, WALK_RADIUS_M, Quads, Scene, Texture, build_scene

_NEAR_M = 0.02
_EDGE_GRID = 4


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
            furniture=config.furniture,
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
