"""Camera paths that come from no recording: actions typed on keys, and named families.

Paths are (F, 4, 4) camera-to-world, OpenCV axes (x right, y down, z forward), metres, one pose a frame; the first is
the identity.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from ..arrays import FloatArray
from .rotations import rotation_angle, so3_exp
from .transforms import interpolate_poses, relative_to_first, rigid_error

FPS = 16.0
"""Frames a second of the world model, and of the action language's time constants."""

_KEYS = {
    "w": (0, 1),
    "s": (0, -1),
    "l": (1, 1),
    "j": (1, -1),
    "d": (2, 1),
    "a": (2, -1),
    "i": (3, 1),
    "k": (3, -1),
}
"""Component of the velocity (forward, right, yaw right, pitch up) and its sign."""

_PRESS_S, _COAST_S = 0.45, 1.0
"""Time constants towards a target that moves, and towards rest."""


def action_path(
    action: str,
    *,
    speed_m: float = 0.025,
    turn_deg: float = 0.6,
    pitch_limit_deg: float = 60.0,
    smooth: bool = True,
) -> FloatArray:
    """Path of keys that are held, as SANA-WM's public code reads them.

    Args:
        action: `keys-frames` joined by commas, `none` for no key: "w-40,wd-20,none-10". w, s forward and back; j, l
            left and right; a, d turn left and right; i, k look up and down.
        speed_m: metres a frame.
        turn_deg: degrees a frame.
        pitch_limit_deg: how far up and down the camera looks at most.
        smooth: velocities approach their target (0.45 s; 1.0 s to rest) but where a key is newly pressed.
    Returns:
        (F + 1, 4, 4) for F frames of keys.
    Raises:
        ValueError: naming the segment that cannot be read.
    Source: NVlabs/Sana since July 2026 (before, a and d moved sideways, and j and l turned).
    """
    unit = np.array([speed_m, speed_m, math.radians(turn_deg), math.radians(turn_deg)])
    pose: FloatArray = np.eye(4)
    pitch, limit = 0.0, math.radians(pitch_limit_deg)
    velocity, held = np.zeros(4), frozenset[str]()
    poses: list[FloatArray] = [pose]
    for keys in _parse_action(action):
        target = np.zeros(4)
        for key in keys:
            component, sign = _KEYS[key]
            target[component] += sign
        target *= unit
        if not smooth or keys - held:
            velocity = target
        else:
            time_constant = np.where(np.abs(target) > 1e-12, _PRESS_S, _COAST_S)
            velocity = velocity + (1 - np.exp(-1 / FPS / time_constant)) * (target - velocity)
        held = keys
        looked = min(limit, max(-limit, pitch + velocity[3]))
        rotation = _about("y", velocity[2]) @ pose[:3, :3] @ _about("x", looked - pitch)
        pitch = looked
        step = velocity[0] * _level(rotation[:, 2]) + velocity[1] * _level(rotation[:, 0])
        pose = _pose(rotation, pose[:3, 3] + step)
        poses.append(pose)
    return np.stack(poses)


def is_action(text: str) -> bool:
    """Whether a text looks like actions, sound or not: segments of letters, a dash and a number."""
    return re.fullmatch(r"\s*[A-Za-z]*\s*-\s*\d+\s*([,\uff0c][^,\uff0c]*)*", text) is not None


def _parse_action(action: str) -> list[frozenset[str]]:
    """Keys held in each frame."""
    frames: list[frozenset[str]] = []
    text = "".join(action.replace("\uff0c", ",").split())  # the comma of East Asian keyboards
    if not text:
        raise ValueError("the action is empty: give for example 'w-40,wd-20,none-10'")
    for segment in text.split(","):
        keys, dash, duration = segment.rpartition("-")
        if not dash or not (duration.isascii() and duration.isdigit()) or int(duration) == 0:
            raise ValueError(
                f"action segment {segment!r}: give keys, a dash and a number of frames, as in 'wd-20'"
            )
        if int(duration) > 100_000:
            raise ValueError(f"action segment {segment!r} lasts longer than any clip")
        held = frozenset() if keys.lower() == "none" else frozenset(keys.lower())
        unknown = "".join(sorted(held - _KEYS.keys()))
        if unknown or not (held or keys):
            raise ValueError(
                f"action segment {segment!r}: unknown keys {unknown!r}; known are {''.join(_KEYS)} and none"
            )
        frames += [held] * int(duration)
    return frames


def _about(axis: Literal["x", "y"], angle_rad: float) -> FloatArray:
    """Rotation of the camera: about y to the right, about x upwards."""
    return np.asarray(so3_exp(np.array([angle_rad, 0.0, 0.0] if axis == "x" else [0.0, angle_rad, 0.0])))


def _level(direction: FloatArray) -> FloatArray:
    """Unit vector along the ground; nothing for a direction straight up or down."""
    flat = direction * np.array([1.0, 0.0, 1.0])
    length = float(np.linalg.norm(flat))
    return flat / (length + 1e-6) if length > 0 else flat


