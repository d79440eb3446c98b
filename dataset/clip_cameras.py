"""Cameras of clips from whatever layout, and which poses of two of them belong together.

Two cameras belong together if they are of the same moment. What tells the moment differs from layout to layout: a
dataset knows source frame and time of every camera, a TUM file times, a COLMAP model and a `transforms.json` the names
of the images, a KITTI file nothing but the order of its rows. `match` takes the surest that both sides have, says which
it was, and refuses rather than guesses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrays import I64, FloatArray
from .cameras.transforms import interpolate_poses
from .formats.base import CameraClip
from .formats.colmap import has_colmap_model, read_colmap
from .formats.nerfstudio import read_nerfstudio
from .formats.sana import SPLITS, read_sana_bench
from .formats.trajectories import (
    Trajectory,
    associate,
    is_pose_folder,
    read_pose_files,
    read_table,
    read_trajectory,
)
from .inputs import parse_yaml, read_json, read_text, reading
from .metrics.image import RevisitPair
from .reading import is_hub_id, open_dataset
from .rows import Row
from .store import refuse_above_datasets

Numbering = Literal["frames", "rows", "images"]
SUFFIXES = (".txt", ".tum", ".kitti", ".csv", ".json")
"""Of files with the cameras of one clip."""
GENERATION_FORMAT = "theodolite generation 1"
"""What the record of a generated video says of itself."""
GENERATION_LOG = "generate.json"
"""Log of runs in a folder of generated videos; holds no cameras."""
_SAME_SPACING_S = 1e-3
"""Times of two lists that differ by one constant, to this, are of the same frames."""
_FEW_STEPS = 2.5
"""Matched frames further apart than this many usual steps leave a part of the path uncovered."""


@dataclass(frozen=True, kw_only=True)
class ClipCameras:
    """Cameras of one clip from whatever file.

    Attributes:
        frame_index: (F,) number of each pose.
        counted: the numbers are those of a file that may count from 1.
        numbering: what it counts: decoded source `frames` from 0; the `rows` of a file that says no more; or `images`
            by the number in their name, which may start anywhere.
        camera_to_world: (F, 4, 4); NaN where the frame has no camera.
        focal_px: (F, 2) for `width` x `height`, or None.
        width, height: stored size, 0 if unknown.
        time_s: (F,) seconds, of a dataset from the source's first frame; or None.
        names: (F,) names of the images, or None.
        frame_time_s: (N,) times of the source's frames, where the layout ships them beside poses at other times.
        source_step: source frames to one frame of the clip, where that is known.
        whole_source: the clip reaches from the first to the last frame of its source, as far as is known.
        returns: pairs of poses at which the camera sees the same again, where a benchmark names them.
        rejection: reasons for which a dataset's clip was rejected; empty: accepted, or no dataset.
        notes: what reading had to decide.
    """

    frame_index: NDArray[np.int64]
    camera_to_world: FloatArray
    numbering: Numbering = "frames"
    counted: bool = False
    focal_px: FloatArray | None = None
    width: int = 0
    height: int = 0
    time_s: FloatArray | None = None
    names: tuple[str, ...] | None = None
    frame_time_s: FloatArray | None = None
    source_step: float | None = None
    whole_source: bool = False
    returns: tuple[RevisitPair, ...] | None = None
    rejection: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def posed(self) -> NDArray[np.bool_]:
        """(F,) frames that have a camera."""
        return np.asarray(np.isfinite(self.camera_to_world).all(axis=(1, 2)))


@dataclass(frozen=True)
class CameraSet(Mapping[str, ClipCameras]):
    """Cameras by clip id, with the clips that have none.

    Attributes:
        clips: those that could be read.
        unreadable: what is wrong with the file, by clip id.
        without_cameras: reasons of rows without any camera, by clip id.
        where: path that was read.
    """

    clips: Mapping[str, ClipCameras]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    without_cameras: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    where: str = ""

    def __getitem__(self, clip_id: str) -> ClipCameras:
        return self.clips[clip_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self.clips)

    def __len__(self) -> int:
        return len(self.clips)


# --- reading --------------------------------------------------------------------------------------


def load_cameras(path: str | Path) -> CameraSet:
    """Cameras by clip id: of a dataset (folder, Parquet file or `owner/name` on the hub), of one split of
    SANA-WM-Bench, of a folder with a file or folder a clip, or of a single one of those.

    Files are TUM, KITTI (times in `<clip_id>_times.txt`), 4x4 rows, EuRoC's or another table with named columns
    (`<clip_id>.txt`, `.tum`, `.kitti`, `.csv`), `transforms.json`, records of generated videos (the path that was asked
    for); folders are COLMAP models, nerfstudio's, EuRoC's and
    TUM RGB-D's sequences, and folders with a 4x4 matrix a frame. A file or folder that cannot be read costs its own
    clip alone.

    Raises:
        ValueError: nothing readable there.
    """
    path = Path(path)
    if _is_dataset(path) or (is_hub_id(path) and path.suffix.lower() not in (*SUFFIXES, ".parquet", ".json")):
        return _from_dataset(path)
    if path.is_file():
        return CameraSet({clip_name(path): read_clip(path)}, where=str(path))
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder, nor a hub id `owner/name`")
    split = next((split for split, folder in SPLITS.items() if folder == path.resolve().name), None)
    if split is not None:
        return CameraSet(_from_bench(path, split), where=str(path))
    if layout_of(path) is not None:
        return CameraSet({clip_name(path): read_clip(path)}, where=str(path))
    return _from_folder(path)


def _is_dataset(path: Path) -> bool:
    """Whether there is a run's folder, a Parquet file, or a folder of such: what another tool left of one, say."""
    if path.is_file():
        return path.suffix == ".parquet"
    in_data = (path / "data").is_dir() and next((path / "data").rglob("*.parquet"), None)
    return bool(in_data) or next(path.glob("*.parquet"), None) is not None


