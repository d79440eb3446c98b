"""Pictures of a stored clip: the frames that its row names, at the size that its intrinsics refer to; and videos."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..limits import too_many_pixels
from ..names import below
from ..rows import Row
from .images import list_images, read_image
from .video import open_video, open_video_at


def read_frames(
    row: Row,
    root: str | Path = ".",
    *,
    positions: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """RGB frames of a clip from its media, all at once; arguments and errors as `iterate_frames`.

    Returns:
        (n, height, width, 3) uint8.
    """
    height, width = size or (row.height, row.width)
    if why := too_many_pixels(height, width):
        raise ValueError(f"clip {row.clip_id}: its stored size {why}")
    count = row.num_frames if positions is None else len(positions)
    out = np.empty((count, height, width, 3), dtype=np.uint8)
    for i, image in enumerate(iterate_frames(row, root, positions=positions, size=(height, width))):
        out[i] = image
    return out


def iterate_frames(
    row: Row,
    root: str | Path = ".",
    *,
    positions: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """RGB frames of a clip from its media, (height, width, 3) uint8, one after the other.

    They are the pictures of the annotation, upright as players show them, found by the same decoder: `frame_index`
    counts the frames that the file shows, and decoding starts at the key frame before each.

    Args:
        root: folder to which a relative `media` refers.
        positions: clip frames wanted, increasing; all if None.
        size: (height, width) to return; the stored size if None.
    Raises:
        ValueError: media missing, unreadable, of another shape, shorter than the row says, or without files
        (rendered).
    """
    chosen = np.arange(row.num_frames) if positions is None else np.asarray(positions, dtype=np.int64)
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= row.num_frames or (np.diff(chosen) <= 0).any()):
        raise ValueError(f"clip {row.clip_id}: positions must increase within 0 to {row.num_frames - 1}")
    media = media_path(row, root)
    wanted = row.frame_index[chosen].astype(np.int64)
    if row.media_kind == "video":
        source = video_frames(row.clip_id, media, wanted)
    elif row.media_kind == "images":
        source = _images(row, root, wanted)
    else:
        raise ValueError(f"clip {row.clip_id}: {row.media_kind} media has no files to read frames from")
    height, width = size or (row.height, row.width)
    if why := too_many_pixels(height, width):
        raise ValueError(f"clip {row.clip_id}: its stored size {why}")
    with closing(source):
        for image in source:
            yield fit(image, height, width)


def media_path(row: Row, root: str | Path = ".") -> Path:
    """Where a clip's media lies below the folder that its pointer refers to; it need not be there.

    Raises:
        ValueError: the pointer is absolute, leads upwards or through a link out of `root`, or is no path.
    """
    if row.media == f"{row.source}:{row.original_id}":  # as publishing leaves it
        raise ValueError(
            f"clip {row.clip_id}: its media is not part of this dataset: {row.media[:200]} names the clip at its source"
        )
    return pointed_at(row.clip_id, row.media, root)


def pointed_at(clip_id: str, media: str, root: str | Path = ".") -> Path:
    """As `media_path`, of a clip of which only this much was read."""
    if "://" in media:
        raise ValueError(f"clip {clip_id}: its media is {media[:200]}, which is no file: fetch it first")
    try:
        return below(root, media)
    except ValueError as error:
        raise ValueError(f"clip {clip_id}: media {error}") from None


def image_paths(row: Row, root: str | Path = ".") -> tuple[Path, ...]:
    """The file of every frame of a clip whose media is a folder of images.

    Args:
        root: folder to which a relative `media` refers.
    Raises:
        ValueError: no such folder, or fewer images than the row names.
    """
    return tuple(_chosen(row, root, row.frame_index))


def _chosen(row: Row, root: str | Path, wanted: NDArray[Any]) -> Iterator[Path]:
    """Files of a folder of images by their numbers, each below `root` as the folder is: also where it is a link."""
    files = _listed(row.clip_id, media_path(row, root), row.media_pattern)
    inside: Path | None = None
    for index in wanted.tolist():
        path = _file(row.clip_id, files, index)
        if path.is_symlink():
            inside = inside or Path(root).resolve()
            if not path.resolve().is_relative_to(inside):
                raise ValueError(
                    f"clip {row.clip_id}: {path} is a link that leads out of {root}; name the folder in which its files"
                    " really lie"
                )
        yield path


def fit(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """An image at another size: averaged where it becomes smaller, interpolated where larger."""
    if image.shape[:2] == (height, width):
        return image
    import cv2

    shrink = image.shape[0] >= height
    return cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    ).astype(np.uint8)


def count_video_frames(clip_id: str, path: Path) -> tuple[int, float]:
    """Frames that a video shows, and its average rate in Hz.

    Raises:
        ValueError: missing, unreadable, incomplete, or without a frame rate.
    """
    video = open_video(clip_id, path)
    if not video.average_rate:
        raise ValueError(f"clip {clip_id}: {path}: holds no video with a frame rate")
    return len(video.timeline.ticks), float(video.average_rate)


def video_frames(clip_id: str, path: Path, wanted: NDArray[np.int64]) -> Generator[NDArray[np.uint8]]:
    """RGB pictures of a video by the numbers of its shown frames, which must increase; errors as `read_frames`."""
    if not path.is_file():
        raise ValueError(
            f"clip {clip_id}: {path}: no such file; pass the folder that media paths are relative to"
        )
    if len(wanted):
        yield from open_video_at(clip_id, path, int(wanted[-1])).read(wanted)


def _listed(clip_id: str, folder: Path, pattern: str | None) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise ValueError(
            f"clip {clip_id}: {folder}: no such folder; pass the folder that media paths are relative to"
        )
    try:
        changed = folder.stat().st_mtime_ns
    except OSError as error:
        raise ValueError(f"clip {clip_id}: {folder}: {error.strerror}") from None
    name = (str(folder), changed, pattern)
    with _seen_lock:
        files = _seen.pop(name, None)
    if files is None:
        files = list_images(clip_id, folder, pattern)
    # What changed a moment ago may change again within a tick of the file system's clock.
    if abs(time.time_ns() - changed) > _SETTLED_NS:
        with _seen_lock:
            _seen[name] = files  # at the end: the last to be forgotten
            while len(_seen) > _REMEMBERED:
                _seen.popitem(last=False)
    return files


_seen: OrderedDict[tuple[str, int, str | None], tuple[Path, ...]] = OrderedDict()
"""Images of the folders that were listed last: a loader asks for a few pictures of a hundred thousand at a time."""
_seen_lock = threading.Lock()
_REMEMBERED = 8
_SETTLED_NS = 5_000_000_000


def _file(clip_id: str, files: Sequence[Path], index: int) -> Path:
    if index >= len(files):
        raise ValueError(
            f"clip {clip_id}: {files[0].parent}: holds {len(files)} images, the row names number {index}"
        )
    return files[index]


def _images(row: Row, root: str | Path, wanted: NDArray[np.int64]) -> Generator[NDArray[np.uint8]]:
    for path in _chosen(row, root, wanted):
        yield read_image(row.clip_id, path)
