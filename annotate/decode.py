"""Clips at 16 fps with exact source frame indices, from videos, image folders and the built-in renderer.

One seam, `open_clip`. Every source is first described by its *timeline*: the presentation time of each frame that a
player would show, in order. The clip's frames are chosen on that timeline once (`choose_frames`), and the same indices
then serve video, poses, intrinsics and depth. Files are read by `dataset/video.py` and `dataset/images.py`, which the
loader of finished datasets uses as well: both see the same pixels, upright as players show them.

Why PyAV is the default: forward decoding was exact on every file tried (closed and open GOP, B frames, edit list,
discarded frames, variable rate, rotation, AV1, VP9, 10 bit). decord 0.6.0 cannot open AV1, counts discarded
frames, and its seeks land one frame late at open GOPs. Its contiguous reads from the first frame are exact on plain
MP4 and Matroska files (not on MPEG transport streams), but cost 5 to 20 % more CPU time and memory than PyAV,
which converts only the frames that are kept (benchmarks/decode_bench.py).
`backend: decord` (an extra: pip install "theodolite[decord]") reads contiguously, checks its time stamps against the
timeline, and takes PyAV where decord would be wrong, saying so in `notes`.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..dataset.arrays import I64, U8
from ..dataset.frames import fit
from ..dataset.images import list_images, load_image
from ..dataset.media import MediaError
from ..dataset.orientation import UPRIGHT, Orientation
from ..dataset.strict import Strict
from ..dataset.video import Video, first_line, open_video
from .cuts import CutDetector
from .sources.clip import GRID_FPS, ClipRef, ClipRejection, printable

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
        source_height, source_width: of the source as shown, before any resizing.
        orientation: what made them of the pixels as stored.
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
    def orientation(self) -> Orientation: ...
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


def choose_frames(
    ticks: I64,
    tick_s: Fraction,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    fps: Literal[16, "native"] = GRID_FPS,
) -> I64:
    """Indices of the source frames that make a clip; arithmetic in whole ticks, so no rounding enters.

    The rule. Candidates are the frames with start_s <= time < end_s, counted from the first frame. The grid starts at
    the first candidate: sample k is wanted k/16 s later, and takes the candidate nearest in time (the later of two at
    equal distance), but never one that an earlier sample took: then the next. The last sample is the last k whose
    wanted time lies less than half a source period (median) after the last candidate. At a constant rate this is index
    floor(k * fps / 16 + 1/2) as long as that frame exists.

    So nothing is shown twice or invented. 1800 frames at 30 fps give 960 samples, not 961: sample 960 is wanted at
    60.000 s, but the last frame is shown from 59.967 s to 60.000 s, and the nearest one to 60.000 s would be frame
    1800, which does not exist. 1800 frames at 29.97 fps last 60.060 s and give 961.

    Args:
        ticks: (N,) presentation times of all source frames in units of `tick_s`, strictly increasing.
        tick_s: seconds of a tick.
        start_s, end_s: window [start_s, end_s) in seconds after the first frame, whatever its own time stamp; None =
            open.
        fps: 16, or `native` for all candidates.
    Returns:
        (F,) int64 indices into `ticks`, strictly increasing; may be empty.
    Raises:
        ClipRejection: `source_fps_below_16` if the candidates' average rate is lower, `frame_gap` if some sample
            has no frame of its own within 1/16 s.
    """
    # Everything times (16 * denominator), relative to the first frame: grid and frames become integers.
    time = ticks - ticks[0] if len(ticks) else ticks
    seconds = (time * float(tick_s)).astype(np.float64)
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
            " to reach 16 fps (keep all of them with annotate.decode.fps: native)",
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
    least = max(config.min_frames, clip.min_frames or 0)
    if len(index) < least:
        window = (
            ""
            if clip.start_s is None and clip.end_s is None
            else f" in the window {clip.start_s or 0:g} s to {'the end' if clip.end_s is None else f'{clip.end_s:g} s'}"
        )
        asked = "annotate.decode.min_frames" if least == config.min_frames else "source.windows"
        raise ClipRejection(
            "too_short",
            f"clip {clip.clip_id}: {clip.media_path}: {len(index)} frames{window} of {len(timeline.ticks)} source"
            f" frames, at least {least} are wanted ({asked})",
        )
    first, last = index[0], index[-1]
    span_s = Fraction(int(timeline.ticks[last] - timeline.ticks[first])) * timeline.tick_s
    source_fps = float((last - first) / span_s)
    index = index[: config.max_frames][: clip.max_frames]
    return ClipTiming(
        frame_index=index,
        time_s=np.asarray(timeline.ticks[index] * float(timeline.tick_s), np.float64),
        source_fps=source_fps,
        fps=source_fps if config.fps == "native" else float(config.fps),
    )


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
            `unreadable_image`, `image_size_changed`, `mixed_images`, `orientation_unsupported`,
            `file_name_not_utf8`, `no_frame_rate`, `too_short`, `source_fps_below_16`,
            `frame_gap`.
    """
    if printable(str(clip.media_path)) != str(clip.media_path):
        raise ClipRejection(
            "file_name_not_utf8",
            f"clip {clip.clip_id}: {printable(str(clip.media_path))}: the name is no UTF-8, so that a row could not"
            " point to the file; rename it",
        )
    if clip.problem is not None:
        raise ClipRejection(clip.problem[0], f"clip {clip.clip_id}: {clip.problem[1]}")
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
    _reader: _Frames = field(repr=False)
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
        with _rejecting(), closing(self._reader.read(self.timing.frame_index)) as frames:
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
        with _rejecting(), closing(self._reader.read(np.arange(first, last + 1))) as frames:
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


