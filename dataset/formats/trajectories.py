"""Text files of camera trajectories: TUM, KITTI, 4x4 rows, EuRoC tables. All camera-to-world, OpenCV axes.

Values are written with 17 significant digits, so float64 survives a round trip unchanged. TUM files hold
quaternions, whose round trip is exact to rounding only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..arrays import F64
from ..cameras.rotations import orthonormalise, quaternion_wxyz_from_rotation, rotation_from_quaternion_wxyz
from ..cameras.transforms import to_4x4, transform
from ..inputs import read_text, reader


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """Camera path.

    Attributes:
        camera_to_world: (F, 4, 4) rigid, in the unit of the file (metres unless it says otherwise); NaN where a file
            that was read leniently has no pose.
        time_s: (F,) seconds, or None if the format carries no times.
        frame_number: (F,) number that the file itself gives each pose (column 1 of some KITTI files), or None.
        notes: what lenient reading had to decide, one sentence each.
    """

    camera_to_world: F64
    time_s: F64 | None = None
    frame_number: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.camera_to_world)


_TUM_LAYOUT = "timestamp tx ty tz qx qy qz qw"
_KITTI_LAYOUT = "r11 r12 r13 tx r21 r22 r23 ty r31 r32 r33 tz"
_MATRIX_LAYOUT = "a 4x4 matrix, row by row"


_WITH_COMMA = re.compile(r"[-+]?(\d+(,\d+)?(e[-+]?\d+)?|nan|inf)", re.IGNORECASE)


def words_of(line: str) -> list[str]:
    """Entries of a line; `#` or `%` starts a comment; spaces, tabs, commas or semicolons separate. Commas stand for
    decimal points where something else separates the numbers around them."""
    line = re.split("[#%]", line, maxsplit=1)[0]
    parts = line.replace(";", " ").split()
    if len(parts) > 1 and "," in line and all(_WITH_COMMA.fullmatch(part) for part in parts):
        return [part.replace(",", ".") for part in parts]
    return line.replace(";", " ").replace(",", " ").split()


def _read_rows(path: Path, *, columns: int | tuple[int, ...], layout: str, finite: bool = True) -> F64:
    """(n, columns) numbers of a text file; all rows have as many entries as the first, one of `columns`.

    Args:
        finite: refuse NaN and infinite values.
    """
    allowed = (columns,) if isinstance(columns, int) else columns
    rows: list[list[float]] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        content = words_of(line)
        if not content:
            continue
        if not rows and len(content) in allowed:
            allowed = (len(content),)
        if len(content) not in allowed:
            raise ValueError(f"{path}:{number}: {len(content)} entries, expected {allowed[0]} ({layout})")
        try:
            values = [float(word) for word in content]
        except ValueError:
            raise ValueError(
                f"{path}:{number}: not numbers: {line.strip()[:80]!r}; expected {layout}"
            ) from None
        if finite and not np.isfinite(values).all():
            raise ValueError(f"{path}:{number}: NaN or infinite value; drop the row instead")
        rows.append(values)
    if not rows:
        raise ValueError(f"{path}: holds no poses; expected rows of {layout}")
    return np.asarray(rows, dtype=np.float64)


def _rigid(path: Path, poses: F64, *, tolerance: float) -> F64:
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


def _rigid_where_known(path: Path, poses: F64, *, tolerance: float, lenient: bool) -> Trajectory:
    """Rigid poses; of a lenient file, rows with a value that is not finite and rows of zeros are poses that the source
    did not have."""
    if not lenient:
        return Trajectory(camera_to_world=_rigid(path, poses, tolerance=tolerance))
    known = _holds_pose(poses)
    result = np.full_like(poses, np.nan)
    if known.any():
        result[known] = _rigid(path, poses[known], tolerance=tolerance)
    return Trajectory(camera_to_world=result, notes=_note_unknown(path, known))


def _holds_pose(poses: F64) -> NDArray[np.bool_]:
    return np.isfinite(poses).all(axis=(1, 2)) & (poses[:, :3] != 0).any(axis=(1, 2))


def _note_unknown(path: Path, known: NDArray[np.bool_]) -> tuple[str, ...]:
    if not known.any():
        raise ValueError(f"{path}: none of its {len(known)} rows holds a pose (NaN, infinite or zero)")
    missing = int((~known).sum())
    return (f"{path.name}: {missing} of {len(known)} rows hold no pose",) if missing else ()


def _seconds(values: F64) -> F64:
    """Time stamps in seconds. Stamps too large for seconds since 1970 are milli-, micro- or nanoseconds since then, and
    stamps hours apart are micro- or nanoseconds since some start: nobody's camera moves so slowly."""
    size = float(np.nanmax(np.abs(values))) if values.size else 0.0
    for least, per_second in ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3)):
        if size > least:
            return values / per_second
    step = float(np.median(np.diff(values))) if len(values) > 2 else 0.0
    for least, per_second in ((2e6, 1e9), (1e4, 1e6)):  # rates up to 500 and 100 Hz
        if step >= least:
            return values / per_second
    return values


