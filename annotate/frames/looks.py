"""Frames as the cut detector sees them, small, and what of one is seen in another, by features."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import cv2
import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import F32, F64, I64, U8

_THUMB_WIDTH = 160
_FEATURE_WIDTH = 400
_STILL_PX = 1.0
_BLANK = 2.5
"""Spread of the grey levels below which a frame shows nothing."""
_SMOOTH_PX = 4.0
"""Of the thumb: parallax within half a second is smaller."""


@dataclass(frozen=True)
class Features:
    """Of one frame: (n, 2) positions, (n, 128) unit RootSIFT descriptors, (n,) orientations in degrees and sizes."""

    xy: F32
    descriptors: F32
    angle_deg: F32
    size: F32


@dataclass(frozen=True)
class Carried:
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
    pairs: I64
    matrix: F64


@dataclass(frozen=True, eq=False)
class Look:
    """One frame as the detector sees it; equal to itself alone."""

    thumb: U8
    gray: U8
    detail: U8
    histogram: F32
    step: F64
    """(3, 3) similarity of the thumb from the frame before."""
    _carried: WeakKeyDictionary[Look, dict[bool, Carried]] = field(
        default_factory=WeakKeyDictionary, repr=False
    )
    """What `match_looks` found in frames that are still kept; weak, or each would keep all that came before it."""

    @cached_property
    def blank(self) -> bool:
        return float(self.gray.std()) < _BLANK

    @cached_property
    def smooth(self) -> F32:
        """The thumb without its details."""
        return np.asarray(cv2.GaussianBlur(self.thumb.astype(np.float32), (0, 0), _SMOOTH_PX), np.float32)

    @cached_property
    def features(self) -> Features:
        # Local contrast first: dark shots would otherwise have no features at all.
        equalised = cv2.createCLAHE(3.0, (8, 8)).apply(self.detail)
        sift: Any = cv2.SIFT.create(800)  # its stubs take no mask that is None
        points, descriptors = sift.detectAndCompute(equalised, None)
        if descriptors is None:
            none = np.zeros(0, np.float32)
            return Features(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32), none, none)
        descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-9))
        return Features(
            np.array([p.pt for p in points], np.float32),
            descriptors,
            np.array([p.angle for p in points], np.float32),
            np.array([p.size for p in points], np.float32),
        )


def shrunk(rgb: U8) -> tuple[U8, U8, U8, F32]:
    """Small colour image, the same in grey, a larger grey one, and the colours' histogram."""
    height, width = rgb.shape[:2]
    detail_width = min(_FEATURE_WIDTH, width)
    while width % 2 == height % 2 == 0 and width >= 2 * detail_width:
        # Means of four pixels: ten times as fast as other sizes.
        rgb = np.asarray(cv2.resize(rgb, (width // 2, height // 2), interpolation=cv2.INTER_AREA), np.uint8)
        height, width = rgb.shape[:2]
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


NOTHING = Carried(0, 0, 0.0, np.zeros(24, bool), np.zeros((0, 2), np.int64), np.zeros((2, 3)))
_TURN_BIN_DEG, _MAX_TURN_DEG, _MAX_LOG_SIZE = 10, 25.0, 0.5
_ZOOM, _UPRIGHT_DEG = 0.08, 3.0
"""Log size from which on a change of size is a zoom, not what a step forward does; a zoom does not turn the picture."""
_NEAR = 0.06
"""How far a match may lie from where the similarity puts it, in picture widths: parallax and perspective."""


def match_looks(a: Look, b: Look, *, leave_still: bool = False) -> Carried:
    """Matches between two frames whose place, orientation and size agree with one similarity, found once.

    Args:
        leave_still: leave out matches that stay within a pixel of where they are.
    """
    known = a._carried.setdefault(b, {})
    if leave_still not in known:
        known[leave_still] = _match(a, b, leave_still=leave_still)
    return known[leave_still]


def _match(a: Look, b: Look, *, leave_still: bool) -> Carried:
    height, width = a.detail.shape
    f, g = a.features, b.features
    if min(len(f.xy), len(g.xy)) < 4:
        return NOTHING
    alike = f.descriptors @ g.descriptors.T
    best, every = alike.argmax(1), np.arange(len(f.xy))
    mutual = alike.argmax(0)[best] == every
    nearest = alike[every, best]
    alike[every, best] = -np.inf
    distance, next_distance = (np.sqrt(np.maximum(2 - 2 * x, 0)) for x in (nearest, alike.max(1)))
    good = mutual & (distance < 0.85 * next_distance)
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
        return NOTHING
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
        return NOTHING
    size = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    rotation = float(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
    agree = inlier.reshape(-1) > 0
    agree &= np.abs((turn - rotation + 180) % 360 - 180) < _MAX_TURN_DEG
    agree &= np.abs(np.log(g.size[j] / f.size[i]) - np.log(max(size, 1e-6))) < _MAX_LOG_SIZE
    source_xy, target_xy = f.xy[i[agree]], g.xy[j[agree]]
    middle = np.array([width / 2, height / 2])
    linear, shift = matrix[:, :2], matrix[:, :2] @ middle + matrix[:, 2] - middle
    if abs(np.log(max(size, 1e-6))) > _ZOOM and abs(rotation) < _UPRIGHT_DEG:
        # The point that stays, from the middle.
        fixed = np.linalg.solve(np.eye(2) - linear, shift)
        shift = shift * float((np.abs(fixed) > middle).any())
    cells = np.zeros(24, bool)
    cells[
        np.minimum(source_xy[:, 1] * 4 // height, 3).astype(int) * 6
        + np.minimum(source_xy[:, 0] * 6 // width, 5).astype(int)
    ] = True
    return Carried(
        count=int(agree.sum()),
        moved=int((np.linalg.norm(target_xy - source_xy, axis=1) > _STILL_PX).sum()),
        shift=float(np.linalg.norm(shift)) / width,
        cells=cells,
        pairs=np.stack([i[agree], j[agree]], 1),
        matrix=np.asarray(matrix, np.float64),
    )


def similarity_of_flow(gray: U8, flow: F32) -> F64:
    """(3, 3) similarity that most of the flow follows, weighted by what there is to see."""
    height, width = gray.shape
    y, x, design = _flow_grid(height, width)
    energy = cv2.boxFilter(np.square(cv2.Laplacian(gray, cv2.CV_32F)), -1, (9, 9))
    contrast = np.sqrt(energy[y, x].ravel())
    target = flow[y, x].reshape(-1, 2).astype(np.float64).T.ravel()
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


@lru_cache(maxsize=4)
def _flow_grid(height: int, width: int) -> tuple[I64, I64, F64]:
    """Rows and columns of every eighth pixel of a picture, and how the flow there depends on a small similarity about
    its middle: two rows a point, grow by g, turn by r, shift by (u, v)."""
    y, x = np.mgrid[4:height:8, 4:width:8]
    px, py = x.ravel() - width / 2, y.ravel() - height / 2
    one, zero = np.ones(len(px)), np.zeros(len(px))
    return y, x, np.concatenate([np.stack([px, -py, one, zero], 1), np.stack([py, px, zero, one], 1)])
