"""Cuts and dissolves inside a clip, found while its frames go by.

A fast pan changes every pixel just as a cut does, so what the pictures look like can only nominate a step: dense flow
does not explain it. What decides is what can be followed. Features are matched across the step and across the frames
around it (blur and flashes hide a frame or two, a cut hides everything), and a match counts when its place, its
orientation and its size all agree with one similarity of the picture. By chance hardly any do, however many features
there are, so a handful proves that the place is the same: a share of all features would say more about how much
of the view has changed. Then

* a step that nothing crosses is a cut if there *was* something to follow on both of its sides;
* a step that is crossed is still one if the view leaps: moves far at once while before and after it hardly moves (two
  visits of one room share a part of the view). A jump of the zoom is no leap: the middle stays;
* what stands still on the picture while the rest moves (a station's logo) is no evidence that the place is the same;
* where there are no features to follow (bare walls, darkness), a step must stand alone among its neighbours for dense
  flow, with new colours or with nothing that flow finds again a frame or two later.

Frames that show nothing (black, white) are looked across, so a fade through black is a step like others.

A dissolve has no step. It is found where a frame is a weighted sum of the frames half a second before and after, each
moved as the flow in between says, and those two share no features. Between shots that move that sum is not met, so it
is also found by features alone: a frame shares some with one before and others with one behind, the views of those two
lie over each other, and yet nothing leads from one to the other. In one shot, what both views hold is in all three.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import F32, F64, U8
from .dense_flow import DenseFlow

_THUMB_WIDTH = 160
_FEATURE_WIDTH = 400
_BRIDGE = 3
"""Frames on each side of a step between which features are matched."""
_HALF_DISSOLVE_S = 0.5
"""Distance to the two shots that a dissolve is tested against; twice as far, too."""

# Measured with benchmarks/cuts.py on its development part.
_NOMINATE_CORRELATION = 0.6
"""Of the step after warping by dense flow: 0.09 to 0.6 in the worst pans, up to 0.33 at hard cuts."""
_SAME_PLACE = 10
"""Matches that agree: at most 8 across cuts between places, 100 and more from frame to frame."""
_FOLLOWED = 25
"""Matches that agree between neighbouring frames, from which on a step that none crosses says something."""
_TELLING_FEATURES = 120
"""Features of a lone first or last frame, which has no neighbour on its side."""
_STILL_PX = 1.0
_STILL_CELLS = 0.4
_LEAP, _LEAP_OVER_STEPS = 0.12, 5.0
"""A leap moves the middle by so many picture widths more, and so many times as far, as the steps around it."""
_BLANK = 2.5
"""Spread of the grey levels below which a frame shows nothing."""
_LONE_STEP = 0.5
_NEW_COLOURS = 0.2
_MIX_FIT, _MIX_WEIGHT = 0.75, 0.2
"""Share of a frame's smoothed picture that two others explain together, 0.6 to 0.95 in dissolves, up to 0.55 within
shots; the least weight of either."""
_ALIKE = 0.3
"""Squared correlation of those two, moved onto each other: 0 to 0.22 around dissolves, from 0.34 on within shots that
look mixed."""
_THROUGH = 1
"""Features that may be followed from one to the other through three mixtures by chance: none in dissolves, from 3 on in
shots whose ends have nothing in common."""
_BLEND_FEATURES, _BLEND_CHANCE = 15, 4
"""Features that a frame shares with either side of a dissolve, within what both sides see; up to 12 in fast shots of
which none is followed through. Matches between the sides that may be chance."""
_BLEND_COMMON = 0.45
"""Share of the frame that both sides see: up to 0.38 in fast shots where nothing is followed through."""
_MIN_COMMON = 0.4
_SMOOTH_PX = 4.0
"""Of the thumb: parallax within half a second is smaller."""


@dataclass(frozen=True)
class _Features:
    """Of one frame: (n, 2) positions, (n, 128) unit RootSIFT descriptors, (n,) orientations in degrees and sizes."""

    xy: F32
    descriptors: F32
    angle_deg: F32
    size: F32


@dataclass(frozen=True)
class _Carried:
    """What of one frame is seen in another one.

    Attributes:
        count: matches that agree with one similarity.
        moved: those of them that do not stay where they are.
        shift: how far the middle of the picture moves, in picture widths; 0 for a zoom about a point of the picture.
        cells: (24,) bool, parts of the first picture (6 by 4) in which such matches lie.
        pairs: (count, 2) feature numbers in the first and the second frame.
        matrix: (2, 3) the similarity; zeros where there is none.
    """

    count: int
    moved: int
    shift: float
    cells: NDArray[np.bool_]
    pairs: NDArray[np.int64]
    matrix: F64


@dataclass(frozen=True)
class _Look:
    """One frame as the detector sees it."""

    thumb: U8
    gray: U8
    detail: U8
    histogram: NDArray[np.float32]
    step: F64
    """(3, 3) similarity of the thumb from the frame before."""

    @cached_property
    def blank(self) -> bool:
        return float(self.gray.std()) < _BLANK

    @cached_property
    def features(self) -> _Features:
        # Local contrast first: dark shots would otherwise have no features at all.
        equalised = cv2.createCLAHE(3.0, (8, 8)).apply(self.detail)
        sift: Any = cv2.SIFT.create(800)  # its stubs take no mask that is None
        points, descriptors = sift.detectAndCompute(equalised, None)
        if descriptors is None:
            none = np.zeros(0, np.float32)
            return _Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32), none, none)
        descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-9))
        return _Features(
            np.array([p.pt for p in points], np.float32),
            descriptors,
            np.array([p.angle for p in points], np.float32),
            np.array([p.size for p in points], np.float32),
        )


class CutDetector:
    """Feed every frame of a clip in order, then read `cuts`.

    Memory is that of some thirty small images; the time is some ms a frame, several times that where the view moves so
    fast that features are lost within two seconds.

    Args:
        fps: rate of the frames that will come.
    """

    def __init__(self, *, fps: float) -> None:
        # Within limits: the frames around a step are needed too, and memory stays small.
        self._half_dissolve = min(max(round(fps * _HALF_DISSOLVE_S), _BRIDGE + 1), 32)
        self._looks: deque[_Look] = deque(maxlen=4 * self._half_dissolve + 1)
        self._correlation: list[float] = [1.0]
        self._colour_step: list[float] = [0.0]
        self._suspects: list[int] = []
        self._cuts: list[int] = []
        self._mixed: dict[int, float] = {}
        """Frames that are mixtures, and how unevenly."""
        self._spans: dict[tuple[int, int], bool] = {}
        """First and last frames that were looked at for a dissolve between them, and whether features lead across."""
        self._flow = DenseFlow("ultrafast")
        self._seen = 0

    def update(self, rgb: U8) -> None:
        """Take the next frame, (H, W, 3) uint8 RGB."""
        thumb, gray, detail, histogram = _shrunk(rgb)
        step = np.eye(3)
        if self._looks:
            before = self._looks[-1]
            flow = self._flow.between(before.gray, gray)
            step = _similarity_of_flow(before.gray, flow)
            self._correlation.append(_warped_correlation(before.gray, gray, flow))
            self._colour_step.append(1 - float(np.sqrt(before.histogram * histogram).sum()))
            if self._correlation[-1] < _NOMINATE_CORRELATION:
                self._suspects.append(self._seen)
        self._looks.append(_Look(thumb, gray, detail, histogram, step))
        self._seen += 1
        # A suspect is judged when frames after it that show something are there too, or have not come for long.
        shown = [self._seen - len(self._looks) + i for i, look in enumerate(self._looks) if not look.blank]
        self._judge(
            [
                t
                for t in self._suspects
                if t + self._half_dissolve <= self._seen or sum(f >= t for f in shown) >= _BRIDGE
            ]
        )
        for half in (self._half_dissolve, 2 * self._half_dissolve):
            if len(self._looks) > 2 * half and self._seen % 2:
                self._judge_dissolve(list(self._looks)[-2 * half - 1 :])
        if len(self._looks) == self._looks.maxlen and self._seen % self._half_dissolve == 0:
            self._judge_blends()

    def finish(self) -> list[int]:
        """Sorted clip frame indices at which a new shot begins (of a dissolve or fade: its middle)."""
        self._judge(list(self._suspects))
        self._judge_blends()
        unevenness = self._mixed | dict.fromkeys(self._cuts, 0.0)
        groups: list[list[int]] = []
        for cut in sorted(unevenness):
            if groups and cut - groups[-1][-1] <= self._half_dissolve:
                groups[-1].append(cut)
            else:
                groups.append([cut])
        return [min(group, key=lambda cut: unevenness[cut]) for group in groups]

    def _judge(self, suspects: list[int]) -> None:
        first = self._seen - len(self._looks)
        looks = list(self._looks)
        for t in suspects:
            self._suspects.remove(t)
            before = [f for f in range(first, t) if not looks[f - first].blank][-_BRIDGE:]
            after = [f for f in range(t, self._seen) if not looks[f - first].blank][:_BRIDGE]
            if not before or not after:
                continue  # the clip begins or ends blank
            known = _is_cut([(f, looks[f - first]) for f in before], [(f, looks[f - first]) for f in after])
            if known is None:
                known = self._stands_alone(
                    t, [looks[f - first] for f in before], [looks[f - first] for f in after]
                )
            if known:
                self._cuts.append(t if after[0] == t else (before[-1] + after[0] + 1) // 2)

    def _stands_alone(self, t: int, before: list[_Look], after: list[_Look]) -> bool:
        """Whether flow follows the frames around step `t` and nothing across it, where there are no features to ask."""
        steps = self._correlation[max(1, t - 4) : t] + self._correlation[t + 1 : t + 5]
        usual = float(np.median(steps)) if steps else 0.0
        if self._correlation[t] >= _LONE_STEP * usual:
            return False
        if self._colour_step[t] > _NEW_COLOURS:
            return True
        if usual < _NOMINATE_CORRELATION:
            return False
        return all(
            _warped_correlation(a.gray, b.gray, self._flow.between(a.gray, b.gray)) < _LONE_STEP * usual
            for a in before
            for b in after
        )

    def _judge_dissolve(self, looks: list[_Look]) -> None:
        half = len(looks) // 2
        there, back = np.eye(3), np.eye(3)
        for look in looks[1 : half + 1]:
            there = look.step @ there
        for look in looks[half + 1 :]:
            back = look.step @ back
        if abs(np.linalg.det(back)) < 1e-6:
            return
        a, inside_a = _moved(looks[0].thumb, there)
        b, inside_b = _moved(looks[-1].thumb, np.linalg.inv(back))
        m, _ = _moved(looks[half].thumb, np.eye(3))
        inside = inside_a & inside_b
        if inside.mean() < _MIN_COMMON:
            return
        a, b, m = (x[inside].reshape(-1) for x in (a, b, m))
        spread = np.square(m - m.mean()).sum()
        if spread < m.size:  # under one grey level: nothing to see
            return
        ones = np.ones_like(a)
        design = np.stack([a, b, ones], axis=1)
        weights = np.linalg.lstsq(design, m, rcond=None)[0]
        fit = 1 - np.square(m - design @ weights).sum() / spread
        similar = np.corrcoef(a, b)[0, 1] ** 2 if a.std() and b.std() else 1.0
        blended = min(weights[:2]) > _MIX_WEIGHT and max(weights[:2]) < 1 - _MIX_WEIGHT
        if fit < _MIX_FIT or not blended or similar > _ALIKE:
            return
        numbered = list(enumerate(looks))
        # The outermost frames alone: the next ones may be mixtures already.
        if not _is_cut(numbered[:2], numbered[-2:], crossing=[(numbered[0], numbered[-1])], chance=0.03):
            return
        through = 0
        for between in (looks[half - 2], looks[half], looks[half + 2]):
            into, out_of = _carried(looks[0], between), _carried(between, looks[-1])
            through += len(np.intersect1d(into.pairs[:, 1], out_of.pairs[:, 0]))
        if through <= _THROUGH:
            self._mixed[self._seen - 1 - half] = 1e-3 + abs(float(weights[0] - weights[1]))

    def _judge_blends(self) -> None:
        """Look for dissolves among the frames that are kept, wherever nothing leads from the first to the last."""
        start = self._seen - len(self._looks)
        self._spans = {span: known for span, known in self._spans.items() if span[0] >= start}
        half = self._half_dissolve
        # Runs begin and end with every second frame: features of a frame take longer to find than all the rest.
        lengths = [round(times * half) // 2 * 2 for times in (2, 1.25, 0.75)]
        self._search(start + start % 2, self._seen - 1, lengths)

    def _search(self, first: int, last: int, lengths: list[int]) -> None:
        """Look at the frames from `first` to `last`, then at shorter runs of them."""
        if (first, last) in self._spans or last - first < 4:
            return
        start = self._seen - len(self._looks)
        a, middle, b = (self._looks[f - start] for f in (first, (first + last) // 2, last))
        across = _carried(a, b).count
        self._spans[first, last] = across >= _SAME_PLACE
        if across >= _SAME_PLACE or a.blank or b.blank:
            return
        if across <= _BLEND_CHANCE and (unevenness := _blended(a, middle, b)) is not None:
            self._mixed[(first + last) // 2] = 1e-3 + unevenness
            return
        for i, length in enumerate(lengths):
            if length < last - first:
                for begin in range(first, last - length + 1, max(2, length // 8 * 2)):
                    self._search(begin, begin + length, lengths[i + 1 :])
                break


def _blended(a: _Look, middle: _Look, b: _Look) -> float | None:
    """How unevenly a frame mixes two others, 0 to 1, by the features it shares with either; None if it does not."""
    into = _carried(a, middle)
    if into.count < _BLEND_FEATURES:
        return None
    out_of = _carried(middle, b)
    if out_of.count < _BLEND_FEATURES:
        return None
    if len(np.intersect1d(into.pairs[:, 1], out_of.pairs[:, 0])):
        return None
    height, width = middle.detail.shape
    frame = np.array([[[0, 0], [width, 0], [width, height], [0, height]]], np.float32)
    seen = frame[0]
    for matrix in (into.matrix, cv2.invertAffineTransform(out_of.matrix)):
        area, corners = cv2.intersectConvexConvex(seen, cv2.transform(frame, matrix)[0].astype(np.float32))
        if area < _BLEND_COMMON * width * height:
            return None
        seen = np.asarray(corners, np.float32).reshape(-1, 2)
    counts = [
        sum(
            cv2.pointPolygonTest(seen, (float(x), float(y)), False) >= 0 for x, y in middle.features.xy[found]
        )
        for found in (into.pairs[:, 1], out_of.pairs[:, 0])
    ]
    if min(counts) < _BLEND_FEATURES:
        return None
    return abs(counts[0] - counts[1]) / sum(counts)


def _shrunk(rgb: U8) -> tuple[U8, U8, U8, F32]:
    """Small colour image, the same in grey, a larger grey one, and the colours' histogram."""
    height, width = rgb.shape[:2]
    detail_width = min(_FEATURE_WIDTH, width)
    detail_size = (detail_width, max(8, round(height * detail_width / width)))
    detail = cv2.resize(rgb, detail_size, interpolation=cv2.INTER_AREA)
    thumb_size = (_THUMB_WIDTH, max(8, round(height * _THUMB_WIDTH / width)))
    thumb = cv2.resize(detail, thumb_size, interpolation=cv2.INTER_AREA)
    hsv = cv2.cvtColor(thumb, cv2.COLOR_RGB2HSV)
    histogram = cv2.calcHist([hsv], [0, 1, 2], None, [8, 4, 8], [0, 180, 0, 256, 0, 256]).ravel()
    return (
        thumb.astype(np.uint8),
        cv2.cvtColor(thumb, cv2.COLOR_RGB2GRAY).astype(np.uint8),
        cv2.cvtColor(detail, cv2.COLOR_RGB2GRAY).astype(np.uint8),
        (histogram / histogram.sum()).astype(np.float32),
    )


