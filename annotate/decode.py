"""Video and image-sequence decoding at 16 fps with exact source frame indices.

One seam, `open_clip`, over PyAV, decord, image folders and the built-in renderer. Every source is first described
by its *timeline*: the presentation time of each frame that a player would show, in order. The clip's frames are
chosen on that timeline once (`choose_frames`), and the same indices then serve video, poses, intrinsics and depth.
Decoding finds frames by their time stamp, never by counting seeks, and refuses a file whose decoder yields other
frames than its timeline promises.

Why PyAV is the default: forward decoding was exact on every file tried (closed and open GOP, B frames, edit list,
discarded frames, variable rate, rotation, AV1, VP9, 10 bit). decord 0.6.0 cannot open AV1, counts discarded
frames, and its seeks land one frame late at open GOPs. Its contiguous reads from the first frame are exact on plain
MP4 and Matroska files (not on MPEG transport streams), but cost 5 to 20 % more CPU time and memory than PyAV,
which converts only the frames that are kept (tests/benchmarks/decode_bench.py).
`backend: decord` reads contiguously, checks its time stamps against the timeline, and takes PyAV where decord
would be wrong, saying so in `notes`.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..dataset.reasons import ReasonCode
from ..dataset.strict import Strict
from .clip import ClipRef, ClipRejection
from .cuts import CutDetector

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]

GRID_FPS = 16
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

_RATE_TOLERANCE = 2e-3
"""Relative: a source at 16/1.001 fps counts as 16 fps; its clip is one frame short after a minute."""
_WINDOW_SLACK_S = 1e-6
"""Windows are given in decimal seconds, time stamps are fractions: a frame this close to an edge is on it."""


class DecodeConfig(Strict):
    """Which frames of a clip are read, and how large."""

    fps: Literal[16, "native"] = 16
    """16: resample by `choose_frames`. `native`: keep every source frame, for recordings at an unknown rate."""
    source_fps: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Replaces the time stamps of every clip: frame i is at i / source_fps. Null: a clip's own, else the media's."""
    min_frames: Annotated[int, Field(ge=2)] = 16
    """Clips with fewer frames are rejected (`too_short`)."""
    max_frames: Annotated[int, Field(ge=2)] | None = None
    """Only so many frames from the start of the window; null: all."""
    max_side_px: Annotated[int, Field(ge=64)] | None = 1280
    """Larger frames are reduced to this long side, aspect kept; null: never."""
    detect_cuts: bool = True
    """Look for shot changes while the frames go by; a clip with cuts is rejected by the pipeline (`shot_cut`)."""
    backend: Literal["pyav", "decord"] = "pyav"
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    """Decoder threads; one is fastest in total where every core has its own clip."""


@dataclass(frozen=True, kw_only=True)
class ClipTiming:
    """Which source frames make the clip.

    Attributes:
        frame_index: (F,) int64, strictly increasing 0-based indices of decoded source frames.
        time_s: (F,) float64, presentation times of those frames, first decoded source frame of the file = its own
            time stamp (not forced to 0).
        source_fps: average rate of the source.
        fps: rate of the grid (16.0), or the source's own when the recipe keeps every frame.
    """

    frame_index: NDArray[np.int64]
    time_s: NDArray[np.float64]
    source_fps: float
    fps: float


class ClipFrames(Protocol):
    """Frames of a clip, decoded anew on every iteration; memory never grows with clip length.

    Attributes:
        height, width: of the frames that are yielded (the stored size).
        source_height, source_width: of the source after rotation flags, before any resizing.
        num_source_frames: frames that the whole source holds, or None where they were not counted.
        image_names: file name of every source frame where the media is a folder of images, else empty.
    """

    @property
    def timing(self) -> ClipTiming: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def source_height(self) -> int: ...
    @property
    def source_width(self) -> int: ...
    @property
    def num_source_frames(self) -> int | None: ...
    @property
    def image_names(self) -> tuple[str, ...]: ...

    @property
    def pixel_aspect(self) -> float:
        """Width of a stored pixel over its height; fx / fy of an undistorted lens is its inverse."""
        ...

    @property
    def cuts(self) -> tuple[int, ...]:
        """Clip frames at which a new shot begins; known after a complete iteration."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What decoding had to decide about the media."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield (height, width, 3) uint8 RGB, one per clip frame, in order."""
        ...

    def every_frame(self) -> Iterator[NDArray[np.uint8]]:
        """Yield (source_height, source_width, 3) uint8 RGB of all source frames from the clip's first to its last."""
        ...