def _from_folder(folder: Path) -> CameraSet:
    found: dict[str, list[Path]] = {}
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    names = {p.name for p in entries}
    for entry in entries:
        if entry.is_dir():
            if layout_of(entry) is not None:
                found.setdefault(entry.name, []).append(entry)
        elif (
            entry.suffix.lower() in SUFFIXES
            and not _is_times_file(entry, names)
            and entry.name != GENERATION_LOG
        ):
            found.setdefault(entry.stem, []).append(entry)
    clips: dict[str, ClipCameras] = {}
    unreadable: dict[str, str] = {}
    for clip_id, paths in found.items():
        if len(paths) > 1:
            listed = " and ".join(p.name for p in paths)
            unreadable[clip_id] = f"{folder}: {listed} are both of clip {clip_id}; keep one"
            continue
        try:
            clips[clip_id] = read_clip(paths[0])
        except ValueError as error:
            unreadable[clip_id] = str(error)
    if not clips:
        refuse_above_datasets(folder)
        detail = f"; {next(iter(unreadable.values()))}" if unreadable else ""
        raise ValueError(
            f"{folder}: neither a dataset (data/*/*.parquet), nor a split of SANA-WM-Bench, nor cameras of clips "
            f"({', '.join(SUFFIXES)}; folders of COLMAP, nerfstudio, EuRoC, TUM RGB-D or a 4x4 matrix a frame){detail}"
        )
    return CameraSet(clips, unreadable, where=str(folder))


def _is_times_file(path: Path, names: set[str]) -> bool:
    """Whether a file holds the times of another beside it."""
    stem = path.stem.removesuffix("_times")
    return stem != path.stem and any(f"{stem}{suffix}" in names for suffix in SUFFIXES)


def _from_dataset(folder: Path) -> CameraSet:
    clips: dict[str, ClipCameras] = {}
    without: dict[str, tuple[str, ...]] = {}
    for row in open_dataset(folder).rows():
        cameras = cameras_of_row(row)
        if cameras is None:
            without[row.clip_id] = row.reasons
        else:
            clips[row.clip_id] = cameras
    return CameraSet(clips, without_cameras=without, where=str(folder))


def cameras_of_row(row: Row) -> ClipCameras | None:
    """Cameras of a row, or None if it has none on any frame."""
    posed = (row.pose_source != 0) & np.isfinite(row.camera_to_world).all(axis=(1, 2))
    if not posed.any():
        return None
    return replace(
        frames_of_row(row),
        camera_to_world=np.where(posed[:, None, None], row.camera_to_world.astype(np.float64), np.nan),
        focal_px=row.focal_px.astype(np.float64),
    )


def frames_of_row(row: Row) -> ClipCameras:
    """The frames of a row, as `match` takes them, as if each had a camera (the identity)."""
    return ClipCameras(
        frame_index=row.frame_index.astype(np.int64),
        camera_to_world=np.tile(np.eye(4), (row.num_frames, 1, 1)),
        width=row.width,
        height=row.height,
        time_s=row.time_s - _first_stamp_s(row),
        source_step=row.source_fps / row.fps if row.source_fps and row.fps else None,
        whole_source=row.window_start_s is None and row.window_end_s is None,
        rejection=row.reasons,
    )


