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
moved as the flow in between says, and those two share no features, nor do features lead from one to the other by
stages (a turn may leave the view of a narrow picture within a second). Between shots that move that sum is not met, so
it is also found by features alone: a frame shares some with one before and others with one behind, the views of those
two lie over each other, and yet nothing leads from one to the other. In one shot, what both views hold is in all three.
Finding features takes longer than all the rest together. So a run of frames is first judged by the flow that is known
from frame to frame: what dense flow, begun there, finds again at its end is the same shot, and where that flow leads
out of the picture nothing could be seen of both.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import F32, U8
from .dense_flow import DenseFlow
from .looks import NOTHING, Carried, Look, match_looks, shrunk, similarity_of_flow

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
_STILL_CELLS = 0.4
_LEAP, _LEAP_OVER_STEPS = 0.12, 5.0
"""A leap moves the middle by so many picture widths more, and so many times as far, as the steps around it."""
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
_STAGES = 5
"""From end to end of what looks mixed. In dissolves less than `_SAME_PLACE` features are handed on somewhere: at most 5
over stages as long; in one shot, of which the ends share hardly any, 21 and more everywhere."""
_BLEND_FEATURES, _BLEND_CHANCE = 15, 4
"""Features that a frame shares with either side of a dissolve, within what both sides see; up to 12 in fast shots of
which none is followed through. Matches between the sides that may be chance."""
_BLEND_COMMON = 0.45
"""Share of the frame that both sides see: up to 0.38 in fast shots where nothing is followed through."""
_MIN_COMMON = 0.4
_FOUND_AGAIN, _LED_AWAY = 0.45, 0.25
"""No dissolve from the first to the last frame of a run: correlation of the two, moved onto each other by flow (at most
0.30 around dissolves), and the share of the picture that stays in it (there at least 0.34)."""