_Numbered = list[tuple[int, _Look]]
"""Frames with their numbers."""


def _is_cut(
    before: _Numbered,
    after: _Numbered,
    *,
    crossing: list[tuple[tuple[int, _Look], tuple[int, _Look]]] | None = None,
    chance: float = 0.1,
) -> bool | None:
    """Whether another shot begins between two runs of frames; None if there is too little to follow to tell.

    Args:
        crossing: pairs of frames to match, one of each run; by default all of them.
        chance: share of what neighbouring frames have in common that may cross a cut by chance: measured up to 0.08
            for the best of nine pairs, 0.03 for a single one.
    """
    crossing = crossing or [(a, b) for a in reversed(before) for b in after]
    most = _NOTHING
    for (i, a), (j, b) in crossing:
        carried = _carried(a, b)
        if carried.moved >= _SAME_PLACE:
            return _leaps(carried.shift, j - i, before, after)
        most = max(most, carried, key=lambda c: c.count)
    if most.count >= _SAME_PLACE:
        # All that crosses stands still: a camera at rest, or what lies on the picture.
        moving = [
            _around(side, leave_still=True)[0].count >= _FOLLOWED for side in (before, after) if len(side) > 1
        ]
        if moving and all(moving):
            return not any(
                _carried(a, b, leave_still=True).count >= _SAME_PLACE for (_, a), (_, b) in crossing
            )
        cells = [_around(side)[0].cells.sum() for side in (before, after) if len(side) > 1]
        return bool(cells) and bool(most.cells.sum() < _STILL_CELLS * min(cells))
    counts = [_around(side)[0].count for side in (before, after) if len(side) > 1]
    lonely = [len(side[0][1].features.xy) for side in (before, after) if len(side) == 1]
    if (
        min(counts, default=_FOLLOWED) < _FOLLOWED
        or min(lonely, default=_TELLING_FEATURES) < _TELLING_FEATURES
    ):
        return None
    return most.count <= chance * min(counts, default=_SAME_PLACE / chance)


