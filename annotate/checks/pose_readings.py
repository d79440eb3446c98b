"""Given poses that the images contradict: in which other reading would they fit?

A file of poses says neither its axes nor its direction nor its clock. Where the poses as they are disagree with what
the images show, the usual misreadings are undone one by one and compared with the solved motion, as motions between
pairs of frames that move the picture by so many pixels. The length of the path is left free: scale is another question.
The reading that fits names the fault; nothing is repaired, since a file that was misread once should be mended at its
source. Where no reading fits for certain nothing is named.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ...dataset.arrays import FloatArray
from ...dataset.cameras.rotations import (
    quaternion_wxyz_from_rotation,
    rotation_from_quaternion_wxyz,
    so3_log,
)
from ...dataset.cameras.transforms import interpolate_poses, se3_inverse
from ...dataset.reasons import ReasonCode
from .given_poses import GivenPoseErrors

_LAGS_S = (0.25, 1.0)
_TRIMMED = 0.8
"""Share of the pairs, the best ones, that a reading is judged by."""
_FLOOR_PX2 = 0.02
_LEAD = 3.0
"""How many times smaller (mean square) the misfit of another reading must be than that of the poses as they are."""
_TIE = 1.3
"""Readings whose misfits are within this factor cannot be told apart: then the usual mistake is named."""
_FITS = 0.01
"""Largest root mean square misfit of a reading that fits, as a share of the picture's long side."""
_RATES = (2.0, 0.5, 30 / 16, 16 / 30, 24 / 16, 16 / 24, 30 / 24, 24 / 30, 60 / 16, 16 / 60, 25 / 24, 24 / 25)


@dataclass(frozen=True)
class PoseReading:
    """One way to take the given poses.

    Attributes:
        code: reason that a row has where this reading is the one that fits.
        words: what was mistaken for what.
        poses: given poses -> poses as they would have been meant.
        rate, late_frames: the pose at clip frame x belongs to `rate` x - `late_frames`, counted from the first pose.
    """

    code: ReasonCode
    words: str
    poses: Callable[[FloatArray], FloatArray] = lambda p: p
    rate: float = 1.0
    late_frames: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PoseFault:
    """What is wrong with given poses, by the reading that fits.

    Attributes:
        reading: that one.
        misfit_px, given_px: root mean square misfit of it, and of the poses as they are.
    """

    reading: PoseReading
    misfit_px: float
    given_px: float

    @property
    def detail(self) -> str:
        """A sentence for the row."""
        return (
            f"the given poses fit the images as {self.reading.words}: {self.misfit_px:.2g} px off between frames, and"
            f" {self.given_px:.2g} px as they are; nothing was changed"
        )


def find_fault(
    solved: FloatArray,
    given: FloatArray,
    position: FloatArray,
    *,
    fps: float,
    focal_px: float,
    depth: float,
    long_side_px: float,
    late_s: float = float("nan"),
) -> PoseFault | None:
    """The reading in which given poses fit the images, where they do not as they are.

    Args:
        solved: (F, 4, 4) camera-to-world that images (and depth) ask for.
        given: (N, 4, 4) as they were read; position: (N,) clip frame of each.
        fps: of the clip.
        focal_px, depth: usual focal length and distance of what is seen, the latter in the unit of `solved`.
        long_side_px: of the stored frames.
        late_s: by how much the given series seems to come late (`time_offset`); NaN: unknown.
    """
    if len(given) < 6:
        return None
    judge = _Judge(solved, given, position, fps, focal_px, depth)
    as_it_is = judge.misfit(PoseReading("given_poses_disagree", "they are"))
    if not np.isfinite(as_it_is):
        return None
    tried = [(judge.misfit(reading), reading) for reading in _readings(late_s * fps)]
    tried = [(cost, reading) for cost, reading in tried if np.isfinite(cost)]
    if not tried:
        return None
    least = min(cost for cost, _ in tried)
    # In the order of the readings: the usual mistakes come first.
    best, reading = next((cost, reading) for cost, reading in tried if cost <= _TIE * least)
    if best * _LEAD > as_it_is or np.sqrt(best) > _FITS * long_side_px:
        return None
    return PoseFault(
        reading=reading, misfit_px=float(np.sqrt(best)), given_px=float(min(np.sqrt(as_it_is), long_side_px))
    )