def _first_stamp_s(row: Row) -> float:
    """Time stamp of the source's first frame, which is not 0 in every container; truth counts from the first frame."""
    if not row.num_frames:
        return 0.0
    first = float(row.time_s[0])
    if row.frame_index[0] == 0:
        return first
    if row.window_start_s is None or not row.source_fps:
        return 0.0
    # The clip's first frame is the first one in the window, which counts from the source's first frame.
    latest = first - row.window_start_s
    earliest = latest - 1.5 / row.source_fps
    if earliest <= 0.0 <= latest + 0.5 / row.source_fps:
        return 0.0
    return float(np.clip(first - row.frame_index[0] / row.source_fps, earliest, latest))


def _from_bench(path: Path, split: str) -> dict[str, ClipCameras]:
    return {
        scene.clip.name: ClipCameras(
            frame_index=np.arange(len(scene.clip)),
            camera_to_world=scene.clip.camera_to_world,
            focal_px=scene.clip.focal_px,
            width=scene.clip.width,
            height=scene.clip.height,
            returns=scene.pairs,
        )
        for scene in read_sana_bench(path.resolve().parent, split=split)
    }


def layout_of(folder: Path) -> Callable[[Path], ClipCameras] | None:
    """Reader of a folder that holds the cameras of one clip, or None if it does not."""
    if has_colmap_model(folder):
        return _from_colmap
    if (folder / "transforms.json").is_file():
        return lambda folder: _from_nerfstudio(folder / "transforms.json")
    if _euroc_table(folder) is not None:
        return _from_euroc
    if (folder / "groundtruth.txt").is_file():
        return _from_tum_sequence
    for inner in (folder, folder / "pose"):
        if inner.is_dir() and is_pose_folder(inner):
            return lambda _folder, inner=inner: _from_trajectory(read_pose_files(inner, lenient=True))
    return None


_GENERIC_NAMES = frozenset({"0", "sparse", "colmap", "pose", "mav0", "state_groundtruth_estimate0"})
_GENERIC_FILES = frozenset({"transforms.json", "groundtruth.txt", "data.csv"})


def clip_name(path: Path) -> str:
    """Clip id of a single file or folder: its own name, or that of the first folder above that tells clips apart."""
    path = path.resolve()
    if path.is_file() and path.name not in _GENERIC_FILES:
        return path.stem
    folder = path.parent if path.is_file() else path
    while folder.name in _GENERIC_NAMES:
        folder = folder.parent
    return folder.name or path.stem