def _pose(rotation: FloatArray, centre: FloatArray) -> FloatArray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, centre
    return pose


PathName = Literal["orbit", "spiral", "dolly", "crane", "fly-through", "whip-pan", "figure-eight", "walk"]


def named_path(
    name: PathName | str, num_frames: int, *, size_m: float = 2.0, turns: float = 1.0
) -> FloatArray:
    """A family of paths by name, at an even pace with a soft start and end.

    Args:
        name: orbit: around a point `size_m` ahead, looking at it; spiral: the same, rising and closing in; dolly:
            straight ahead; crane: up, looking down at what lay ahead; fly-through: ahead in slow curves; whip-pan: at
            rest, then a fast turn, then at rest; figure-eight: a lying eight, looking along it; walk: ahead at the
            pace of steps, with their bob.
        num_frames: F.
        size_m: radius, length or height in metres.
        turns: how often around, for those that go around (whip-pan: a quarter turn each).
    Returns:
        (F, 4, 4).
    Raises:
        ValueError: an unknown name, fewer than two frames, or sizes that are not positive.
    """
    if name not in get_args(PathName):
        raise ValueError(f"path {name!r}: known are {', '.join(get_args(PathName))}")
    if num_frames < 2 or not (0 < size_m < math.inf) or not (0 < abs(turns) < math.inf):
        raise ValueError(
            f"path {name}: {num_frames} frames, size {size_m} m, {turns} turns; need F >= 2 and sizes > 0"
        )
    even = np.linspace(0.0, 1.0, num_frames)
    progress = even * even * (3 - 2 * even)
    return np.asarray(relative_to_first(_FAMILIES[name](progress, size_m, turns)))


def _look(centre: FloatArray, target: FloatArray) -> FloatArray:
    """(F, 4, 4) cameras at `centre` that look at `target`, both (F, 3), level with the ground."""
    forward = target - centre
    forward = forward / np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(np.array([0.0, 1.0, 0.0]), forward)
    right = right / np.linalg.norm(right, axis=1, keepdims=True)
    poses = np.tile(np.eye(4), (len(centre), 1, 1))
    poses[:, :3, :3] = np.stack([right, np.cross(forward, right), forward], axis=-1)
    poses[:, :3, 3] = centre
    return poses


def _ring(angle: FloatArray, radius: FloatArray | float, height: FloatArray | float) -> FloatArray:
    """Around a point one radius ahead of the start, to the right for positive angles; height counts upwards."""
    radius = np.broadcast_to(radius, angle.shape)
    return np.stack(
        [radius * np.sin(angle), -np.broadcast_to(height, angle.shape), -radius * np.cos(angle)], axis=1
    )


def _orbit(s: FloatArray, size_m: float, turns: float) -> FloatArray:
    return _look(_ring(2 * np.pi * turns * s, size_m, 0.0), np.zeros((len(s), 3)))


def _spiral(s: FloatArray, size_m: float, turns: float) -> FloatArray:
    return _look(
        _ring(2 * np.pi * turns * s, size_m * (1 - 0.4 * s), 0.5 * size_m * s), np.zeros((len(s), 3))
    )


def _dolly(s: FloatArray, size_m: float, turns: float) -> FloatArray:
    return _along(np.stack([0 * s, 0 * s, size_m * s], axis=1), np.tile([0.0, 0.0, 1.0], (len(s), 1)))


def _crane(s: FloatArray, size_m: float, turns: float) -> FloatArray:
    centre = np.stack([0 * s, -size_m * s, 0 * s], axis=1)
    return _look(centre, np.tile([0.0, 0.0, 2.0 * size_m], (len(s), 1)))


def _fly_through(s: FloatArray, size_m: float, turns: float) -> FloatArray:
    def place(x: FloatArray) -> FloatArray:
        phase = 2 * np.pi * turns * x
        return size_m * np.stack([0.15 * np.sin(phase), 0.06 * np.sin(0.5 * phase), x], axis=1)

    return _along(place(s), place(s + 1e-4) - place(s - 1e-4))


def _figure_eight(s: FloatArray, size_m: float, turns: float) -> FloatArray:
    def place(x: FloatArray) -> FloatArray:
        phase = 2 * np.pi * turns * x
        return size_m * np.stack([0.5 * np.sin(2 * phase), 0 * phase, np.sin(phase)], axis=1)

    return _along(place(s), np.sign(turns) * (place(s + 1e-4) - place(s - 1e-4)))


def _whip_pan(s: FloatArray, size_m: float, turns: float) -> FloatArray:
    even = np.linspace(0.0, 1.0, len(s))
    fast = np.clip((even - 0.4) / 0.2, 0.0, 1.0)
    yaw = 0.5 * np.pi * turns * fast * fast * (3 - 2 * fast)
    return _along(np.zeros((len(s), 3)), np.stack([np.sin(yaw), 0 * yaw, np.cos(yaw)], axis=1))


