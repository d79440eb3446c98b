"""What looks at a clip's frames as they go by and adds columns to its row: a new one is added to `picture_watchers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ...dataset.arrays import U8
from .base import ClipFrames
from .integrity import IntegrityMeter
from .quality import QualityConfig, QualityMeter


class FrameWatcher(Protocol):
    """Is shown every frame of a clip once, in order."""

    def add(self, frame: int, rgb: U8) -> None:
        """Take clip frame `frame`, (height, width, 3) uint8 RGB."""
        ...


class PictureWatcher(FrameWatcher, Protocol):
    """One that judges pictures alone, whatever the geometry."""

    def columns(self) -> Mapping[str, Any]:
        """Values of the row after the last frame; several watchers may have entries in `metrics`."""
        ...


class CutCounter:
    """Number of shot changes, which the decoder looks for while the frames go by."""

    def __init__(self, frames: ClipFrames) -> None:
        self._frames = frames

    def add(self, frame: int, rgb: U8) -> None:
        """Nothing to do."""

    def columns(self) -> Mapping[str, Any]:
        """The metric `num_cuts`."""
        return {"metrics": {"num_cuts": float(len(self._frames.cuts))}}


def picture_watchers(
    quality: QualityConfig | None, frames: ClipFrames, *, detect_cuts: bool
) -> list[PictureWatcher]:
    """Those of every clip, and those that a recipe asks for."""
    found: list[PictureWatcher] = [IntegrityMeter()]
    if quality is not None:
        found.append(QualityMeter(quality, frames.timing.fps))
        if detect_cuts:
            found.append(CutCounter(frames))
    return found
