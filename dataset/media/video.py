"""Video files: which frames they show, when and which way up; and the pixels of any of them, exactly, by seeking.

This is the only place that opens videos: annotation, loader, thumbnails, exports and scores all read through it, so the
same frame number is the same picture everywhere. Every file is first described by its *timeline*, the presentation
time of each frame that a player would show, from packet headers alone where those can be believed. A frame is its
time stamp: decoding starts at the last key frame before the wanted one and goes forward, and what the decoder yields
is held against the timeline. Where that does not fit (a container that seeks elsewhere, a key frame that is none),
decoding starts further back and in the end from the first frame. Files without usable time stamps are counted from
the start.
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import I64, U8
from ..inputs import what_instead
from ..limits import too_many_pixels
from .container import open_container
from .errors import MediaError
from .orientation import UPRIGHT, Orientation
from .packets import START_FRAMES, Timeline, counted, decoded, scan_frames, scan_packets

_WORTH_SEEKING = 12
"""Frames that a jump to a later key frame must save: seeking costs about as much as decoding a few."""
_KEY_FRAMES_TRIED = 3


@dataclass(frozen=True, kw_only=True)
class Video:
    """One video stream of a file.

    Attributes:
        clip_id: for messages.
        stream_index, num_streams: which of how many video streams.
        format_name: FFmpeg's name of the container.
        average_rate: frames a second as the container states it, or None.
        timeline: when its frames are shown.
        height, width: of the pictures as shown.
        orientation: what makes them of the stored ones.
        pixel_aspect: width of a shown pixel over its height.
        notes: what had to be decided about the file.
    """

    clip_id: str
    path: Path
    stream_index: int
    num_streams: int
    format_name: str
    average_rate: Fraction | None
    timeline: Timeline
    height: int
    width: int
    orientation: Orientation
    pixel_aspect: Fraction
    notes: tuple[str, ...] = ()

    def read(self, frame_index: I64, *, threads: int = 1) -> Generator[U8]:
        """Yield (height, width, 3) uint8 RGB of chosen frames as shown.

        Args:
            frame_index: increasing numbers of shown frames, counted from 0.
            threads: of the decoder.
        Raises:
            MediaError: `corrupt_video`, `frame_size_changed`, `orientation_changed`.
        """
        from av.error import FFmpegError

        wanted = [int(i) for i in frame_index]
        known = len(self.timeline.ticks)
        beyond = [] if self.timeline.by_count else [i for i in wanted if i >= known]
        wanted = wanted[: len(wanted) - len(beyond)]
        while wanted:
            # Stretches between which it is quicker to jump.
            count = next(
                (n for n in range(1, len(wanted)) if self._jump(wanted[n - 1], wanted[n])), len(wanted)
            )
            stretch, wanted = wanted[:count], wanted[count:]
            for key in self._ways_in(stretch[0]):
                try:
                    for rgb in self._decode(stretch, key, threads):
                        yield rgb
                        stretch = stretch[1:]
                except (_WrongPlace, FFmpegError) as error:
                    if key is None:
                        position = stretch[0] if isinstance(error, FFmpegError) else error.position
                        detail = first_line(error) if isinstance(error, FFmpegError) else error.found
                        raise self._corrupt(position, detail) from error
                except MediaError:
                    raise
                except Exception as error:
                    detail = f"{type(error).__name__}: {first_line(error)}"
                    raise self._corrupt(stretch[0], detail) from error
                if not stretch:
                    break
        if beyond:
            raise MediaError(
                "corrupt_video",
                f"clip {self.clip_id}: {self.path}: ends after {known} frames, number {beyond[0]} is wanted",
            )

    def _jump(self, before: int, wanted: int) -> bool:
        if self.timeline.by_count:
            return False
        keys = np.flatnonzero(self.timeline.key[before + 1 : wanted + 1])
        return len(keys) > 0 and int(keys[-1]) + 1 > _WORTH_SEEKING

    def _ways_in(self, first: int) -> Iterator[int | None]:
        """Key frames to start from on the way to frame `first`, the nearest first; None is the start of the file."""
        if not self.timeline.by_count:
            keys = np.flatnonzero(self.timeline.key[: first + 1])[::-1][:_KEY_FRAMES_TRIED]
            yield from (int(key) for key in keys if key > 0)
        yield None

    def _decode(self, wanted: list[int], key: int | None, threads: int) -> Generator[U8]:
        """Yield the wanted frames, decoding forward from a key frame.

        Raises:
            _WrongPlace: the decoder does not show what the timeline promises.
            FFmpegError: the decoder gives up.
        """
        import av
        from av.video.reformatter import VideoReformatter

        convert = VideoReformatter()
        ticks, by_count = self.timeline.ticks, self.timeline.by_count
        numbers = set(wanted)
        position, last = 0 if key is None else wanted[0], wanted[-1]
        with open_container(self.path) as container:
            stream = container.streams[self.stream_index]
            assert isinstance(stream, av.VideoStream)
            stream.codec_context.thread_count = threads
            # Where pictures are refreshed strip by strip, "key" frames are none: the decoder leaves them out, and what
            # it shows soon after is not yet right.
            awaited = None if key is None else ticks[key]
            for frame in self._frames(container, stream, key):
                if not by_count:
                    if awaited is not None and frame.pts is not None and frame.pts >= awaited:
                        if frame.pts > awaited:
                            raise _WrongPlace(position, "the decoder does not show its key frame")
                        awaited = None
                    if frame.pts is None or frame.pts < ticks[position]:
                        continue  # between the key frame and the first frame that is wanted
                    if frame.pts != ticks[position]:
                        if key is None:  # decoders may drop pictures before one of another size
                            self._check_picture(frame, position)
                        raise _WrongPlace(position, f"the decoder shows a frame at tick {frame.pts} instead")
                if position in numbers:
                    if frame.is_corrupt:
                        raise _WrongPlace(position, "the decoder calls the frame corrupt")
                    self._check_picture(frame, position)
                    rgb = np.asarray(
                        convert.reformat(frame, format="rgb24", threads=1).to_ndarray(), dtype=np.uint8
                    )
                    yield self.orientation.show(rgb) if self.orientation else rgb
                if position == last:
                    return
                position += 1
        raise _WrongPlace(position, "the decoder stops there")

    def _frames(self, container: Any, stream: Any, key: int | None) -> Iterator[Any]:
        """Decoded frames from a key frame on; what the container shows before it is not given to the decoder."""
        if key is None:
            yield from decoded(container, stream)
            return
        start = int(self.timeline.ticks[key])
        dts = self.timeline.key_dts.get(start)
        # Containers seek by presentation or by decoding time; either may land late, never both here and there.
        for target in dict.fromkeys((start, start if dts is None else dts)):
            container.seek(target, stream=stream, backward=True)
            packets = container.demux(stream)
            for packet in packets:
                if packet.pts == start and packet.is_keyframe:
                    yield from packet.decode()
                    for following in packets:
                        yield from following.decode()
                    return
                if (packet.pts or start) > start if dts is None else (packet.dts or dts) > dts:
                    break  # past it
        raise _WrongPlace(key, "the container does not seek there")

    def _check_picture(self, frame: Any, position: int) -> None:
        size = self.orientation.shown_size((self.height, self.width))
        if (frame.height, frame.width) != size:
            raise MediaError(
                "frame_size_changed",
                f"clip {self.clip_id}: {self.path}: source frame {position} is {frame.width}x{frame.height}, the first"
                f" one {size[1]}x{size[0]}",
            )
        try:
            now = _orientation_of(frame)
        except ValueError as error:
            now = error
        if now != self.orientation:
            raise MediaError(
                "orientation_changed",
                f"clip {self.clip_id}: {self.path}: source frame {position} is {now}, the first one"
                f" {self.orientation}",
            )

    def check_key_frames(self) -> None:
        """Make sure that pictures stay as large, and as they are turned, as the first one: at key frames, where that
        may change; these alone are decoded.

        Raises:
            MediaError: `frame_size_changed`, `orientation_changed`.
            FFmpegError: one cannot be decoded.
        """
        import av

        with open_container(self.path) as container:
            stream = container.streams[self.stream_index]
            assert isinstance(stream, av.VideoStream)
            stream.codec_context.skip_frame = "NONKEY"
            for frame in container.decode(stream):
                self._check_picture(frame, int(np.searchsorted(self.timeline.ticks, frame.pts or 0)))

    def _corrupt(self, position: int, detail: str) -> MediaError:
        known = len(self.timeline.ticks)
        return MediaError(
            "corrupt_video",
            f"clip {self.clip_id}: {self.path}: source frame {position}{f' of {known}' if known else ''} cannot be"
            f" decoded: {detail}",
        )


class _WrongPlace(Exception):
    """The decoder does not show the frame that it should, at `position`."""

    def __init__(self, position: int, found: str) -> None:
        super().__init__(found)
        self.position = position
        self.found = found


def open_video(clip_id: str, path: Path, *, until_s: float | None = None) -> Video:
    """Open a video and find out which frames it shows.

    Args:
        clip_id: for messages.
        until_s: seconds after its first frame from which on nothing is of interest; None: all frames are found.
    Raises:
        MediaError: `unreadable_video`, `truncated_video`, `corrupt_video`, `orientation_unsupported`.
    """
    return _open(clip_id, path, until_s=until_s, until_frame=None)


_seen: OrderedDict[tuple[str, int, int], Video] = OrderedDict()
_seen_lock = threading.Lock()
_REMEMBERED = 256


def open_video_at(clip_id: str, path: Path, last_frame: int) -> Video:
    """Open a video of which frames up to `last_frame` will be read; what was found is kept for the next call.

    Scans no more of the file than that takes, and asks for no more than that is there: a file that lost its end still
    shows its beginning.

    Raises:
        MediaError: `unreadable_video`, `truncated_video`, `corrupt_video`, `orientation_unsupported`.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise MediaError("unreadable_video", f"clip {clip_id}: {path}: {error.strerror or error}") from error
    name = (str(path), status.st_size, status.st_mtime_ns)
    with _seen_lock:
        video = _seen.pop(name, None)
    known = -1 if video is None else len(video.timeline.ticks)
    if video is None or not (video.timeline.complete or video.timeline.by_count or last_frame < known):
        # Twice as far as before: whoever asks for ever later frames has the whole file scanned a few times at most.
        video = _open(clip_id, path, until_s=None, until_frame=max(last_frame, 2 * known))
    with _seen_lock:
        _seen[name] = video  # at the end: the last to be forgotten
        while len(_seen) > _REMEMBERED:
            _seen.popitem(last=False)
    return replace(video, clip_id=clip_id)


