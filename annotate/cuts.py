"""Cuts and dissolves inside a clip, found while its frames go by.

A fast pan changes every pixel just as a cut does, so differences of images alone cannot tell them apart. Three
questions are asked, each only where the one before says maybe: does dense flow explain the step (normalised
correlation after warping); do features match across it, or across the frames around it (blur hides a frame or
two, a cut hides everything); and, where there are no features to ask, does the step stand alone among its
neighbours with new colours.

A dissolve has no step. It is found where a frame is a weighted sum of the frames half a second before and after
and those two share no features. That holds for shots that are nearly still; a dissolve between moving shots is
left to the tracks, which die in it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]

_THUMB_WIDTH = 160
_FEATURE_WIDTH = 400
_BRIDGE = 3
"""Frames on each side of a step between which features are matched."""
_HALF_DISSOLVE_S = 0.5
"""Distance to the two shots that a dissolve is tested against."""

# Measured on hand-held and head-worn recordings and on edited footage: warped correlation is 0.09 to 0.6 in the
# worst pans and 0.12 at a true cut (so it can only nominate); the share of features that match beyond chance is
# 0.13 or more across every pan and below 0.01 across a cut, if there are features: a view of a bare wall has 20 to
# 70, and then the share says nothing when it is low.
_NOMINATE_CORRELATION = 0.6
_SAME_PLACE_SHARE = 0.05
_MIN_FEATURES = 40
_TELLING_FEATURES = 120
_CHANCE_MATCHES = 8
"""Any eight pairs fit some epipolar geometry."""
_LONE_STEP = 0.5
_NEW_COLOURS = 0.2
_MIX_FIT = 0.95
_ALIKE = 0.7


@dataclass(frozen=True)
class _Look:
    """One frame as the detector sees it."""

    thumb: U8
    gray: U8
    detail: U8
    histogram: NDArray[np.float32]

    @cached_property
    def features(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(n, 2) positions and (n, 128) unit RootSIFT descriptors."""
        # Local contrast first: dark shots would otherwise have no features at all.
        equalised = cv2.createCLAHE(3.0, (8, 8)).apply(self.detail)
        points, descriptors = cv2.SIFT.create(800).detectAndCompute(equalised, None)  # type: ignore[call-overload]
        if descriptors is None:
            return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
        descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-9))
        return np.array([p.pt for p in points], np.float32), descriptors


class CutDetector:
    """Feed every frame of a clip in order, then read `cuts`.

    Memory is that of some twenty small images; the time is about 3 ms a frame, more where a cut is suspected.

    Args:
        fps: rate of the frames that will come.
    """

    def __init__(self, *, fps: float) -> None:
        # Within limits: the frames around a step are needed too, and memory stays small.
        self._half_dissolve = min(max(round(fps * _HALF_DISSOLVE_S), _BRIDGE + 1), 32)
        self._looks: deque[_Look] = deque(maxlen=2 * self._half_dissolve + 1)
        self._correlation: list[float] = [1.0]
        self._colour_step: list[float] = [0.0]
        self._suspects: list[int] = []
        self._cuts: list[int] = []
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._seen = 0

    def update(self, rgb: U8) -> None:
        """Take the next frame, (H, W, 3) uint8 RGB."""
        look = _look(rgb)
        if self._looks:
            before = self._looks[-1]
            self._correlation.append(_warped_correlation(self._flow, before.gray, look.gray))
            self._colour_step.append(1 - float(np.sqrt(before.histogram * look.histogram).sum()))
            if self._correlation[-1] < _NOMINATE_CORRELATION:
                self._suspects.append(self._seen)
        self._looks.append(look)
        self._seen += 1
        # A suspect is judged when the frames after it are there too.
        self._judge([t for t in self._suspects if t + _BRIDGE <= self._seen])
        if len(self._looks) == self._looks.maxlen and self._seen % 2:
            self._judge_dissolve()

    def finish(self) -> list[int]:
        """Sorted clip frame indices at which a new shot begins (of a dissolve: its middle)."""
        self._judge(list(self._suspects))
        merged: list[int] = []
        for cut in sorted(set(self._cuts)):
            if not merged or cut - merged[-1] > self._half_dissolve:
                merged.append(cut)
        return merged

    def _judge(self, suspects: list[int]) -> None:
        for t in suspects:
            self._suspects.remove(t)
            first = self._seen - len(self._looks)
            looks = list(self._looks)
            before = looks[max(0, t - _BRIDGE - first) : t - first]
            after = looks[t - first : t - first + _BRIDGE]
            pairs = [(a, b) for a in reversed(before) for b in after]
            if any((_matched_share(a, b) or 0.0) >= _SAME_PLACE_SHARE for a, b in pairs):
                continue
            if any(min(len(a.features[0]), len(b.features[0])) >= _TELLING_FEATURES for a, b in pairs):
                self._cuts.append(t)
                continue
            around = self._correlation[max(1, t - 4) : t] + self._correlation[t + 1 : t + 5]
            lone = bool(around) and self._correlation[t] < _LONE_STEP * float(np.median(around))
            if lone and self._colour_step[t] > _NEW_COLOURS:
                self._cuts.append(t)

    def _judge_dissolve(self) -> None:
        start, middle, end = (self._looks[i] for i in (0, self._half_dissolve, 2 * self._half_dissolve))
        a, m, b = (
            cv2.GaussianBlur(x.thumb, (5, 5), 0).reshape(-1).astype(np.float64) for x in (start, middle, end)
        )
        spread = np.square(m - m.mean()).sum()
        if spread < m.size:  # under one grey level: nothing to see
            return
        ones = np.ones_like(a)
        design = np.stack([a, b, ones], axis=1)
        weights = np.linalg.lstsq(design, m, rcond=None)[0]
        fit = 1 - np.square(m - design @ weights).sum() / spread
        similar = np.corrcoef(a, b)[0, 1] ** 2 if a.std() and b.std() else 1.0
        blended = 0.2 < weights[0] < 0.8 and 0.2 < weights[1] < 0.8
        if fit < _MIX_FIT or not blended or similar > _ALIKE:
            return
        share = _matched_share(start, end)
        if share is not None and share < _SAME_PLACE_SHARE:
            self._cuts.append(self._seen - 1 - self._half_dissolve)


