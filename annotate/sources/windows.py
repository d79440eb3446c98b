"""Clips of a fixed number of frames out of longer media: where each starts and ends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from ...dataset.strict import Strict
from .clip import GRID_FPS


class Windows(Strict):
    """How media are cut into clips of one length, counted in clip frames (16 a second).

    Trainers want 16 n + 1 frames: 161 span 10 s, 961 span 60 s. Media of exactly 60 s hold 960 (at 30 fps the frame at
    60.000 s does not exist any more): `shortest` says whether those are clips, too.
    """

    frames: Annotated[int, Field(ge=2)]
    """Clip frames of a window."""
    stride: Annotated[int, Field(ge=1)] | None = None
    """Clip frames from the start of one window to that of the next; null: `frames`, so that none is in two."""
    shortest: Annotated[int, Field(ge=2)] | None = None
    """A window at the end of its media may hold only so many; null: `frames`."""
    most: Annotated[int, Field(ge=1)] | None = None
    """Windows out of one stretch of media, from its start; null: as many as there are."""

    @model_validator(mode="after")
    def _in_order(self) -> Windows:
        if self.shortest is not None and self.shortest > self.frames:
            raise ValueError(f"shortest ({self.shortest}) is more than frames ({self.frames})")
        return self


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window.

    Attributes:
        start: its first clip frame, counted from the start of the stretch.
        start_s, end_s: [start_s, end_s) in seconds after the first frame of the media; wide enough for `frames`
            wherever in it the first source frame lies, so that who decodes it stops after as many.
    """

    start: int
    start_s: float
    end_s: float


_LONGEST_S = 7 * 86400.0
"""No stretch of media is longer than a week."""


def count_samples(duration_s: float, fps: float | None) -> int:
    """Frames at 16 a second that media of this duration hold by the rule of `decode.choose_frames`.

    Sample k is wanted k/16 s after the first frame and there if less than half a source period lies between that time
    and the last frame. 1800 frames at 30 fps (60.000 s) hold 960, at 29.97 fps 961.

    Args:
        duration_s: from the first frame to the end of the last one.
        fps: of the source; None: unknown, which may give one frame too many.
    """
    half_period_s = 0.0 if fps is None else 0.5 / fps
    return max(0, math.ceil((duration_s - half_period_s) * GRID_FPS - 1e-6))


def cut_windows(
    windows: Windows, *, duration_s: float | None, fps: float | None = None, offset_s: float = 0.0
) -> Iterator[Window]:
    """Windows of one stretch of media, in order.

    Args:
        duration_s: of the stretch; None: unknown, and only the first window is known to be inside.
        fps: of the source, where known.
        offset_s: where the stretch starts in its media.
    """
    if duration_s is not None and duration_s > _LONGEST_S:
        duration_s = None  # a damaged number in a table; a million windows would come of it
    shortest = windows.shortest or windows.frames
    held = windows.frames if duration_s is None else count_samples(duration_s, fps)
    stride = windows.stride or windows.frames
    for number, start in enumerate(range(0, held - shortest + 1, stride)):
        if windows.most is not None and number >= windows.most:
            return
        end_s = (start + windows.frames + 1) / GRID_FPS
        if duration_s is not None:
            late_s = _first_frame_late_s(offset_s + start / GRID_FPS, fps)
            if count_samples(duration_s - start / GRID_FPS - late_s, fps) < shortest:
                return
            end_s = min(end_s, duration_s)
        yield Window(start=start, start_s=offset_s + start / GRID_FPS, end_s=offset_s + end_s)


def _first_frame_late_s(start_s: float, fps: float | None) -> float:
    """From a time to the first frame of a constant rate that is not before it: there the window's own grid begins."""
    return 0.0 if fps is None else max(0.0, math.ceil(start_s * fps - 1e-4) / fps - start_s)
