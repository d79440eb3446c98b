"""The accepted clips of a dataset in the format of another tool, or chosen rows as a dataset of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from .formats.base import CameraClip, Pictures, camera_clip
from .formats.colmap import check_image_names, write_colmap
from .formats.huggingface import write_huggingface
from .formats.lerobot import LerobotWriter, require_one_size, whole_rate
from .formats.nerfstudio import write_nerfstudio
from .formats.rerun import require_rerun, write_rerun
from .formats.sana import write_sana_npy, write_sana_zip
from .formats.scene import FindPoints, Scene, write_scene_images
from .formats.trajectories import write_kitti, write_tum
from .formats.webdataset import WebDatasetWriter
from .index import write_index
from .media.read import image_paths
from .media.undistort import ClipPictures
from .names import check_name
from .reading import ClipDataset, open_dataset
from .reasons import status_of
from .rows import Row
from .staging import staged
from .store import write_dataset

CAMERAS = ("tum", "kitti", "sana-npy")
"""Formats of a file or two a clip, without pictures."""
SCENES = ("colmap", "colmap-text", "nerfstudio")
"""Formats of a folder a clip from which a radiance field is trained."""
WITH_VIDEO = ("webdataset", "lerobot")
"""Formats that carry the clips' pictures as video, one frame per camera, if `media_root` is given."""
PER_CLIP = (*SCENES, *CAMERAS, "rerun")
"""Formats whose files are named by their clip: an export adds to those that are there."""
FORMATS = (*PER_CLIP, "sana-zip", *WITH_VIDEO, "huggingface")
WITH_PICTURES = (*SCENES, *WITH_VIDEO, "rerun")
"""Formats that carry pictures, which can be undistorted."""
_RERUN_PICTURES = 100
_CLIPS_PER_ZIP = 1000


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """What is done with the pictures of an export.

    Attributes:
        points: finds points of the scene in them, for `colmap`, `nerfstudio` and `rerun`.
        undistort: they are those that the row's pinhole cameras would have taken (`ClipPictures`), and cameras are
            theirs, without distortion.
    """

    points: FindPoints | None = None
    undistort: bool = False


@dataclass
class _Export:
    """What an export was asked for, and what is to be said when it is done."""

    format: str
    chosen: ClipDataset
    media_root: str | Path | None
    options: PictureOptions
    notes: list[str] = field(default_factory=list)

    def pictures(self, row: Row) -> ClipPictures | None:
        """Those of a clip; None: none are asked for."""
        return (
            None
            if self.media_root is None
            else ClipPictures(row, self.media_root, undistort=self.options.undistort)
        )

    def clip(self, row: Row) -> tuple[CameraClip, ClipPictures | None]:
        """A clip's cameras, and the pictures that they belong to if any are asked for."""
        shown = self.pictures(row)
        return camera_clip(row if shown is None else shown.row), shown


Add = Callable[[CameraClip, ClipPictures | None], None]
"""Writes one clip, whose cameras belong to the pictures if there are any."""


class Exported(NamedTuple):
    """What an export wrote, and what is worth knowing about it."""

    num_clips: int
    notes: tuple[str, ...] = ()