@reader("TUM file")
def read_tum(path: str | Path, *, lenient: bool = False) -> Trajectory:
    """Trajectory of a TUM file: `timestamp tx ty tz qx qy qz qw` a line, seconds, scalar-last quaternions.

    Args:
        lenient: rows without a finite pose and quaternions of zeros become NaN poses; quaternions of any other length
            are normalised; rows are put in order of time; of rows with the same time the first counts. `notes` say so.
    Raises:
        ValueError: naming file and line: wrong number of entries, not a number, a quaternion off unit length
        by
            more than 1 %, or times that run backwards (equal times occur in TUM's own ground truth and are
            kept).
    """
    path = Path(path)
    rows = _read_rows(path, columns=8, layout=_TUM_LAYOUT, finite=not lenient)
    return _from_quaternions(path, rows, lenient=lenient)


def _from_quaternions(path: Path, rows: F64, *, lenient: bool) -> Trajectory:
    """Trajectory of (n, 8) rows in TUM's order."""
    if lenient:
        return _from_lenient_quaternions(path, rows)
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
    return Trajectory(camera_to_world=poses, time_s=_seconds(rows[:, 0]))


def _from_lenient_quaternions(path: Path, rows: F64) -> Trajectory:
    notes: list[str] = []
    timed = np.isfinite(rows[:, 0])
    if not timed.all():
        notes.append(f"{path.name}: {int((~timed).sum())} of {len(rows)} rows have no time and are left out")
        rows = rows[timed]
    if (np.diff(rows[:, 0]) < 0).any():
        notes.append(f"{path.name}: rows are not in order of time; sorted")
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
    again = np.r_[False, np.diff(rows[:, 0]) == 0] if len(rows) else np.zeros(0, bool)
    if again.any():
        notes.append(f"{path.name}: {int(again.sum())} rows repeat the time of another; the first counts")
        rows = rows[~again]
    length = np.linalg.norm(rows[:, 4:], axis=1)
    known = np.isfinite(rows).all(axis=1) & (length > 1e-6)
    notes.extend(_note_unknown(path, known))
    gap = float(np.abs(length[known] - 1.0).max())
    if gap > 0.01:
        notes.append(f"{path.name}: quaternions are up to {gap:.2g} off unit length; normalised")
    poses = np.full((len(rows), 4, 4), np.nan)
    unit = rows[known, 4:] / length[known, None]
    poses[known] = transform(rotation_from_quaternion_wxyz(unit[:, [3, 0, 1, 2]]), rows[known, 1:4])
    return Trajectory(camera_to_world=poses, time_s=_seconds(rows[:, 0]), notes=tuple(notes))