def _look(rgb: U8) -> _Look:
    height, width = rgb.shape[:2]
    detail_width = min(_FEATURE_WIDTH, width)
    detail_size = (detail_width, max(8, round(height * detail_width / width)))
    detail = cv2.resize(rgb, detail_size, interpolation=cv2.INTER_AREA)
    thumb_size = (_THUMB_WIDTH, max(8, round(height * _THUMB_WIDTH / width)))
    thumb = cv2.resize(detail, thumb_size, interpolation=cv2.INTER_AREA)
    hsv = cv2.cvtColor(thumb, cv2.COLOR_RGB2HSV)
    histogram = cv2.calcHist([hsv], [0, 1, 2], None, [8, 4, 8], [0, 180, 0, 256, 0, 256]).ravel()
    return _Look(
        thumb=thumb.astype(np.uint8),
        gray=cv2.cvtColor(thumb, cv2.COLOR_RGB2GRAY).astype(np.uint8),
        detail=cv2.cvtColor(detail, cv2.COLOR_RGB2GRAY).astype(np.uint8),
        histogram=(histogram / histogram.sum()).astype(np.float32),
    )


def _warped_correlation(flow_estimator: cv2.DISOpticalFlow, a: U8, b: U8) -> float:
    """Local normalised correlation of `a` with `b` warped onto it by dense flow, weighted by contrast."""
    flow = flow_estimator.calc(a, b, None)  # type: ignore[call-overload]
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


def _matched_share(a: _Look, b: _Look) -> float | None:
    """Share of features that match under one epipolar geometry; None if either has too few to say."""
    (xy_a, des_a), (xy_b, des_b) = a.features, b.features
    fewer = min(len(xy_a), len(xy_b))
    if fewer < _MIN_FEATURES:
        return None
    similarity = des_a @ des_b.T
    best = similarity.argmax(1)
    top = np.partition(similarity, -2, axis=1)[:, -2:]
    distance = np.sqrt(np.maximum(2 - 2 * top, 0))
    mutual = similarity.argmax(0)[best] == np.arange(len(best))
    good = mutual & (distance[:, 1] < 0.85 * distance[:, 0])
    if good.sum() <= _CHANCE_MATCHES:
        return 0.0
    cv2.setRNGSeed(0)  # RANSAC: the same clip must give the same cuts
    _, inlier = cv2.findFundamentalMat(xy_a[good], xy_b[best[good]], cv2.FM_RANSAC, 1.5, 0.99, 500)
    return 0.0 if inlier is None else max(0.0, float(inlier.sum()) - _CHANCE_MATCHES) / fewer