def read_clip(path: Path) -> ClipCameras:
    """Cameras of one clip in a file or folder of any of the layouts of `load_cameras`, read leniently.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    with reading(path, "file of cameras"):
        return _read_clip(path)


def _read_clip(path: Path) -> ClipCameras:
    if path.is_dir():
        reader = layout_of(path)
        if reader is None:
            raise ValueError(f"{path}: a folder without cameras in a known layout")
        return reader(path)
    if path.suffix.lower() == ".json":
        content = read_json(path)
        if content.get("format") == GENERATION_FORMAT:
            return _from_generation(content, path)
        return _from_nerfstudio(path)
    if path.name == "data.csv" and (folder := _euroc_folder(path)) is not None:
        return _from_euroc(folder)
    if path.name == "groundtruth.txt":
        return _from_tum_sequence(path.parent)
    times = path.with_name(f"{path.stem}_times.txt")
    return _from_trajectory(
        read_trajectory(path, times_path=times if times.is_file() else None, lenient=True)
    )


def _from_generation(content: Mapping[str, Any], path: Path) -> ClipCameras:
    """The path that a generated video was asked to follow, from the record beside it."""
    try:
        status, camera = content["run"]["status"], content.get("camera")
        if status != "complete" or camera is None:
            raise ValueError(f"{path}: the video is not whole ({content.get('message') or status})")
        poses = np.asarray(camera["camera_to_world"], dtype=np.float64)
        focal = np.asarray(camera["intrinsics_px"], dtype=np.float64)[:, :2]
        width, height, fps = int(camera["width"]), int(camera["height"]), float(camera["fps"])
        if poses.shape != (len(focal), 4, 4) or not len(poses):
            raise ValueError(f"{path}: {poses.shape} poses and {len(focal)} lenses")
        note = "made with stand-in weights; the scores say nothing" if content["stand_in"] else None
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path}: a damaged record of a generated video ({error})") from None
    return ClipCameras(
        frame_index=np.arange(len(poses)),
        camera_to_world=poses,
        focal_px=focal,
        width=width,
        height=height,
        time_s=np.arange(len(poses)) / fps,
        source_step=1.0,
        whole_source=True,
        notes=() if note is None else (note,),
    )


def _from_trajectory(read: Trajectory) -> ClipCameras:
    number = read.frame_number
    return ClipCameras(
        frame_index=np.arange(len(read)) if number is None else number,
        numbering="rows" if number is None else "frames",
        counted=number is not None,
        camera_to_world=read.camera_to_world,
        time_s=read.time_s,
        notes=read.notes,
    )


def _from_colmap(folder: Path) -> ClipCameras:
    return _from_images(read_colmap(folder, on_lens="keep_focal"))


def _from_nerfstudio(path: Path) -> ClipCameras:
    return _from_images(read_nerfstudio(path, undo_applied_transform=True, on_distortion="drop"))


def _from_images(clip: CameraClip) -> ClipCameras:
    """Cameras of named images: by number where every name ends in another one, by time where the names are times."""
    names = clip.image_names or ()
    stems = [Path(name).stem for name in names]
    times = _times_in_names(stems)
    digits = [re.search(r"(\d+)$", stem) for stem in stems]
    numbers = [int(d[1]) for d in digits if d is not None]
    numbered = times is None and len(numbers) == len(clip) == len(set(numbers)) and max(numbers) < 2**62
    return ClipCameras(
        frame_index=np.array(numbers if numbered else range(len(clip)), dtype=np.int64),
        numbering="images" if numbered else "rows",
        camera_to_world=clip.camera_to_world,
        focal_px=clip.focal_px,
        width=clip.width,
        height=clip.height,
        time_s=times,
        names=names or None,
    )


def _times_in_names(stems: Sequence[str]) -> FloatArray | None:
    """Seconds since 1970 of images that are named by them, with a fraction (TUM RGB-D) or in nanoseconds (EuRoC)."""
    if stems and all(re.fullmatch(r"\d{9,10}\.\d+", s) for s in stems):
        return np.array([float(s) for s in stems])
    if stems and all(re.fullmatch(r"\d{18,19}", s) for s in stems):
        return np.array([int(s) / 1e9 for s in stems])
    return None


def _from_tum_sequence(folder: Path) -> ClipCameras:
    """A folder of TUM RGB-D: `groundtruth.txt`, and the times of the colour images in `rgb.txt`."""
    cameras = _from_trajectory(read_trajectory(folder / "groundtruth.txt", lenient=True))
    index = folder / "rgb.txt"
    if not index.is_file() or cameras.time_s is None:
        return cameras
    lines = (line.split() for line in read_text(index).splitlines())
    times = [float(w[0]) for w in lines if w and re.fullmatch(r"\d+(\.\d+)?", w[0])]
    return replace(cameras, frame_time_s=np.array(times) if times else None)


def _euroc_table(folder: Path) -> Path | None:
    for inner in (folder / "mav0", folder):
        table = inner / "state_groundtruth_estimate0" / "data.csv"
        if table.is_file():
            return table
    return None


def _euroc_folder(table: Path) -> Path | None:
    return table.parent.parent if table.parent.name == "state_groundtruth_estimate0" else None


def _from_euroc(folder: Path) -> ClipCameras:
    """A sequence of EuRoC: poses of the body, moved to the first camera where its mounting (`cam0/sensor.yaml`) is
    there; times of the camera's frames from `cam0/data.csv`."""
    table = _euroc_table(folder)
    assert table is not None, "chosen by layout_of"
    cameras = _from_trajectory(read_table(table, lenient=True))
    camera = table.parent.parent / "cam0"
    mounting = _mounting(camera / "sensor.yaml")
    if mounting is None:
        note = f"{table}: poses of the body; no cam0/sensor.yaml says how the camera is mounted"
        return replace(cameras, notes=(*cameras.notes, note))
    times = None
    if (camera / "data.csv").is_file():
        lines = read_text(camera / "data.csv").splitlines()
        stamps = [int(d[0]) / 1e9 for line in lines if (d := re.match(r"\d+", line))]
        times = np.array(stamps) if stamps else None
    return replace(cameras, camera_to_world=cameras.camera_to_world @ mounting, frame_time_s=times)