@reader("KITTI file")
def read_kitti(
    path: str | Path,
    *,
    times_path: str | Path | None = None,
    tolerance: float = 1e-3,
    lenient: bool = False,
) -> Trajectory:
    """Trajectory of a KITTI file: 12 numbers a line, row-major 3x4; times from a second file, one a line. A 13th number
    in front is the frame.

    Args:
        tolerance: largest entry of |R^T R - I| accepted; rotations are projected onto SO(3).
        lenient: rows with values that are not finite, or zeros only, become NaN poses; `notes` say so.
    Raises:
        ValueError: as `read_tum`; also when the two files differ in length.
    """
    path = Path(path)
    rows = _read_rows(path, columns=(12, 13), layout=_KITTI_LAYOUT, finite=not lenient)
    rows, numbers = _split_numbers(path, rows, 12)
    read = _rigid_where_known(path, to_4x4(rows.reshape(-1, 3, 4)), tolerance=tolerance, lenient=lenient)
    read = replace(read, frame_number=numbers)
    if times_path is None:
        return read
    time_s = _read_rows(Path(times_path), columns=1, layout="seconds")[:, 0]
    if len(time_s) != len(read):
        raise ValueError(f"{times_path}: {len(time_s)} times but {len(read)} poses in {path}")
    return replace(read, time_s=_seconds(time_s))


@reader("file of 4x4 matrices")
def read_matrices(path: str | Path, *, tolerance: float = 1e-3, lenient: bool = False) -> Trajectory:
    """Trajectory of 16 numbers a line: 4x4 matrices, row by row. A 17th number in front is the frame.

    Raises:
        ValueError: as `read_kitti`; also when a last row is not 0 0 0 1 (a transposed, column-major file).
    """
    path = Path(path)
    rows = _read_rows(path, columns=(16, 17), layout=_MATRIX_LAYOUT, finite=not lenient)
    rows, numbers = _split_numbers(path, rows, 16)
    read = _of_matrices(path, rows.reshape(-1, 4, 4), tolerance=tolerance, lenient=lenient)
    return replace(read, frame_number=numbers)


def _of_matrices(path: Path, poses: F64, *, tolerance: float, lenient: bool) -> Trajectory:
    """Trajectory of (F, 4, 4) matrices, whose last rows must be 0 0 0 1."""
    off = np.abs(poses[:, 3] - [0.0, 0.0, 0.0, 1.0]).max(axis=1) > 1e-9
    bad = np.flatnonzero(_holds_pose(poses) & off if lenient else off)
    if bad.size:
        raise ValueError(
            f"{path}: pose {bad[0]} ends in {poses[bad[0], 3].tolist()}, expected 0 0 0 1; column-major?"
        )
    return _rigid_where_known(path, poses, tolerance=tolerance, lenient=lenient)


def _split_numbers(path: Path, rows: F64, columns: int) -> tuple[F64, NDArray[np.int64] | None]:
    """Rows without the frame number in front, if they have one, and the numbers."""
    if rows.shape[1] == columns:
        return rows, None
    numbers = rows[:, 0]
    bad = np.flatnonzero(~(np.isfinite(numbers) & (numbers >= 0) & (numbers == np.round(numbers))))
    if bad.size:
        raise ValueError(
            f"{path}: {columns + 1} entries a row; the first should be a frame number, but that of pose {bad[0]} is "
            f"{numbers[bad[0]]:g}"
        )
    whole = numbers.astype(np.int64)
    values, count = np.unique(whole, return_counts=True)
    if (count > 1).any():
        raise ValueError(f"{path}: frame {values[count > 1][0]} has {count.max()} poses, expected one")
    return rows[:, 1:], whole


