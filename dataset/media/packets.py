"""When the frames of a video file are shown: its packets, counted without decoding where they can be trusted."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import I64
from .container import open_container

START_FRAMES = 16
"""So many frames are decoded on opening, to hold the packets' time stamps against the decoder's."""
_MARGIN = 64
"""Packets that are read beyond the last frame of interest before it is asked whether those suffice."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Time stamps of a stream's shown frames.

    Attributes:
        ticks: (N,) presentation times in `tick_s`, strictly increasing; also the identity of a frame.
        tick_s: seconds of a tick.
        key: (N,) bool, True at frames from which decoding can start.
        key_dts: decoding time of each of those by its `ticks`.
        by_count: there are no usable time stamps: frame i is the i-th that is decoded; `ticks` merely count, and are
            empty where nobody needed to know how many there are.
        discarded: number of packets that are decoded but never shown (edit lists).
        complete: False if the scan ended before the file.
    """

    ticks: I64
    tick_s: Fraction
    key: NDArray[np.bool_]
    key_dts: dict[int, int | None]
    by_count: bool = False
    discarded: int = 0
    complete: bool = True


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """What packet headers say of a stream; `trustworthy` is False if only decoding can tell which frames are shown,
    `missing` says what of the file is not there."""

    timeline: Timeline
    trustworthy: bool
    missing: str = ""


def scan_packets(container: Any, stream: Any, *, until_s: float | None, until_frame: int | None) -> _Scan:
    """Read packet headers only: a hundred times faster than decoding, and equal to it on sane files."""
    shown: list[tuple[int, bool]] = []
    key_dts: dict[int, int | None] = {}
    num_packets = discarded = 0
    complete = True
    # Packets of VP8 may show nothing.
    trustworthy = stream.codec_context.name not in ("vp8", "libvpx")
    tick_s = Fraction(stream.time_base)
    begin: int | None = None
    for packet in container.demux(stream):
        if not packet.size:
            continue
        num_packets += 1
        if packet.pts is None:
            nothing = Timeline(ticks=np.zeros(0, np.int64), tick_s=tick_s, key=np.zeros(0, bool), key_dts={})
            return _Scan(timeline=nothing, trustworthy=False)
        if num_packets == 1 and not packet.is_keyframe:
            trustworthy = False  # frames before the first key frame are not decodable
        if packet.is_discard:
            discarded += 1
        else:
            # Every frame with time < end has a decoding time < end, and those only grow.
            begin = packet.pts if begin is None else min(begin, packet.pts)
            if until_s is not None and packet.dts is not None and (packet.dts - begin) * tick_s > until_s:
                complete = False
                break
            shown.append((packet.pts, packet.is_keyframe))
            if packet.is_keyframe:
                key_dts[packet.pts] = packet.dts
        if (
            until_frame is not None
            and packet.dts is not None
            and len(shown) > until_frame + _MARGIN
            and num_packets % _MARGIN == 0
        ):
            # What is shown before the last decoding time has been seen; after it some may be missing in between.
            found = sum(pts < packet.dts for pts, _ in shown)
            if found > until_frame + START_FRAMES:
                shown = sorted(shown)[:found]
                complete = False
                break
    timeline = Timeline(
        ticks=np.array([pts for pts, _ in sorted(shown)], np.int64),
        tick_s=tick_s,
        key=np.array([key for _, key in sorted(shown)], bool),
        key_dts=key_dts,
        discarded=discarded,
        complete=complete,
    )
    return _Scan(
        timeline=timeline,
        trustworthy=trustworthy and bool((np.diff(timeline.ticks) > 0).all()),
        missing=_missing(container, stream, timeline, num_packets) if complete else "",
    )


def _missing(container: Any, stream: Any, timeline: Timeline, num_packets: int) -> str:
    """What a file that was scanned to its end promises and does not hold."""
    if stream.frames > num_packets:
        return f"the index lists {stream.frames} frames, the file holds {num_packets}"
    if len(timeline.ticks) > 1 and not stream.frames:
        return _shorter_than_promised(container, stream, timeline.ticks)
    return ""


def _shorter_than_promised(container: Any, stream: Any, ticks: I64) -> str:
    """Containers without a frame count (Matroska): compare with the stream's or the file's duration."""
    promised_s = _promised_end_s(container, stream)
    if promised_s is None:
        return ""
    found_s = float((ticks[-1] - min(0, ticks[0]) + np.median(np.diff(ticks))) * stream.time_base)
    if found_s >= promised_s - _LAST_FRAME_S:
        return ""
    return f"its header promises {promised_s:.2f} s of video, the file holds {found_s:.2f} s"


_LAST_FRAME_S = 0.2
"""Some muxers count the last frame's length differently."""


_END_US = 1_000_000
"""So far before its end a file is looked at, for frames that are not stored in the order in which they are shown."""