# --- which frames ------------------------------------------------------------------------------


def choose_frames(
    ticks: I64,
    tick_s: Fraction,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    fps: Literal[16, "native"] = GRID_FPS,
) -> I64:
    """Indices of the source frames that make a clip; arithmetic in whole ticks, so no rounding enters.

    The rule. Candidates are the frames with start_s <= time < end_s. The grid starts at the first candidate:
    sample k is wanted k/16 s later, and takes the candidate nearest in time (the later of two at equal distance),
    but never one that an earlier sample took: then the next. The last sample is the last k whose wanted time lies
    less than half a source period (median) after the last candidate. At a constant rate this is index
    floor(k * fps / 16 + 1/2) as long as that frame exists.

    So nothing is shown twice or invented. 1800 frames at 30 fps give 960 samples, not 961: sample 960 is wanted at
    60.000 s, but the last frame is shown from 59.967 s to 60.000 s, and the nearest one to 60.000 s would be frame
    1800, which does not exist. 1800 frames at 29.97 fps last 60.060 s and give 961.

    Args:
        ticks: (N,) presentation times of all source frames in units of `tick_s`, strictly increasing.
        tick_s: seconds of a tick.
        start_s, end_s: window [start_s, end_s) in presentation time; None = open.
        fps: 16, or `native` for all candidates.
    Returns:
        (F,) int64 indices into `ticks`, strictly increasing; may be empty.
    Raises:
        ClipRejection: `source_fps_below_16` if the candidates' average rate is lower, `frame_gap` if some sample
            has no frame of its own within 1/16 s.
    """
    # Everything times (16 * denominator), relative to the first frame: grid and frames become integers.
    time = ticks - ticks[0] if len(ticks) else ticks
    seconds = (ticks * float(tick_s)).astype(np.float64)
    inside = np.ones(len(ticks), bool)
    if start_s is not None:
        inside &= seconds >= start_s - _WINDOW_SLACK_S
    if end_s is not None:
        inside &= seconds < end_s - _WINDOW_SLACK_S
    candidates = np.flatnonzero(inside)
    if fps == "native" or len(candidates) < 2:
        return candidates
    time = (time[candidates] - time[candidates[0]]) * (GRID_FPS * tick_s.numerator)
    step = tick_s.denominator
    rate = (len(time) - 1) * step * GRID_FPS / float(time[-1])
    if rate < GRID_FPS * (1 - _RATE_TOLERANCE):
        raise ClipRejection(
            "source_fps_below_16",
            f"{len(time)} frames in {time[-1] / (step * GRID_FPS):.3f} s are {rate:.3f} fps; frames are never repeated"
            " to reach 16 fps (keep all of them with decode.fps: native)",
        )
    period = int(np.median(np.diff(time)))
    # wanted < last + period / 2, in whole numbers: the number of k with 2 k step < 2 last + period.
    num_wanted = -(-(2 * int(time[-1]) + period) // (2 * step))
    wanted = np.arange(num_wanted, dtype=np.int64) * step
    after = np.clip(np.searchsorted(time, wanted), 1, len(time) - 1)
    nearest = np.where(time[after] - wanted <= wanted - time[after - 1], after, after - 1)
    # i_k = max(nearest_k, i_{k-1} + 1), all at once; later samples may run out of frames.
    order = np.arange(num_wanted)
    chosen = np.maximum.accumulate(nearest - order) + order
    wanted, chosen = wanted[chosen < len(time)], chosen[chosen < len(time)]
    away = np.abs(time[chosen] - wanted)
    if away.max() > step:
        worst = int(away.argmax())
        at_s = float(seconds[candidates[0]] + wanted[worst] / (step * GRID_FPS))
        raise ClipRejection(
            "frame_gap",
            f"no frame of its own within 1/16 s of {at_s:.3f} s (the nearest is {away[worst] / (step * GRID_FPS):.3f} s"
            f" away), although the average is {rate:.3f} fps; frames are never repeated",
        )
    return candidates[chosen]


@dataclass(frozen=True, kw_only=True)
class _Timeline:
    """What a source shows and when.

    Attributes:
        ticks: (N,) presentation times in `tick_s`, strictly increasing; also the identity of a video frame.
        tick_s: seconds of a tick.
        complete: False if the scan stopped at the end of a window.
    """

    ticks: I64
    tick_s: Fraction
    complete: bool = True


def _nominal(num_frames: int, fps: float, *, complete: bool) -> _Timeline:
    rate = Fraction(fps).limit_denominator(1_000_000)
    return _Timeline(ticks=np.arange(num_frames), tick_s=1 / rate, complete=complete)


def _timing(clip: ClipRef, timeline: _Timeline, config: DecodeConfig) -> ClipTiming:
    """Frames chosen on `timeline` for this clip.

    Raises:
        ClipRejection: `too_short`, and what `choose_frames` raises.
    """
    try:
        index = choose_frames(
            timeline.ticks, timeline.tick_s, start_s=clip.start_s, end_s=clip.end_s, fps=config.fps
        )
    except ClipRejection as rejection:
        raise ClipRejection(
            rejection.reason, f"clip {clip.clip_id}: {clip.media_path}: {rejection.detail}"
        ) from None
    if len(index) < config.min_frames:
        window = (
            ""
            if clip.start_s is None and clip.end_s is None
            else f" in the window {clip.start_s or 0:g} s to {'the end' if clip.end_s is None else f'{clip.end_s:g} s'}"
        )
        raise ClipRejection(
            "too_short",
            f"clip {clip.clip_id}: {clip.media_path}: {len(index)} frames{window} of {len(timeline.ticks)} source"
            f" frames, at least {config.min_frames} are wanted (decode.min_frames)",
        )
    first, last = index[0], index[-1]
    span_s = Fraction(int(timeline.ticks[last] - timeline.ticks[first])) * timeline.tick_s
    source_fps = float((last - first) / span_s)
    return ClipTiming(
        frame_index=index[: config.max_frames],
        time_s=np.asarray(timeline.ticks[index[: config.max_frames]] * float(timeline.tick_s), np.float64),
        source_fps=source_fps,
        fps=source_fps if config.fps == "native" else float(config.fps),
    )


# --- opening -----------------------------------------------------------------------------------


def open_clip(clip: ClipRef, config: DecodeConfig) -> ClipFrames:
    """Open a clip's media: read its timeline, choose its frames, decode the first one.

    Cuts are looked for during the first complete iteration (rendered clips have none); see `DecodedFrames.cuts`.
    Frames can be iterated any number of times; every iteration decodes anew.

    Args:
        clip: media, window and, for image folders, the frame rate.
        config: which frames, and how large.
    Returns:
        `DecodedFrames`, or the renderer's own `ClipFrames`.
    Raises:
        ClipRejection: `unreadable_video`, `truncated_video`, `corrupt_video`, `frame_size_changed`,
            `unreadable_image`, `image_size_changed`, `no_frame_rate`, `too_short`, `source_fps_below_16`,
            `frame_gap`.
    """
    if clip.media_kind == "rendered":
        # Imported here: the renderer's geometry module itself imports this one.
        from .geometry.rendered import open_rendered

        rendered = open_rendered(clip)
        nominal = _nominal(rendered.num_source_frames or 0, rendered.timing.fps, complete=True)
        return replace(rendered, timing=_timing(clip, nominal, config))
    if clip.media_kind == "images":
        return _open_images(clip, config)
    return _open_video(clip, config)


@dataclass(kw_only=True)
class DecodedFrames:
    """Frames of a video file or image folder; satisfies `ClipFrames`.

    Attributes:
        clip: what was opened.
        timing, height, width, source_height, source_width, num_source_frames, image_names: as in `ClipFrames`.
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
    num_source_frames: int | None
    image_names: tuple[str, ...] = ()
    pixel_aspect: float = 1.0
    notes: tuple[str, ...] = ()
    _reader: _Video | _Images = field(repr=False)
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
            ClipRejection: `corrupt_video`, `frame_size_changed`, `unreadable_image`, `image_size_changed`.
        """
        detector = CutDetector(fps=self.timing.fps) if self._cuts is None else None
        with closing(self._reader.read(self.timing.frame_index)) as frames:
            for rgb in frames:
                if rgb.shape[:2] != (self.height, self.width):
                    rgb = cv2.resize(rgb, (self.width, self.height), interpolation=cv2.INTER_AREA).astype(
                        np.uint8
                    )
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
        with closing(self._reader.read(np.arange(first, last + 1))) as frames:
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


def _stored_size(height: int, width: int, max_side_px: int | None) -> tuple[int, int]:
    longest = max(height, width)
    if max_side_px is None or longest <= max_side_px:
        return height, width
    return max(1, round(height * max_side_px / longest)), max(1, round(width * max_side_px / longest))


# --- video files -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Video:
    """Reads chosen frames of one video stream.

    Attributes:
        clip_id: for messages.
        ticks: (N,) time stamps of the shown frames, in the stream's time base.
        by_count: the file has no usable time stamps: frame i is the i-th that is decoded.
        can_seek: (N,) bool, True at frames from which decoding can start.
        rotation_deg: counter-clockwise turn that the file asks players for.
        height, width: of the stored picture, before the turn.
    """

    clip_id: str
    path: Path
    stream_index: int
    ticks: I64
    by_count: bool
    can_seek: NDArray[np.bool_]
    rotation_deg: int
    height: int
    width: int
    threads: int
    backend: Literal["pyav", "decord"]

    def read(self, frame_index: I64) -> Generator[U8]:
        """Yield the frames in source size, turned upright."""
        source = self._read_decord if self.backend == "decord" else self._read_pyav
        quarter_turns = self.rotation_deg // 90 % 4
        for rgb in source(frame_index):
            yield np.ascontiguousarray(np.rot90(rgb, quarter_turns)) if quarter_turns else rgb

    def _read_pyav(self, frame_index: I64) -> Generator[U8]:
        import av
        from av.error import FFmpegError
        from av.video.reformatter import VideoReformatter

        convert = VideoReformatter()
        wanted = set(frame_index.tolist())
        last = int(frame_index[-1])
        position = self._first_to_check(int(frame_index[0]))
        try:
            with av.open(str(self.path)) as container:
                stream = container.streams[self.stream_index]
                assert isinstance(stream, av.VideoStream)
                stream.codec_context.thread_count = self.threads
                if position:
                    container.seek(int(self.ticks[position]), stream=stream, backward=True)
                for frame in container.decode(stream):
                    if not self.by_count:
                        if frame.pts is None or frame.pts < self.ticks[position]:
                            continue  # between the key frame and the first frame that is ours to check
                        if frame.pts != self.ticks[position]:
                            found = f"the decoder shows a frame at tick {frame.pts} instead"
                            raise self._corrupt(position, found)
                    if position in wanted:
                        yield self._to_rgb(convert, frame, position)
                    if position == last:
                        return
                    position += 1
        except FFmpegError as error:
            raise self._corrupt(position, _one_line(error)) from error
        raise self._corrupt(position, "the decoder stops there")

    def _first_to_check(self, first: int) -> int:
        """0 to decode from the start of the file, or `first` if a seek that lands at or before it is possible."""
        import av

        if not self.can_seek[1 : first + 1].any():
            return 0
        with av.open(str(self.path)) as container:
            stream = container.streams[self.stream_index]
            container.seek(int(self.ticks[first]), stream=stream, backward=True)
            landed = next((p.pts for p in container.demux(stream) if p.size), None)
        # Some containers seek by another clock and land late; then the long way is the right one.
        return first if landed is not None and landed <= self.ticks[first] else 0

    def _to_rgb(self, convert: Any, frame: Any, position: int) -> U8:
        if frame.is_corrupt:
            raise self._corrupt(position, "the decoder calls the frame corrupt")
        if (frame.height, frame.width) != (self.height, self.width):
            raise ClipRejection(
                "frame_size_changed",
                f"clip {self.clip_id}: {self.path}: source frame {position} is {frame.width}x{frame.height}, the first"
                f" one {self.width}x{self.height}",
            )
        return convert.reformat(frame, format="rgb24", threads=1).to_ndarray()

    def _corrupt(self, position: int, detail: str) -> ClipRejection:
        return ClipRejection(
            "corrupt_video",
            f"clip {self.clip_id}: {self.path}: source frame {position} of {len(self.ticks)} cannot be decoded:"
            f" {detail}",
        )

    def _read_decord(self, frame_index: I64) -> Generator[U8]:
        import decord

        wanted = set(frame_index.tolist())
        position = 0
        try:
            # One reader an iteration, never kept: a decord reader that crosses a fork hangs.
            reader = decord.VideoReader(str(self.path), num_threads=self.threads)
            if len(reader) != len(self.ticks):
                raise self._corrupt(min(len(reader), len(self.ticks)), f"decord counts {len(reader)} frames")
            for position in range(int(frame_index[-1]) + 1):
                frame = reader.next()
                if position in wanted:
                    rgb = frame.asnumpy()
                    # decord itself turns the picture; `read` expects it as stored.
                    yield np.rot90(rgb, -(self.rotation_deg // 90)) if self.rotation_deg else rgb
        except (RuntimeError, decord.DECORDError, StopIteration) as error:
            raise self._corrupt(
                position, str(error).splitlines()[0] if str(error) else "decord stops"
            ) from error


def _open_video(clip: ClipRef, config: DecodeConfig) -> DecodedFrames:
    import av
    from av.error import FFmpegError

    path = Path(clip.media_path)
    source_fps = config.source_fps or clip.source_fps
    # A nominal rate re-times the frames, so the window's end says nothing about the file's own time stamps.
    scan_end_s = None if source_fps is not None else clip.end_s
    notes: list[str] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise ClipRejection("unreadable_video", f"clip {clip.clip_id}: {path}: has no video stream")
            assert isinstance(stream, av.VideoStream)
            num_streams = len(container.streams.video)
            if num_streams > 1:
                notes.append(
                    f"{num_streams} video streams; stream {stream.index} ({stream.width}x{stream.height}) is used"
                )
            stream_index = stream.index
            assert stream.time_base is not None
            tick_s = Fraction(stream.time_base)
            rate = stream.average_rate
            format_name = container.format.name
            trustworthy = stream.codec_context.name not in ("vp8", "libvpx")  # packets without a shown frame
            scan = _scan_packets(container, stream, scan_end_s)
        if scan.missing:
            raise ClipRejection("truncated_video", f"clip {clip.clip_id}: {path}: {scan.missing}")
        start = _decode_start(path, stream_index)
        if not start.ticks:
            raise ClipRejection("unreadable_video", f"clip {clip.clip_id}: {path}: no frame can be decoded")
        if not (trustworthy and scan.trustworthy and start.ticks == scan.ticks[: len(start.ticks)].tolist()):
            scan = _scan_frames(path, stream_index)
            notes.append("time stamps found by decoding: packets do not tell which frames are shown")
        if scan.by_count:
            if not rate:
                raise ClipRejection(
                    "unreadable_video", f"clip {clip.clip_id}: {path}: neither time stamps nor a frame rate"
                )
            tick_s = 1 / Fraction(rate)
            notes.append(f"no time stamps in order; frames are taken as evenly spaced at {float(rate):g} fps")
    except (FFmpegError, OSError) as error:
        reason: ReasonCode = "truncated_video" if _is_mp4_without_index(path) else "unreadable_video"
        hint = (
            "the file begins as MP4 but its index (moov) is missing: " if reason == "truncated_video" else ""
        )
        raise ClipRejection(reason, f"clip {clip.clip_id}: {path}: {hint}{_one_line(error)}") from error

    media_times = _Timeline(ticks=scan.ticks, tick_s=tick_s, complete=scan.complete)
    timeline = media_times
    if source_fps is not None:
        timeline = _nominal(len(scan.ticks), source_fps, complete=scan.complete)
        notes.append(f"time stamps replaced by {source_fps:g} fps")
    timing = _timing(clip, timeline, config)
    backend = config.backend
    if backend == "decord" and (
        obstacle := _decord_obstacle(path, format_name, media_times, scan, num_streams)
    ):
        backend = "pyav"
        notes.append(f"PyAV instead of decord: {obstacle}")
    height, width, rotation, aspect = start.height, start.width, start.rotation_deg, start.pixel_aspect
    if rotation:
        notes.append(f"turned by {rotation} degrees as the file asks")
    video = _Video(
        clip_id=clip.clip_id,
        path=path,
        stream_index=stream_index,
        ticks=scan.ticks,
        by_count=scan.by_count,
        can_seek=scan.can_seek,
        rotation_deg=rotation,
        height=height,
        width=width,
        threads=config.threads,
        backend=backend,
    )
    if rotation % 180:
        height, width, aspect = width, height, 1 / aspect
    stored_height, stored_width = _stored_size(height, width, config.max_side_px)
    pixel_aspect = float(aspect) * (width / stored_width) / (height / stored_height)
    return DecodedFrames(
        clip=clip,
        config=config,
        timing=timing,
        height=stored_height,
        width=stored_width,
        source_height=height,
        source_width=width,
        num_source_frames=len(scan.ticks) if scan.complete else None,
        pixel_aspect=pixel_aspect,
        notes=tuple(notes),
        _reader=video,
    )


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """Time stamps of a stream's shown frames.

    Attributes:
        ticks: (N,) sorted.
        can_seek: (N,) bool, key frames.
        by_count: there are no usable time stamps; `ticks` merely count.
        discarded: number of packets that are decoded but never shown (edit lists).
        complete: False if the scan ended with the window.
        trustworthy: False if only decoding can tell which frames are shown.
        missing: what of the file is not there, or empty.
    """

    ticks: I64
    can_seek: NDArray[np.bool_]
    by_count: bool = False
    discarded: int = 0
    complete: bool = True
    trustworthy: bool = True
    missing: str = ""


def _scan_packets(container: Any, stream: Any, end_s: float | None) -> _Scan:
    """Read packet headers only: a hundred times faster than decoding, and equal to it on sane files."""
    shown: list[tuple[int, bool]] = []
    num_packets = discarded = 0
    complete = trustworthy = True
    for packet in container.demux(stream):
        if not packet.size:
            continue
        num_packets += 1
        if packet.pts is None:
            return _Scan(ticks=np.zeros(0, np.int64), can_seek=np.zeros(0, bool), trustworthy=False)
        if num_packets == 1 and not packet.is_keyframe:
            trustworthy = False  # frames before the first key frame are not decodable
        # Every frame with time < end has a decoding time < end, and those only grow.
        decode_at = packet.pts if packet.dts is None else packet.dts
        if end_s is not None and packet.dts is not None and float(decode_at * stream.time_base) > end_s:
            complete = False
            break
        if packet.is_discard:
            discarded += 1
        else:
            shown.append((packet.pts, packet.is_keyframe))
    shown.sort()
    ticks = np.array([pts for pts, _ in shown], np.int64)
    missing = ""
    if complete and stream.frames > num_packets:
        missing = f"the index lists {stream.frames} frames, the file holds {num_packets}"
    elif complete and len(ticks) > 1 and not stream.frames:
        missing = _shorter_than_promised(container, stream, ticks)
    return _Scan(
        ticks=ticks,
        can_seek=np.array([key for _, key in shown], bool),
        discarded=discarded,
        complete=complete,
        trustworthy=trustworthy and bool((np.diff(ticks) > 0).all()),
        missing=missing,
    )


def _shorter_than_promised(container: Any, stream: Any, ticks: I64) -> str:
    """Containers without a frame count (Matroska): compare with the stream's or the file's duration."""
    promised_s = _duration_tag_s(stream.metadata.get("DURATION", ""))
    if promised_s is None and len(container.streams) == 1 and container.duration:
        promised_s = container.duration / 1e6
    if promised_s is None:
        return ""
    found_s = float((ticks[-1] - min(0, ticks[0]) + np.median(np.diff(ticks))) * stream.time_base)
    if found_s >= promised_s - 0.2:  # some muxers count the last frame's length differently
        return ""
    return f"its header promises {promised_s:.2f} s of video, the file holds {found_s:.2f} s"


def _duration_tag_s(text: str) -> float | None:
    found = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", text.strip())
    if not found:
        return None
    hours, minutes, seconds = found.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


@dataclass(frozen=True, kw_only=True)
class _Start:
    """The first shown frames of a stream: their time stamps (None where one has none), and how the first looks."""

    ticks: list[int | None]
    height: int = 0
    width: int = 0
    rotation_deg: int = 0
    pixel_aspect: Fraction = Fraction(1)


def _decode_start(path: Path, stream_index: int, num_frames: int = 16) -> _Start:
    import av

    with av.open(str(path)) as container:
        stream = container.streams[stream_index]
        assert isinstance(stream, av.VideoStream)
        frames = list(itertools.islice(container.decode(stream), num_frames))
        if not frames:
            return _Start(ticks=[])
        first = frames[0]
        return _Start(
            ticks=[f.pts for f in frames],
            height=first.height,
            width=first.width,
            rotation_deg=round(first.rotation / 90) * 90 % 360,
            pixel_aspect=Fraction(stream.sample_aspect_ratio or 1),
        )


def _scan_frames(path: Path, stream_index: int) -> _Scan:
    """Decode everything once, for files whose packets do not tell."""
    import av

    ticks: list[int | None] = []
    with av.open(str(path)) as container:
        stream = container.streams[stream_index]
        assert isinstance(stream, av.VideoStream)
        ticks += (frame.pts for frame in container.decode(stream))
    nothing = np.zeros(len(ticks), bool)
    if None in ticks or any(b <= a for a, b in itertools.pairwise(ticks)):  # type: ignore[operator]
        return _Scan(ticks=np.arange(len(ticks)), can_seek=nothing, by_count=True)
    return _Scan(ticks=np.array(ticks, np.int64), can_seek=nothing)


def _decord_obstacle(path: Path, format_name: str, timeline: _Timeline, scan: _Scan, num_streams: int) -> str:
    """Why decord must not read this file, or empty."""
    # Of an MPEG transport stream decord's contiguous reads miss frames although it reports the right times.
    if not {"mp4", "matroska"} & set(format_name.split(",")):
        return f"it was found exact on MP4 and Matroska only, this is {format_name}"
    if scan.by_count:
        return "the file has no usable time stamps"
    if scan.discarded:
        return f"{scan.discarded} frames are discarded by the file's edit list, decord counts them"
    if num_streams > 1:
        return "several video streams, decord takes its own choice"
    if not scan.complete:
        return "the window ends before the file, decord cannot be checked against it"
    import decord

    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        times = np.asarray(reader.get_frame_timestamp(np.arange(len(reader))))[:, 0]
    except (RuntimeError, decord.DECORDError) as error:
        return _one_line(error)
    expected = (timeline.ticks - timeline.ticks[0]) * float(timeline.tick_s)
    if len(times) != len(expected):
        return f"it counts {len(times)} frames, {len(expected)} are shown"
    if np.abs(times - times[0] - expected).max() > 1e-3:
        return "its time stamps differ from the container's"
    return ""


def _is_mp4_without_index(path: Path) -> bool:
    """True if the top-level boxes of an ISO media file start properly but hold no `moov`: it was cut off."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            at, kinds = 0, []
            while at + 8 <= size and len(kinds) < 64:
                stream.seek(at)
                length, kind = struct.unpack(">I4s", stream.read(8))
                if length == 1:
                    length = struct.unpack(">Q", stream.read(8).ljust(8, b"\0"))[0]
                kinds.append(kind)
                if length < 8:
                    break
                at += length
    except OSError:
        return False
    return kinds[:1] == [b"ftyp"] and b"moov" not in kinds


def _one_line(error: BaseException) -> str:
    # FFmpeg's errors repeat the path and its log around the one sentence that matters.
    text = getattr(error, "strerror", None) or str(error)
    lines = text.strip().splitlines()
    return lines[0] if lines else type(error).__name__


# --- image folders -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Images:
    """Reads chosen files of an image folder."""

    clip_id: str
    paths: tuple[Path, ...]

    def read(self, frame_index: I64) -> Generator[U8]:
        first_size: tuple[int, int] | None = None
        for index in frame_index.tolist():
            rgb = self.image(index)
            first_size = first_size or rgb.shape[:2]
            if rgb.shape[:2] != first_size:
                raise ClipRejection(
                    "image_size_changed",
                    f"clip {self.clip_id}: {self.paths[index]} is {rgb.shape[1]}x{rgb.shape[0]}, the clip's first image"
                    f" is {first_size[1]}x{first_size[0]}",
                )
            yield rgb

    def image(self, index: int) -> U8:
        bgr = cv2.imread(str(self.paths[index]), cv2.IMREAD_COLOR)
        if bgr is None:
            raise ClipRejection(
                "unreadable_image", f"clip {self.clip_id}: {self.paths[index]}: no readable image"
            )
        return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8)


def _open_images(clip: ClipRef, config: DecodeConfig) -> DecodedFrames:
    folder = Path(clip.media_path)
    source_fps = config.source_fps or clip.source_fps
    if source_fps is None:
        raise ClipRejection(
            "no_frame_rate",
            f"clip {clip.clip_id}: {folder}: images carry no time; give the clip's source_fps (or decode.source_fps)",
        )
    if not folder.is_dir():
        raise ClipRejection("unreadable_video", f"clip {clip.clip_id}: {folder}: no such folder of images")
    names = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    paths = tuple(sorted(names, key=_natural))
    if not paths:
        raise ClipRejection(
            "unreadable_video", f"clip {clip.clip_id}: {folder}: holds no image ({', '.join(IMAGE_SUFFIXES)})"
        )
    timing = _timing(clip, _nominal(len(paths), source_fps, complete=True), config)
    images = _Images(clip_id=clip.clip_id, paths=paths)
    height, width = images.image(int(timing.frame_index[0])).shape[:2]
    stored_height, stored_width = _stored_size(height, width, config.max_side_px)
    return DecodedFrames(
        clip=clip,
        config=config,
        timing=timing,
        height=stored_height,
        width=stored_width,
        source_height=height,
        source_width=width,
        num_source_frames=len(paths),
        image_names=tuple(path.name for path in paths),
        pixel_aspect=(width / stored_width) / (height / stored_height),
        _reader=images,
    )


def _natural(path: Path) -> tuple[tuple[int, str | int], ...]:
    """Sort key under which frame 2 comes before frame 10, whether or not the numbers are padded."""
    parts = re.split(r"(\d+)", path.name)
    return tuple((1, int(p)) if p.isdigit() else (0, p) for p in parts)