def _open(clip_id: str, path: Path, *, until_s: float | None, until_frame: int | None) -> Video:
    import av

    notes: list[str] = []
    with _readable(clip_id, path):
        with open_container(path) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise MediaError("unreadable_video", f"clip {clip_id}: {path}: has no video stream")
            assert isinstance(stream, av.VideoStream)
            _check_decodable(clip_id, path, stream)
            num_streams = len(container.streams.video)
            if num_streams > 1:
                notes.append(
                    f"{num_streams} video streams; stream {stream.index} ({stream.width}x{stream.height}) is used"
                )
            index = stream.index
            assert stream.time_base is not None
            rate = Fraction(stream.average_rate) if stream.average_rate else None
            format_name = container.format.name
            scan = scan_packets(container, stream, until_s=until_s, until_frame=until_frame)
        if scan.missing and until_frame is None:
            raise MediaError("truncated_video", f"clip {clip_id}: {path}: {scan.missing}")
        start = _decode_start(clip_id, path, index)
        if not start.ticks:
            raise MediaError("unreadable_video", f"clip {clip_id}: {path}: no frame can be decoded")
        timeline = scan.timeline
        if not (scan.trustworthy and start.ticks == timeline.ticks[: len(start.ticks)].tolist()):
            # Only decoding can tell; for someone who reads from the start anyway, counting does.
            timeline = counted(timeline) if until_frame is not None else scan_frames(path, index, timeline)
            notes.append("time stamps found by decoding: packets do not tell which frames are shown")
        if timeline.by_count and until_frame is None:
            if not rate:
                raise MediaError(
                    "unreadable_video", f"clip {clip_id}: {path}: neither time stamps nor a frame rate"
                )
            timeline = replace(timeline, tick_s=1 / rate)
            notes.append(f"no time stamps in order; frames are taken as evenly spaced at {float(rate):g} fps")
    if start.orientation:
        notes.append(f"{start.orientation}, as the file asks")
    height, width = start.orientation.shown_size((start.height, start.width))
    return Video(
        clip_id=clip_id,
        path=path,
        stream_index=index,
        num_streams=num_streams,
        format_name=format_name,
        average_rate=rate,
        timeline=timeline,
        height=height,
        width=width,
        orientation=start.orientation,
        pixel_aspect=1 / start.pixel_aspect if start.orientation.swaps_sides else start.pixel_aspect,
        notes=tuple(notes),
    )


