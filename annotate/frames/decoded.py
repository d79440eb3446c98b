"""Frames of a clip from files: each decoded once, resized, and looked at for cuts as it goes by."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ...dataset.arrays import I64, U8
from ...dataset.media.errors import MediaError
from ...dataset.media.orientation import UPRIGHT, Orientation
from ...dataset.media.read import fit
from ..sources.clip import ClipRef, ClipRejection
from .base import ClipTiming, DecodeConfig
from .cuts import CutDetector


@dataclass(kw_only=True)
class DecodedFrames:
    """Frames of a video file or image folder; satisfies `ClipFrames`.

    Attributes:
        clip: what was opened.
        timing, height, width, source_height, source_width, orientation, num_source_frames, image_names: as in
            `ClipFrames`.
        pixel_aspect: width of a pixel over its height (1 nearly always); fx / fy of an undistorted lens is its
            inverse.
        notes: what a reader of the row should know about the media (several video streams, rotation, ...).
    """

    clip: ClipRef
    config: DecodeConfig
    timing: ClipTiming
    height: int
    width: int
    source_height: int
    source_width: int
    orientation: Orientation = UPRIGHT
    num_source_frames: int | None
    image_names: tuple[str, ...] = ()
    pixel_aspect: float = 1.0
    notes: tuple[str, ...] = ()
    _reader: FrameReader = field(repr=False)
    _cuts: tuple[int, ...] | None = field(default=None, repr=False)
    """None until a first complete iteration."""

    def __post_init__(self) -> None:
        if not self.config.detect_cuts:
            self._cuts = ()

    def __len__(self) -> int:
        return len(self.timing.frame_index)

    def __iter__(self) -> Iterator[U8]:
        """Yield (height, width, 3) uint8 RGB in order.

        Raises:
            ClipRejection: `corrupt_video`, `frame_size_changed`, `orientation_changed`, `unreadable_image`,
                `image_size_changed`.
        """
        detector = CutDetector(fps=self.timing.fps) if self._cuts is None else None
        with rejecting(), closing(self._reader.read(self.timing.frame_index)) as frames:
            for shown in frames:
                rgb = fit(shown, self.height, self.width)
                if detector is not None:
                    detector.update(rgb)
                yield rgb
        if detector is not None:
            self._cuts = tuple(detector.finish())

    def every_frame(self) -> Iterator[U8]:
        """Yield (source_height, source_width, 3) uint8 RGB of all source frames from the clip's first to its last.

        Raises:
            ClipRejection: as iteration.
        """
        first, last = self.timing.frame_index[[0, -1]]
        with rejecting(), closing(self._reader.read(np.arange(first, last + 1))) as frames:
            yield from frames

    @property
    def cuts(self) -> tuple[int, ...]:
        """Clip frames at which a new shot begins, empty with `detect_cuts: false`.

        Found during the first complete iteration; decodes the clip once if there was none yet.
        """
        if self._cuts is None:
            for _ in self:
                pass
        assert self._cuts is not None, "a complete pass sets the cuts"
        return self._cuts


class FrameReader(Protocol):
    """Yields chosen source frames as shown, in source size."""

    def read(self, frame_index: I64) -> Generator[U8]: ...


@contextmanager
def rejecting() -> Iterator[None]:
    """What is wrong with the media is a reason to reject the clip."""
    try:
        yield
    except MediaError as error:
        raise ClipRejection(error.reason, error.detail) from error
