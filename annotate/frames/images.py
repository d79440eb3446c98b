"""Clips from folders of images, and the numbers that their names give."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...dataset.arrays import I64, U8
from ...dataset.media.errors import MediaError
from ...dataset.media.images import list_images, load_image
from ...dataset.media.orientation import Orientation
from ..sources.clip import ClipRef, ClipRejection
from .base import ClipFrames, DecodeConfig, stored_size
from .decoded import DecodedFrames, rejecting
from .timing import clip_timing, nominal_timeline, stated_rate


@dataclass(frozen=True, kw_only=True)
class _Images:
    """Reads chosen files of an image folder."""

    clip_id: str
    paths: tuple[Path, ...]
    orientation: Orientation | None = None
    """That all of them must have; None: any, each is shown as it asks."""

    def read(self, frame_index: I64) -> Generator[U8]:
        first_size: tuple[int, ...] | None = None
        for index in frame_index.tolist():
            rgb, orientation = self.image(index)
            if self.orientation is not None and orientation != self.orientation:
                raise MediaError(
                    "orientation_changed",
                    f"clip {self.clip_id}: {self.paths[index]} is {orientation}, the clip's first image"
                    f" {self.orientation}: depth and cameras that come with them cannot belong to both",
                )
            first_size = first_size or rgb.shape[:2]
            if rgb.shape[:2] != first_size:
                raise MediaError(
                    "image_size_changed",
                    f"clip {self.clip_id}: {self.paths[index]} is {rgb.shape[1]}x{rgb.shape[0]}, the clip's first image"
                    f" is {first_size[1]}x{first_size[0]}",
                )
            yield rgb

    def image(self, index: int) -> tuple[U8, Orientation]:
        """As shown, and what made it so of the stored pixels."""
        stored, orientation = load_image(self.clip_id, self.paths[index])
        return orientation.show(stored) if orientation else stored, orientation


def name_numbers(clip: ClipRef, names: Sequence[str]) -> I64:
    """(N,) number at the end of each image's name.

    Raises:
        ClipRejection: `image_names_not_numbered`: a name without a number, or numbers that do not increase.
    """
    matches = [re.search(r"(\d+)$", Path(name).stem) for name in names]
    wrong = next((name for name, match in zip(names, matches, strict=True) if match is None), None)
    numbers = np.array([int(match[1]) for match in matches if match is not None], np.int64)
    if wrong is None and len(numbers) > 1 and (np.diff(numbers) <= 0).any():
        wrong = names[int(np.flatnonzero(np.diff(numbers) <= 0)[0]) + 1]
    if wrong is not None:
        raise ClipRejection(
            "image_names_not_numbered",
            f"clip {clip.clip_id}: {clip.media_path}: {wrong!r} does not end with a number above that of the image"
            " before, and the numbers say when the images were taken",
        )
    return numbers


def source_numbers(clip: ClipRef, frames: ClipFrames) -> I64:
    """(F,) number of each clip frame's source frame in the names of files beside the media: its index, or the number
    of the image where images are numbered in time."""
    index = frames.timing.frame_index
    if not clip.numbered or not frames.image_names:
        return index
    return name_numbers(clip, [frames.image_names[i] for i in index.tolist()])


def open_image_clip(clip: ClipRef, config: DecodeConfig) -> DecodedFrames:
    folder = Path(clip.media_path)
    source_fps = stated_rate(clip, config)
    if source_fps is None:
        raise ClipRejection(
            "no_frame_rate",
            f"clip {clip.clip_id}: {folder}: images carry no time; give the clip's source_fps in the index (or"
            " annotate.decode.source_fps)",
        )
    with rejecting():
        paths = list_images(clip.clip_id, folder, clip.media_pattern)
        timeline = nominal_timeline(len(paths), source_fps, complete=True)
        if clip.numbered:
            timeline = replace(timeline, ticks=name_numbers(clip, [path.name for path in paths]))
            # Windows count from frame 0, which need not be here.
            missing_s = float(timeline.ticks[0] * timeline.tick_s)
            clip = replace(
                clip,
                start_s=None if clip.start_s is None else clip.start_s - missing_s,
                end_s=None if clip.end_s is None else clip.end_s - missing_s,
            )
        timing = clip_timing(clip, timeline, config)
        images = _Images(clip_id=clip.clip_id, paths=paths)
        first, orientation = images.image(int(timing.frame_index[0]))
    if clip.given.any and clip.given.pixels != "shown":
        images = replace(images, orientation=orientation)
    height, width = first.shape[:2]
    stored_height, stored_width = stored_size(height, width, config.max_side_px)
    return DecodedFrames(
        clip=clip,
        config=config,
        timing=timing,
        height=stored_height,
        width=stored_width,
        source_height=height,
        source_width=width,
        orientation=orientation,
        num_source_frames=len(paths),
        image_names=tuple(path.name for path in paths),
        pixel_aspect=(width / stored_width) / (height / stored_height),
        notes=(f"{orientation}, as the images ask",) if orientation else (),
        _reader=images,
    )