def _walk(s: FloatArray, size_m: float, turns: float) -> FloatArray:
    # A step of 0.7 m: twice its bob of 2 cm a stride, half of it sideways.
    stride = np.pi * size_m * s / 0.7
    centre = np.stack([0.01 * np.sin(stride), -0.02 * np.abs(np.sin(stride)), size_m * s], axis=1)
    return _along(centre, np.tile([0.0, 0.0, 1.0], (len(s), 1)))


def _along(centre: FloatArray, direction: FloatArray) -> FloatArray:
    return _look(centre, centre + direction / np.linalg.norm(direction, axis=1, keepdims=True))


_FAMILIES: dict[str, Callable[[FloatArray, float, float], FloatArray]] = {
    "orbit": _orbit,
    "spiral": _spiral,
    "dolly": _dolly,
    "crane": _crane,
    "fly-through": _fly_through,
    "whip-pan": _whip_pan,
    "figure-eight": _figure_eight,
    "walk": _walk,
}


def resample_path(
    camera_to_world: FloatArray, *, fps: float, num_frames: int, to_fps: float = FPS
) -> FloatArray:
    """The path at another rate, on the group of rigid motions.

    Args:
        camera_to_world: (F, 4, 4) at `fps`.
        num_frames: wanted, at `to_fps` from the first pose on.
    Raises:
        ValueError: a path that ends before, or rates that are not positive.
    """
    if not (fps > 0 and to_fps > 0):
        raise ValueError(f"rates {fps} and {to_fps} must be positive")
    have, wanted = np.arange(len(camera_to_world)) / fps, np.arange(num_frames) / to_fps
    if wanted[-1] > have[-1] + 1e-9:
        raise ValueError(
            f"the path of {len(camera_to_world)} poses at {fps:g} a second lasts {have[-1]:.2f} s; {num_frames} frames "
            f"at {to_fps:g} need {wanted[-1]:.2f} s"
        )
    return interpolate_path(have, camera_to_world, np.minimum(wanted, have[-1]))


def interpolate_path(time_s: FloatArray, camera_to_world: FloatArray, wanted_s: FloatArray) -> FloatArray:
    """The path (F, 4, 4) at other times (Q,), by the screw motion between neighbours; (Q, 4, 4), always rigid."""
    return interpolate_poses(time_s, camera_to_world, wanted_s, method="geodesic")


def check_rigid(camera_to_world: FloatArray) -> None:
    """Refuse poses (F, 4, 4) that are not finite or not rigid.

    Raises:
        ValueError: naming the first such frame.
    """
    poses = np.asarray(camera_to_world, np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) == 0:
        raise ValueError(f"the path is {poses.shape}; give (F, 4, 4) camera-to-world poses")
    finite = np.isfinite(poses).all(axis=(1, 2))
    if not finite.all():
        raise ValueError(f"the pose of frame {int((~finite).argmax())} is not finite")
    error = np.asarray(rigid_error(poses))
    if error.max() > 1e-3:
        raise ValueError(
            f"the pose of frame {int((error > 1e-3).argmax())} is no rigid transform (off by {error.max():.2g}): "
            "rotations must be orthonormal, without scale or mirror"
        )


def check_path(
    camera_to_world: FloatArray,
    *,
    fps: float = FPS,
    max_speed_m_s: float = 10.0,
    max_turn_deg_s: float = 240.0,
) -> None:
    """Refuse paths that no camera can follow.

    Args:
        camera_to_world: (F, 4, 4), metres.
        max_speed_m_s, max_turn_deg_s: what is still believed; a step that is faster and more than eight times the usual
            one is called a jump.
    Raises:
        ValueError: naming the first frame that is not finite, not rigid, jumps or is too fast.
    """
    check_rigid(camera_to_world)
    poses = np.asarray(camera_to_world, np.float64)
    if len(poses) == 1:
        return
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1) * fps
    turns = (
        np.degrees(np.asarray(rotation_angle(np.swapaxes(poses[:-1, :3, :3], 1, 2) @ poses[1:, :3, :3])))
        * fps
    )
    for what, speed, limit, unit in (
        ("moves", steps, max_speed_m_s, "m/s"),
        ("turns", turns, max_turn_deg_s, "deg/s"),
    ):
        if speed.max() > limit:
            frame = int(speed.argmax())
            usual = float(np.median(speed))
            kind = (
                f"jumps (usually it {what} {usual:.3g} {unit})"
                if speed.max() > 8 * max(usual, 1e-9)
                else "is too fast"
            )
            raise ValueError(
                f"the path {kind}: from frame {frame} to {frame + 1} it {what} {speed.max():.4g} {unit}, more than "
                f"{limit:g}; poses of a file must be camera-to-world in metres, a named path slows down with more "
                "seconds, fewer turns or a smaller size"
            )