def _mounting(path: Path) -> NDArray[np.float64] | None:
    """(4, 4) camera to body, `T_BS` of an EuRoC sensor file."""
    if not path.is_file():
        return None
    with reading(path, "mounting T_BS of 4x4 numbers"):
        # OpenCV's dialect: a %YAML:1.0 line, tags such as !!opencv-matrix
        lines = [line for line in read_text(path).splitlines() if not line.startswith("%")]
        content, _twice = parse_yaml(re.sub(r"!!\S+", "", "\n".join(lines)), path)
        return np.array(content["T_BS"]["data"], dtype=np.float64).reshape(4, 4)


# --- matching -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Matching:
    """How poses of two sides are brought together.

    Attributes:
        max_difference_s: largest distance of two times that belong together (evo's default).
        offset_s: added to the predicted times before; `start`: both sides start at the same moment.
        interpolate: take the truth between its two neighbours in time instead of the nearest.
        rows: what row i of a file without times belongs to, where the other side is a dataset: `source` frame i, clip
            frame i, or what the number of rows tells (`auto`).
        first_frame: number of a source's first frame in names of images and numbered rows; None: 0, or 1 where the
            numbers say so.
    """

    max_difference_s: float = 0.01
    offset_s: float | Literal["start"] = 0.0
    interpolate: bool = False
    rows: Literal["auto", "source", "clip"] = "auto"
    first_frame: int | None = None


def parse_offset(text: str) -> float | Literal["start"]:
    """Seconds, or `start`. Raises ValueError for anything else."""
    if text == "start":
        return "start"
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not np.isfinite(seconds):
        raise ValueError(f"--t-offset {text}: use seconds, e.g. -0.25, or start")
    return seconds


@dataclass(frozen=True, kw_only=True)
class Match:
    """Poses that belong together.

    Attributes:
        predicted, truth: (n,) places on either side, in order.
        truth_camera_to_world: (n, 4, 4) true poses of the moments of the predicted ones.
        how: what told them: `name`, `frame`, `image number`, `time`, `clip frame` or `row`, with what was assumed.
        coverage: share of the truth's poses that are matched.
        covered_span: share of the truth's poses that are matched or lie between matched ones that are close.
    """

    predicted: I64
    truth: I64
    truth_camera_to_world: FloatArray
    how: str
    coverage: float
    covered_span: float


class _Pairs(NamedTuple):
    """Places that belong together, what told them, and true poses where they are not those at the places."""

    predicted: I64
    truth: I64
    how: str
    truth_camera_to_world: FloatArray | None = None

    def swapped(self) -> _Pairs:
        return _Pairs(self.truth, self.predicted, self.how)


def match(clip_id: str, predicted: ClipCameras, truth: ClipCameras, options: Matching | None = None) -> Match:
    """Poses of both sides that are of the same moment, by the surest that both know: names of images, frame numbers,
    times, number of rows.

    Raises:
        ValueError: nothing in common, or nothing that tells what belongs together; naming both sides.
    """
    i, j, how, poses = _pairs(clip_id, predicted, truth, options or Matching())
    poses = truth.camera_to_world[j] if poses is None else poses
    keep = predicted.posed[i] & np.isfinite(poses).all(axis=(1, 2))
    if not keep.any():
        raise ValueError(f"clip {clip_id}: no common frame with a camera on both sides (matched by {how})")
    i, j, poses = i[keep], j[keep], poses[keep]
    posed = truth.posed
    matched = np.zeros(len(posed), bool)
    matched[j] = True
    matched &= posed
    return Match(
        predicted=i,
        truth=j,
        truth_camera_to_world=poses,
        how=how,
        coverage=float(matched.sum() / posed.sum()),
        covered_span=_covered_span(truth, matched, posed),
    )


def _covered_span(truth: ClipCameras, matched: NDArray[np.bool_], posed: NDArray[np.bool_]) -> float:
    """Share of the truth's poses that are matched or lie, in time or frames, between matched ones a few usual steps
    apart at most; before the first and after the last, within one such step."""
    axis = np.asarray(truth.frame_index if truth.time_s is None else truth.time_s, dtype=np.float64)
    whole, met = np.sort(axis[posed]), np.sort(axis[matched])
    steps = [float(np.median(np.diff(values))) for values in (whole, met) if len(values) > 1]
    usual = max(steps, default=0.0)
    after = np.searchsorted(met, whole, side="left")  # the first matched pose at or behind each
    before = np.searchsorted(met, whole, side="right") - 1
    inside = (after < len(met)) & (before >= 0)
    gap = met[np.minimum(after, len(met) - 1)] - met[np.maximum(before, 0)]
    outside = np.where(before < 0, met[0] - whole, whole - met[-1])
    return float(np.where(inside, gap <= _FEW_STEPS * usual, outside <= usual).mean())


