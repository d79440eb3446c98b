"""Text files of camera trajectories: TUM, KITTI and 4x4 rows. All camera-to-world, OpenCV axes.

Values are written with 17 significant digits, so float64 survives a round trip unchanged. TUM files hold
quaternions, whose round trip is exact to rounding only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .cameras import (
    orthonormalise,
    quaternion_wxyz_from_rotation,
    rotation_from_quaternion_wxyz,
    to_4x4,
    transform,
)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Camera path.

    Attributes:
        camera_to_world: (F, 4, 4) rigid, in the unit of the file (metres unless it says otherwise).
        time_s: (F,) seconds, or None if the format carries no times.
    """

    camera_to_world: FloatArray
    time_s: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.camera_to_world)


def _read_rows(path: Path, *, columns: int, layout: str) -> FloatArray:
    """(n, columns) numbers of a text file; `#` starts a comment; spaces, tabs or commas separate."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error.reason} at byte {error.start})") from None
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.split("#", 1)[0].replace(",", " ").split()
        if not content:
            continue
        if len(content) != columns:
            raise ValueError(f"{path}:{number}: {len(content)} entries, expected {columns} ({layout})")
        try:
            values = [float(word) for word in content]
        except ValueError:
            raise ValueError(
                f"{path}:{number}: not numbers: {line.strip()[:80]!r}; expected {layout}"
            ) from None
        if not np.isfinite(values).all():
            raise ValueError(f"{path}:{number}: NaN or infinite value; drop the row instead")
        rows.append(values)
    if not rows:
        raise ValueError(f"{path}: holds no poses; expected rows of {layout}")
    return np.asarray(rows, dtype=np.float64)


def _rigid(path: Path, poses: FloatArray, *, tolerance: float) -> FloatArray:
    """Poses with their rotations projected onto SO(3), refused when further than `tolerance` from it."""
    rotation = poses[:, :3, :3]
    error = np.abs(np.swapaxes(rotation, 1, 2) @ rotation - np.eye(3)).max(axis=(1, 2))
    reflected = np.linalg.det(rotation) <= 0
    bad = np.flatnonzero((error > tolerance) | reflected)
    if bad.size:
        i = int(bad[0])
        what = "a reflection" if reflected[i] else f"{error[i]:.2g} away from orthonormal"
        raise ValueError(
            f"{path}: the rotation of pose {i} is {what} (allowed {tolerance:g}; {bad.size} of {len(poses)} poses); "
            "is there a scale in the matrices, or another row order?"
        )
    return transform(orthonormalise(rotation), poses[:, :3, 3])


def read_tum(path: str | Path) -> Trajectory:
    """Trajectory of a TUM file: `timestamp tx ty tz qx qy qz qw` a line, seconds, scalar-last quaternions.

    Raises:
        ValueError: naming file and line: wrong number of entries, not a number, a quaternion off unit length
        by
            more than 1 %, or times that run backwards (equal times occur in TUM's own ground truth and are
            kept).
    """
    path = Path(path)
    rows = _read_rows(path, columns=8, layout="timestamp tx ty tz qx qy qz qw")
    length = np.linalg.norm(rows[:, 4:], axis=1)
    bad = np.flatnonzero(np.abs(length - 1.0) > 0.01)
    if bad.size:
        raise ValueError(f"{path}: pose {bad[0]} has a quaternion of length {length[bad[0]]:.4g}, expected 1")
    backwards = np.flatnonzero(np.diff(rows[:, 0]) < 0)
    if backwards.size:
        i = int(backwards[0])
        raise ValueError(
            f"{path}: time runs backwards from pose {i} ({rows[i, 0]} s) to {i + 1} ({rows[i + 1, 0]} s)"
        )
    poses = transform(rotation_from_quaternion_wxyz(rows[:, [7, 4, 5, 6]]), rows[:, 1:4])
    return Trajectory(camera_to_world=poses, time_s=rows[:, 0])


def read_kitti(
    path: str | Path, *, times_path: str | Path | None = None, tolerance: float = 1e-3
) -> Trajectory:
    """Trajectory of a KITTI file: 12 numbers a line, row-major 3x4; times from a second file, one a line.

    Args:
        tolerance: largest entry of |R^T R - I| accepted; rotations are projected onto SO(3).
    Raises:
        ValueError: as `read_tum`; also when the two files differ in length.
    """
    path = Path(path)
    rows = _read_rows(path, columns=12, layout="r11 r12 r13 tx r21 r22 r23 ty r31 r32 r33 tz")
    poses = _rigid(path, to_4x4(rows.reshape(-1, 3, 4)), tolerance=tolerance)
    if times_path is None:
        return Trajectory(camera_to_world=poses)
    time_s = _read_rows(Path(times_path), columns=1, layout="seconds")[:, 0]
    if len(time_s) != len(poses):
        raise ValueError(f"{times_path}: {len(time_s)} times but {len(poses)} poses in {path}")
    return Trajectory(camera_to_world=poses, time_s=time_s)


def read_matrices(path: str | Path, *, tolerance: float = 1e-3) -> Trajectory:
    """Trajectory of 16 numbers a line: 4x4 matrices, row by row.

    Raises:
        ValueError: as `read_kitti`; also when a last row is not 0 0 0 1 (a transposed, column-major file).
    """
    path = Path(path)
    poses = _read_rows(path, columns=16, layout="a 4x4 matrix, row by row").reshape(-1, 4, 4)
    bad = np.flatnonzero(np.abs(poses[:, 3] - [0.0, 0.0, 0.0, 1.0]).max(axis=1) > 1e-9)
    if bad.size:
        raise ValueError(
            f"{path}: pose {bad[0]} ends in {poses[bad[0], 3].tolist()}, expected 0 0 0 1; column-major?"
        )
    return Trajectory(camera_to_world=_rigid(path, poses, tolerance=tolerance))


def read_trajectory(path: str | Path) -> Trajectory:
    """Trajectory of a TUM, KITTI or 4x4 file, told apart by the number of entries in its first row (8, 12 or
    16)."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with path.open(encoding="utf-8-sig") as stream:
            first = next((c for line in stream if (c := line.split("#", 1)[0].replace(",", " ").split())), [])
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file; trajectories are TUM, KITTI or 4x4 rows") from None
    readers = {8: read_tum, 12: read_kitti, 16: read_matrices}
    if len(first) not in readers:
        raise ValueError(
            f"{path}: {len(first)} entries in the first row; expected 8 (TUM: timestamp tx ty tz qx qy qz qw), "
            "12 (KITTI: row-major 3x4) or 16 (4x4, row by row)"
        )
    return readers[len(first)](path)


