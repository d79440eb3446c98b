"""Pictures of a stored clip: the frames that its row names, at the size that its intrinsics refer to; and videos."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .rows import Row

_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


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

    Source frames are counted as decoded forward from the start of the file (never by seeking, which some
    files answer one frame late), so `frame_index` names the same pictures as in the annotation.

    Args:
        root: folder to which a relative `media` refers.
        positions: clip frames wanted, increasing; all if None. Decoding stops after the last.
        size: (height, width) to return; the stored size if None.
    Raises:
        ValueError: media missing, unreadable, of another shape, shorter than the row says, or without files
        (rendered).
    """
    chosen = np.arange(row.num_frames) if positions is None else np.asarray(positions, dtype=np.int64)
    if len(chosen) and (chosen.min() < 0 or chosen.max() >= row.num_frames or (np.diff(chosen) <= 0).any()):
        raise ValueError(f"clip {row.clip_id}: positions must increase within 0 to {row.num_frames - 1}")
    media = Path(root) / row.media
    wanted = row.frame_index[chosen].astype(np.int64)
    if row.media_kind == "video":
        source = video_frames(row.clip_id, media, wanted)
    elif row.media_kind == "images":
        source = _images(row.clip_id, media, wanted)
    else:
        raise ValueError(f"clip {row.clip_id}: {row.media_kind} media has no files to read frames from")
    height, width = size or (row.height, row.width)
    for image in source:
        yield _fit(image, height, width)


def image_paths(row: Row, root: str | Path = ".") -> tuple[Path, ...]:
    """The file of every frame of a clip whose media is a folder of images.

    Args:
        root: folder to which a relative `media` refers.
    Raises:
        ValueError: no such folder, or fewer images than the row names.
    """
    files = _listed(row.clip_id, Path(root) / row.media, row.frame_index.astype(np.int64))
    return tuple(files[i] for i in row.frame_index.tolist())


def _fit(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return image
    import cv2

    shrink = image.shape[0] >= height
    return cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    ).astype(np.uint8)


def count_video_frames(clip_id: str, path: Path) -> tuple[int, float]:
    """Frames that a video decodes to, and its average rate in Hz.

    Raises:
        ValueError: missing, unreadable, or without a frame rate.
    """
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            rate = getattr(stream, "average_rate", None)
            if stream is None or not rate:
                raise ValueError(f"clip {clip_id}: {path}: holds no video with a frame rate")
            return sum(1 for _ in container.decode(stream)), float(rate)
    except (FFmpegError, OSError) as error:
        raise ValueError(f"clip {clip_id}: {path}: {error}") from error


def video_frames(clip_id: str, path: Path, wanted: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    """RGB pictures of a video by the numbers of its decoded frames, which must increase; errors as `read_frames`."""
    import av
    from av.error import FFmpegError

    if not path.is_file():
        raise ValueError(
            f"clip {clip_id}: {path}: no such file; pass the folder that media paths are relative to"
        )
    remaining = list(wanted)
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise ValueError(f"clip {clip_id}: {path}: holds no video")
            for i, frame in enumerate(container.decode(stream)):
                if not remaining:
                    return
                if i == remaining[0] and isinstance(frame, av.VideoFrame):
                    remaining.pop(0)
                    turns = round(frame.rotation / 90) % 4
                    rgb = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
                    yield np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb
    except FFmpegError as error:
        raise ValueError(f"clip {clip_id}: {path}: {error}") from error
    if remaining:
        raise ValueError(
            f"clip {clip_id}: {path}: ends before source frame {remaining[0]}, which the row names"
        )


def _listed(clip_id: str, folder: Path, wanted: NDArray[np.int64]) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(
            f"clip {clip_id}: {folder}: no such folder; pass the folder that media paths are relative to"
        )
    files = sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in _IMAGES and p.name[0] != "."), key=_natural
    )
    if len(wanted) and wanted.max() >= len(files):
        raise ValueError(
            f"clip {clip_id}: {folder}: holds {len(files)} images, the row names number {wanted.max()}"
        )
    return files


def _images(clip_id: str, folder: Path, wanted: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
    import cv2

    files = _listed(clip_id, folder, wanted)
    for index in wanted:
        bgr = cv2.imread(str(files[index]), cv2.IMREAD_COLOR)
        if bgr is None:
            raise ValueError(f"clip {clip_id}: {files[index]}: no readable image")
        yield cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8)


def _natural(path: Path) -> tuple[tuple[int, str | int], ...]:
    """Frame 2 before frame 10, padded or not."""
    return tuple((1, int(p)) if p.isdigit() else (0, p) for p in re.split(r"(\d+)", path.name))


class VideoWriter:
    """H.264 file of high quality, one frame at a time; use as a context manager.

    Args:
        path: `.mp4` file to write.
        width, height: even numbers (4:2:0 chroma).
        fps: frame rate; frame i is shown from i / fps on.
        crf: x264 quality, lower is better; 12 is visually lossless.
        key_frame_every: frames from one key frame to the next, for readers that jump; None leaves it to x264.
    Raises:
        ValueError: odd size.
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        height: int,
        fps: float,
        crf: int = 12,
        key_frame_every: int | None = None,
    ) -> None:
        import av

        if width % 2 or height % 2:
            raise ValueError(f"{path}: H.264 with 4:2:0 chroma needs even sizes, got {width}x{height}")
        self._frame_type = av.VideoFrame
        self._container = av.open(str(path), "w")
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.options = {"crf": str(crf), "preset": "veryfast"}
        if key_frame_every is not None:
            self._stream.options |= {"g": str(key_frame_every), "bf": "0"}

    def write(self, rgb: NDArray[np.uint8]) -> None:
        """Append (height, width, 3) uint8."""
        frame = self._frame_type.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
