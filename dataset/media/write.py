"""Video files as they are written: H.264 that browsers play."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def h264_stream(
    container: Any, path: Path, *, width: int, height: int, fps: float, crf: int, key_frame_every: int | None
) -> Any:
    """A stream of H.264, 4:2:0, in an open container of PyAV; arguments as of `VideoWriter`."""
    _check_even(path, width, height)
    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.options = {"crf": str(crf), "preset": "veryfast"}
    if key_frame_every is not None:
        stream.options |= {"g": str(key_frame_every), "bf": "0"}
    return stream


def _check_even(path: Path, width: int, height: int) -> None:
    if width % 2 or height % 2:
        raise ValueError(f"{path}: H.264 with 4:2:0 chroma needs even sizes, got {width}x{height}")


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

        _check_even(path, width, height)
        self._frame_type = av.VideoFrame
        self._container = av.open(str(path), "w")
        self._stream = h264_stream(
            self._container,
            path,
            width=width,
            height=height,
            fps=fps,
            crf=crf,
            key_frame_every=key_frame_every,
        )

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