def _promised_end_s(container: Any, stream: Any) -> float | None:
    """When a stream ends by the header of a container that counts no frames; the time may be counted from the stream's
    start, or from zero."""
    promised_s = _duration_tag_s(stream.metadata.get("DURATION", ""))
    if promised_s is None and len(container.streams) == 1 and container.duration:
        promised_s = container.duration / 1e6
    return promised_s


def shown_duration_s(container: Any, stream: Any) -> float | None:
    """Seconds from a stream's first frame to the end of its last, without reading all of it; None if unknown.

    Containers with an index of frames (MP4, AVI) say it. What others call a duration may count from zero though the
    stream starts later, or be that of a longer stream beside it: there the first and the last packets say it. A file
    that ends before what it promises lasts as long as it promises, so that reading it finds what is missing.
    """
    claimed_s = None if stream.duration is None else float(stream.duration * stream.time_base)
    if stream.frames and claimed_s is not None:
        return claimed_s
    first = _first_tick(container, stream)
    end = None if first is None else _end_tick(container, stream)
    if first is None or end is None or end <= first:  # no time stamps, or a format that cannot seek
        whole_s = container.duration / 1e6 if container.duration else None
        return whole_s if claimed_s is None else claimed_s
    first_s, end_s = float(first * stream.time_base), float(end * stream.time_base)
    promised_s = _promised_end_s(container, stream)
    if promised_s is not None and end_s < promised_s - _LAST_FRAME_S:
        end_s = promised_s
    return end_s - first_s


def _first_tick(container: Any, stream: Any) -> int | None:
    """Of the frames from the first key frame on."""
    ticks: list[int] = []
    begun = False
    for packet in _shown_packets(container, stream):
        if packet.is_keyframe and not begun:
            begun, ticks = True, []
        ticks.append(packet.pts)
        if len(ticks) >= (START_FRAMES if begun else _MOST_BEFORE_KEY):
            break
    return min(ticks, default=None)


def _end_tick(container: Any, stream: Any) -> Fraction | None:
    """End of the last frame: from the last key frame on, all are looked at."""
    from av.error import FFmpegError

    start_us = max(container.start_time or 0, 0)
    for target_us in (start_us + max(container.duration or 0, _END_US) - _END_US, start_us):
        try:
            container.seek(target_us)
        except (FFmpegError, OSError):
            return None
        ends = [p.pts + _length(p, stream) for p in _shown_packets(container, stream)]
        if ends:  # else other streams go on for longer, and all of the file is looked at
            return max(ends)
    return None


def _shown_packets(container: Any, stream: Any) -> Iterator[Any]:
    return (p for p in container.demux(stream) if p.size and p.pts is not None and not p.is_discard)


def _length(packet: Any, stream: Any) -> Fraction:
    """Ticks for which a packet's frame is shown; nothing where nobody says it."""
    if packet.duration:
        return Fraction(packet.duration)
    return 1 / (stream.average_rate * stream.time_base) if stream.average_rate else Fraction(0)


def _duration_tag_s(text: str) -> float | None:
    found = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", text.strip())
    if not found:
        return None
    hours, minutes, seconds = found.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames of a stream as it is decoded from its start. What comes before the first key frame, in a recording that
    was cut out of another, is left out as players do: decoders refuse it, or make something up."""
    before: list[Any] | None = []
    for packet in container.demux(stream):
        if before is None:
            yield from packet.decode()
            continue
        before.append(packet)
        if packet.is_keyframe or len(before) > _MOST_BEFORE_KEY:
            yield from itertools.chain.from_iterable(
                p.decode() for p in ([packet] if packet.is_keyframe else before)
            )
            before = None
    for packet in before or ():  # none is one: pictures may be refreshed strip by strip
        yield from packet.decode()


_MOST_BEFORE_KEY = 2000
"""Packets that are kept while a key frame is waited for."""


def counted(timeline: Timeline) -> Timeline:
    return Timeline(
        ticks=np.zeros(0, np.int64),
        tick_s=timeline.tick_s,
        key=np.zeros(0, bool),
        key_dts={},
        by_count=True,
        discarded=timeline.discarded,
        complete=False,
    )


def scan_frames(path: Path, stream_index: int, scanned: Timeline) -> Timeline:
    """Decode everything once, for files whose packets do not tell."""
    import av

    ticks: list[int | None] = []
    with open_container(path) as container:
        stream = container.streams[stream_index]
        assert isinstance(stream, av.VideoStream)
        ticks += (frame.pts for frame in decoded(container, stream))
    known = [tick for tick in ticks if tick is not None]
    by_count = len(known) < len(ticks) or any(b <= a for a, b in itertools.pairwise(known))
    return Timeline(
        ticks=np.arange(len(ticks)) if by_count else np.array(ticks, np.int64),
        tick_s=scanned.tick_s,
        key=np.zeros(len(ticks), bool),
        key_dts={},
        by_count=by_count,
    )
