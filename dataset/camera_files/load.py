"""Cameras of clips from whatever layout, and which poses of two of them belong together.

Two cameras belong together if they are of the same moment. What tells the moment differs from layout to layout: a
dataset knows source frame and time of every camera, a TUM file times, a COLMAP model and a `transforms.json` the names
of the images, a KITTI file nothing but the order of its rows. `match` takes the surest that both sides have, says which
it was, and refuses rather than guesses.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ..formats.base import CameraClip
from ..formats.lerobot import is_lerobot, read_lerobot
from ..formats.sana import SPLITS, read_sana_bench
from ..reading import is_hub_id, open_dataset
from ..rows import Row
from ..storage.paths import as_path
from ..store import refuse_above_datasets
from .record import CameraSet, ClipCameras
from .single import SUFFIXES, clip_name, is_times_file, layout_of, read_clip

GENERATION_LOG = "generate.json"
"""Log of runs in a folder of generated videos; holds no cameras."""


def load_cameras(path: str | Path) -> CameraSet:
    """Cameras by clip id: of a dataset (folder, Parquet file or `owner/name` on the hub), of a LeRobot dataset with
    the features of our export, of one split of SANA-WM-Bench, of a folder with a file or folder a clip, or of a single
    one of those.

    Files are TUM, KITTI (times in `<clip_id>_times.txt`), 4x4 rows, EuRoC's or another table with named columns
    (`<clip_id>.txt`, `.tum`, `.kitti`, `.csv`), `transforms.json`, records of generated videos (the path that was asked
    for); folders are COLMAP models, nerfstudio's, EuRoC's and
    TUM RGB-D's sequences, and folders with a 4x4 matrix a frame. A file or folder that cannot be read costs its own
    clip alone.

    Raises:
        ValueError: nothing readable there.
    """
    path = as_path(path)
    if is_lerobot(path):
        # Its frames are counted within the clip, whatever window of the source that is.
        clips = {clip.name: replace(_cameras_of_clip(clip), numbering="rows") for clip in read_lerobot(path)}
        return CameraSet(clips, where=str(path))
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
            and not is_times_file(entry, names)
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
        source_frames=row.source_num_frames,
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
    scenes = read_sana_bench(path.resolve().parent, split=split)
    return {s.clip.name: replace(_cameras_of_clip(s.clip), returns=s.pairs) for s in scenes}


def _cameras_of_clip(clip: CameraClip) -> ClipCameras:
    """A clip that knows its frames by their number alone."""
    return ClipCameras(
        frame_index=np.arange(len(clip)),
        camera_to_world=clip.camera_to_world,
        focal_px=clip.focal_px,
        width=clip.width,
        height=clip.height,
    )
