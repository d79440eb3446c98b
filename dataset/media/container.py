"""Video files as containers: which are taken, opened without following what they point at."""

from __future__ import annotations

import errno
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..limits import MAX_PIXELS
from .boxes import impossible_table

_CONTAINERS = (
    "3g2,3gp,asf,av1,avi,dirac,dnxhd,dv,dvbsub,f4v,flv,gif,gxf,h261,h263,h264,hevc,ivf,kux,live_flv,m4a,m4v,matroska,"
    "mj2,mjpeg,mov,mp4,mpeg,mpegts,mpegtsraw,mpegvideo,mxf,mxg,nut,obu,ogg,rm,vc1,vvc,webm,wtv,yuv4mpegpipe"
)
"""Formats of FFmpeg that are read. Playlists (HLS, DASH, concat) are none: they name other files and addresses, which a
video from a stranger must not make this machine open."""


def open_container(path: Path) -> Any:
    """A video file as PyAV opens it, as a context manager: a regular file, in a format that holds its own content.

    Raises:
        OSError, FFmpegError: it cannot be opened, or is something else, such as a pipe (which would be waited for).
    """
    import av

    path = path.resolve()  # absolute: what looks like an address is none
    if not path.is_file():
        if path.exists():
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    status = path.stat()
    if why := _impossible(str(path), status.st_size, status.st_mtime_ns):
        raise OSError(errno.EINVAL, why, str(path))
    return av.open(
        str(path),
        **_tags_of_any_bytes(av.__version__),
        container_options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"},
        options={"max_pixels": str(MAX_PIXELS)},
    )


def _tags_of_any_bytes(version: str) -> dict[str, Any]:
    """What makes PyAV read tags that are no UTF-8; from 19 on it does by itself, and does not know the option."""
    return {"metadata_errors": "replace"} if int(version.split(".")[0]) < 19 else {}


@lru_cache(maxsize=256)
def _impossible(path: str, size: int, changed_ns: int) -> str:
    """Once for a file, which is opened several times."""
    return impossible_table(Path(path))


def holds_video(path: Path) -> bool:
    """True if a file opens as a container with a video stream; a single picture is none."""
    from av.error import FFmpegError

    try:
        with open_container(path) as container:
            name = container.format.name
            return bool(container.streams.video) and not (name.endswith("_pipe") or name in ("image2", "tty"))
    except (FFmpegError, OSError, ValueError):
        return False


def video_size(path: Path) -> tuple[int, int]:
    """(height, width) of a video's stored pictures, by its header.

    Raises:
        ValueError: it cannot be opened, or has no video stream.
    """
    from av.error import FFmpegError

    try:
        with open_container(path) as container:
            stream = container.streams.best("video")
            if stream is not None:
                return int(stream.height), int(stream.width)
    except (FFmpegError, OSError) as error:
        raise ValueError(f"{path}: cannot be opened as a video ({error})") from None
    raise ValueError(f"{path}: has no video stream")