@reader("folder of poses")
def read_pose_files(folder: str | Path, *, lenient: bool = False) -> Trajectory:
    """Trajectory of a folder with one 4x4 matrix a file, four rows of four numbers, as ScanNet (`pose/12.txt`) and
    7-Scenes (`frame-000012.pose.txt`) ship them: camera-to-world, the frame is the number in the name.

    Raises:
        ValueError: as `read_matrices`; also names without a number or with the number of another.
    """
    folder = Path(folder)
    found = [p for p in sorted(folder.iterdir()) if p.suffix == ".txt"]
    files = {n: p for p in found if (n := _number_in_name(p)) is not None}
    if not files or len(files) < len(found):
        raise ValueError(f"{folder}: expected files with a frame number in their name, one pose each")
    numbers = sorted(files)
    poses = np.stack(
        [_read_rows(files[n], columns=4, layout="four rows of a 4x4 matrix", finite=False) for n in numbers]
    )
    if poses.shape[1:] != (4, 4):
        raise ValueError(f"{folder}: expected four rows of four numbers a file, found {poses.shape[1:]}")
    if not lenient and not np.isfinite(poses).all():
        i = int(np.flatnonzero(~np.isfinite(poses).all(axis=(1, 2)))[0])
        raise ValueError(f"{files[numbers[i]]}: NaN or infinite value; frames without a pose have no file")
    read = _of_matrices(folder, poses, tolerance=1e-3, lenient=lenient)
    return replace(read, frame_number=np.array(numbers, dtype=np.int64))


def is_pose_folder(folder: Path) -> bool:
    """Whether the `.txt` files of a folder hold one 4x4 matrix each, by the look of the first."""
    files = sorted(p for p in folder.iterdir() if p.suffix == ".txt")
    if not files or _number_in_name(files[0]) is None:
        return False
    try:
        rows = [w for line in read_text(files[0]).splitlines() if (w := words_of(line))]
    except ValueError:
        return False
    return [len(row) for row in rows] == [4, 4, 4, 4]


def _number_in_name(path: Path) -> int | None:
    """Last number in a file's name."""
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else None


@reader("table of poses")
def read_table(path: str | Path, *, lenient: bool = False) -> Trajectory:
    """Trajectory of a table with a header or of an EuRoC file: times, positions and quaternions in named columns.

    Columns are found by their names (`timestamp`, `p_RS_R_x [m]`, `q_RS_w []`, or `tx`, `qw`); others are left out.
    Without names, a table of at least 8 columns whose times are nanoseconds since 1970 is EuRoC's: `t x y z qw qx qy
    qz`.

    Raises:
        ValueError: as `read_tum`; also when there are neither names nor EuRoC's times.
    """
    path = Path(path)
    lines = read_text(path).splitlines()
    order, first = _named_columns(lines)
    rows: list[list[float]] = []
    width = 0
    for number, line in enumerate(lines, start=1):
        content = words_of(line)
        if number <= first or not content:
            continue
        width = width or len(content)
        if len(content) != width:
            raise ValueError(f"{path}:{number}: {len(content)} entries, expected {width} as in the first row")
        try:
            rows.append([float(word) for word in content])
        except ValueError:
            raise ValueError(f"{path}:{number}: not numbers: {line.strip()[:80]!r}") from None
    if not rows:
        raise ValueError(f"{path}: holds no poses")
    values = np.asarray(rows, dtype=np.float64)
    if order is None:
        if width < 8 or not np.nanmax(np.abs(values[:, 0])) > 1e17:
            raise ValueError(
                f"{path}: a table of {width} columns without names; expected EuRoC's (nanoseconds, x y z, qw qx qy qz) "
                f"or a header such as {_TUM_LAYOUT}"
            )
        order = [0, 1, 2, 3, 5, 6, 7, 4]
    elif max(order) >= width:
        raise ValueError(f"{path}: {width} entries a row, but the header names column {max(order) + 1}")
    chosen = values[:, order]
    if not lenient and not np.isfinite(chosen).all():
        raise ValueError(f"{path}: NaN or infinite value; drop the row instead")
    return _from_quaternions(path, chosen, lenient=lenient)


_COLUMN_PATTERNS = (
    r"t|time.*|stamp|sec.*",
    *(rf"(p_?(\w*_)?|t_?|pos\w*_)?{axis}" for axis in "xyz"),
    *(rf"(q_?(\w*_)?|quat\w*_|rot\w*_){axis}" for axis in "xyzw"),
)
"""Names of the columns in TUM's order, without units and in lower case."""


