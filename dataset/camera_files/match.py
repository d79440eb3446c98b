"""Which poses of two sets of cameras belong together: by name, number or time."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..arrays import I64, FloatArray
from ..cameras.transforms import interpolate_poses
from ..formats.trajectories import (
    associate,
)
from .record import ClipCameras

_SAME_SPACING_S = 1e-3
"""Times of two lists that differ by one constant, to this, are of the same frames."""
_OTHER_UNIT = 100
"""Ratio of usual steps from which on times that do not meet look like milliseconds beside seconds."""
_FEW_STEPS = 2.5
"""Matched frames further apart than this many usual steps leave a part of the path uncovered."""


@dataclass(frozen=True, kw_only=True)
class Matching:
    """How poses of two sides are brought together.

    Attributes:
        max_difference_s: largest distance of two times that belong together (evo's default).
        offset_s: added to the predicted times before; `start`: both sides start at the same moment.
        interpolate: take the truth between its two neighbours in time instead of the nearest.
        rows: what row i of a file without times belongs to, where the other side is a dataset: `source` frame i, clip
            frame i, or what the number of rows tells (`auto`).
        first_frame: number of a source's first frame in names of images and numbered rows; None: 0, or 1 where the
            numbers say so.
    """

    max_difference_s: float = 0.01
    offset_s: float | Literal["start"] = 0.0
    interpolate: bool = False
    rows: Literal["auto", "source", "clip"] = "auto"
    first_frame: int | None = None


def parse_offset(text: str) -> float | Literal["start"]:
    """Seconds, or `start`. Raises ValueError for anything else."""
    if text == "start":
        return "start"
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not np.isfinite(seconds):
        raise ValueError(f"--t-offset {text}: use seconds, e.g. -0.25, or start")
    return seconds


@dataclass(frozen=True, kw_only=True)
class Match:
    """Poses that belong together.

    Attributes:
        predicted, truth: (n,) places on either side, in order.
        truth_camera_to_world: (n, 4, 4) true poses of the moments of the predicted ones.
        how: what told them: `name`, `frame`, `image number`, `time`, `clip frame` or `row`, with what was assumed.
        coverage: share of the truth's poses that are matched.
        covered_span: share of the truth's poses that are matched or lie between matched ones that are close.
    """

    predicted: I64
    truth: I64
    truth_camera_to_world: FloatArray
    how: str
    coverage: float
    covered_span: float


class _Pairs(NamedTuple):
    """Places that belong together, what told them, and true poses where they are not those at the places."""

    predicted: I64
    truth: I64
    how: str
    truth_camera_to_world: FloatArray | None = None

    def swapped(self) -> _Pairs:
        return _Pairs(self.truth, self.predicted, self.how)


def match(clip_id: str, predicted: ClipCameras, truth: ClipCameras, options: Matching | None = None) -> Match:
    """Poses of both sides that are of the same moment, by the surest that both know: names of images, frame numbers,
    times, number of rows.

    Raises:
        ValueError: nothing in common, or a single pose of two paths, or nothing that tells what belongs together; names
            both sides.
    """
    i, j, how, poses = _pairs(clip_id, predicted, truth, options or Matching())
    poses = truth.camera_to_world[j] if poses is None else poses
    keep = predicted.posed[i] & np.isfinite(poses).all(axis=(1, 2))
    if keep.sum() < _least_common(predicted, truth):
        few = "one common frame, which says nothing of a path," if keep.any() else "no common frame"
        raise ValueError(f"clip {clip_id}: {few} with a camera on both sides (matched by {how})")
    i, j, poses = i[keep], j[keep], poses[keep]
    posed = truth.posed
    matched = np.zeros(len(posed), bool)
    matched[j] = True
    matched &= posed
    return Match(
        predicted=i,
        truth=j,
        truth_camera_to_world=poses,
        how=how,
        coverage=float(matched.sum() / posed.sum()),
        covered_span=_covered_span(truth, matched, posed),
    )


def _least_common(predicted: ClipCameras, truth: ClipCameras) -> int:
    """Poses that must be in common: one pose of two paths has no error, and is no score of either."""
    return max(1, min(2, int(predicted.posed.sum()), int(truth.posed.sum())))


def _covered_span(truth: ClipCameras, matched: NDArray[np.bool_], posed: NDArray[np.bool_]) -> float:
    """Share of the truth's poses that are matched or lie, in time or frames, between matched ones a few usual steps
    apart at most; before the first and after the last, within one such step."""
    axis = np.asarray(truth.frame_index if truth.time_s is None else truth.time_s, dtype=np.float64)
    whole, met = np.sort(axis[posed]), np.sort(axis[matched])
    steps = [float(np.median(np.diff(values))) for values in (whole, met) if len(values) > 1]
    usual = max(steps, default=0.0)
    after = np.searchsorted(met, whole, side="left")  # the first matched pose at or behind each
    before = np.searchsorted(met, whole, side="right") - 1
    inside = (after < len(met)) & (before >= 0)
    gap = met[np.minimum(after, len(met) - 1)] - met[np.maximum(before, 0)]
    outside = np.where(before < 0, met[0] - whole, whole - met[-1])
    return float(np.where(inside, gap <= _FEW_STEPS * usual, outside <= usual).mean())


def _pairs(clip_id: str, predicted: ClipCameras, truth: ClipCameras, options: Matching) -> _Pairs:
    named = _by_name(predicted, truth)
    if named is not None:
        return named
    predicted, truth = _with_frame_times(predicted, truth), _with_frame_times(truth, predicted)
    asked = predicted, truth
    predicted, truth = _numbered(predicted, truth), _numbered(truth, predicted)
    kinds = {predicted.numbering, truth.numbering}
    if len(kinds) == 1 and "rows" not in kinds:
        return _by_number(clip_id, predicted, truth, options)
    if kinds == {"images", "frames"}:
        if truth.numbering == "images":
            return _images_on_frames(clip_id, truth, predicted, options).swapped()
        return _images_on_frames(clip_id, predicted, truth, options)
    if predicted.time_s is not None and truth.time_s is not None:
        pairs = _by_time(clip_id, predicted, truth, options)
        same = asked[0].time_s is predicted.time_s and asked[1].time_s is truth.time_s
        return pairs if same else pairs._replace(how=f"{pairs.how}, whole numbers taken for milliseconds")
    if kinds == {"rows", "frames"}:
        if truth.numbering == "rows":
            return _rows_on_frames(clip_id, truth, predicted, options).swapped()
        return _rows_on_frames(clip_id, predicted, truth, options)
    if kinds == {"rows", "images"}:
        if truth.numbering == "images":
            return _images_on_frames(clip_id, truth, predicted, options).swapped()
        return _images_on_frames(clip_id, predicted, truth, options)
    ours, theirs = len(predicted.frame_index), len(truth.frame_index)
    if ours != theirs:
        raise ValueError(
            f"clip {clip_id}: {ours} predicted poses and {theirs} true ones, and nothing says which belong together: "
            "give both files times (TUM), or the same number of rows"
        )
    return _Pairs(np.arange(ours), np.arange(ours), "row")


def _by_name(predicted: ClipCameras, truth: ClipCameras) -> _Pairs | None:
    if predicted.names is None or truth.names is None:
        return None
    for part in (lambda name: Path(name).stem, lambda name: Path(name).with_suffix("").as_posix()):
        ours, theirs = ([part(n) for n in side.names or ()] for side in (predicted, truth))
        if len(set(ours)) == len(ours) and len(set(theirs)) == len(theirs):
            place = {name: k for k, name in enumerate(theirs)}
            pairs = np.array([(k, place[n]) for k, n in enumerate(ours) if n in place], dtype=np.int64)
            if len(pairs):
                return _Pairs(pairs[:, 0], pairs[:, 1], "name")
    return None


def _with_frame_times(side: ClipCameras, other: ClipCameras) -> ClipCameras:
    """A dataset's clip with the times of its source's frames, where the other side ships them beside its poses."""
    frames = other.frame_time_s
    if frames is None or side.numbering != "frames" or side.frame_index.max() >= len(frames):
        return side
    return replace(side, time_s=frames[side.frame_index], numbering="rows")


def _numbered(side: ClipCameras, other: ClipCameras) -> ClipCameras:
    """A file whose times are frame numbers, as some trackers write them: whole numbers where the other side has many
    frames a second."""
    t = side.time_s
    if side.numbering != "rows" or t is None or len(t) < 3 or (t != np.round(t)).any() or t[0] < 0:
        return side
    if (np.diff(t) <= 0).any() or t[-1] > 1e8:
        return side
    dense = other.time_s is not None and len(other.time_s) > 1 and np.median(np.diff(other.time_s)) < 0.5
    if not dense or other.numbering == "rows":
        return side
    if _are_milliseconds(t, other):
        return replace(side, time_s=t / 1000)
    return replace(side, frame_index=t.astype(np.int64), numbering="images", time_s=None)


def _are_milliseconds(whole: FloatArray, other: ClipCameras) -> bool:
    """Whether whole numbers meet more than twice as many of the other side's times, taken for milliseconds, as they
    meet of its frames, in whichever way images are numbered by those (`_images_on_frames`)."""
    if other.time_s is None:
        return False
    right = np.clip(np.searchsorted(whole, 1000 * other.time_s), 1, len(whole) - 1)
    apart = np.minimum(*(np.abs(whole[place] - 1000 * other.time_s) for place in (right, right - 1)))
    scales = (other.frame_index, np.arange(len(other.frame_index)))
    frames = max(int(np.isin(whole - first, scale).sum()) for first in (0, 1) for scale in scales)
    return bool((apart <= 10).sum() > 2 * max(1, frames))


def _span(values: NDArray) -> str:
    return f"{values.min():g} to {values.max():g}" if len(values) else "none"


def _by_number(clip_id: str, predicted: ClipCameras, truth: ClipCameras, options: Matching) -> _Pairs:
    ours, theirs = predicted.frame_index, truth.frame_index
    how = "frame" if predicted.numbering == "frames" else "image number"
    for side, other in ((predicted, truth), (truth, predicted)):
        if not side.counted or other.counted:
            continue
        first = options.first_frame or 0
        if options.first_frame is None and side.frame_index.min() == 1:
            # From 1 only where that is proved: with the last number there would be no frame.
            first = int(
                np.isin(side.frame_index - 1, other.frame_index).all()
                and not np.isin(side.frame_index, other.frame_index).all()
            )
        if first:
            how = f"frame (from {first})"
            ours, theirs = (ours - first, theirs) if side is predicted else (ours, theirs - first)
        elif options.first_frame is None and side.frame_index.min() == 1:
            how = "frame (from 0; --first-frame 1 if the file counts from 1)"
    _common, i, j = np.intersect1d(ours, theirs, return_indices=True)
    if not len(i):
        raise ValueError(
            f"clip {clip_id}: no common frame; prediction has source frames {_span(ours)}, truth {_span(theirs)}"
        )
    return _Pairs(i, j, how)


def _images_on_frames(clip_id: str, images: ClipCameras, frames: ClipCameras, options: Matching) -> _Pairs:
    """Images by the number in their name on the frames of a clip: source frames or clip frames, counted from 0 or 1."""
    number = images.frame_index
    count = len(frames.frame_index)
    firsts = (0, 1) if options.first_frame is None else (options.first_frame,)
    if options.first_frame is None and number.min() == 1:
        firsts = (1, 0)  # as ffmpeg and nerfstudio count
    clip_frame = np.arange(count)
    scales = [("source", frames.frame_index)]
    if not np.array_equal(frames.frame_index, clip_frame):
        scales.append(("clip", clip_frame))
    if options.rows != "auto":
        scales = [s for s in scales if s[0] == options.rows] or scales
    best: tuple[int, int, I64, I64, str] | None = None
    for name, scale in scales:
        for first in firsts:
            _common, i, j = np.intersect1d(number - first, scale, return_indices=True)
            # All images, or all frames (a model of every source frame): this is it. Otherwise the most.
            complete = int(len(i) in (len(number), count))
            how = (
                f"image number ({name} frames from {first})"
                if len(scales) > 1
                else f"image number (from {first})"
            )
            if best is None or (complete, len(i)) > best[:2]:
                best = (complete, len(i), i, j, how)
    assert best is not None, "there is at least one scale"
    if not best[1]:
        raise ValueError(
            f"clip {clip_id}: no common frame; images are numbered {_span(number)}, the clip has source frames "
            f"{_span(frames.frame_index)}"
        )
    return _Pairs(*best[2:])


def _rows_on_frames(clip_id: str, rows: ClipCameras, frames: ClipCameras, options: Matching) -> _Pairs:
    """Rows of a file without times on the frames of a clip: one a clip frame, or one a source frame."""
    count, wanted = len(rows.frame_index), len(frames.frame_index)
    last = int(frames.frame_index.max())
    if options.rows == "clip" or (options.rows == "auto" and count == wanted):
        if count != wanted:
            raise ValueError(f"clip {clip_id}: {count} rows, but the clip has {wanted} frames")
        return _Pairs(np.arange(count), np.arange(count), "clip frame")
    known = frames.source_frames
    if known is not None and count != known and options.rows != "source":
        raise ValueError(
            f"clip {clip_id}: {count} rows without times, but the source of the clip has {known} frames (the clip has"
            f" {wanted}): nothing says which of them the rows are for; give the file times (TUM), or a row for every"
            " frame" + (", or --rows source if row i is source frame i" if count > last else "")
        )
    spare = _spare_frames(frames)
    fits = count > last and (
        known is not None or spare is None or options.rows == "source" or count <= last + 1 + spare
    )
    if not fits:
        end = "" if spare is None or count <= last else f" of a source with at most {last + 1 + spare}"
        raise ValueError(
            f"clip {clip_id}: {count} rows without times, but the clip has {wanted} frames, up to source frame {last}"
            f"{end}; one row a clip frame or one a source frame is expected: give the file times (TUM)"
            + (", or --rows source if row i is source frame i" if count > last else "")
        )
    how = "source frame"
    if spare is None and known is None:
        # A cut clip does not know where its source ends: rows of the source's end look alike.
        how = (
            f"source frame ({count} rows assumed to begin with the source's first; of how many is not known)"
        )
    return _Pairs(frames.frame_index, np.arange(wanted), how)


def _by_time(clip_id: str, predicted: ClipCameras, truth: ClipCameras, options: Matching) -> _Pairs:
    assert predicted.time_s is not None, "asked for where both have times"
    assert truth.time_s is not None, "asked for where both have times"
    offset, how = _offset(predicted, truth, options)
    # Only frames with a camera: a neighbour without one must not take the place of the next.
    i, j = np.flatnonzero(predicted.posed), np.flatnonzero(truth.posed)
    i, j = i[np.argsort(predicted.time_s[i], kind="stable")], j[np.argsort(truth.time_s[j], kind="stable")]
    ours, theirs = predicted.time_s[i] + offset, truth.time_s[j]
    least = _least_common(predicted, truth)
    a = b = np.zeros(0, np.int64)
    if options.interpolate:
        a, b, poses = _between(ours, theirs, truth.camera_to_world[j])
        if len(a) >= least:
            return _Pairs(i[a], j[b], f"{how} (interpolated)", poses)
    else:
        with suppress(ValueError):
            a, b = associate(ours, theirs, max_difference_s=options.max_difference_s)
        if len(a) >= least:
            return _Pairs(i[a], j[b], how)
    few = "one common frame, which says nothing of a path" if len(a) else "no common frame"
    raise ValueError(f"clip {clip_id}: {few}; {_apart(ours, theirs, offset, options, num_common=len(a))}")


def _between(
    wanted: FloatArray, time_s: FloatArray, camera_to_world: FloatArray
) -> tuple[I64, I64, FloatArray]:
    """Poses (n, 4, 4) at the wanted times that lie between two neighbours of usual distance, with the places (n,) among
    the wanted and of the nearest neighbour."""
    if len(time_s) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4, 4))
    right = np.clip(np.searchsorted(time_s, wanted), 1, len(time_s) - 1)
    gap = time_s[right] - time_s[right - 1]
    inside = (wanted >= time_s[0]) & (wanted <= time_s[-1]) & (gap <= _FEW_STEPS * np.median(np.diff(time_s)))
    a = np.flatnonzero(inside)
    if not len(a):
        return a, a, np.zeros((0, 4, 4))
    nearer_left = wanted[a] - time_s[right[a] - 1] <= time_s[right[a]] - wanted[a]
    return a, right[a] - nearer_left, interpolate_poses(time_s, camera_to_world, wanted[a])


def _offset(predicted: ClipCameras, truth: ClipCameras, options: Matching) -> tuple[float, str]:
    """Seconds to add to the predicted times, and the words for it."""
    ours, theirs = predicted.time_s, truth.time_s
    assert ours is not None, "asked for where both have times"
    assert theirs is not None, "asked for where both have times"
    if options.offset_s == "start":
        return float(theirs[0] - ours[0]), "time from the start"
    if options.offset_s:
        return float(options.offset_s), f"time (offset {options.offset_s:.10g} s)"
    if truth.numbering == "frames" and predicted.numbering == "rows":
        apart, how = _zeros_apart(predicted, truth, options)
        return -apart, how
    if predicted.numbering == "frames" and truth.numbering == "rows":
        return _zeros_apart(truth, predicted, options)
    return 0.0, "time"


def _zeros_apart(rows: ClipCameras, frames: ClipCameras, options: Matching) -> tuple[float, str]:
    """Seconds by which the clock of a file is ahead of that of a dataset's clip, and the words for it. 0 unless the
    file cannot but hold the clip's own frames, or its source's."""
    file, clip = rows.time_s, frames.time_s
    assert file is not None, "asked for where both have times"
    assert clip is not None, "asked for where both have times"
    foreign = bool(file[0] > clip[-1] or file[-1] < clip[0])  # another clock, such as since 1970
    from_zero = abs(file[0]) <= _SAME_SPACING_S < abs(clip[0])
    if len(file) == len(clip) and (foreign or from_zero):
        # An export counts from the clip's first frame: as many poses with the same spacing. A file that starts anywhere
        # else on the clip's clock is early or late, which is what is measured.
        apart = float(file[0] - clip[0])
        if np.abs(file - clip - apart).max() <= _SAME_SPACING_S:
            return apart, f"time in the clip (zeros {abs(apart):.3f} s apart)"
    spare = _spare_frames(frames)
    last = int(frames.frame_index.max())
    one_a_frame = spare is not None and last < len(file) <= last + 1 + spare
    if one_a_frame and foreign:
        # One pose a source frame with the clip's own spacing.
        gaps = file[frames.frame_index] - clip
        apart = float(np.median(gaps))
        if np.abs(gaps - apart).max() <= options.max_difference_s:
            return apart, f"time of source frames (zeros {abs(apart):.3f} s apart)"
    return 0.0, "time"


def _spare_frames(frames: ClipCameras) -> int | None:
    """Source frames that a clip of a whole source leaves behind its last one at most: less than one of its own steps.
    None where the clip may end before its source."""
    return int(np.ceil(frames.source_step or 1.0)) if frames.whole_source else None


def _apart(ours: FloatArray, theirs: FloatArray, offset: float, options: Matching, *, num_common: int) -> str:
    """What to say where no times, or one alone, are close; `ours` with the offset."""
    shifted = f" (moved by {offset:g} s)" if offset else ""
    span = f"truth {theirs[0]:.3f} to {theirs[-1]:.3f} s"
    apart = f"prediction has times {ours[0]:.3f} to {ours[-1]:.3f} s{shifted}, {span}"
    if min(len(ours), len(theirs)) > 1:
        steps = [float(np.median(np.diff(times))) for times in (ours, theirs)]
        if min(steps) > 0 and max(steps) > _OTHER_UNIT * min(steps):
            return f"{apart}, in steps of {steps[0]:.3g} and {steps[1]:.3g} s: are both in seconds?"
    if ours[-1] >= theirs[0] and ours[0] <= theirs[-1]:
        none = "no others" if num_common else "none"
        if options.interpolate:
            return f"{apart}, {none} between two true poses at most {_FEW_STEPS:g} usual steps apart"
        return (
            f"{apart}, {none} within {options.max_difference_s:g} s of each other: --t-max-diff SECONDS allows more, "
            "--interpolate takes the truth between its neighbours"
        )
    return (
        f"{apart}; they do not overlap: --t-offset start if both begin at the same moment, else --t-offset SECONDS, "
        "added to the predicted times"
    )
