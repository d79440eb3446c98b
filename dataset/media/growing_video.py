"""An MP4 that plays while it grows, and plays to its last whole frame however its writer ends.

Every frame is a fragment of its own (ISO/IEC 14496-12 movie fragments). Fragments reach the disk whole, one write
after another, so that what lies there is a complete file at any moment; a write that fails is taken back.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .write import h264_stream

_MOVFLAGS = "frag_every_frame+empty_moov+default_base_moof"


class VideoWriteError(OSError):
    """The file cannot grow (disk full); what is there plays."""


class _Fragments:
    """Where the muxer writes to; keeps what is no whole box yet."""

    def __init__(self) -> None:
        self.pending = bytearray()

    def write(self, data: bytes) -> int:
        self.pending += data
        return len(data)

    def take(self) -> tuple[bytes, int]:
        """Whole boxes, in order, up to the last whole fragment (or other box of the top level), and the number of
        fragments among them: one a frame."""
        offset = end = frames = 0
        while offset + 8 <= len(self.pending):
            size, kind = (
                int.from_bytes(self.pending[offset : offset + 4], "big"),
                bytes(self.pending[offset + 4 : offset + 8]),
            )
            if size < 8 or offset + size > len(self.pending):
                break
            offset += size
            if kind != b"moof":  # goes with the media data behind it
                end = offset
            else:
                frames += 1
        frames -= offset > end  # one that waits for its media data
        whole = bytes(self.pending[:end])
        del self.pending[:end]
        return whole, frames


class GrowingVideo:
    """H.264 in a fragmented MP4, one frame at a time; use as a context manager.

    Closing, also after an error or an interrupt, leaves a file that plays. `num_frames` counts those on the disk: all
    of them once it is closed, one less before.

    Args:
        path: `.mp4` file, which must not exist.
        width, height: even numbers (4:2:0 chroma).
        fps: frame rate.
        crf: x264 quality, lower is better.
        key_frame_every: frames from one key frame to the next, where players can jump to.
        metadata: tags of the container, such as `title` and `comment`.
    Raises:
        ValueError: odd size, or a name that is not `.mp4`.
        FileExistsError: there is such a file.
        VideoWriteError: the disk is full.
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        height: int,
        fps: float,
        crf: int = 16,
        key_frame_every: int = 24,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        import av

        if path.suffix.lower() != ".mp4":
            raise ValueError(f"{path}: videos are written as .mp4")
        self.path, self.num_frames, self._handed = path, 0, 0
        self._size = (height, width)
        self._frame_type = av.VideoFrame
        self._sink = _Fragments()
        self._container = av.open(self._sink, "w", format="mp4", options={"movflags": _MOVFLAGS})
        self._container.metadata.update(metadata or {})
        self._stream = h264_stream(
            self._container,
            path,
            width=width,
            height=height,
            fps=fps,
            crf=crf,
            key_frame_every=key_frame_every,
        )
        # Without frames that wait in the encoder: what was handed over is on the disk.
        self._stream.options |= {"tune": "zerolatency"}
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._whole = 0
        self._ended = False
        self._closed = False

    def write(self, rgb: NDArray[np.uint8]) -> None:
        """Append (n, height, width, 3) or (height, width, 3) uint8 frames."""
        frames = rgb[None] if rgb.ndim == 3 else rgb
        if frames.shape[1:] != (*self._size, 3) or frames.dtype != np.uint8:
            raise ValueError(f"frames are {frames.dtype} {frames.shape}, expected uint8 (n, {self._size}, 3)")
        for frame in frames:
            picture = self._frame_type.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            self._container.mux(self._stream.encode(picture))
            self._handed += 1
            self._flush()

    def _flush(self) -> None:
        """Put whole fragments on the disk, all or nothing."""
        data, frames = self._sink.take()
        if self._ended:
            return  # a later frame may fit, but it builds on the one that did not
        try:
            done = 0
            while done < len(data):
                done += os.write(self._file, memoryview(data)[done:])
        except BaseException as error:
            os.ftruncate(self._file, self._whole)
            os.lseek(self._file, self._whole, os.SEEK_SET)
            if isinstance(error, OSError):
                self._ended = True
                raise VideoWriteError(error.errno, f"{self.path}: {os.strerror(error.errno or 0)}") from error
            self._sink.pending[:0] = data  # an interrupt: it is written on closing
            raise
        self._whole += len(data)
        self.num_frames += frames

    def close(self) -> None:
        """Write what is left and close the file.

        Raises:
            VideoWriteError: the end does not fit on the disk; the file plays without it.
        """
        if self._closed:
            return
        self._closed = True
        try:
            if self._handed:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            self._flush()
            os.fsync(self._file)
        finally:
            os.close(self._file)

    def __enter__(self) -> GrowingVideo:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self.close()
        except VideoWriteError:
            if error is None:
                raise  # otherwise the first error is the one to hear of
