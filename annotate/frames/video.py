"""Clips from video files, by either decoder."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ...dataset.arrays import I64, U8
from ...dataset.media.errors import MediaError
from ...dataset.media.video import Video, first_line, open_video
from ..sources.clip import ClipRef
from .base import DecodeConfig, stored_size
from .decoded import DecodedFrames, FrameReader, rejecting
from .timing import Timeline, clip_timing, nominal_timeline, stated_rate


@dataclass(frozen=True, kw_only=True)
class _ByPyav:
    video: Video
    threads: int

    def read(self, frame_index: I64) -> Generator[U8]:
        return self.video.read(frame_index, threads=self.threads)


@dataclass(frozen=True, kw_only=True)
class _ByDecord:
    """Contiguous reads from the first frame; only of files without `_decord_obstacle`."""

    video: Video
    threads: int

    def read(self, frame_index: I64) -> Generator[U8]:
        import decord

        video, wanted = self.video, set(frame_index.tolist())
        count = len(video.timeline.ticks)

        def corrupt(position: int, detail: str) -> MediaError:
            return MediaError(
                "corrupt_video",
                f"clip {video.clip_id}: {video.path}: source frame {position} of {count} cannot be decoded: {detail}",
            )

        position = 0
        try:
            # One reader an iteration, never kept: a decord reader that crosses a fork hangs.
            reader = decord.VideoReader(str(video.path), num_threads=self.threads)
            if len(reader) != count:
                raise corrupt(min(len(reader), count), f"decord counts {len(reader)} frames")
            for position in range(int(frame_index[-1]) + 1):
                frame = reader.next()
                if position in wanted:
                    yield frame.asnumpy()
        except (RuntimeError, decord.DECORDError, StopIteration) as error:
            raise corrupt(position, str(error).splitlines()[0] if str(error) else "decord stops") from error


def check_decoder(config: DecodeConfig) -> None:
    """Make sure, before any work, that the decoder that a recipe names is installed.

    Raises:
        ValueError: naming what brings it.
    """
    if config.backend == "decord" and find_spec("decord") is None:
        raise ValueError(
            "annotate.decode.backend decord: the package is not installed; pip install 'theodolite[decord]' (Linux on "
            "x86-64 and Windows), or take the default, pyav"
        )


def _has_rows(clip: ClipRef) -> bool:
    """Whether files with a row for every frame of the source come with the clip."""
    given = clip.given
    files = (
        given.camera_to_world_path,
        given.intrinsics_path,
        given.cameras_path,
        clip.truth_camera_to_world_path,
        clip.truth_intrinsics_path,
    )
    return any(path is not None for path in files)


def open_video_clip(clip: ClipRef, config: DecodeConfig) -> DecodedFrames:
    check_decoder(config)
    path = Path(clip.media_path)
    source_fps = stated_rate(clip, config)
    # A nominal rate re-times the frames, so the window's end says nothing about the file's own time stamps. Rows of
    # cameras, one a source frame, belong to the frames that they are taken for only where there are as many of both.
    whole = source_fps is not None or _has_rows(clip)
    with rejecting():
        video = open_video(clip.clip_id, path, until_s=None if whole else clip.end_s)
    notes = list(video.notes)
    shown = video.timeline
    timeline = Timeline(ticks=shown.ticks, tick_s=shown.tick_s, complete=shown.complete)
    if source_fps is not None:
        timeline = nominal_timeline(len(shown.ticks), source_fps, complete=shown.complete)
        notes.append(f"time stamps replaced by {source_fps:g} fps")
    timing = clip_timing(clip, timeline, config)
    reader: FrameReader = _ByPyav(video=video, threads=config.threads)
    if config.backend == "decord":
        if obstacle := _decord_obstacle(video):
            notes.append(f"PyAV instead of decord: {obstacle}")
        else:
            reader = _ByDecord(video=video, threads=config.threads)
    height, width = video.height, video.width
    stored_height, stored_width = stored_size(height, width, config.max_side_px)
    return DecodedFrames(
        clip=clip,
        config=config,
        timing=timing,
        height=stored_height,
        width=stored_width,
        source_height=height,
        source_width=width,
        orientation=video.orientation,
        num_source_frames=len(shown.ticks) if shown.complete else None,
        pixel_aspect=float(video.pixel_aspect) * (width / stored_width) / (height / stored_height),
        notes=tuple(notes),
        _reader=reader,
    )


def _decord_obstacle(video: Video) -> str:
    """Why decord must not read this file, or empty."""
    timeline = video.timeline
    # Of an MPEG transport stream decord's contiguous reads miss frames although it reports the right times.
    if not {"mp4", "matroska"} & set(video.format_name.split(",")):
        return f"it was found exact on MP4 and Matroska only, this is {video.format_name}"
    if timeline.by_count:
        return "the file has no usable time stamps"
    if timeline.discarded:
        return f"{timeline.discarded} frames are discarded by the file's edit list, decord counts them"
    if video.num_streams > 1:
        return "several video streams, decord takes its own choice"
    if video.orientation:
        return "the file is turned or mirrored, decord knows turns alone"
    if not timeline.complete:
        return "the window ends before the file, decord cannot be checked against it"
    import decord
    from av.error import FFmpegError

    try:
        video.check_key_frames()  # decord makes all of them as large as the first one
    except (MediaError, FFmpegError) as error:
        return f"its pictures change on the way ({first_line(error)})"
    try:
        reader = decord.VideoReader(str(video.path), num_threads=1)
        times = np.asarray(reader.get_frame_timestamp(np.arange(len(reader))))[:, 0]
    except (RuntimeError, decord.DECORDError) as error:
        return first_line(error)
    expected = (timeline.ticks - timeline.ticks[0]) * float(timeline.tick_s)
    if len(times) != len(expected):
        return f"it counts {len(times)} frames, {len(expected)} are shown"
    if np.abs(times - times[0] - expected).max() > 1e-3:
        return "its time stamps differ from the container's"
    return ""