_FAR = 1.5
"""Paths whose lengths differ by this factor are in different units, whatever depth says."""
_SIZE_LOG = 0.06
"""What the size of a solved path may be off by itself where depth tells lengths."""


def length_alone_is_wrong(by_paths: float, passed: Mapping[str, bool], *, errors: GivenPoseErrors) -> bool:
    """Whether poses that disagree do so by their length, no other reading having been found.

    Depth tells lengths that are a few per cent off. Under a path that is a hundred times too long or too short it
    tells nothing, but the solved path does, where both turn and point alike. Poses that err on their own make a path
    longer, in its right unit: then the size of the path does not differ as its length does.

    Args:
        by_paths: solved over given length of the path.
        passed: by the names of the gates, those that do not apply missing.
        errors: of the given poses.
    """
    alike = all(passed.get(gate, False) for gate in ("given_rotation", "given_turn", "given_direction"))
    far = bool(np.isfinite(by_paths)) and abs(np.log(by_paths)) > np.log(_FAR)
    by_depth = not passed.get("given_scale", True)
    length_log = np.log(errors.scale_ratio if by_depth else by_paths)
    least = max(min(abs(length_log) / 2, _SIZE_LOG), 3 * errors.size_sigma)
    of_noise = abs(np.log(errors.size_ratio)) < least
    return (by_depth or (alike and far)) and not of_noise


_UNITS = {
    1000.0: "millimetres",
    100.0: "centimetres",
    3.28084: "feet",
    39.3701: "inches",
    0.001: "kilometres",
}


def unit_fault(by_paths: float, by_depth: float) -> str:
    """What to say of poses whose length alone is wrong.

    Args:
        by_paths, by_depth: true over given length, by the solved path and by depth under the given poses; the latter
            is more exact, and blind to large factors.
    """
    far = np.isfinite(by_paths) and abs(np.log(by_paths)) > 0.5
    factor = 1 / (by_paths if far else by_depth)
    named = [name for unit, name in _UNITS.items() if abs(np.log(factor / unit)) < 0.1]
    guess = f", as {named[0]} taken for metres are" if named else ""
    return f"the path of the given poses is {factor:.3g} times as long as images and depth find it{guess}"