class CutDetector:
    """Feed every frame of a clip in order, then read `cuts`.

    Memory is that of some thirty small images; the time is some ms a frame, a few times that where the view moves so
    fast that nothing is found again within two seconds.

    Args:
        fps: rate of the frames that will come.
    """

    def __init__(self, *, fps: float) -> None:
        # Within limits: the frames around a step are needed too, and memory stays small.
        self._half_dissolve = min(max(round(fps * _HALF_DISSOLVE_S), _BRIDGE + 1), 32)
        self._looks: deque[Look] = deque(maxlen=4 * self._half_dissolve + 1)
        self._correlation: list[float] = [1.0]
        self._colour_step: list[float] = [0.0]
        self._suspects: list[int] = []
        self._cuts: list[int] = []
        self._mixed: dict[int, float] = {}
        """Frames that are mixtures, and how unevenly."""
        self._spans: set[tuple[int, int]] = set()
        """First and last frames that were looked at for a dissolve between them."""
        self._flow = DenseFlow("ultrafast")
        self._seen = 0

    def update(self, rgb: U8) -> None:
        """Take the next frame, (H, W, 3) uint8 RGB."""
        thumb, gray, detail, histogram = shrunk(rgb)
        step = np.eye(3)
        if self._looks:
            before = self._looks[-1]
            flow = self._flow.between(before.gray, gray)
            step = similarity_of_flow(before.gray, flow)
            self._correlation.append(_warped_correlation(before.gray, gray, flow))
            self._colour_step.append(1 - float(np.sqrt(before.histogram * histogram).sum()))
            if self._correlation[-1] < _NOMINATE_CORRELATION:
                self._suspects.append(self._seen)
        self._looks.append(Look(thumb, gray, detail, histogram, step))
        self._seen += 1
        if self._seen == self._half_dissolve + 1:
            self._judge_ends(first=True)
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
        if self._seen <= self._half_dissolve:
            self._judge_ends(first=True)
        self._judge_ends(first=False)
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

    def _stands_alone(self, t: int, before: list[Look], after: list[Look]) -> bool:
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

    def _judge_dissolve(self, looks: list[Look]) -> None:
        half = len(looks) // 2
        there, back = np.eye(3), np.eye(3)
        for look in looks[1 : half + 1]:
            there = look.step @ there
        for look in looks[half + 1 :]:
            back = look.step @ back
        if abs(np.linalg.det(back)) < 1e-6:
            return
        a, inside_a = _moved(looks[0].smooth, there)
        b, inside_b = _moved(looks[-1].smooth, np.linalg.inv(back))
        m, _ = _moved(looks[half].smooth, np.eye(3))
        inside = inside_a & inside_b
        if inside.mean() < _MIN_COMMON:
            return
        a, b, m = (x[inside].reshape(-1) for x in (a, b, m))
        spread = np.square(m - m.mean()).sum()
        if spread < m.size:  # under one grey level: nothing to see
            return
        similar = np.corrcoef(a, b)[0, 1] ** 2 if a.std() and b.std() else 1.0
        if similar > _ALIKE:
            return
        ones = np.ones_like(a)
        design = np.stack([a, b, ones], axis=1)
        weights = np.linalg.lstsq(design, m, rcond=None)[0]
        fit = 1 - np.square(m - design @ weights).sum() / spread
        blended = min(weights[:2]) > _MIX_WEIGHT and max(weights[:2]) < 1 - _MIX_WEIGHT
        if fit < _MIX_FIT or not blended:
            return
        numbered = list(enumerate(looks))
        # The outermost frames alone: the next ones may be mixtures already.
        if not _is_cut(numbered[:2], numbered[-2:], crossing=[(numbered[0], numbered[-1])], chance=0.03):
            return
        through = 0
        for between in (looks[half - 2], looks[half], looks[half + 2]):
            into, out_of = match_looks(looks[0], between), match_looks(between, looks[-1])
            through += len(np.intersect1d(into.pairs[:, 1], out_of.pairs[:, 0]))
        if through <= _THROUGH and not _handed_on(looks):
            self._mixed[self._seen - 1 - half] = 1e-3 + abs(float(weights[0] - weights[1]))

    def _judge_blends(self) -> None:
        """Look for dissolves among the frames that are kept, wherever nothing leads from the first to the last."""
        start = self._seen - len(self._looks)
        self._spans = {span for span in self._spans if span[0] >= start}
        half = self._half_dissolve
        # Runs begin and end with every second frame: features of a frame take longer to find than all the rest.
        lengths = [round(times * half) // 2 * 2 for times in (2, 1.25, 0.75)]
        self._search(start + start % 2, self._seen - 1, lengths)

    def _judge_ends(self, *, first: bool) -> None:
        """Look for a dissolve that the clip begins or ends in: in its outermost frames alone, since hardly one of the
        other shot lies beyond."""
        start, last = self._seen - len(self._looks), self._seen - 1
        for length in range(4, min(self._half_dissolve, last - start) + 1):
            self._search(*((start, start + length) if first else (last - length, last)), [])

    def _search(self, first: int, last: int, lengths: list[int]) -> None:
        """Look at the frames from `first` to `last`, then at shorter runs of them."""
        if (first, last) in self._spans or last - first < 4:
            return
        self._spans.add((first, last))
        start = self._seen - len(self._looks)
        run = list(self._looks)[first - start : last - start + 1]
        a, middle, b = run[0], run[(last - first) // 2], run[-1]
        if a.blank or b.blank:
            return
        correlation, common = self._found_again(run)
        if correlation >= _NOMINATE_CORRELATION and common >= _MIN_COMMON:
            return
        if correlation < _FOUND_AGAIN and common >= _LED_AWAY:
            across = match_looks(a, b).count
            if across >= _SAME_PLACE:
                return
            if across <= _BLEND_CHANCE and (unevenness := _blended(a, middle, b)) is not None:
                self._mixed[(first + last) // 2] = 1e-3 + unevenness
                return
        for i, length in enumerate(lengths):
            if length < last - first:
                for begin in range(first, last - length + 1, max(2, length // 8 * 2)):
                    self._search(begin, begin + length, lengths[i + 1 :])
                break

    def _found_again(self, run: list[Look]) -> tuple[float, float]:
        """How well dense flow leads from the first to the last of some frames, as a correlation of what stays in the
        picture, and how much of it that is; it begins where the steps between them lead."""
        a, b = run[0].gray, run[-1].gray
        height, width = a.shape
        path = np.eye(3)
        for look in run[1:]:
            path = look.step @ path
        back = cv2.WARP_INVERSE_MAP
        moved = np.asarray(
            cv2.warpAffine(
                b, path[:2], (width, height), flags=cv2.INTER_LINEAR | back, borderMode=cv2.BORDER_REPLICATE
            ),
            np.uint8,
        )
        seen = cv2.warpAffine(np.ones_like(a), path[:2], (width, height), flags=cv2.INTER_NEAREST | back)
        inside = np.asarray(seen, np.uint8)
        correlation = _warped_correlation(a, moved, self._flow.between(a, moved), inside=inside)
        return correlation, float(inside.mean())


def _handed_on(looks: list[Look]) -> bool:
    """Whether features that move are followed through every stage from the first frame to the last, by each stage some
    of those that the one before it left: one shot, however little its ends share. What stands still may lie on the
    picture."""
    numbers = [round(stage * (len(looks) - 1) / _STAGES) for stage in range(_STAGES + 1)]
    stages = [match_looks(looks[i], looks[j], leave_still=True).pairs for i, j in pairwise(numbers)]
    return all(
        len(np.intersect1d(into[:, 1], onward[:, 0])) >= _SAME_PLACE for into, onward in pairwise(stages)
    )


def _blended(a: Look, middle: Look, b: Look) -> float | None:
    """How unevenly a frame mixes two others, 0 to 1, by the features it shares with either; None if it does not."""
    into = match_looks(a, middle)
    if into.count < _BLEND_FEATURES:
        return None
    out_of = match_looks(middle, b)
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


_Numbered = list[tuple[int, Look]]
"""Frames with their numbers."""


def _is_cut(
    before: _Numbered,
    after: _Numbered,
    *,
    crossing: list[tuple[tuple[int, Look], tuple[int, Look]]] | None = None,
    chance: float = 0.1,
) -> bool | None:
    """Whether another shot begins between two runs of frames; None if there is too little to follow to tell.

    Args:
        crossing: pairs of frames to match, one of each run; by default all of them.
        chance: share of what neighbouring frames have in common that may cross a cut by chance: measured up to 0.08
            for the best of nine pairs, 0.03 for a single one.
    """
    crossing = crossing or [(a, b) for a in reversed(before) for b in after]
    most = NOTHING
    for (i, a), (j, b) in crossing:
        carried = match_looks(a, b)
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
                match_looks(a, b, leave_still=True).count >= _SAME_PLACE for (_, a), (_, b) in crossing
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
    sides = [side for side in (before, after) if len(side) > 1]
    for side in sides:  # mostly the first one says no, and features of the other one need not be found
        carried, apart = _around(side)
        expected = gap * (carried.shift / apart)
        if carried.count < _FOLLOWED or shift - expected <= _LEAP or shift <= _LEAP_OVER_STEPS * expected:
            return False
    return bool(sides)


def _around(side: _Numbered, *, leave_still: bool = False) -> tuple[Carried, int]:
    """What neighbouring frames on one side of a step share at best, and how many frames apart they are."""
    pairs = [(k, k + 1) for k in range(len(side) - 1)] + [(k, k + 2) for k in range(len(side) - 2)]
    best = NOTHING, 1
    for i, j in pairs:
        carried = match_looks(side[i][1], side[j][1], leave_still=leave_still)
        if carried.count > best[0].count:
            best = carried, side[j][0] - side[i][0]
    return best


def _moved(smooth: F32, similarity: NDArray[np.floating]) -> tuple[NDArray, NDArray[np.bool_]]:
    """A smooth thumb moved by a similarity, every fourth pixel, and where it then shows something."""
    height, width = smooth.shape[:2]
    matrix = similarity[:2].astype(np.float64)
    inside = cv2.warpAffine(np.ones((height, width), np.uint8), matrix, (width, height)) > 0
    return cv2.warpAffine(smooth, matrix, (width, height))[::4, ::4].astype(np.float64), inside[::4, ::4]


@lru_cache(maxsize=4)
def _pixels(height: int, width: int) -> tuple[F32, F32]:
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return x, y


def _warped_correlation(a: U8, b: U8, flow: F32, *, inside: U8 | None = None) -> float:
    """Local normalised correlation of `a` with `b` warped onto it by dense flow, weighted by contrast; of the pixels
    of `a` that are not 0 in `inside` alone."""
    x, y = _pixels(*a.shape)
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
    if inside is not None:
        weight = weight * (inside > 0)
    return float((correlation * weight).sum() / np.maximum(weight.sum(), 1e-9))
