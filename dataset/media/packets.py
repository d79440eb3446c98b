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
