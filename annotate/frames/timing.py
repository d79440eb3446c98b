"""Which stored frames make up a clip, and when each of them was taken."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from ...dataset.arrays import I64
from ..sources.clip import GRID_FPS, LEAST_FPS, MOST_FPS, ClipRef, ClipRejection
from .base import ClipTiming, DecodeConfig

_RATE_TOLERANCE = 2e-3
"""Relative: a source at 16/1.001 fps counts as 16 fps; its clip is one frame short after a minute."""
_WINDOW_SLACK_S = 1e-6
"""Windows are given in decimal seconds, time stamps are fractions: a frame this close to an edge is on it."""


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
class Timeline:
    """What a source shows and when.

    Attributes:
        ticks: (N,) presentation times in `tick_s`, strictly increasing; also the identity of a video frame.
        tick_s: seconds of a tick.
        complete: False if the scan stopped at the end of a window.
    """

    ticks: I64
    tick_s: Fraction
    complete: bool = True


def stated_rate(clip: ClipRef, config: DecodeConfig) -> float | None:
    """Frames a second that the recipe or the clip's source says, if one of them does.

    Raises:
        ClipRejection: `no_frame_rate`: a number that is none, as damaged lists of times say.
    """
    rate = config.source_fps or clip.source_fps
    if rate is not None and not LEAST_FPS <= rate <= MOST_FPS:
        raise ClipRejection(
            "no_frame_rate",
            f"clip {clip.clip_id}: {clip.media_path}: source_fps is {rate:g}, expected {LEAST_FPS:g} to {MOST_FPS:g}",
        )
    return rate


def nominal_timeline(num_frames: int, fps: float, *, complete: bool) -> Timeline:
    rate = Fraction(fps).limit_denominator(1_000_000)
    return Timeline(ticks=np.arange(num_frames), tick_s=1 / rate, complete=complete)


def clip_timing(clip: ClipRef, timeline: Timeline, config: DecodeConfig) -> ClipTiming:
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
        ticks = timeline.ticks
        lasts = (
            f" ({float((ticks[-1] - ticks[0]) * timeline.tick_s):.2f} s)"
            if window and timeline.complete
            else ""
        )
        asked = "annotate.decode.min_frames" if least == config.min_frames else "source.windows"
        raise ClipRejection(
            "too_short",
            f"clip {clip.clip_id}: {clip.media_path}: {len(index)} frames{window} of {len(ticks)} source"
            f" frames{lasts}, at least {least} are wanted ({asked})",
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