def _named_columns(lines: list[str]) -> tuple[list[int] | None, int]:
    """Places of time, position and quaternion (TUM's order) by the header's names, and the number of that line.

    The header is the last line before the first number, with or without `#`; None where none names all eight.
    """
    for number, line in enumerate(lines, start=1):
        words = words_of(line)
        if words and re.fullmatch(r"[-+.\d].*|nan|inf", words[0], re.IGNORECASE):
            return None, 0
        text = re.sub(r"\[[^\]]*\]|\([^)]*\)", "", line.strip().lstrip("#%"))
        names = [
            n.strip().lower() for n in (re.split("[,;]", text) if re.search("[,;]", text) else text.split())
        ]
        order = [next((i for i, n in enumerate(names) if re.fullmatch(p, n)), -1) for p in _COLUMN_PATTERNS]
        if min(order) >= 0 and len(set(order)) == 8:
            return order, number
    return None, 0


@reader("trajectory")
def read_trajectory(
    path: str | Path, *, times_path: str | Path | None = None, lenient: bool = False
) -> Trajectory:
    """Trajectory of a TUM, KITTI or 4x4 file, told apart by the number of entries in its first row (8, 12 or 16; 13 and
    17 with a frame number in front), or of a table whose header names its columns.

    Args:
        times_path: times of a KITTI file, one a line.
        lenient: see `read_tum`; for measuring, where a frame without a pose is no reason to refuse the file.
    """
    path = Path(path)
    lines = read_text(path).splitlines()
    order, _ = _named_columns(lines)
    if order is not None and order != list(range(8)):
        return read_table(path, lenient=lenient)
    first = next((c for line in lines if (c := words_of(line))), [])
    if order is not None and len(first) != 8:  # columns beyond TUM's eight
        return read_table(path, lenient=lenient)
    if path.suffix == ".csv" and len(first) >= 8 and first[0].isdigit() and float(first[0]) > 1e17:
        return read_table(path, lenient=lenient)
    if len(first) == 8 and order is not None and not re.match(r"[-+.\dnNiI]", first[0]):
        return read_table(path, lenient=lenient)  # a header without `#`
    if len(first) in (12, 13):
        read = read_kitti(path, times_path=times_path, lenient=lenient)
    elif len(first) in (8, 16, 17):
        read = read_tum(path, lenient=lenient) if len(first) == 8 else read_matrices(path, lenient=lenient)
    else:
        raise ValueError(
            f"{path}: {len(first)} entries in the first row; expected 8 (TUM: {_TUM_LAYOUT}), 12 (KITTI: row-major "
            "3x4) or 16 (4x4, row by row), with a frame number in front at most"
        )
    if not lenient and read.frame_number is not None and (np.diff(read.frame_number, prepend=-1) != 1).any():
        raise ValueError(
            f"{path}: poses are numbered {read.frame_number[:4].tolist()}...; expected every frame from 0"
        )
    return read


def _format(values: F64) -> str:
    return " ".join(repr(float(v)) for v in values)


def _check_poses(camera_to_world: ArrayLike) -> F64:
    poses = np.asarray(camera_to_world, dtype=np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not np.isfinite(poses).all():
        raise ValueError(f"camera_to_world: expected finite (F, 4, 4), found {poses.shape}")
    return poses


def _check_times(time_s: ArrayLike, num_poses: int) -> F64:
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
    time_a_s: ArrayLike, time_b_s: ArrayLike, *, max_difference_s: float = 0.01, offset_a_s: float = 0.0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (n,), (n,) of nearest times in two increasing lists, at most `max_difference_s` apart, each
    used once.

    Args:
        offset_a_s: added to the first list before.
    Raises:
        ValueError: if nothing matches.
    """
    a, b = np.asarray(time_a_s, dtype=np.float64) + offset_a_s, np.asarray(time_b_s, dtype=np.float64)
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