def _pairs(clip_id: str, predicted: ClipCameras, truth: ClipCameras, options: Matching) -> _Pairs:
    named = _by_name(predicted, truth)
    if named is not None:
        return named
    predicted, truth = _with_frame_times(predicted, truth), _with_frame_times(truth, predicted)
    predicted, truth = _numbered(predicted, truth), _numbered(truth, predicted)
    kinds = {predicted.numbering, truth.numbering}
    if len(kinds) == 1 and "rows" not in kinds:
        return _by_number(clip_id, predicted, truth, options)
    if kinds == {"images", "frames"}:
        if truth.numbering == "images":
            return _images_on_frames(clip_id, truth, predicted, options).swapped()
        return _images_on_frames(clip_id, predicted, truth, options)
    if predicted.time_s is not None and truth.time_s is not None:
        return _by_time(clip_id, predicted, truth, options)
    if kinds == {"rows", "frames"}:
        if truth.numbering == "rows":
            return _rows_on_frames(clip_id, truth, predicted, options).swapped()
        return _rows_on_frames(clip_id, predicted, truth, options)
    if kinds == {"rows", "images"}:
        if truth.numbering == "images":
            return _images_on_frames(clip_id, truth, predicted, options).swapped()
        return _images_on_frames(clip_id, predicted, truth, options)
    ours, theirs = len(predicted.frame_index), len(truth.frame_index)
    if ours != theirs:
        raise ValueError(
            f"clip {clip_id}: {ours} predicted poses and {theirs} true ones, and nothing says which belong together: "
            "give both files times (TUM), or the same number of rows"
        )
    return _Pairs(np.arange(ours), np.arange(ours), "row")


def _by_name(predicted: ClipCameras, truth: ClipCameras) -> _Pairs | None:
    if predicted.names is None or truth.names is None:
        return None
    for part in (lambda name: Path(name).stem, lambda name: Path(name).with_suffix("").as_posix()):
        ours, theirs = ([part(n) for n in side.names or ()] for side in (predicted, truth))
        if len(set(ours)) == len(ours) and len(set(theirs)) == len(theirs):
            place = {name: k for k, name in enumerate(theirs)}
            pairs = np.array([(k, place[n]) for k, n in enumerate(ours) if n in place], dtype=np.int64)
            if len(pairs):
                return _Pairs(pairs[:, 0], pairs[:, 1], "name")
    return None


def _with_frame_times(side: ClipCameras, other: ClipCameras) -> ClipCameras:
    """A dataset's clip with the times of its source's frames, where the other side ships them beside its poses."""
    frames = other.frame_time_s
    if frames is None or side.numbering != "frames" or side.frame_index.max() >= len(frames):
        return side
    return replace(side, time_s=frames[side.frame_index], numbering="rows")


def _numbered(side: ClipCameras, other: ClipCameras) -> ClipCameras:
    """A file whose times are frame numbers, as some trackers write them: whole numbers where the other side has many
    frames a second."""
    t = side.time_s
    if side.numbering != "rows" or t is None or len(t) < 3 or (t != np.round(t)).any() or t[0] < 0:
        return side
    if (np.diff(t) <= 0).any() or t[-1] > 1e8:
        return side
    dense = other.time_s is not None and len(other.time_s) > 1 and np.median(np.diff(other.time_s)) < 0.5
    if not dense or other.numbering == "rows":
        return side
    return replace(side, frame_index=t.astype(np.int64), numbering="images", time_s=None)


def _span(values: NDArray) -> str:
    return f"{values.min():g} to {values.max():g}" if len(values) else "none"


def _by_number(clip_id: str, predicted: ClipCameras, truth: ClipCameras, options: Matching) -> _Pairs:
    ours, theirs = predicted.frame_index, truth.frame_index
    how = "frame" if predicted.numbering == "frames" else "image number"
    for side, other in ((predicted, truth), (truth, predicted)):
        if not side.counted or other.counted:
            continue
        first = options.first_frame or 0
        if options.first_frame is None and side.frame_index.min() == 1:
            # From 1 only where that is proved: with the last number there would be no frame.
            first = int(
                np.isin(side.frame_index - 1, other.frame_index).all()
                and not np.isin(side.frame_index, other.frame_index).all()
            )
        if first:
            how = f"frame (from {first})"
            ours, theirs = (ours - first, theirs) if side is predicted else (ours, theirs - first)
    _common, i, j = np.intersect1d(ours, theirs, return_indices=True)
    if not len(i):
        raise ValueError(
            f"clip {clip_id}: no common frame; prediction has source frames {_span(ours)}, truth {_span(theirs)}"
        )
    return _Pairs(i, j, how)


