"""Pairs of frames on which readings of depth are compared, and the depth of their points in each reading."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...dataset.arrays import BoolArray, FloatArray, IntArray
from ..geometry.base import DepthMaps
from ..sfm.depth_noise import cut_off
from ..tracks.descriptors import match_features
from ..tracks.records import ImageMeasurements, TracksConfig, indices_by_group
from .readings import Place, Reading

_NUM_PAIRS = 24
FEW_PAIRS = 6
"""With fewer, matches of descriptors make further pairs: pictures far apart carry no tracks."""
MAX_POINTS = 96
MIN_POINTS = 30
_MIN_SHARED = 60
_MAX_GAP = 29
_MAX_MOVE = 0.25
"""Largest median motion between the frames of a pair, as a share of the diagonal. Large: depth shows in parallax."""
_PATCH = 5
"""Side of the square of depth pixels whose median counts: single pixels are noisy."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """P pairs of frames with up to n shared points each; places in shares of width and height."""

    first: IntArray
    second: IntArray
    a: FloatArray  # (P, n, 2)
    b: FloatArray
    there: BoolArray  # (P, n)

    def __len__(self) -> int:
        return len(self.first)

    def some(self, chosen: IntArray, points: int | None = None) -> Pairs:
        return Pairs(
            first=self.first[chosen],
            second=self.second[chosen],
            a=self.a[chosen, :points],
            b=self.b[chosen, :points],
            there=self.there[chosen, :points],
        )


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How many pairs are asked for, how many tracks a pair has to share unless it is of neighbours, how many points of
    it count at most, and before which frame both of its pictures lie (None: anywhere)."""

    pairs: int = _NUM_PAIRS
    shared: int = _MIN_SHARED
    points: int = MAX_POINTS
    end: int | None = None


def choose_pairs(
    measured: ImageMeasurements, tracks_config: TracksConfig, wanted: Wanted | None = None
) -> Pairs:
    """Pairs spread over the clip, each as far apart as the tracks reach; else neighbouring keyframes that match."""
    wanted = wanted or Wanted()
    flow = measured.flow
    frames = flow.num_frames if wanted.end is None else min(flow.num_frames, wanted.end)
    size = np.array([flow.width, flow.height])
    farthest = _MAX_MOVE * float(np.hypot(flow.width, flow.height))
    by_frame = indices_by_group(flow.frame, flow.num_frames)
    rng = np.random.default_rng(20260701)
    found: list[tuple[int, int, FloatArray, FloatArray]] = []
    for i in np.unique(np.linspace(0, max(0, frames - 2), wanted.pairs).round().astype(int)).tolist():
        best = None
        for j in range(i + 1, min(frames, i + _MAX_GAP + 1)):
            _, p, q = np.intersect1d(
                flow.track[by_frame[i]], flow.track[by_frame[j]], assume_unique=True, return_indices=True
            )
            a, b = flow.xy_px[by_frame[i][p]], flow.xy_px[by_frame[j][q]]
            least = _MIN_SHARED if best is None else wanted.shared
            if len(a) < least or np.median(np.linalg.norm(b - a, axis=1)) > farthest:
                break
            best = (i, j, a, b)
        if best is not None:
            found.append(best)
    if len(found) < FEW_PAIRS and wanted.end is None:
        for k, step in _neighbours(len(measured.features)):
            one, other = measured.features[k], measured.features[k + step]
            match = match_features(one, other, tracks_config, diagonal_px=farthest / _MAX_MOVE)
            if len(match) >= MIN_POINTS:
                found.append((one.frame, other.frame, one.xy_px[match[:, 0]], other.xy_px[match[:, 1]]))
    a, b = np.zeros((2, len(found), wanted.points, 2))
    there = np.zeros((len(found), wanted.points), bool)
    for k, (_, _, x, y) in enumerate(found):
        chosen = rng.permutation(len(x))[: wanted.points]
        a[k, : len(chosen)], b[k, : len(chosen)] = x[chosen] / size, y[chosen] / size
        there[k, : len(chosen)] = True
    return Pairs(
        first=np.array([f[0] for f in found], np.int64),
        second=np.array([f[1] for f in found], np.int64),
        a=a,
        b=b,
        there=there,
    )