def _check_decodable(clip_id: str, path: Path, stream: Any) -> None:
    """Refuse a stream that nothing here decodes, or of which a single frame is too large.

    Raises:
        MediaError: `unreadable_video`, `image_too_large`.
    """
    if stream.codec_context is None:
        raise MediaError(
            "unreadable_video",
            f"clip {clip_id}: {path}: stream {stream.index} is coded in a way that nothing decodes",
        )
    if stream.width and stream.height and (why := too_many_pixels(stream.height, stream.width)):
        raise MediaError("image_too_large", f"clip {clip_id}: {path}: stream {stream.index} {why}")


@contextmanager
def _readable(clip_id: str, path: Path) -> Iterator[None]:
    from av.error import FFmpegError

    try:
        yield
    except MediaError:
        raise
    except (FFmpegError, OSError) as error:
        cut = _is_mp4_without_index(path)
        hint = "the file begins as MP4 but its index (moov) is missing: " if cut else ""
        raise MediaError(
            "truncated_video" if cut else "unreadable_video",
            f"clip {clip_id}: {path}: {hint}{first_line(error)}{what_instead(path)}",
        ) from error
    # A damaged container reaches code that expects sane numbers and names: whatever that raises, the file is to blame.
    except Exception as error:
        raise MediaError(
            "unreadable_video", f"clip {clip_id}: {path}: {type(error).__name__}: {first_line(error)}"
        ) from error