def _images_on_frames(clip_id: str, images: ClipCameras, frames: ClipCameras, options: Matching) -> _Pairs:
    """Images by the number in their name on the frames of a clip: source frames or clip frames, counted from 0 or 1."""
    number = images.frame_index
    count = len(frames.frame_index)
    firsts = (0, 1) if options.first_frame is None else (options.first_frame,)
    if options.first_frame is None and number.min() == 1:
        firsts = (1, 0)  # as ffmpeg and nerfstudio count
    clip_frame = np.arange(count)
    scales = [("source", frames.frame_index)]
    if not np.array_equal(frames.frame_index, clip_frame):
        scales.append(("clip", clip_frame))
    if options.rows != "auto":
        scales = [s for s in scales if s[0] == options.rows] or scales
    best: tuple[int, int, I64, I64, str] | None = None
    for name, scale in scales:
        for first in firsts:
            _common, i, j = np.intersect1d(number - first, scale, return_indices=True)
            # All images, or all frames (a model of every source frame): this is it. Otherwise the most.
            complete = int(len(i) in (len(number), count))
            how = (
                f"image number ({name} frames from {first})"
                if len(scales) > 1
                else f"image number (from {first})"
            )
            if best is None or (complete, len(i)) > best[:2]:
                best = (complete, len(i), i, j, how)
    assert best is not None, "there is at least one scale"
    if not best[1]:
        raise ValueError(
            f"clip {clip_id}: no common frame; images are numbered {_span(number)}, the clip has source frames "
            f"{_span(frames.frame_index)}"
        )
    return _Pairs(*best[2:])


def _rows_on_frames(clip_id: str, rows: ClipCameras, frames: ClipCameras, options: Matching) -> _Pairs:
    """Rows of a file without times on the frames of a clip: one a clip frame, or one a source frame."""
    count, wanted = len(rows.frame_index), len(frames.frame_index)
    last = int(frames.frame_index.max())
    if options.rows == "clip" or (options.rows == "auto" and count == wanted):
        if count != wanted:
            raise ValueError(f"clip {clip_id}: {count} rows, but the clip has {wanted} frames")
        return _Pairs(np.arange(count), np.arange(count), "clip frame")
    spare = _spare_frames(frames)
    fits = count > last and (spare is None or options.rows == "source" or count <= last + 1 + spare)
    if not fits:
        end = "" if spare is None or count <= last else f" of a source with at most {last + 1 + spare}"
        raise ValueError(
            f"clip {clip_id}: {count} rows without times, but the clip has {wanted} frames, up to source frame {last}"
            f"{end}; one row a clip frame or one a source frame is expected: give the file times (TUM)"
            + (", or --rows source if row i is source frame i" if count > last else "")
        )
    return _Pairs(frames.frame_index, np.arange(wanted), "source frame")


def _by_time(clip_id: str, predicted: ClipCameras, truth: ClipCameras, options: Matching) -> _Pairs:
    assert predicted.time_s is not None, "asked for where both have times"
    assert truth.time_s is not None, "asked for where both have times"
    offset, how = _offset(predicted, truth, options)
    # Only frames with a camera: a neighbour without one must not take the place of the next.
    i, j = np.flatnonzero(predicted.posed), np.flatnonzero(truth.posed)
    i, j = i[np.argsort(predicted.time_s[i], kind="stable")], j[np.argsort(truth.time_s[j], kind="stable")]
    ours, theirs = predicted.time_s[i] + offset, truth.time_s[j]
    if options.interpolate:
        a, b, poses = _between(ours, theirs, truth.camera_to_world[j])
        if len(a):
            return _Pairs(i[a], j[b], f"{how} (interpolated)", poses)
    else:
        try:
            a, b = associate(ours, theirs, max_difference_s=options.max_difference_s)
        except ValueError:
            pass
        else:
            return _Pairs(i[a], j[b], how)
    raise ValueError(_no_common_time(clip_id, ours, theirs, offset, options))


