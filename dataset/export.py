"""`theodolite export`: the accepted clips of a dataset in the format of another tool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from .formats.base import CameraClip, Pictures, camera_clip
from .formats.colmap import write_colmap
from .formats.huggingface import write_huggingface
from .formats.lerobot import write_lerobot
from .formats.nerfstudio import write_nerfstudio
from .formats.rerun import write_rerun
from .formats.sana import write_sana_npy, write_sana_zip
from .formats.webdataset import write_webdataset
from .frames import iterate_frames, read_frames
from .reading import ClipDataset, open_dataset
from .rows import Row
from .trajectories import write_kitti, write_tum


def _tum(clip: CameraClip, out: Path) -> None:
    assert clip.time_s is not None  # rows always carry times
    write_tum(out / f"{clip.name}.tum", clip.camera_to_world, clip.time_s)


def _kitti(clip: CameraClip, out: Path) -> None:
    write_kitti(
        out / f"{clip.name}.txt",
        clip.camera_to_world,
        time_s=clip.time_s,
        times_path=out / f"{clip.name}_times.txt",
    )


PER_CLIP: dict[str, Callable[[CameraClip, Path], object]] = {
    "colmap": lambda clip, out: write_colmap(clip, out / clip.name, binary=True),
    "colmap-text": lambda clip, out: write_colmap(clip, out / clip.name),
    "nerfstudio": lambda clip, out: write_nerfstudio(clip, out / clip.name),
    "tum": _tum,
    "kitti": _kitti,
    "sana-npy": lambda clip, out: write_sana_npy(clip, out),
}
SHARDED: dict[str, Callable[[list[CameraClip], Path, int, Pictures | None], object]] = {
    "sana-zip": lambda clips, out, number, _pictures: write_sana_zip(
        clips, out / f"theodolite_{number:08d}.zip"
    ),
    "webdataset": lambda clips, out, number, pictures: write_webdataset(
        clips, out / f"{number:06d}", clips_per_shard=len(clips), pictures=pictures
    ),
    "lerobot": lambda clips, out, _number, pictures: write_lerobot(clips, out, pictures=pictures),
}
WITH_VIDEO = ("webdataset", "lerobot")
"""Formats that carry the clips' pictures as video, one frame per camera, if `media_root` is given."""
FORMATS = (*PER_CLIP, *SHARDED, "huggingface", "rerun")
ScenePoints = Callable[[Row, str | Path], tuple[NDArray[np.float32], NDArray[np.uint8]]]
"""Gives points of the scene by a clip and the folder of its media: (P, 3) metres and (P, 3) RGB."""
_RERUN_PICTURES = 100
_CLIPS_PER_SHARD = 1000


def export_dataset(
    path: str | Path,
    out: str | Path,
    *,
    format: str,
    clip_ids: Sequence[str] | None = None,
    source: str | None = None,
    media_root: str | Path | None = None,
    points: ScenePoints | None = None,
) -> int:
    """Write accepted clips to `out` and return how many.

    Args:
        format: one of `FORMATS`.
        clip_ids: only these; unknown or rejected ones are an error.
        source: only this source.
        media_root: folder to which media paths refer; `rerun` then shows up to 100 pictures of each clip, and
            `webdataset` and `lerobot` carry a video of each, re-encoded so that every camera has one frame.
        points: makes the points that `rerun` shows beside the pictures.
    Raises:
        ValueError: unknown format, nothing to export, an id that is not there, stand-in rows, or videos of media that
            may not be passed on.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    out = Path(out)
    chosen = _chosen(open_dataset(path), clip_ids, source)
    if format == "huggingface":
        write_huggingface(chosen, out)
        return len(chosen)
    pictures = None
    if format in WITH_VIDEO and media_root is not None:
        pictures = _video_pictures(chosen, media_root)
    out.mkdir(parents=True, exist_ok=True)
    count, pending, shard = 0, [], 0
    size = 10**9 if format == "lerobot" else _CLIPS_PER_SHARD
    for row in chosen.rows():
        clip = camera_clip(row)
        count += 1
        if format == "rerun":
            images = found = colours = None
            if media_root is not None:
                images = _pictures(row, media_root)
                found, colours = (None, None) if points is None else points(row, media_root)
            path = out / f"{clip.name}.rrd"
            write_rerun(clip, path, images=images, points_world=found, point_colours=colours)
            continue
        if format in PER_CLIP:
            PER_CLIP[format](clip, out)
            continue
        if pictures is not None:  # H.264 takes even sizes
            clip = clip.resized(height=clip.height // 2 * 2, width=clip.width // 2 * 2)
        pending.append(clip)
        if len(pending) == size:
            SHARDED[format](pending, out, shard, pictures)
            pending, shard = [], shard + 1
    if pending:
        SHARDED[format](pending, out, shard, pictures)
    return count


def _video_pictures(chosen: ClipDataset, media_root: str | Path) -> Pictures:
    """Frames of a clip by its name.

    Raises:
        ValueError: there are clips whose media may not be passed on.
    """
    kept = chosen.where(~pc.field("data_redistributable")).to_table(["clip_id"])["clip_id"].to_pylist()
    if kept:
        raise ValueError(
            f"{chosen.path}: the media of {len(kept)} clips may not be passed on, e.g. {kept[0]}; export those without "
            "--media-root (cameras alone), or choose others with --source or --clip"
        )
    return lambda clip: iterate_frames(chosen.row(clip.name), media_root, size=(clip.height, clip.width))


def _pictures(row: Row, media_root: str | Path) -> dict[int, NDArray[np.uint8]]:
    """Evenly spread pictures by clip frame, at most 640 pixels wide."""
    positions = np.unique(np.linspace(0, row.num_frames - 1, _RERUN_PICTURES).round().astype(int)).tolist()
    width = min(row.width, 640)
    height = max(1, round(row.height * width / row.width))
    return dict(
        zip(positions, read_frames(row, media_root, positions=positions, size=(height, width)), strict=True)
    )


def _chosen(clips: ClipDataset, clip_ids: Sequence[str] | None, source: str | None) -> ClipDataset:
    chosen = clips.where(pc.field("verdict") == "accepted")
    if source is not None:
        chosen = chosen.where(pc.field("source") == source)
    if clip_ids is not None:
        chosen = chosen.where(pc.field("clip_id").isin(list(clip_ids)))
        found = set(chosen.to_table(["clip_id"])["clip_id"].to_pylist())
        missing = [c for c in clip_ids if c not in found]
        if missing:
            raise ValueError(f"{clips.path}: no accepted clip {', '.join(missing[:5])}")
    if not len(chosen):
        raise ValueError(f"{clips.path}: no accepted clips to export")
    stand_ins = len(chosen.where(pc.field("stand_in")))
    if stand_ins:
        raise ValueError(
            f"{clips.path}: {stand_ins} rows were made with stand-in weights; such rows are never exported"
        )
    return chosen


def run_export(
    path: str | Path,
    out: str | Path,
    *,
    format: str,
    clip_ids: Sequence[str] | None = None,
    source: str | None = None,
    media_root: str | Path | None = None,
    points: ScenePoints | None = None,
) -> tuple[str, int]:
    """Export; text with the count, and exit code 0."""
    count = export_dataset(
        path, out, format=format, clip_ids=clip_ids, source=source, media_root=media_root, points=points
    )
    return f"{count} clips as {format}: {out}", 0