@dataclass(frozen=True)
class _Judge:
    """Given poses against solved motion."""

    solved: FloatArray
    given: FloatArray
    position: FloatArray
    fps: float
    focal_px: float
    depth: float

    def misfit(self, reading: PoseReading) -> float:
        """Mean square pixels by which the two motions move the picture differently; NaN with too few pairs."""
        last = len(self.solved) - 1.0
        origin = self.position[0]
        read_frame = origin + reading.rate * (self.position - origin) - reading.late_frames
        inside = (read_frame >= -1e-9) & (read_frame <= last + 1e-9)
        if inside.sum() < max(5, 0.4 * min(1.0, 1 / reading.rate) * len(read_frame)):
            return float("nan")
        theirs = reading.poses(np.asarray(self.given, np.float64))[inside]
        frames = np.arange(len(self.solved), dtype=np.float64)
        ours = interpolate_poses(frames, self.solved, np.clip(read_frame[inside], 0, last))
        step_s = float(np.median(np.diff(read_frame[inside]))) / self.fps
        costs = [self._over(ours, theirs, max(1, round(lag / step_s))) for lag in _LAGS_S]
        return float(np.mean(costs))

    def _over(self, ours: FloatArray, theirs: FloatArray, lag: int) -> float:
        lag = min(lag, len(ours) // 2)
        a, b = (se3_inverse(p[:-lag]) @ p[lag:] for p in (ours, theirs))
        ta, tb = a[:, :3, 3], b[:, :3, 3]
        # A factor above zero: a path that runs backwards is no matter of scale.
        stretch = max(float((ta * tb).sum()), 0.0) / max(float((tb * tb).sum()), 1e-24)
        turn = so3_log(np.swapaxes(a[:, :3, :3], 1, 2) @ b[:, :3, :3])
        apart = (ta - stretch * tb) / self.depth
        square = np.sort(self.focal_px**2 * ((turn**2).sum(1) + (apart**2).sum(1)))
        return _FLOOR_PX2 + float(square[: max(1, round(_TRIMMED * len(square)))].mean())


# --- readings -------------------------------------------------------------------------------------


def _readings(late_frames: float) -> Iterator[PoseReading]:
    """All of them, the usual mistakes first."""
    yield PoseReading("given_poses_inverted", "world-to-camera, taken for camera-to-world", se3_inverse)
    yield from _AXES
    yield from _ROTATIONS
    if np.isfinite(late_frames) and abs(late_frames) >= 0.3:
        late = "late" if late_frames > 0 else "early"
        words = f"poses that come {abs(late_frames):.2g} clip frames {late}"
        yield PoseReading("given_poses_shifted", words, late_frames=late_frames)
    yield from _TIMES


def _right(matrix: FloatArray) -> Callable[[FloatArray], FloatArray]:
    turn = np.eye(4)
    turn[:3, :3] = matrix
    return lambda p: p @ turn


def _both(matrix: FloatArray) -> Callable[[FloatArray], FloatArray]:
    turn = np.eye(4)
    turn[:3, :3] = matrix
    return lambda p: turn @ p @ turn.T


def _axis_readings() -> Iterator[PoseReading]:
    """Signed permutations of the camera's axes; those that mirror, of the camera's and the world's alike."""
    opengl = np.diag([1.0, -1, -1])
    words = "poses in OpenGL axes (y up, z backwards), taken for OpenCV's"
    yield PoseReading("given_poses_opengl", words, _right(opengl))
    others: list[PoseReading] = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            matrix = np.diag(signs) @ np.eye(3)[list(order)]
            if np.array_equal(matrix, np.eye(3)) or np.array_equal(matrix, opengl):
                continue
            plain = order == (0, 1, 2)
            axes = ", ".join(f"{'-' * (s < 0)}{'xyz'[i]}" for i, s in zip(order, signs, strict=True))
            code: ReasonCode = "given_poses_flipped" if plain else "given_poses_axes_swapped"
            what = "flipped" if plain else "swapped"
            if np.linalg.det(matrix) > 0:
                # The same change of the world as well is none that motions could tell.
                others.append(PoseReading(code, f"poses whose axes are {what} ({axes})", _right(matrix)))
            else:
                words = (
                    f"poses in mirrored axes ({axes})" if plain else f"poses whose axes are {what} ({axes})"
                )
                others.append(PoseReading(code, words, _both(matrix)))
    # A flip is a simpler mistake than a swap.
    yield from sorted(others, key=lambda r: r.code != "given_poses_flipped")


def _with_rotation(change: Callable[[FloatArray], FloatArray]) -> Callable[[FloatArray], FloatArray]:
    def read(poses: FloatArray) -> FloatArray:
        out = poses.copy()
        out[:, :3, :3] = change(poses[:, :3, :3])
        return out

    return read


def _rolled(places: int) -> Callable[[FloatArray], FloatArray]:
    return _with_rotation(
        lambda r: rotation_from_quaternion_wxyz(np.roll(quaternion_wxyz_from_rotation(r), places, axis=-1))
    )


def _transposed_inverse(poses: FloatArray) -> FloatArray:
    """Rotation of the camera beside the position of the world in it: c2w from R (c2w) and t (w2c)."""
    out = poses.copy()
    out[:, :3, 3] = -np.einsum("nij,nj->ni", poses[:, :3, :3], poses[:, :3, 3])
    return out


_AXES = tuple(_axis_readings())
_ROTATIONS = (
    PoseReading(
        "given_poses_rotation_misread",
        "poses whose rotation is transposed (columns taken for rows, or the inverse)",
        _with_rotation(lambda r: np.swapaxes(r, 1, 2)),
    ),
    PoseReading(
        "given_poses_rotation_misread",
        "quaternions with the scalar first, taken for scalar last",
        _rolled(-1),
    ),
    PoseReading(
        "given_poses_rotation_misread",
        "quaternions with the scalar last, taken for scalar first",
        _rolled(1),
    ),
    PoseReading(
        "given_poses_inverted",
        "rotations of camera-to-world beside translations of world-to-camera",
        _transposed_inverse,
    ),
)
_TIMES = (
    PoseReading("given_poses_wrong_rate", "poses from last to first", lambda p: p[::-1].copy()),
    *(
        PoseReading("given_poses_wrong_rate", f"poses at {1 / rate:.3g} times the rate", rate=rate)
        for rate in _RATES
    ),
)