def _format(values: FloatArray) -> str:
    return " ".join(repr(float(v)) for v in values)


def _check_poses(camera_to_world: ArrayLike) -> FloatArray:
    poses = np.asarray(camera_to_world, dtype=np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not np.isfinite(poses).all():
        raise ValueError(f"camera_to_world: expected finite (F, 4, 4), found {poses.shape}")
    return poses


def _check_times(time_s: ArrayLike, num_poses: int) -> FloatArray:
    times = np.asarray(time_s, dtype=np.float64)
    if times.shape != (num_poses,):
        raise ValueError(f"time_s: {times.shape} for {num_poses} poses, expected ({num_poses},)")
    return times


def write_tum(path: str | Path, camera_to_world: ArrayLike, time_s: ArrayLike) -> None:
    """Write `timestamp tx ty tz qx qy qz qw` lines (scalar last, qw >= 0) from (F, 4, 4) poses and (F,)
    seconds."""
    poses = _check_poses(camera_to_world)
    times = _check_times(time_s, len(poses))
    wxyz = quaternion_wxyz_from_rotation(poses[:, :3, :3])
    rows = np.concatenate([times[:, None], poses[:, :3, 3], wxyz[:, [1, 2, 3, 0]]], axis=1)
    text = "# timestamp tx ty tz qx qy qz qw\n" + "".join(_format(row) + "\n" for row in rows)
    Path(path).write_text(text, encoding="utf-8")


def write_kitti(
    path: str | Path,
    camera_to_world: ArrayLike,
    *,
    time_s: ArrayLike | None = None,
    times_path: str | Path | None = None,
) -> None:
    """Write 12 numbers a line (row-major 3x4) from (F, 4, 4) poses; times, if given, to `times_path`."""
    poses = _check_poses(camera_to_world)
    if (time_s is None) != (times_path is None):
        raise ValueError("write_kitti: give time_s and times_path together, or neither")
    text = "".join(_format(row) + "\n" for row in poses[:, :3].reshape(-1, 12))
    Path(path).write_text(text, encoding="utf-8")
    if time_s is not None and times_path is not None:
        times = _check_times(time_s, len(poses))
        Path(times_path).write_text("".join(f"{float(t)!r}\n" for t in times), encoding="utf-8")


def write_matrices(path: str | Path, camera_to_world: ArrayLike) -> None:
    """Write 16 numbers a line: 4x4 matrices row by row, from (F, 4, 4) poses."""
    poses = _check_poses(camera_to_world)
    Path(path).write_text("".join(_format(row) + "\n" for row in poses.reshape(-1, 16)), encoding="utf-8")


def associate(
    time_a_s: ArrayLike, time_b_s: ArrayLike, *, max_difference_s: float = 0.01
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (n,), (n,) of nearest times in two increasing lists, at most `max_difference_s` apart, each
    used once.

    Raises:
        ValueError: if nothing matches.
    """
    a, b = np.asarray(time_a_s, dtype=np.float64), np.asarray(time_b_s, dtype=np.float64)
    if not (a.size and b.size):
        raise ValueError("associate: an empty list of times")
    right = np.clip(np.searchsorted(b, a), 0, len(b) - 1)
    left = np.clip(right - 1, 0, len(b) - 1)
    nearest = np.where(np.abs(b[left] - a) <= np.abs(b[right] - a), left, right)
    difference = np.abs(b[nearest] - a)
    order = np.lexsort((difference, nearest))  # of several a for one b keep the closest
    first = np.concatenate([[True], np.diff(nearest[order]) != 0])
    keep = np.sort(order[first])
    keep = keep[difference[keep] <= max_difference_s]
    if not keep.size:
        raise ValueError(
            f"associate: no times within {max_difference_s} s of each other "
            f"({a[0]:.3f} to {a[-1]:.3f} s against {b[0]:.3f} to {b[-1]:.3f} s)"
        )
    return keep, nearest[keep]
