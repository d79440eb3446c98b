"""Frames of the built-in renderer.

The media of a rendered clip is a YAML file with the fields of `RenderConfig`; `clip.render_seed` overrides its
seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...dataset.inputs import read_yaml
from ...dataset.media.orientation import UPRIGHT, Orientation
from ..rendered.cameras import RenderConfig
from ..rendered.render import RenderedClip, render_clip
from ..sources.clip import ClipRef, ClipRejection
from .base import ClipTiming


def render_config_of(clip: ClipRef) -> RenderConfig:
    """The configuration that a rendered clip's media file holds.

    Raises:
        ClipRejection: `unreadable_video` if the file is missing, no YAML, or holds other fields; `depth_missing` if the
            clip is none of the renderer's, which an estimator `rendered` was asked about.
    """
    path = Path(clip.media_path)
    if clip.media_kind != "rendered":
        raise ClipRejection(
            "depth_missing",
            f"clip {clip.clip_id}: is no rendered clip (media_kind), and the recipe takes its depth from the renderer"
            " (annotate.geometry.sequence or anchor: rendered)",
        )
    try:
        fields, twice = read_yaml(path)
        if twice:
            raise ValueError("; ".join(twice))
        config = RenderConfig.model_validate(fields or {})
    except ValueError as error:  # no YAML, or other fields
        raise ClipRejection(
            "unreadable_video", f"clip {clip.clip_id}: {path} is no render configuration: {error}"
        ) from error
    return config if clip.render_seed is None else config.model_copy(update={"seed": clip.render_seed})


@dataclass(frozen=True, kw_only=True)
class RenderedFrames:
    """Frames of a rendered clip, rendered anew on every iteration; the `ClipFrames` of `frames/base.py`."""

    rendered: RenderedClip
    timing: ClipTiming
    height: int
    width: int
    source_height: int
    source_width: int
    num_source_frames: int | None
    orientation: Orientation = UPRIGHT
    image_names: tuple[str, ...] = ()
    pixel_aspect: float = 1.0
    cuts: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.timing.frame_index)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for index in self.timing.frame_index:
            yield self.rendered.frame(int(index)).rgb

    def every_frame(self) -> Iterator[NDArray[np.uint8]]:
        first, last = self.timing.frame_index[[0, -1]]
        for index in range(first, last + 1):
            yield self.rendered.frame(index).rgb


def open_rendered(clip: ClipRef) -> RenderedFrames:
    """All frames of a rendered clip at the renderer's own rate.

    Raises:
        ClipRejection: as `render_config_of`.
    """
    config = render_config_of(clip)
    rendered = render_clip(config)
    return RenderedFrames(
        rendered=rendered,
        timing=ClipTiming(
            frame_index=np.arange(config.num_frames),
            time_s=rendered.time_s,
            source_fps=config.fps,
            fps=config.fps,
        ),
        height=config.height,
        width=config.width,
        source_height=config.height,
        source_width=config.width,
        num_source_frames=config.num_frames,
    )