@dataclass(frozen=True, kw_only=True)
class _Start:
    """The first shown frames of a stream: their time stamps (None where one has none), and how the first is stored."""

    ticks: list[int | None]
    height: int = 0
    width: int = 0
    orientation: Orientation = UPRIGHT
    pixel_aspect: Fraction = Fraction(1)


def _decode_start(clip_id: str, path: Path, stream_index: int) -> _Start:
    import av

    with open_container(path) as container:
        stream = container.streams[stream_index]
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.thread_count = 1
        frames = list(itertools.islice(decoded(container, stream), START_FRAMES))
        if not frames:
            return _Start(ticks=[])
        first = frames[0]
        try:
            orientation = _orientation_of(first)
        except ValueError as error:
            raise MediaError(
                "orientation_unsupported",
                f"clip {clip_id}: {path}: {error}; turn its pixels and drop the flag",
            ) from error
        return _Start(
            ticks=[f.pts for f in frames],
            height=first.height,
            width=first.width,
            orientation=orientation,
            pixel_aspect=Fraction(stream.sample_aspect_ratio or 1),
        )


def _orientation_of(frame: Any) -> Orientation:
    # By its name: what going through them gives is another thing from PyAV 19 on.
    data = frame.side_data.get("DISPLAYMATRIX")
    return UPRIGHT if data is None else Orientation.of_display_matrix(struct.unpack("=9i", bytes(data)[:36]))


def _is_mp4_without_index(path: Path) -> bool:
    """True if the top-level boxes of an ISO media file start properly but hold no `moov`: it was cut off."""
    try:
        if not path.is_file():
            return False
        size = path.stat().st_size
        with path.open("rb") as stream:
            offset, kinds = 0, []
            while offset + 8 <= size and len(kinds) < 64:
                stream.seek(offset)
                length, kind = struct.unpack(">I4s", stream.read(8))
                if length == 1:
                    length = struct.unpack(">Q", stream.read(8).ljust(8, b"\0"))[0]
                kinds.append(kind)
                if length < 8:
                    break
                offset += length
    except OSError:
        return False
    return kinds[:1] == [b"ftyp"] and b"moov" not in kinds


def first_line(error: BaseException) -> str:
    """What an error of FFmpeg says, without the path and the log that it repeats around the one sentence."""
    text = getattr(error, "strerror", None) or str(error)
    lines = text.strip().splitlines()
    return lines[0] if lines else type(error).__name__
