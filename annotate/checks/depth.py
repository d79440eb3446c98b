"""Given depth against the images: do the two belong together, as they are?

A folder of depth maps says neither which way up they are, nor which frames they belong to, nor what their numbers
mean, and a wrong reading often gives a plausible path. So readings compete. Over pairs of frames a little apart,
tracked points are lifted with the depth of the first frame; the motion that brings them nearest to where the second
frame shows them is found anew for every reading (six numbers, a focal length and its change); and the depth that the
motion predicts is compared with that of the second frame. A reading is as good as what remains of both, measured on the
pairs themselves: depth that is noisy by 10 % is noisy in every reading, so noise makes the comparison blunt, not wrong.

The depth is refused when another reading fits better by a margin in units of its own uncertainty, when it explains no
more of the parallax than one depth for all points would, or when frames contradict each other. Nothing is repaired: the
row says what fits, and the recording is mended by hand. Where the pairs hold too little to tell, nothing is said and
other gates judge.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np

from ...dataset.arrays import BoolArray, FloatArray, IntArray
from ...dataset.cameras.rotations import so3_exp
from ..geometry.base import DepthMaps
from ..sfm.records import KnownLens
from ..sources.clip import DepthKind
from ..tracks.descriptors import match_features
from ..tracks.records import ImageMeasurements, TracksConfig, indices_by_group

Place = Callable[[FloatArray], FloatArray]
"""Image places -> map places (n, 2), both in shares of width and height."""

_NUM_PAIRS = 24
_FEW_PAIRS = 6
"""With fewer, matches of descriptors make further pairs: pictures far apart carry no tracks."""
_LEAST_PAIRS = 3
_MAX_POINTS = 96
_MIN_POINTS = 30
_MIN_SHARED = 60
_MAX_GAP = 29
_MAX_MOVE = 0.25
"""Largest median motion between the frames of a pair, as a share of the diagonal. Large: depth shows in parallax."""
_PATCH = 5
"""Side of the square of depth pixels whose median counts: single pixels are noisy."""
_WORKING_PX = 640.0
_FOCAL, _FOCAL_SIGMA, _CHANGE_SIGMA = 0.9, 0.4, 0.3
"""What is expected of a lens: focal length over the longer image side unless it is known, its spread and that of its
change in a pair, in logs."""
_RIGID_PX = 3.0
"""What a rigid scene may leave of a pair, whatever its depth (pixels of a 640 px image); more is mismatched."""
_FITTED_PX = 4.0
"""Misfit (pixels of a 640 px image) that some reading has to reach for a pair to tell readings apart."""
_FLOOR_PX, _FLOOR_LOG = 0.35, 0.004
"""What the best depth leaves: pixels of a 640 px image, and log depth. Differences below are none."""
_SURE, _SURE_ORDER, _SURE_FAR = 3.5, 4.0, 5.0
"""Standard errors that count as certainty: usually, among orders, and for the best of all places in time."""
_MATTERS_LOG = 0.12
"""Lead of another reading below which it makes no difference worth a rejection."""
_LEAST_PARALLAX_PX2 = 1.5
"""Square of parallax (pixels of a 640 px image) below which nothing is said of how much of it depth explains."""
_FLAT_LOG = 1e-4
"""Spread of depth over points below which it is one number for all."""
_LOST_TRACK = 0.25
"""Unexplained parallax from which on the depth may belong to other frames altogether."""
_NUM_ENDS = 16
"""Maps whose largest values are compared."""
_MOST_AT_END = 0.02
"""Share of a map at its largest value above which its range is cut off there (as `depth_noise.cut_off`)."""
_NEAR, _MAX_SHIFT = 4, 64
"""Frames by which depth may be late or early: always in question, and at most."""


@dataclass(frozen=True)
class Reading:
    """One way to take the depth files.

    Attributes:
        words: how the maps fit where this reading wins: "the depth fits the images better ...".
        frame: (n,) clip frame -> (n,) clip frame whose map belongs to it.
        place: image places -> map places.
        value: what is done to the numbers.
    """

    words: str
    frame: Callable[[IntArray], IntArray] | None = None
    place: Place | None = None
    value: str = "z"


def _turned(columns: tuple[int, int], flip: tuple[bool, bool]) -> Place:
    def place(xy: FloatArray) -> FloatArray:
        out = xy[:, list(columns)]
        return np.where(np.array(flip), 1 - out, out)

    return place


def _framed(scale: tuple[float, float], offset: tuple[float, float] = (0.0, 0.0)) -> Place:
    return lambda xy: (xy - 0.5) * np.array(scale) + 0.5 + np.array(offset)


_GIVEN = Reading("as they are")
_CONSTANT = Reading("as one plane", value="constant")
_TURNS = (
    Reading("when flipped vertically", place=_turned((0, 1), (False, True))),
    Reading("when flipped horizontally", place=_turned((0, 1), (True, False))),
    Reading("when turned by 180 degrees", place=_turned((0, 1), (True, True))),
    Reading("when transposed (rows taken for columns)", place=_turned((1, 0), (False, False))),
    Reading("when transposed and turned by 180 degrees", place=_turned((1, 0), (True, True))),
    Reading("when turned by 90 degrees clockwise", place=_turned((1, 0), (False, True))),
    Reading("when turned by 90 degrees counter-clockwise", place=_turned((1, 0), (True, False))),
)
_VIEWS = tuple(
    Reading(f"when the maps show {words}", place=_framed(scale, offset))
    for words, scale, offset in (
        ("a field of view 1.25 times as wide", (0.8, 0.8), (0.0, 0.0)),
        ("a field of view 0.8 times as wide", (1.25, 1.25), (0.0, 0.0)),
        ("the image with bars at its sides cut off", (4 / 3, 1.0), (0.0, 0.0)),
        ("the image with bars at top and bottom cut off", (1.0, 4 / 3), (0.0, 0.0)),
        ("a wider image, squeezed", (0.75, 1.0), (0.0, 0.0)),
        ("a higher image, squeezed", (1.0, 0.75), (0.0, 0.0)),
        ("the scene 10 % of the width further left", (1.0, 1.0), (-0.1, 0.0)),
        ("the scene 10 % of the width further right", (1.0, 1.0), (0.1, 0.0)),
        ("the scene 10 % of the height further up", (1.0, 1.0), (0.0, -0.1)),
        ("the scene 10 % of the height further down", (1.0, 1.0), (0.0, 0.1)),
    )
)


def _values(kind: DepthKind) -> tuple[Reading, ...]:
    inverse = "as depth (not as disparity)" if kind == "disparity" else "as disparity, the inverse of depth"
    longer = (
        "as depth along the axis (not as ray distance)"
        if kind == "ray_distance"
        else "as z-depth divided twice"
    )
    return (
        Reading(inverse, value="inverse"),
        Reading("as distance along the ray", value="ray"),
        Reading(longer, value="axis"),
    )


@cache
def _shifted(k: int) -> Reading:
    """The map that lies `k` frames later belongs to the image."""
    late = "later" if k > 0 else "earlier"
    plural = "" if abs(k) == 1 else "s"
    return Reading(f"when taken {abs(k)} clip frame{plural} {late}", frame=lambda i: i + k)


def _orders(frames: int) -> tuple[Reading, ...]:
    """Other orders and rates of the maps."""
    by_text = np.array(sorted(range(frames), key=str), np.int64)
    back = np.argsort(by_text)

    def rate(r: float) -> Callable[[IntArray], IntArray]:
        return lambda i: np.round(np.asarray(i) * r).astype(np.int64)

    return (
        Reading("when taken from last to first", frame=lambda i: frames - 1 - np.asarray(i)),
        Reading(
            "when the files are sorted by number (10 after 9), not by text",
            frame=lambda i: back[np.asarray(i)],
        ),
        Reading(
            "when the files are sorted by text (10 before 2), not by number",
            frame=lambda i: by_text[np.asarray(i)],
        ),
        *(
            Reading(f"when taken at {r:.3g} times their rate", frame=rate(r))
            for r in (1 / 2, 2.0, 4 / 5, 5 / 4, 8 / 15, 15 / 8, 24 / 25, 25 / 24)
        ),
    )


@dataclass(frozen=True, kw_only=True)
class DepthCheck:
    """How given depth fits the images; medians and means over pairs of frames.

    Attributes:
        num_pairs: pairs that were compared; with fewer than four nothing is said (the other numbers are NaN).
        misfit_px: median distance between where the motion takes a point and where it was seen, stored pixels.
        unexplained: share of the parallax that the depth leaves unexplained and its own noise does not account for: 0
            for depth that fits, about 1 for that of something else; NaN where there is too little parallax.
        inconsistency_log: median absolute log difference between the depth that the motion predicts in the second
            frame and the depth there, after a factor for each pair.
        unit_step_log: median absolute log of that factor: by how much the unit changes between frames.
        same_end: whether all maps end at one and the same value although few pixels have it and they show different
            things: so do maps that were normalised one by one, and no sensor.
        margin_log: how much better the depth fits as it is than in any other reading, at its least within the
            uncertainty; below zero another reading is better for certain.
        better_reading: words of that other reading where it is better, else empty.
        better_log, better_sigma_log: its mean advantage and standard error.
    """

    num_pairs: int
    misfit_px: float = float("nan")
    unexplained: float = float("nan")
    inconsistency_log: float = float("nan")
    unit_step_log: float = float("nan")
    same_end: bool = False
    margin_log: float = float("nan")
    better_reading: str = ""
    better_log: float = float("nan")
    better_sigma_log: float = float("nan")

    def explain(self, gate: str) -> str:
        """What a failed gate of this check means for the recording, in a clause."""
        if gate == "depth_reading":
            return (
                f"the depth fits the images better {self.better_reading} (log misfit {self.better_log:.2f} +-"
                f" {self.better_sigma_log:.2f} lower over {self.num_pairs} pairs of frames); nothing was changed"
            )
        if gate == "depth_parallax":
            return "the depth says no more of how points move against each other than one depth for all would"
        if gate == "depth_consistency":
            return (
                "the depth of one frame contradicts that of the next: another clip's, or numbers read wrongly"
            )
        if self.same_end:
            return (
                "the unit of the depth changes between frames, and every map ends at the same value: they were"
                " normalised one by one"
            )
        return "the unit of the depth jumps between frames: maps that were normalised one by one, or in another order"


_NO_PAIRS = DepthCheck(num_pairs=0)


def check_depth(
    measured: ImageMeasurements,
    depth: DepthMaps,
    *,
    tracks_config: TracksConfig,
    kind: DepthKind = "z",
    lens: KnownLens | None = None,
    pixel_aspect: float = 1.0,
) -> DepthCheck:
    """Compare the depth as it is with what it would be in other readings.

    Turns, values and neighbours in time are always tried. Maps further away in time are tried until one is worse for
    certain; where none is, or where the depth leaves much of the parallax unexplained, all within `_MAX_SHIFT` frames
    are, and other orders and rates.

    Args:
        measured: tracks of the clip.
        depth: as the source gives it, in any unit.
        tracks_config: for matching descriptors, where pictures are too far apart for tracks.
        kind: what the source says its numbers are; used for words only.
        lens: known intrinsics; None: a focal length is found for each pair.
        pixel_aspect: width over height of a stored pixel.
    """
    pairs = _choose_pairs(measured, tracks_config)
    if len(pairs) < _LEAST_PAIRS:
        return replace(_NO_PAIRS, num_pairs=len(pairs))
    scene, px = _scene(measured, depth, pairs, lens, pixel_aspect)
    free = _free_misfit(scene)
    rigid = np.flatnonzero(free < _RIGID_PX)
    if len(rigid) < _LEAST_PAIRS:
        return replace(_NO_PAIRS, num_pairs=len(rigid))
    scene, free = scene.some(rigid), free[rigid]
    pairs = scene.pairs
    readings = [_GIVEN, _CONSTANT, *_TURNS, *_VIEWS, *_values(kind), _shifted(-1), _shifted(1)]
    fits = scene.fits(readings)
    told = int(np.isfinite(fits.cost()[0]).sum())
    if told < _LEAST_PAIRS:
        return replace(_NO_PAIRS, num_pairs=told)
    plain = DepthCheck(
        num_pairs=len(pairs),
        misfit_px=float(np.nanmedian(fits.misfit_px[0])) * px,
        inconsistency_log=float(np.nanmedian(fits.inconsistency[0])),
        unit_step_log=float(np.nanmedian(np.abs(fits.gain[0]))),
        same_end=_end_alike(depth),
    )
    if np.nanmedian(fits.relief[0]) < _FLAT_LOG:
        return replace(plain, unexplained=1.0)  # one number for all points, however it is read
    unexplained = _unexplained(fits, free)
    given = fits.cost()[0]
    least = np.full(len(pairs), np.inf)  # misfit of the best reading: where none fits, none is better

    def leads_of(others: Sequence[Reading], found: _Fits) -> dict[Reading, _Lead]:
        np.fmin(least, found.misfit_px.min(0, where=np.isfinite(found.misfit_px), initial=np.inf), out=least)
        costs = np.where(least < _FITTED_PX, found.cost(), np.nan)
        return {r: _lead(given, c) for r, c in zip(others, costs, strict=True)}

    def compete(others: Sequence[Reading]) -> dict[Reading, _Lead]:
        others = [r for r in others if not _same_frames(r, pairs)]
        return leads_of(others, scene.fits(others))

    leads = leads_of(readings, fits)
    leads = {r: lead for r, lead in leads.items() if r not in (_GIVEN, _CONSTANT)}
    neighbours = tuple(leads[r] for r in readings[-2:])
    k = 1
    while not all(lead.won for lead in neighbours) and 2 * k <= min(_MAX_SHIFT, len(depth) // 2):
        k *= 2
        sure = _SURE if k <= _NEAR else _SURE_FAR
        found = {r: replace(lead, sure=sure) for r, lead in compete([_shifted(-k), _shifted(k)]).items()}
        leads |= found
        neighbours = tuple(found.values())
    lost = any(lead.lost for lead in leads.values())
    if lost or unexplained > _LOST_TRACK or not all(lead.won for lead in neighbours):
        # Half of the pairs, half of their points find the place in time; all of them judge it.
        half = scene.some(np.arange(0, len(pairs), 2), _MAX_POINTS // 2)
        reach = min(_MAX_SHIFT, len(depth) // 2)
        far = [_shifted(k) for k in range(-reach, reach + 1) if abs(k) > 1]
        found: dict[Reading, _Lead] = {}
        if far:
            tried = half.fits([_GIVEN, *far]).cost()
            means = np.array([_lead(tried[0], c).mean for c in tried[1:]])
            if np.isfinite(means).any():
                best = int(np.nanargmin(means))
                near = {_shifted(k) for k in range(-_NEAR, _NEAR + 1)}
                found = {
                    r: lead if r in near else replace(lead, sure=_SURE_FAR)
                    for r, lead in compete(far[max(0, best - 1) : best + 2]).items()
                }
        found |= {r: replace(lead, sure=_SURE_ORDER) for r, lead in compete(_orders(len(depth))).items()}
        leads |= {r: lead for r, lead in found.items() if r not in leads and 3 * lead.num_pairs >= len(pairs)}
    known = {r: lead for r, lead in leads.items() if np.isfinite(lead.margin)}
    margin = min((lead.margin for lead in known.values()), default=float("nan"))
    better, lead = "", _Lead(float("nan"), float("nan"), 0)
    if margin < 0:
        better_ones = [r for r in known if known[r].lost]
        reading = min(better_ones, key=lambda r: known[r].mean)
        # The plain mistake before the far-fetched: over few pairs another place in time may seem a little better.
        plain_ones = [r for r in better_ones if r.place in {t.place for t in _TURNS} and r.place is not None]
        reading = next((r for r in plain_ones if known[r].mean < 0.7 * known[reading].mean), reading)
        better, lead = reading.words, known[reading]
    return replace(
        plain,
        unexplained=unexplained,
        margin_log=margin,
        better_reading=better,
        better_log=-lead.mean,
        better_sigma_log=lead.sigma,
    )


def _end_alike(depth: DepthMaps) -> bool:
    """Whether some maps spread over the clip have one largest value in common, which few pixels of each have."""
    ends: list[float] = []
    middles: list[float] = []
    for frame in np.unique(np.linspace(0, len(depth) - 1, _NUM_ENDS).round().astype(int)).tolist():
        z = depth.read(frame)
        if z is None:
            continue
        known = z[np.isfinite(z) & (z > 0)]
        if len(known) < 100:
            continue
        end = float(known.max())
        if np.mean(known == known.max()) > _MOST_AT_END:
            return False  # what lies beyond the range of a sensor reads its end
        ends.append(end)
        middles.append(float(np.median(known)))
    if len(ends) < _NUM_ENDS // 2:
        return False
    # The unit may be multiplied in afterwards, in single precision.
    alike = max(ends) - min(ends) <= 1e-5 * max(ends)
    return alike and max(middles) > 1.02 * min(middles)


def _same_frames(reading: Reading, pairs: _Pairs) -> bool:
    """Whether an order takes the very maps that the files give (ten files are sorted alike by text and by number)."""
    if reading.frame is None:
        return False
    return all(np.array_equal(reading.frame(frame), frame) for frame in (pairs.first, pairs.second))


def _scene(
    measured: ImageMeasurements, depth: DepthMaps, pairs: _Pairs, lens: KnownLens | None, pixel_aspect: float
) -> tuple[_Scene, float]:
    """Pairs in square pixels of an image whose longer side has 640; and one of those in stored pixels."""
    size = np.array([measured.flow.width, measured.flow.height])
    if lens is not None:
        pixel_aspect = lens.pixel_aspect
    square = np.array([pixel_aspect, 1.0])
    px = float((size * square).max()) / _WORKING_PX

    def working(places: FloatArray, frame: IntArray) -> FloatArray:
        centre = size / 2 if lens is None else lens.principal_point_px[frame][:, None]
        return (places * size - centre) * square / px

    count = len(pairs)
    focal, change = np.full(count, _FOCAL * _WORKING_PX), np.zeros(count)
    if lens is not None:
        # Where to begin, no more: a wrong lens is another fault than wrong depth, and has a gate of its own.
        focal = lens.focal_px[pairs.first, 1] / px
        change = np.log(lens.focal_px[pairs.second, 1]) - np.log(lens.focal_px[pairs.first, 1])
    return _Scene(
        depth=depth,
        pairs=pairs,
        a=working(pairs.a, pairs.first),
        b=working(pairs.b, pairs.second),
        focal=focal,
        change=change,
    ), px


# --- pairs ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """P pairs of frames with up to n shared points each; places in shares of width and height."""

    first: IntArray
    second: IntArray
    a: FloatArray  # (P, n, 2)
    b: FloatArray
    there: BoolArray  # (P, n)

    def __len__(self) -> int:
        return len(self.first)

    def some(self, chosen: IntArray, points: int) -> _Pairs:
        return _Pairs(
            first=self.first[chosen],
            second=self.second[chosen],
            a=self.a[chosen, :points],
            b=self.b[chosen, :points],
            there=self.there[chosen, :points],
        )


def _choose_pairs(measured: ImageMeasurements, tracks_config: TracksConfig) -> _Pairs:
    """Pairs spread over the clip, each as far apart as the tracks reach; else neighbouring keyframes that match."""
    flow = measured.flow
    frames = flow.num_frames
    size = np.array([flow.width, flow.height])
    farthest = _MAX_MOVE * float(np.hypot(flow.width, flow.height))
    of = indices_by_group(flow.frame, frames)
    rng = np.random.default_rng(20260701)
    found: list[tuple[int, int, FloatArray, FloatArray]] = []
    for i in np.unique(np.linspace(0, max(0, frames - 2), _NUM_PAIRS).round().astype(int)).tolist():
        best = None
        for j in range(i + 1, min(frames, i + _MAX_GAP + 1)):
            _, p, q = np.intersect1d(
                flow.track[of[i]], flow.track[of[j]], assume_unique=True, return_indices=True
            )
            a, b = flow.xy_px[of[i][p]], flow.xy_px[of[j][q]]
            if len(a) < _MIN_SHARED or np.median(np.linalg.norm(b - a, axis=1)) > farthest:
                break
            best = (i, j, a, b)
        if best is not None:
            found.append(best)
    if len(found) < _FEW_PAIRS:
        for k, step in _neighbours(len(measured.features)):
            one, other = measured.features[k], measured.features[k + step]
            match = match_features(one, other, tracks_config, diagonal_px=farthest / _MAX_MOVE)
            if len(match) >= _MIN_POINTS:
                found.append((one.frame, other.frame, one.xy_px[match[:, 0]], other.xy_px[match[:, 1]]))
    a, b = np.zeros((2, len(found), _MAX_POINTS, 2))
    there = np.zeros((len(found), _MAX_POINTS), bool)
    for k, (_, _, x, y) in enumerate(found):
        chosen = rng.permutation(len(x))[:_MAX_POINTS]
        a[k, : len(chosen)], b[k, : len(chosen)] = x[chosen] / size, y[chosen] / size
        there[k, : len(chosen)] = True
    return _Pairs(
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


# --- depth at points ------------------------------------------------------------------------------


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
    at = np.arange(len(xy))
    with np.errstate(invalid="ignore"):
        spread = np.log(patch[at, 4 * last // 5]) - np.log(patch[at, last // 5])
    return np.where(ok, patch[at, last // 2], np.nan), np.where(ok, spread, np.nan)


def _without_edges(middle: FloatArray, spread: FloatArray) -> FloatArray:
    """Depth (n,) of one map, NaN at edges: more spread than 4 %, and than 2.5 times what noise makes in this map."""
    known = np.isfinite(spread)
    if not known.any():
        return middle
    return np.where(spread <= max(0.04, 2.5 * float(np.median(spread[known]))), middle, np.nan)


def _sampled(depth: DepthMaps, pairs: _Pairs, readings: Sequence[Reading]) -> tuple[FloatArray, FloatArray]:
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


# --- motion ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Motion:
    misfit_px: FloatArray  # (B,) median, pixels of a 640 px image
    depth: FloatArray  # (B, n) in the second frame, NaN where unused
    focal: FloatArray  # (B,)


def _row_median(x: FloatArray, ok: BoolArray) -> FloatArray:
    """Median of each row over `ok`; NaN for an empty one."""
    ordered = np.sort(np.where(ok, x, np.inf), 1)
    count = ok.sum(1)
    middle = ordered[np.arange(len(x)), np.maximum(count - 1, 0) // 2]
    return np.where(count > 0, middle, np.nan)


def _fit_motion(
    a: FloatArray,
    b: FloatArray,
    z: FloatArray,
    ok: BoolArray,
    *,
    focal: FloatArray,
    change: FloatArray,
    iterations: int = 10,
) -> _Motion:
    """Robust motion of B pairs at once: turn, translation, focal length and its change, by Gauss-Newton.

    Args:
        a, b: (B, n, 2) points about the principal point. z: (B, n) depth in the first frame, of median about 1.
        ok: (B, n) points to use.
        focal, change: (B,) what is expected of the focal length and of the log of its change.
    """
    count, points = ok.shape
    z = np.where(ok, z, 1.0)
    ax, ay = a[..., 0], a[..., 1]
    turn = np.tile(np.eye(3), (count, 1, 1))
    shift = np.zeros((count, 3))
    log_focal = expected = np.log(focal)
    log_change = change.copy()
    jacobian = np.zeros((count, points, 2, 8))
    for iteration in range(iterations + 1):
        f, g = np.exp(log_focal)[:, None], np.exp(log_focal + log_change)[:, None]
        x, y = ax / f * z, ay / f * z
        flat = [turn[:, None, i, 0] * x + turn[:, None, i, 1] * y for i in range(3)]
        p, q, s = (flat[i] + turn[:, None, i, 2] * z for i in range(3))
        ahead = np.maximum(s + shift[:, 2:], 0.05 * z)
        by = g / ahead
        u, v = by * (p + shift[:, :1]), by * (q + shift[:, 1:2])
        residual = np.stack([u, v], -1) - b
        error = np.sqrt((residual**2).sum(-1))
        middle = _row_median(error, ok)
        if iteration == iterations:
            break
        scale = np.maximum(1.0, (2.0 if iteration == 0 else 1.5) * middle)[:, None]
        weight = np.where(ok, (1 + (error / scale) ** 2) ** -2, 0.0)
        weight = weight / np.maximum(0.5, middle)[:, None] ** 2
        uz, vz = u / ahead, v / ahead
        j = jacobian
        j[..., 0, 0], j[..., 0, 1], j[..., 0, 2] = -q * uz, s * by + p * uz, -q * by
        j[..., 1, 0], j[..., 1, 1], j[..., 1, 2] = -s * by - q * vz, p * vz, p * by
        j[..., 0, 3], j[..., 0, 5], j[..., 1, 4], j[..., 1, 5] = by, -uz, by, -vz
        j[..., 0, 6], j[..., 1, 6] = u - by * flat[0] + uz * flat[2], v - by * flat[1] + vz * flat[2]
        j[..., 0, 7], j[..., 1, 7] = u, v
        rows = j.reshape(count, 2 * points, 8)
        weighted = np.swapaxes((j * weight[:, :, None, None]).reshape(rows.shape), 1, 2)
        normal = weighted @ rows
        gradient = (weighted @ residual.reshape(count, -1, 1))[..., 0]
        for k, value, at, wide in (
            (6, log_focal, expected, _FOCAL_SIGMA),
            (7, log_change, change, _CHANGE_SIGMA),
        ):
            normal[:, k, k] += wide**-2
            gradient[:, k] += (value - at) / wide**2
        normal += np.eye(8) * (1e-4 * np.einsum("bii->bi", normal) + 1e-9)[:, :, None]
        step = np.clip(-np.linalg.solve(normal, gradient[..., None])[..., 0], -0.3, 0.3)
        turned = so3_exp(step[:, :3])
        turn = turned @ turn
        shift = (turned @ shift[..., None])[..., 0] + step[:, 3:6]
        log_focal = np.clip(log_focal + step[:, 6], expected - 1.2, expected + 1.2)
        log_change = log_change + step[:, 7]
    return _Motion(misfit_px=middle, depth=np.where(ok, ahead, np.nan), focal=np.exp(log_focal))


# --- competition ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Fits:
    """How well each reading fits each pair; all (R, P), NaN where too few points have depth."""

    misfit_px: FloatArray
    inconsistency: FloatArray
    gain: FloatArray
    focal: FloatArray
    signal: FloatArray
    relief: FloatArray

    def cost(self) -> FloatArray:
        """Twice the negative log likelihood of a point, about: of its place and of its depth."""
        return np.log(np.hypot(self.misfit_px, _FLOOR_PX)) + np.log(np.hypot(self.inconsistency, _FLOOR_LOG))


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """A clip's pairs with what is known of its lens; points in pixels of a 640 px image about the principal point."""

    depth: DepthMaps
    pairs: _Pairs
    a: FloatArray
    b: FloatArray
    focal: FloatArray  # (P,) of the first frame
    change: FloatArray  # (P,) log of second over first

    def some(self, chosen: IntArray, points: int = _MAX_POINTS) -> _Scene:
        """Some of the pairs, with the first `points` points of each."""
        return _Scene(
            depth=self.depth,
            pairs=self.pairs.some(chosen, points),
            a=self.a[chosen, :points],
            b=self.b[chosen, :points],
            focal=self.focal[chosen],
            change=self.change[chosen],
        )

    def fits(self, readings: Sequence[Reading]) -> _Fits:
        """Try the readings. Rays need a focal length: the one that the first of the other readings found."""
        stored = _sampled(self.depth, self.pairs, readings)
        along = np.array([reading.value in ("ray", "axis") for reading in readings])
        split = (
            [r for r in readings if r.value not in ("ray", "axis")],
            [r for r in readings if r.value in ("ray", "axis")],
        )
        plain = self._fit(split[0], stored[0][~along], stored[1][~along])
        if not along.any():
            return plain
        focal = plain.focal[0][:, None, None]
        rays = [np.sqrt(1 + ((x / focal) ** 2).sum(-1)) for x in (self.a, self.b)]
        turned = self._fit(split[1], stored[0][along], stored[1][along], rays)
        out = {}
        for name in vars(plain):
            whole = np.empty((len(readings), len(self.pairs)))
            whole[~along], whole[along] = getattr(plain, name), getattr(turned, name)
            out[name] = whole
        return _Fits(**out)

    def _fit(
        self,
        readings: Sequence[Reading],
        first: FloatArray,
        second: FloatArray,
        rays: Sequence[FloatArray] = (),
    ) -> _Fits:
        """Fits of stored depth (R, P, n); `rays` are the lengths of rays (P, n) that end at depth 1."""
        for r, reading in enumerate(readings):
            if reading.value == "inverse":
                first[r], second[r] = 1 / first[r], 1 / second[r]
            elif reading.value == "ray":
                first[r], second[r] = first[r] / rays[0], second[r] / rays[1]
            elif reading.value == "axis":
                first[r], second[r] = first[r] * rays[0], second[r] * rays[1]
            elif reading.value == "constant":
                first[r] = np.where(np.isfinite(first[r]), 1.0, np.nan)
        shape = first.shape[:2]
        z1, z2 = (z.reshape(-1, z.shape[-1]) for z in (first, second))
        ok = np.isfinite(z1)
        usual = _row_median(z1, ok)[:, None]
        a, b, focal, change = (
            np.tile(x, (len(readings), *(1,) * (x.ndim - 1)))
            for x in (self.a, self.b, self.focal, self.change)
        )
        motion = _fit_motion(a, b, z1 / usual, ok, focal=focal, change=change)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.log(z2 / usual) - np.log(motion.depth)
        both = np.isfinite(ratio)
        relief = _row_median(np.abs(z1 / usual - 1), ok)
        gain = _row_median(ratio, both)
        apart = _row_median(np.abs(ratio - gain[:, None]), both)
        enough = ok.sum(1) >= _MIN_POINTS
        enough_both = enough & (both.sum(1) >= _MIN_POINTS // 2)
        return _Fits(
            misfit_px=np.where(enough, motion.misfit_px, np.nan).reshape(shape),
            inconsistency=np.where(enough_both, apart, np.nan).reshape(shape),
            gain=np.where(enough_both, gain, np.nan).reshape(shape),
            focal=motion.focal.reshape(shape),
            relief=np.where(enough, relief, np.nan).reshape(shape),
            signal=np.where(enough_both, _signal(a, b, z1, z2, both), np.nan).reshape(shape),
        )


def _off_plane(xy: FloatArray, z: FloatArray, ok: BoolArray) -> FloatArray:
    """(B, n) relative inverse depth off its best plane (which turns and zooms can explain, too), signed."""
    design = np.concatenate([np.ones((*ok.shape, 1)), xy / (_WORKING_PX / 2)], -1)
    target = np.where(ok, _row_median(z, ok)[:, None] / np.where(ok, z, 1.0), 0.0)
    weight = ok.astype(float)
    left = target
    for _ in range(4):
        weighted = np.swapaxes(design * weight[..., None], 1, 2)
        plane = np.linalg.solve(weighted @ design + 1e-9 * np.eye(3), weighted @ target[..., None])
        left = target - (design @ plane)[..., 0]
        scale = 1.5 * np.maximum(_row_median(np.abs(left), ok), 1e-6)[:, None]
        weight = ok * (1 + (left / scale) ** 2) ** -2
    return left


def _signal(a: FloatArray, b: FloatArray, z1: FloatArray, z2: FloatArray, ok: BoolArray) -> FloatArray:
    """(B,) share of the relief that both frames of a pair show alike: 1 for depth without noise, 0 for noise alone."""
    first, second = _off_plane(a, z1, ok), _off_plane(b, z2, ok)
    usual = _row_median(np.abs(first), ok), _row_median(np.abs(second), ok)
    x, y = (
        np.clip(v / np.maximum(m, 1e-9)[:, None], -4, 4) * ok
        for v, m in zip((first, second), usual, strict=True)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        alike = (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return alike


@dataclass(frozen=True)
class _Lead:
    """How much better the depth fits as it is than in another reading: mean of logs and its error over pairs.

    The error of few pairs leans on what is usual, 40 % of the mean from pair to pair.
    """

    mean: float
    sigma: float
    num_pairs: int
    sure: float = _SURE

    @property
    def margin(self) -> float:
        """Below zero where the other reading is better, for certain and by an amount that matters."""
        return max(self.mean + self._doubt, self.mean + _MATTERS_LOG)

    @property
    def lost(self) -> bool:
        return self.margin < 0

    @property
    def won(self) -> bool:
        """Whether the other reading is worse, for certain."""
        return self.mean > 2 * _MATTERS_LOG and self.mean - self._doubt > 0

    @property
    def _doubt(self) -> float:
        return self.sure * self.sigma if self.num_pairs >= _LEAST_PAIRS else float("nan")


def _lead(given: FloatArray, other: FloatArray) -> _Lead:
    """Lead of the reading whose costs (P,) are `given`."""
    apart = np.clip(other - given, -2, 2)
    apart = apart[np.isfinite(apart)]
    count, usual = len(apart), 4
    if count < 2:
        return _Lead(float("nan"), float("nan"), count)
    mean = float(apart.mean())
    square = float(((apart - mean) ** 2).sum()) + usual * (0.4 * mean) ** 2
    variance = max(square / (count - 1 + usual), 0.05**2)
    # Student's spread of a mean whose variance is estimated.
    return _Lead(mean, float(np.sqrt(variance / count * (count - 1 + usual) / (count - 3 + usual))), count)


def _free_misfit(scene: _Scene) -> FloatArray:
    """(P,) what any rigid scene would leave: median distance to the epipolar lines, as if of two coordinates."""
    out = np.full(len(scene.pairs), np.nan)
    for p, there in enumerate(scene.pairs.there):
        a, b = scene.a[p][there], scene.b[p][there]
        try:
            matrix, _ = cv2.findFundamentalMat(a, b, cv2.USAC_MAGSAC, 1.0, 0.999, 1000)
        except cv2.error:
            continue
        if matrix is None or matrix.shape != (3, 3):
            continue
        line = np.concatenate([a, np.ones((len(a), 1))], 1) @ matrix.T
        off = np.abs((line[:, :2] * b).sum(1) + line[:, 2]) / np.maximum(
            np.hypot(line[:, 0], line[:, 1]), 1e-12
        )
        out[p] = 1.5 * np.median(off)
    return out


def _unexplained(fits: _Fits, free: FloatArray) -> float:
    """Share of the parallax that the first reading leaves and the second (one depth for all) has, beyond its noise."""
    with np.errstate(invalid="ignore", divide="ignore"):
        parallax = fits.misfit_px[1] ** 2 - free**2
        left = fits.misfit_px[0] ** 2 - free**2
        noise = 1 - np.clip(fits.signal[0], 0, 1)
    use = np.isfinite(parallax + left + noise) & (parallax > 0)
    if use.sum() < _FEW_PAIRS:
        return float("nan")
    # Tracks err along the epipolar lines, too, which `free` does not see.
    if np.median(parallax[use]) < max(_LEAST_PARALLAX_PX2, 3 * float(np.median(free[use] ** 2))):
        return float("nan")
    weight = np.minimum(parallax[use], 4 * np.median(parallax[use]))
    share = np.clip(left[use] / parallax[use], 0, 1.5)
    return max(0.0, float(np.average(share, weights=weight) - np.average(noise[use], weights=weight)))