class _Frames(Protocol):
    """Yields chosen source frames as shown, in source size."""

    def read(self, frame_index: I64) -> Generator[U8]: ...


@contextmanager
def _rejecting() -> Iterator[None]:
    """What is wrong with the media is a reason to reject the clip."""
    try:
        yield
    except MediaError as error:
        raise ClipRejection(error.reason, error.detail) from error


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


def _open_video(clip: ClipRef, config: DecodeConfig) -> DecodedFrames:
    check_decoder(config)
    path = Path(clip.media_path)
    source_fps = config.source_fps or clip.source_fps
    # A nominal rate re-times the frames, so the window's end says nothing about the file's own time stamps.
    with _rejecting():
        video = open_video(clip.clip_id, path, until_s=None if source_fps is not None else clip.end_s)
    notes = list(video.notes)
    shown = video.timeline
    timeline = _Timeline(ticks=shown.ticks, tick_s=shown.tick_s, complete=shown.complete)
    if source_fps is not None:
        timeline = _nominal(len(shown.ticks), source_fps, complete=shown.complete)
        notes.append(f"time stamps replaced by {source_fps:g} fps")
    timing = _timing(clip, timeline, config)
    reader: _Frames = _ByPyav(video=video, threads=config.threads)
    if config.backend == "decord":
        if obstacle := _decord_obstacle(video):
            notes.append(f"PyAV instead of decord: {obstacle}")
        else:
            reader = _ByDecord(video=video, threads=config.threads)
    height, width = video.height, video.width
    stored_height, stored_width = _stored_size(height, width, config.max_side_px)
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


def _open_images(clip: ClipRef, config: DecodeConfig) -> DecodedFrames:
    folder = Path(clip.media_path)
    source_fps = config.source_fps or clip.source_fps
    if source_fps is None:
        raise ClipRejection(
            "no_frame_rate",
            f"clip {clip.clip_id}: {folder}: images carry no time; give the clip's source_fps in the index (or"
            " annotate.decode.source_fps)",
        )
    with _rejecting():
        paths = list_images(clip.clip_id, folder, clip.media_pattern)
        timeline = _nominal(len(paths), source_fps, complete=True)
        if clip.numbered:
            timeline = replace(timeline, ticks=name_numbers(clip, [path.name for path in paths]))
            # Windows count from frame 0, which need not be here.
            missing_s = float(timeline.ticks[0] * timeline.tick_s)
            clip = replace(
                clip,
                start_s=None if clip.start_s is None else clip.start_s - missing_s,
                end_s=None if clip.end_s is None else clip.end_s - missing_s,
            )
        timing = _timing(clip, timeline, config)
        images = _Images(clip_id=clip.clip_id, paths=paths)
        first, orientation = images.image(int(timing.frame_index[0]))
    if clip.given.any and clip.given.pixels != "shown":
        images = replace(images, orientation=orientation)
    height, width = first.shape[:2]
    stored_height, stored_width = _stored_size(height, width, config.max_side_px)
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