def _leaps(shift: float, gap: int, before: _Numbered, after: _Numbered) -> bool:
    """Whether the view moves by `shift` picture widths within `gap` frames, and hardly moves before and after."""
    if shift < _LEAP:
        return False
    sides = [_around(side) for side in (before, after) if len(side) > 1]
    if not sides or any(carried.count < _FOLLOWED for carried, _ in sides):
        return False
    expected = gap * max(carried.shift / apart for carried, apart in sides)
    return shift - expected > _LEAP and shift > _LEAP_OVER_STEPS * expected


def _around(side: _Numbered, *, leave_still: bool = False) -> tuple[_Carried, int]:
    """What neighbouring frames on one side of a step share at best, and how many frames apart they are."""
    pairs = [(k, k + 1) for k in range(len(side) - 1)] + [(k, k + 2) for k in range(len(side) - 2)]
    best = _NOTHING, 1
    for i, j in pairs:
        carried = _carried(side[i][1], side[j][1], leave_still=leave_still)
        if carried.count > best[0].count:
            best = carried, side[j][0] - side[i][0]
    return best


_NOTHING = _Carried(0, 0, 0.0, np.zeros(24, bool), np.zeros((0, 2), np.int64), np.zeros((2, 3)))
_TURN_BIN_DEG, _MAX_TURN_DEG, _MAX_LOG_SIZE = 10, 25.0, 0.5
_ZOOM, _UPRIGHT_DEG = 0.08, 3.0
"""Log size from which on a change of size is a zoom, not what a step forward does; a zoom does not turn the picture."""
_NEAR = 0.06
"""How far a match may lie from where the similarity puts it, in picture widths: parallax and perspective."""