def _neighbours(keyframes: int) -> list[tuple[int, int]]:
    """Up to `_NUM_PAIRS` pairs (first, step) of keyframes that follow each other or leave one out."""
    pairs = [(k, step) for k in range(keyframes) for step in (1, 2) if k + step < keyframes]
    return (
        [pairs[k] for k in np.unique(np.linspace(0, len(pairs) - 1, _NUM_PAIRS).astype(int))] if pairs else []
    )


_DY, _DX = np.mgrid[:_PATCH, :_PATCH].reshape(2, -1) - _PATCH // 2


def _look_up(z: FloatArray, xy: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Depth (n,) around places `xy`, the median of a small square (NaN where little is valid), and its log spread."""
    height, width = z.shape
    column, row = np.floor(xy[:, 0] * width).astype(np.int64), np.floor(xy[:, 1] * height).astype(np.int64)
    inside = (column >= 0) & (row >= 0) & (column < width) & (row < height)
    rows = np.minimum(np.maximum(row[:, None] + _DY, 0), height - 1)
    columns = np.minimum(np.maximum(column[:, None] + _DX, 0), width - 1)
    patch = np.ascontiguousarray(z).reshape(-1)[rows * width + columns]
    good = np.isfinite(patch) & (patch > 0)
    patch = np.sort(np.where(good, patch, np.inf), 1)
    count = good.sum(1)
    ok = inside & (count >= _PATCH * _PATCH // 2)
    last = np.where(ok, count, 1) - 1
    number = np.arange(len(xy))
    with np.errstate(invalid="ignore"):
        spread = np.log(patch[number, 4 * last // 5]) - np.log(patch[number, last // 5])
    return np.where(ok, patch[number, last // 2], np.nan), np.where(ok, spread, np.nan)


def _without_edges(middle: FloatArray, spread: FloatArray) -> FloatArray:
    """Depth (n,) of one map, NaN at edges: more spread than 4 %, and than 2.5 times what noise makes in this map."""
    known = np.sort(spread[np.isfinite(spread)])
    if not len(known):
        return middle
    # Asked thousands of times a clip, of a few dozen numbers: numpy's own median takes ten times as long.
    median = (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2
    return np.where(spread <= max(0.04, 2.5 * float(median)), middle, np.nan)


def _measured(z: FloatArray) -> FloatArray:
    """A map without the values at which it is cut off: they are no measurements."""
    low, high = cut_off(z)
    if low == 0 and high == np.inf:
        return z
    with np.errstate(invalid="ignore"):
        return np.where((z > low) & (z < high), z, np.nan)


def sampled(depth: DepthMaps, pairs: Pairs, readings: Sequence[Reading]) -> tuple[FloatArray, FloatArray]:
    """Stored depth (R, P, n) of every reading at the points of the first and of the second frame of each pair.

    Every map is read once.
    """
    out = np.full((2, len(readings), *pairs.there.shape), np.nan)
    wanted: dict[int, dict[tuple[int, int, Place | None], list[int]]] = defaultdict(lambda: defaultdict(list))
    for r, reading in enumerate(readings):
        for side, frame in enumerate((pairs.first, pairs.second)):
            taken = frame if reading.frame is None else reading.frame(frame)
            for p, f in enumerate(np.asarray(taken).tolist()):
                if 0 <= f < len(depth):
                    wanted[f][side, p, reading.place].append(r)
    for frame in sorted(wanted):
        z = depth.read(frame)
        if z is None:
            continue
        z = _measured(z)
        asked = list(wanted[frame])
        places = []
        for side, p, place in asked:
            xy = (pairs.a, pairs.b)[side][p][pairs.there[p]]
            places.append(xy if place is None else place(xy))
        ends = np.cumsum([len(xy) for xy in places])[:-1]
        found = (np.split(x, ends) for x in _look_up(z, np.concatenate(places)))
        for (side, p, place), middle, spread in zip(asked, *found, strict=True):
            kept = _without_edges(middle, spread)
            for r in wanted[frame][side, p, place]:
                out[side, r, p, pairs.there[p]] = kept
    return out[0], out[1]