def export_dataset(
    path: str | Path,
    out: str | Path,
    *,
    format: str,
    clip_ids: Sequence[str] | None = None,
    source: str | None = None,
    where: str | None = None,
    media_root: str | Path | None = None,
    pictures: PictureOptions = PictureOptions(),
) -> Exported:
    """Write accepted clips to `out`, whole or not at all: an error leaves it as it was.

    Formats with files named by clip (`PER_CLIP`) add to it and replace what is there of the same clip; the others want
    an empty or absent folder.

    Args:
        path: dataset folder, a Parquet file of one, or `owner/name` on the hub.
        format: one of `FORMATS`.
        clip_ids: only these; unknown or rejected ones are an error.
        source: only this source.
        where: only clips for which this condition holds, see `where.parse_where`.
        media_root: folder to which media paths refer. `colmap` and `nerfstudio` then carry the pictures as files,
            `webdataset` and `lerobot` a video of each clip, re-encoded so that every camera has one frame, and `rerun`
            up to 100 pictures.
        pictures: what is done with them.
    Raises:
        ValueError: unknown format, nothing to export, an id that is not there, stand-in rows, videos of media that
            may not be passed on, or nothing that could be undistorted.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r}: expected one of {', '.join(FORMATS)}")
    if media_root is not None and not Path(media_root).is_dir():
        raise ValueError(
            f"media root {media_root}: {'is a file' if Path(media_root).exists() else 'no such folder'}"
        )
    if pictures.undistort and format not in WITH_PICTURES:
        raise ValueError(f"{format} carries no pictures to undistort: {', '.join(WITH_PICTURES)} do")
    if pictures.undistort and media_root is None:
        raise ValueError(
            "undistorting needs the pictures: give the media root, the folder to which their paths refer"
        )
    chosen = _chosen(open_dataset(path), clip_ids, source, where)
    if format == "rerun":
        require_rerun()
    if format == "colmap-text" and media_root is not None:
        _check_names(chosen, media_root)
    job = _Export(format=format, chosen=chosen, media_root=media_root, options=pictures)
    with staged(out, merge=format in PER_CLIP) as folder:
        if format == "huggingface":
            write_huggingface(chosen, folder)
            return Exported(len(chosen))
        count = cropped = 0
        with _writer(job, folder) as add:
            for row in chosen.rows():
                clip, shown = job.clip(row)
                add(clip, shown)
                cropped += shown is not None and shown.is_cropped
                count += 1
    if pictures.undistort:
        job.notes.append(
            "pictures are undistorted, and so are the cameras"
            + (
                f"; of {cropped} clips the lens shows less than a pinhole: they are smaller"
                if cropped
                else ""
            )
        )
    return Exported(count, tuple(job.notes))


def _writer(job: _Export, folder: Path) -> AbstractContextManager[Add]:
    if job.format in SCENES:
        return _scenes(job, folder)
    if job.format in WITH_VIDEO:
        return _with_video(job, folder)
    return {"rerun": _rerun, "sana-zip": _sana_zip}.get(job.format, _cameras)(job, folder)


@contextmanager
def _cameras(job: _Export, folder: Path) -> Iterator[Add]:
    def add(clip: CameraClip, _pictures: ClipPictures | None) -> None:
        assert clip.time_s is not None  # rows always carry times
        if job.format == "tum":
            write_tum(folder / f"{clip.name}.tum", clip.camera_to_world, clip.time_s)
        elif job.format == "kitti":
            times = folder / f"{clip.name}_times.txt"
            write_kitti(
                folder / f"{clip.name}.txt", clip.camera_to_world, time_s=clip.time_s, times_path=times
            )
        else:
            write_sana_npy(clip, folder)

    yield add


@contextmanager
def _scenes(job: _Export, folder: Path) -> Iterator[Add]:
    """A folder a clip: `images/` with a picture for every camera if the media is there, cameras, points if found."""
    pattern = "frame_{:05d}.png" if job.format == "nerfstudio" else "{:06d}.png"
    first = 1 if job.format == "nerfstudio" else 0
    without_points: list[str] = []

    def add(clip: CameraClip, pictures: ClipPictures | None) -> None:
        target = folder / clip.name
        scene = Scene(clip=clip, points=None)
        if pictures is not None:
            names = tuple(pattern.format(i + first) for i in range(len(clip)))
            scene = write_scene_images(
                pictures, clip, target / "images", names=names, points=job.options.points
            )
            if scene.points is None or not len(scene.points.points_world):
                without_points.append(clip.name)
        if job.format == "nerfstudio":
            write_nerfstudio(scene.clip, target, points=scene.points)
        else:
            write_colmap(scene.clip, target, binary=job.format == "colmap", points=scene.points)

    yield add
    if job.media_root is None:
        job.notes.append("cameras only: give --media-root for the pictures, and the points seen in them")
        return
    if not job.options.undistort:
        job.notes.append(
            "pictures are the clips' frames, not undistorted: cameras carry k1 and k2 where a clip has them"
        )
    if without_points:
        job.notes.append(f"no points for {len(without_points)} clips, e.g. {without_points[0]}")
    kept = job.chosen.where(~pc.field("data_redistributable"))
    if len(kept):
        job.notes.append(
            f"the pictures of {len(kept)} clips may not be passed on: keep the folder to yourself"
        )


@contextmanager
def _rerun(job: _Export, folder: Path) -> Iterator[Add]:
    def add(clip: CameraClip, pictures: ClipPictures | None) -> None:
        images = found = None
        if pictures is not None:
            images = _SomePictures(pictures.row)
            frames = images.kept(pictures.frames())
            if job.options.points is not None:
                found = job.options.points(pictures.row, frames)
            for _rgb in frames:  # what nobody has taken yet
                pass
        write_rerun(
            clip,
            folder / f"{clip.name}.rrd",
            images=None if images is None else images.by_frame,
            points_world=None if found is None else found.points_world,
            point_colours=None if found is None else found.colour,
        )

    yield add


class _SomePictures:
    """Evenly spread pictures of a clip by frame, at most 640 pixels wide, kept while all of its frames pass."""

    def __init__(self, row: Row) -> None:
        spread = np.linspace(0, row.num_frames - 1, _RERUN_PICTURES).round().astype(int)
        self._wanted = set(spread.tolist())
        self._width = min(row.width, 640)
        self._height = max(1, round(row.height * self._width / row.width))
        self.by_frame: dict[int, NDArray[np.uint8]] = {}

    def kept(self, frames: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        import cv2

        for i, rgb in enumerate(frames):
            if i in self._wanted:
                small = cv2.resize(rgb, (self._width, self._height), interpolation=cv2.INTER_AREA)
                self.by_frame[i] = np.asarray(small, np.uint8)
            yield rgb


@contextmanager
def _sana_zip(_job: _Export, folder: Path) -> Iterator[Add]:
    pending: list[CameraClip] = []
    written = 0

    def flush() -> None:
        nonlocal written
        write_sana_zip(pending, folder / f"theodolite_{written:08d}.zip")
        pending.clear()
        written += 1

    def add(clip: CameraClip, _pictures: ClipPictures | None) -> None:
        pending.append(clip)
        if len(pending) == _CLIPS_PER_ZIP:
            flush()

    yield add
    if pending:
        flush()


@contextmanager
def _with_video(job: _Export, folder: Path) -> Iterator[Add]:
    pictures = None if job.media_root is None else _video_pictures(job)
    if job.format == "webdataset":
        writer: WebDatasetWriter | LerobotWriter = WebDatasetWriter(folder, pictures=pictures)
    else:
        if pictures is not None:
            require_one_size((name, height // 2 * 2, width // 2 * 2) for name, height, width in _sizes(job))
        writer = LerobotWriter(folder, fps=_rate_of_longest(job), pictures=pictures)

    def add(clip: CameraClip, _pictures: ClipPictures | None) -> None:
        if pictures is not None:  # H.264 takes even sizes
            clip = clip.resized(height=clip.height // 2 * 2, width=clip.width // 2 * 2)
        writer.add(clip)

    try:
        yield add
    except BaseException:
        writer.abort()
        raise
    writer.close()


def _rate_of_longest(job: _Export) -> int:
    table = job.chosen.to_table(["clip_id", "num_frames"])
    longest = int(np.argmax(table["num_frames"].to_numpy()))
    return whole_rate(job.clip(job.chosen.row(table["clip_id"][longest].as_py()))[0])


def _sizes(job: _Export) -> Iterator[tuple[str, int, int]]:
    """Name, height and width of the pictures of every clip."""
    if not job.options.undistort:
        for clip in job.chosen.to_table(["clip_id", "height", "width"]).to_pylist():
            yield clip["clip_id"], clip["height"], clip["width"]
        return
    for row in job.chosen.rows():
        pictures = job.pictures(row)
        assert pictures is not None, "undistorted are pictures"
        yield row.clip_id, pictures.row.height, pictures.row.width


def _video_pictures(job: _Export) -> Pictures:
    """Frames of a clip by its name.

    Raises:
        ValueError: there are clips whose media may not be passed on.
    """
    chosen = job.chosen
    kept = chosen.where(~pc.field("data_redistributable")).to_table(["clip_id"])["clip_id"].to_pylist()
    if kept:
        raise ValueError(
            f"{chosen.path}: the media of {len(kept)} clips may not be passed on, e.g. {kept[0]}; export those without "
            "--media-root (cameras alone), or choose others with --source, --where or --clip"
        )

    def frames(clip: CameraClip) -> Iterator[NDArray[np.uint8]]:
        pictures = job.pictures(chosen.row(clip.name))
        assert pictures is not None, "videos are asked for with a media root alone"
        return pictures.frames(size=(clip.height, clip.width))

    return frames


def _chosen(
    clips: ClipDataset, clip_ids: Sequence[str] | None, source: str | None, where: str | None
) -> ClipDataset:
    chosen = clips.where(pc.field("verdict") == "accepted")
    if source is not None:
        chosen = chosen.where(pc.field("source") == source)
    if where is not None:
        chosen = chosen.where(where)
    if clip_ids is not None:
        chosen = chosen.where(pc.field("clip_id").isin(list(clip_ids)))
        found = set(chosen.to_table(["clip_id"])["clip_id"].to_pylist())
        missing = [c for c in clip_ids if c not in found]
        if missing:
            raise ValueError(
                f"{clips.path}: no accepted clip {', '.join(missing[:5])}{_why_not(clips, missing)}"
            )
    if not len(chosen):
        which = "" if where is None else f" for which {where!r} holds"
        raise ValueError(f"{clips.path}: no accepted clips to export{which}")
    for clip_id in chosen.to_table(["clip_id"])["clip_id"].to_pylist():
        check_name(clip_id)  # before anything is written: files are named by it
    stand_ins = len(chosen.where(pc.field("stand_in")))
    if stand_ins:
        raise ValueError(
            f"{clips.path}: {stand_ins} rows were made with stand-in weights; such rows are never exported"
        )
    return chosen


def _why_not(clips: ClipDataset, missing: Sequence[str]) -> str:
    """What is known of the first clips that are asked for and not accepted."""
    asked = clips.where(pc.field("clip_id").isin(missing[:5]))
    known = [
        f"{clip['clip_id']} is {status_of(clip['verdict'], clip['reasons'])}: {', '.join(clip['reasons'])}"
        for clip in asked.to_table(["clip_id", "verdict", "reasons"]).to_pylist()
        if clip["verdict"] != "accepted"
    ]
    return f" ({'; '.join(known)})" if known else ""


def _check_names(chosen: ClipDataset, media_root: str | Path) -> None:
    """Make sure that COLMAP's text files can hold the names of all images, before points are looked for in any.

    Raises:
        ValueError: one has a blank in its name.
    """
    for row in chosen.where(pc.field("media_kind") == "images").rows():
        check_image_names(row.clip_id, [path.name for path in image_paths(row, media_root)], binary=False)


def write_subset(path: str | Path, out: str | Path, *, where: str) -> tuple[int, int]:
    """Write the rows, accepted or not, for which a condition holds as a dataset of their own.

    Args:
        path: as for `export_dataset`. out: absent or empty folder.
    Returns:
        Clips that were written, and all of them.
    Raises:
        ValueError: no such condition (see `where.parse_where`), or no row for which it holds.
    """
    clips = open_dataset(path)
    chosen = clips.where(where)
    _ = chosen.columns  # rows then have the columns of all parts
    with staged(out) as folder:
        count = write_dataset(folder, chosen.rows())
        if not count:
            raise ValueError(f"{path}: {where!r} holds for none of {len(clips)} clips")
        write_index(folder)
    return count, len(clips)
