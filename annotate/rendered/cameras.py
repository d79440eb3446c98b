"""What is rendered: a clip's configuration, and from it the camera path, the zoom and the exposure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from ...dataset.arrays import F64
from ...dataset.strict import Strict
from .scene import ROOM_SIZE_M

Motion = Literal["handheld", "rotation", "static", "forward", "along_wall"]
Zoom = Literal["none", "ramp", "in_out", "step"]


class RenderConfig(Strict):
    """What to render; the same values give the same bytes."""

    width: Annotated[int, Field(ge=32, le=4096)] = 1280
    height: Annotated[int, Field(ge=32, le=4096)] = 720
    num_frames: Annotated[int, Field(ge=1)] = 161
    fps: Annotated[float, Field(gt=0)] = 16.0
    seed: Annotated[int, Field(ge=0)] = 0
    """Chooses textures, furniture, path and noise."""
    motion: Motion = "handheld"
    """`handheld` walks and pans, `rotation` pans about a fixed centre, `static` does not move at all, `forward` walks
    along its line of sight and back, `along_wall` steps sideways 2 m before a wall that it faces."""
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
    furniture: bool = True
    """Without it the room is bare: a camera that faces a wall sees a plane."""
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


def camera_path(config: RenderConfig, time_s: F64) -> F64:
    """(F, 4, 4) camera-to-world at any times: a slow walk with pans plus a tremor of one to four hertz."""
    rng = np.random.default_rng([config.seed, 1])
    phase = rng.uniform(0, 2 * np.pi, 8)
    start_yaw = rng.uniform(0, 2 * np.pi)
    tremor_hz = np.array([1.3, 2.1, 3.4])
    tremor_phase = rng.uniform(0, 2 * np.pi, (6, 3))
    t = np.zeros_like(time_s) if config.motion == "static" else config.speed * np.asarray(time_s, np.float64)
    # Time zero comes first: a camera that turns stands where it is then, whichever times are asked for.
    t = np.concatenate([np.zeros(1), t])

    def wave(period_s: float, k: int) -> F64:
        return np.sin(2 * np.pi * t / period_s + phase[k])

    tremor = np.sin(2 * np.pi * t[:, None, None] * tremor_hz + tremor_phase).mean(-1)  # (F, 6)
    centre = np.array([ROOM_SIZE_M[0] / 2, ROOM_SIZE_M[1] / 2, 1.5])
    offset = (
        np.stack([1.2 * wave(15.0, 0), 1.0 * wave(11.0, 1), 0.12 * wave(5.3, 2)], -1) + 0.006 * tremor[:, :3]
    )
    if config.motion in ("forward", "along_wall"):
        return _straight_path(config, t, tremor, wave)[1:]
    if config.motion == "rotation":
        offset = np.broadcast_to(offset[:1], offset.shape)
    yaw = start_yaw + np.deg2rad(4.0) * t + np.deg2rad(35) * wave(13.0, 3) + np.deg2rad(0.4) * tremor[:, 3]
    pitch = np.deg2rad(-7) + np.deg2rad(6) * wave(7.0, 4) + np.deg2rad(0.4) * tremor[:, 4]
    roll = np.deg2rad(2) * wave(9.0, 5) + np.deg2rad(0.3) * tremor[:, 5]

    return _looking(centre + offset, yaw, pitch, roll)[1:]


def _straight_path(config: RenderConfig, t: F64, tremor: F64, wave: Callable[[float, int], F64]) -> F64:
    """(F, 4, 4) of `forward` and `along_wall`, at walking pace, with the tremor of a hand."""
    rng = np.random.default_rng([config.seed, 3])
    room = np.array(ROOM_SIZE_M)
    shake = np.deg2rad(0.4) * tremor
    if config.motion == "forward":
        yaw, pitch = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(-6, 2))
        along = np.array([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)])
        # From one side of the place that is free of furniture to the other in six seconds, and back.
        gone = 1.2 - np.abs(2.4 - 0.4 * t % 4.8)
        centre = np.array([room[0] / 2, room[1] / 2, 1.5]) + gone[:, None] * along
        return _looking(centre + 0.006 * tremor[:, :3], yaw + shake[:, 3], pitch + shake[:, 4], shake[:, 5])
    # The wall at -y has little to see on it.
    normal = np.array([[-1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]])[rng.integers(0, 3)]
    beside = np.array([-normal[1], normal[0], 0.0])
    half = np.abs(normal[:2]) @ room[:2] / 2
    centre = np.array([room[0] / 2, room[1] / 2, 1.45]) + (half - 2.0) * normal
    centre = centre + 0.8 * wave(9.0, 0)[:, None] * beside + 0.1 * wave(7.0, 1)[:, None] * normal
    yaw = np.arctan2(normal[1], normal[0]) + np.deg2rad(4) * wave(11.0, 3) + shake[:, 3]
    return _looking(centre + 0.006 * tremor[:, :3], yaw, np.deg2rad(2) * wave(8.0, 4), shake[:, 5])


def _looking(centre: F64, yaw: F64, pitch: F64, roll: F64) -> F64:
    """(F, 4, 4) camera to world of centres (F, 3) and angles (F,), radians; z up."""
    yaw, pitch, roll = (np.broadcast_to(angle, centre.shape[:1]) for angle in (yaw, pitch, roll))
    zero = np.zeros(len(centre))
    forward = np.stack([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)], -1)
    right = np.stack([np.sin(yaw), -np.cos(yaw), zero], -1)
    down = np.cross(forward, right)
    right, down = (
        np.cos(roll)[:, None] * right + np.sin(roll)[:, None] * down,
        np.cos(roll)[:, None] * down - np.sin(roll)[:, None] * right,
    )
    camera_to_world = np.tile(np.eye(4), (len(centre), 1, 1))
    camera_to_world[:, :3, 0], camera_to_world[:, :3, 1], camera_to_world[:, :3, 2] = right, down, forward
    camera_to_world[:, :3, 3] = centre
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