def _carried(a: _Look, b: _Look, *, leave_still: bool = False) -> _Carried:
    """Matches between two frames whose place, orientation and size agree with one similarity.

    Args:
        leave_still: leave out matches that stay within a pixel of where they are.
    """
    height, width = a.detail.shape
    f, g = a.features, b.features
    if min(len(f.xy), len(g.xy)) < 4:
        return _NOTHING
    alike = f.descriptors @ g.descriptors.T
    best = alike.argmax(1)
    top = np.partition(alike, -2, axis=1)[:, -2:]
    distance = np.sqrt(np.maximum(2 - 2 * top, 0))
    mutual = alike.argmax(0)[best] == np.arange(len(best))
    good = mutual & (distance[:, 1] < 0.85 * distance[:, 0])
    if leave_still:
        good &= np.linalg.norm(g.xy[best] - f.xy, axis=1) > _STILL_PX
    i = np.nonzero(good)[0]
    j = best[i]
    turn = (g.angle_deg[j] - f.angle_deg[i] + 180) % 360 - 180
    # The commonest turn first: it leaves few of the chance matches.
    count, edges = np.histogram(turn, bins=360 // _TURN_BIN_DEG, range=(-180, 180))
    common = edges[(count + np.roll(count, 1) + np.roll(count, -1)).argmax()] + _TURN_BIN_DEG / 2
    near = np.abs((turn - common + 180) % 360 - 180) < 3 * _TURN_BIN_DEG
    i, j, turn = i[near], j[near], turn[near]
    if len(i) < 4:
        return _NOTHING
    cv2.setRNGSeed(0)  # RANSAC: the same clip must give the same cuts
    matrix, inlier = cv2.estimateAffinePartial2D(
        f.xy[i],
        g.xy[j],
        method=cv2.RANSAC,
        ransacReprojThreshold=_NEAR * width,
        maxIters=1000,
        confidence=0.999,
    )
    if matrix is None:
        return _NOTHING
    size = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    rotation = float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
    agree = inlier.reshape(-1) > 0
    agree &= np.abs((turn - rotation + 180) % 360 - 180) < _MAX_TURN_DEG
    agree &= np.abs(np.log(g.size[j] / f.size[i]) - np.log(max(size, 1e-6))) < _MAX_LOG_SIZE
    here, there = f.xy[i[agree]], g.xy[j[agree]]
    middle = np.array([width / 2, height / 2])
    linear, shift = matrix[:, :2], matrix[:, :2] @ middle + matrix[:, 2] - middle
    if abs(np.log(max(size, 1e-6))) > _ZOOM and abs(rotation) < _UPRIGHT_DEG:
        # The point that stays, from the middle.
        fixed = np.linalg.solve(np.eye(2) - linear, shift)
        shift = shift * float((np.abs(fixed) > middle).any())
    cells = np.zeros(24, bool)
    cells[
        np.minimum(here[:, 1] * 4 // height, 3).astype(int) * 6
        + np.minimum(here[:, 0] * 6 // width, 5).astype(int)
    ] = True
    return _Carried(
        count=int(agree.sum()),
        moved=int((np.linalg.norm(there - here, axis=1) > _STILL_PX).sum()),
        shift=float(np.linalg.norm(shift)) / width,
        cells=cells,
        pairs=np.stack([i[agree], j[agree]], 1),
        matrix=np.asarray(matrix, np.float64),
    )


def _similarity_of_flow(gray: U8, flow: F32) -> F64:
    """(3, 3) similarity that most of the flow follows, weighted by what there is to see."""
    height, width = gray.shape
    y, x = np.mgrid[4:height:8, 4:width:8]
    energy = cv2.boxFilter(np.square(cv2.Laplacian(gray, cv2.CV_32F)), -1, (9, 9))
    contrast = np.sqrt(energy[y, x].ravel())
    step = flow[y, x].reshape(-1, 2).astype(np.float64)
    px, py = x.ravel() - width / 2, y.ravel() - height / 2
    one, zero = np.ones(len(px)), np.zeros(len(px))
    # Two rows a point: grow by g, turn by r, shift by (u, v).
    design = np.concatenate([np.stack([px, -py, one, zero], 1), np.stack([py, px, zero, one], 1)])
    target = step.T.ravel()
    g = r = u = v = 0.0
    weight = np.tile(contrast + 1e-3, 2)
    for _ in range(5):
        weighted = design * weight[:, None]
        g, r, u, v = np.linalg.solve(weighted.T @ design + 1e-6 * np.eye(4), weighted.T @ target)
        off = np.linalg.norm((target - design @ np.array([g, r, u, v])).reshape(2, -1), axis=0)
        weight = np.tile((contrast + 1e-3) / (1 + np.square(off / 1.5)), 2)
    linear = np.array([[1 + g, -r], [r, 1 + g]])
    middle = np.array([width / 2, height / 2])
    out = np.eye(3)
    out[:2, :2], out[:2, 2] = linear, middle + np.array([u, v]) - linear @ middle
    return out


def _moved(thumb: U8, similarity: NDArray[np.floating]) -> tuple[NDArray, NDArray[np.bool_]]:
    """A thumb moved by a similarity, smoothed, every fourth pixel, and where it then shows something."""
    height, width = thumb.shape[:2]
    matrix = similarity[:2].astype(np.float64)
    inside = cv2.warpAffine(np.ones((height, width), np.uint8), matrix, (width, height)) > 0
    smooth = cv2.GaussianBlur(thumb.astype(np.float32), (0, 0), _SMOOTH_PX)
    return cv2.warpAffine(smooth, matrix, (width, height))[::4, ::4].astype(np.float64), inside[::4, ::4]


def _warped_correlation(a: U8, b: U8, flow: F32) -> float:
    """Local normalised correlation of `a` with `b` warped onto it by dense flow, weighted by contrast."""
    height, width = a.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    warped = cv2.remap(
        b, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    p, q = a.astype(np.float32), warped.astype(np.float32)

    def mean(z: NDArray) -> NDArray:
        return cv2.boxFilter(z, -1, (15, 15))

    mean_p, mean_q = mean(p), mean(q)
    var_p = np.maximum(mean(p * p) - mean_p**2, 0)
    var_q = np.maximum(mean(q * q) - mean_q**2, 0)
    noise = 4.0  # two grey levels: flat regions count as unrelated rather than as perfectly alike
    correlation = (mean(p * q) - mean_p * mean_q) / np.sqrt((var_p + noise) * (var_q + noise))
    weight = np.sqrt(np.maximum(var_p, var_q)) + 0.1
    return float((correlation * weight).sum() / weight.sum())