def _between(
    wanted: FloatArray, time_s: FloatArray, camera_to_world: FloatArray
) -> tuple[I64, I64, FloatArray]:
    """Poses (n, 4, 4) at the wanted times that lie between two neighbours of usual distance, with the places (n,) among
    the wanted and of the nearest neighbour."""
    if len(time_s) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4, 4))
    right = np.clip(np.searchsorted(time_s, wanted), 1, len(time_s) - 1)
    gap = time_s[right] - time_s[right - 1]
    inside = (wanted >= time_s[0]) & (wanted <= time_s[-1]) & (gap <= _FEW_STEPS * np.median(np.diff(time_s)))
    a = np.flatnonzero(inside)
    if not len(a):
        return a, a, np.zeros((0, 4, 4))
    nearer_left = wanted[a] - time_s[right[a] - 1] <= time_s[right[a]] - wanted[a]
    return a, right[a] - nearer_left, interpolate_poses(time_s, camera_to_world, wanted[a])


def _offset(predicted: ClipCameras, truth: ClipCameras, options: Matching) -> tuple[float, str]:
    """Seconds to add to the predicted times, and the words for it."""
    ours, theirs = predicted.time_s, truth.time_s
    assert ours is not None, "asked for where both have times"
    assert theirs is not None, "asked for where both have times"
    if options.offset_s == "start":
        return float(theirs[0] - ours[0]), "time from the start"
    if options.offset_s:
        return float(options.offset_s), f"time (offset {options.offset_s:.10g} s)"
    if truth.numbering == "frames" and predicted.numbering == "rows":
        apart, how = _zeros_apart(predicted, truth, options)
        return -apart, how
    if predicted.numbering == "frames" and truth.numbering == "rows":
        return _zeros_apart(truth, predicted, options)
    return 0.0, "time"


def _zeros_apart(rows: ClipCameras, frames: ClipCameras, options: Matching) -> tuple[float, str]:
    """Seconds by which the clock of a file is ahead of that of a dataset's clip, and the words for it. 0 unless the
    file cannot but hold the clip's own frames, or its source's."""
    file, clip = rows.time_s, frames.time_s
    assert file is not None, "asked for where both have times"
    assert clip is not None, "asked for where both have times"
    foreign = bool(file[0] > clip[-1] or file[-1] < clip[0])  # another clock, such as since 1970
    from_zero = abs(file[0]) <= _SAME_SPACING_S < abs(clip[0])
    if len(file) == len(clip) and (foreign or from_zero):
        # An export counts from the clip's first frame: as many poses with the same spacing. A file that starts anywhere
        # else on the clip's clock is early or late, which is what is measured.
        apart = float(file[0] - clip[0])
        if np.abs(file - clip - apart).max() <= _SAME_SPACING_S:
            return apart, f"time in the clip (zeros {abs(apart):.3f} s apart)"
    spare = _spare_frames(frames)
    last = int(frames.frame_index.max())
    one_a_frame = spare is not None and last < len(file) <= last + 1 + spare
    if one_a_frame and foreign:
        # One pose a source frame with the clip's own spacing.
        gaps = file[frames.frame_index] - clip
        apart = float(np.median(gaps))
        if np.abs(gaps - apart).max() <= options.max_difference_s:
            return apart, f"time of source frames (zeros {abs(apart):.3f} s apart)"
    return 0.0, "time"


def _spare_frames(frames: ClipCameras) -> int | None:
    """Source frames that a clip of a whole source leaves behind its last one at most: less than one of its own steps.
    None where the clip may end before its source."""
    return int(np.ceil(frames.source_step or 1.0)) if frames.whole_source else None


def _no_common_time(
    clip_id: str, ours: FloatArray, theirs: FloatArray, offset: float, options: Matching
) -> str:
    """What to say where no times are close; `ours` with the offset."""
    shifted = f" (moved by {offset:g} s)" if offset else ""
    apart = (
        f"clip {clip_id}: no common frame; prediction has times {ours[0]:.3f} to {ours[-1]:.3f} s{shifted}, "
        f"truth {theirs[0]:.3f} to {theirs[-1]:.3f} s"
    )
    if ours[-1] >= theirs[0] and ours[0] <= theirs[-1]:
        return (
            f"{apart}, none within {options.max_difference_s:g} s of each other: --t-max-diff SECONDS allows more, "
            "--interpolate takes the truth between its neighbours"
        )
    advice = (
        "; they do not overlap: --t-offset start if both begin at the same moment, else --t-offset SECONDS, added to "
        "the predicted times"
    )
    for side, times in (("prediction", ours), ("truth", theirs)):
        if len(times) > 1 and np.median(np.diff(times)) > 1e3:
            advice += f"; are the times of the {side} in nanoseconds?"
    return apart + advice
