"""What lies on the picture and does not move with the scene: logos, watermarks, interfaces, subtitles, bars.

A resting camera, a far mountain and a logo all stand still; only the last does so *where the scene around it moves*.
So the motion of the scene comes first: in each frame a smooth motion field is fitted to the tracks that move, and
says how far the scene would have moved at every place. Where it says nothing (a camera at rest, a horizon one drives
at) nothing is concluded. Elsewhere the image gradient is averaged over frames between which the scene has moved on:
the scene's gradients cancel, those of an overlay stay, also of a half transparent one (Dekel et al. 2017, "On the
effectiveness of visible watermarks", take the median gradient of many pictures in this way).

Content that changes inside a fixed frame (a presenter's box, a round map) is left out where the frame encloses it, and
a box without a border of its own by its edges (`insets`). A text that runs is not seen; the bundle's robust loss meets
it.
"""

# OpenCV types every image as MatLike.
# pyright: reportArgumentType=false, reportCallIssue=false, reportReturnType=false
from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ...dataset.arrays import U8, BoolArray, FloatArray, IntArray
from .insets import insets

_MAX_SAMPLES = 96
_CELLS = (10, 16)
"""Rows and columns of the grid on which the scene's motion is known."""
_STILL_PX, _MOVING_PX = 0.35, 0.75
"""Steps of a track that stands still (measured on overlays: 0.05 px, with coding noise 0.2) and of one that moves."""
_MIN_MOVING = 0.15
_MIN_SPREAD = 0.3
"""Share of the tracks, and of the picture, that must move as one before anything counts as moving: an object that
moves before a resting camera does not."""
_MOVED_PX = 4.0
"""Motion between two samples that makes the second one news."""
_SPREAD_PX = 3.0
"""Standard deviation of the scene's place over the samples: gradients of the working image are a pixel or two wide."""
_MIN_NEWS = 6.0
_EXACT_PX = 0.4
"""How far from its middle a track on an overlay may be seen, nine times in ten."""
_MIN_STILL, _MIN_STILL_SHARE = 2, 0.05
"""Tracks that must stay so, and their share of all that pass (a round map moves within its border): on the far
scenery of a drive there is none."""
_CHUNK = 6
"""Samples that are summed together; two neighbouring chunks are tested by themselves, for subtitles."""
_COHERENT, _COHERENT_SHORT = 0.35, 0.65
_CORNER = 150.0
"""Smaller eigenvalue of the mean gradient's structure tensor (grey levels squared): what tracks could stick to."""
_EDGE = 12.0
_FLAT = 2.5
"""Standard deviation over time, in grey levels, of even ground that does not change."""
_MARGIN_PX = 11
"""Half the window with which tracks are followed, and a little."""
_MIN_AREA, _MAX_AREA = 0.001, 0.65
_MAX_STILL_OUTSIDE = 0.3


@dataclass(frozen=True)
class Overlay:
    """Pixels to leave out.

    Attributes:
        spans: first frame, last frame and (h, w) mask of the working image, True on the overlay.
        num_frames: of the clip.
    """

    spans: tuple[tuple[int, int, BoolArray], ...]
    num_frames: int

    def mask(self, frame: int) -> BoolArray | None:
        """(h, w) bool of one frame; None where nothing is covered."""
        found: BoolArray | None = None
        for first, last, mask in self.spans:
            if first <= frame <= last:
                found = mask if found is None else found | mask
        return found

    def covers(self, frame: int, xy: FloatArray) -> BoolArray:
        """(n,) bool, True for points (n, 2) of the working image that lie on the overlay."""
        mask = self.mask(frame)
        if mask is None or len(xy) == 0:
            return np.zeros(len(xy), bool)
        x = np.clip(np.rint(xy[:, 0]).astype(int), 0, mask.shape[1] - 1)
        y = np.clip(np.rint(xy[:, 1]).astype(int), 0, mask.shape[0] - 1)
        return mask[y, x]

    def share(self) -> float:
        """Mean share of the picture that is covered."""
        bounds = sorted(
            {0, self.num_frames, *(f for first, last, _ in self.spans for f in (first, last + 1))}
        )
        covered = 0.0
        for start, end in itertools.pairwise(bounds):
            mask = self.mask(start)
            covered += 0.0 if mask is None else (end - start) * float(mask.mean())
        return covered / max(1, self.num_frames)


class OverlayFinder:
    """Collects samples while the frames go by; memory is that of 96 grey working images."""

    def __init__(self) -> None:
        self._samples: dict[int, U8] = {}
        self._stride = 1
        self._num_frames = 0

    def add(self, frame: int, gray: U8) -> None:
        """Take the next frame's grey working image, (h, w), its brightness as it was."""
        self._num_frames = frame + 1
        if frame % self._stride:
            return
        self._samples[frame] = gray
        if len(self._samples) > _MAX_SAMPLES:
            self._stride *= 2
            self._samples = {f: image for f, image in self._samples.items() if f % self._stride == 0}

    def find(self, observed: Sequence[tuple[IntArray, FloatArray]]) -> Overlay:
        """What does not move although the scene does.

        Args:
            observed: per frame the numbers (n,) of the tracks seen in it and their places (n, 2), working pixels.
        """
        nothing = Overlay((), self._num_frames)
        if len(self._samples) < _MIN_NEWS:
            return nothing
        height, width = next(iter(self._samples.values())).shape
        steps = [_steps(a, b) for a, b in itertools.pairwise(observed)]
        motion = np.stack([_scene_motion(start, step, height, width) for start, step in steps])
        place = np.concatenate(
            [np.zeros((1, *motion.shape[1:])), np.cumsum(motion, 0)]
        )  # (F, rows, columns, 2)
        news = self._news(place)
        if len(news) < _MIN_NEWS:
            return nothing
        spans = self._coherent(news, place, _Seen.of(observed), height, width)
        overlay = Overlay(tuple(spans), self._num_frames)
        return overlay if _rest_moves(overlay, steps, motion) else nothing

    def _news(self, place: FloatArray) -> list[int]:
        """Samples between which the scene has moved on."""
        news: list[int] = []
        for frame in sorted(self._samples):
            if not news or np.median(np.linalg.norm(place[frame] - place[news[-1]], axis=-1)) >= _MOVED_PX:
                news.append(frame)
        return news

    def _coherent(
        self, news: list[int], place: FloatArray, seen: _Seen, height: int, width: int
    ) -> list[tuple[int, int, BoolArray]]:
        chunks: list[_Sums] = []
        for number, frame in enumerate(news):
            if number % _CHUNK == 0:
                chunks.append(_Sums(height, width))
            before = news[max(0, number - 1)] if number else news[1]
            chunks[-1].add(self._samples[frame], place[frame], place[before])
        spans: list[tuple[int, int, BoolArray]] = []
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole = whole.plus(chunk)
        found = [_Found.of(_coherent_mask(whole, _COHERENT), 0, self._num_frames - 1)]
        for number in range(len(chunks) - 1):
            first = news[number * _CHUNK]
            last = news[min((number + 2) * _CHUNK, len(news)) - 1]
            both = chunks[number].plus(chunks[number + 1])
            found.append(_Found.of(_coherent_mask(both, _COHERENT_SHORT), first, last))
        sure = np.zeros((height, width), bool)
        for each in found:
            sure |= each.parts(seen.stand_still(each))
        for each in found:
            # What was verified at one time is believed at another.
            inside = np.bincount(each.label.ravel(), sure.ravel(), each.count) / np.maximum(each.area, 1)
            kept = each.parts(np.nonzero(inside > 0.5)[0]).astype(np.uint8)
            mask = (
                cv2.dilate(kept, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _MARGIN_PX + 1,) * 2)) > 0
            )
            more = mask & ~spans[0][2] if spans and spans[0][1] == self._num_frames - 1 else mask
            if more.mean() > _MIN_AREA and mask.mean() <= _MAX_AREA:
                spans.append((each.first, each.last, mask))
        known = _scene_moved(whole, height, width)
        for left, top, right, bottom in insets([self._samples[frame] for frame in news], known):
            # One that shows most of what is followed is the film, and what is around it the decoration.
            if seen.share_within(left, top, right, bottom) < 0.5:
                mask = np.zeros((height, width), bool)
                reach = slice(max(0, top - _MARGIN_PX), bottom + _MARGIN_PX)
                mask[reach, max(0, left - _MARGIN_PX) : right + _MARGIN_PX] = True
                spans.append((0, self._num_frames - 1, mask))
        return spans


class _Sums:
    """Weighted sums over samples: of gradients, of their squares, of where the scene is."""

    def __init__(self, height: int, width: int) -> None:
        self.gradient = np.zeros((height, width, 2), np.float32)
        self.energy = np.zeros((height, width), np.float32)
        self.level = np.zeros((height, width), np.float32)
        self.level_squared = np.zeros((height, width), np.float32)
        self.weight = np.zeros(_CELLS)
        self.place = np.zeros((*_CELLS, 2))
        self.place_squared = np.zeros(_CELLS)
        self.count = 0

    def add(self, gray: U8, place: FloatArray, before: FloatArray) -> None:
        weight = np.minimum(1.0, np.linalg.norm(place - before, axis=-1) / _MOVED_PX)
        height, width = gray.shape
        # Area by area rather than smoothly: the weight of a pixel is that of its cell.
        fine = cv2.resize(weight.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        gx = cv2.Sobel(gray, cv2.CV_32F, 1, 0, ksize=3, scale=0.25)
        gy = cv2.Sobel(gray, cv2.CV_32F, 0, 1, ksize=3, scale=0.25)
        self.gradient[..., 0] += fine * gx
        self.gradient[..., 1] += fine * gy
        self.energy += fine * (gx * gx + gy * gy)
        level = gray.astype(np.float32)
        self.level += level
        self.level_squared += level * level
        self.weight += weight
        self.place += place
        self.place_squared += (place**2).sum(-1)
        self.count += 1

    def plus(self, other: _Sums) -> _Sums:
        out = _Sums(*self.energy.shape)
        for name in (
            "gradient",
            "energy",
            "level",
            "level_squared",
            "weight",
            "place",
            "place_squared",
            "count",
        ):
            setattr(out, name, getattr(self, name) + getattr(other, name))
        return out


def _steps(
    before: tuple[IntArray, FloatArray], after: tuple[IntArray, FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Places (n, 2) of the common tracks and their steps (n, 2)."""
    _, i, j = np.intersect1d(before[0], after[0], assume_unique=True, return_indices=True)
    return np.asarray(before[1][i], np.float64), np.asarray(after[1][j] - before[1][i], np.float64)


def _basis(xy: FloatArray, height: int, width: int) -> FloatArray:
    """(n, 6) quadratic terms of normalised places."""
    x, y = (2 * xy[:, 0] / width - 1), (2 * xy[:, 1] / height - 1)
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], 1)


def _grid(height: int, width: int) -> FloatArray:
    rows, columns = _CELLS
    x, y = np.meshgrid((np.arange(columns) + 0.5) / columns * width, (np.arange(rows) + 0.5) / rows * height)
    return np.stack([x.ravel(), y.ravel()], 1)


def _scene_motion(start: FloatArray, step: FloatArray, height: int, width: int) -> FloatArray:
    """(rows, columns, 2) step of the scene on the grid; 0 where the tracks do not tell that anything moves."""
    rest = np.zeros((*_CELLS, 2))
    size = np.linalg.norm(step, axis=1)
    moving = size > _MOVING_PX
    if moving.sum() < max(12, _MIN_MOVING * len(step)):
        return rest
    start, step, size = start[moving], step[moving], size[moving]
    cells = np.unique(
        (start[:, 1] // (height / 4)).astype(int) * 8 + (start[:, 0] // (width / 6)).astype(int)
    )
    if len(cells) < _MIN_SPREAD * 24:
        return rest
    basis = _basis(start, height, width)
    weight = np.ones(len(start))
    model = np.zeros((6, 2))
    tolerance = max(1.5, 0.3 * float(np.median(size)))
    off = size
    ridge = 1e-3 * len(start) * np.eye(6)
    for _ in range(8):
        weighted = basis * weight[:, None]
        model = np.linalg.solve(weighted.T @ basis + ridge, weighted.T @ step)
        off = np.linalg.norm(step - basis @ model, axis=1)
        weight = 1 / (1 + (off / tolerance) ** 2)
    if (off < 2 * tolerance).mean() < 0.5:
        return rest
    field = _basis(_grid(height, width), height, width) @ model
    # Beyond the points a quadratic runs away.
    length = np.linalg.norm(field, axis=1)
    limit = float(np.percentile(size, 95))
    field *= np.minimum(1, limit / np.maximum(length, 1e-9))[:, None]
    return field.reshape(*_CELLS, 2)


@dataclass(frozen=True)
class _Seen:
    """All observations, by track."""

    frame: IntArray
    track: IntArray
    xy: FloatArray

    @staticmethod
    def of(observed: Sequence[tuple[IntArray, FloatArray]]) -> _Seen:
        frame = np.concatenate([np.full(len(track), number) for number, (track, _) in enumerate(observed)])
        track = np.concatenate([track for track, _ in observed])
        xy = np.concatenate([xy for _, xy in observed]).astype(np.float64)
        order = np.lexsort((frame, track))
        return _Seen(frame[order], track[order], xy[order])

    def share_within(self, left: int, top: int, right: int, bottom: int) -> float:
        """Share of all observations that lie in a box."""
        x, y = self.xy.T
        return float(((x >= left) & (x < right) & (y >= top) & (y < bottom)).mean()) if len(x) else 0.0

    def stand_still(self, found: _Found) -> IntArray:
        """Parts of `found` on which tracks stand still to a fraction of a pixel.

        Far scenery creeps by a pixel or two within a second; what no track sticks to does no harm.
        """
        height, width = found.label.shape
        x = np.clip(np.rint(self.xy[:, 0]).astype(int), 0, width - 1)
        y = np.clip(np.rint(self.xy[:, 1]).astype(int), 0, height - 1)
        part = found.label[y, x]
        indices = np.nonzero((part > 0) & (self.frame >= found.first) & (self.frame <= found.last))[0]
        stays, total = np.zeros(found.count), np.zeros(found.count)
        for run in np.split(indices, np.nonzero(np.diff(self.track[indices]))[0] + 1):
            if len(run) >= _MIN_NEWS:
                off = np.linalg.norm(self.xy[run] - np.median(self.xy[run], axis=0), axis=1)
                stays[part[run[0]]] += np.percentile(off, 90) < _EXACT_PX
                total[part[run[0]]] += 1
        return np.nonzero((stays >= _MIN_STILL) & (stays >= _MIN_STILL_SHARE * total))[0]


@dataclass(frozen=True)
class _Found:
    """Parts of the picture that look like an overlay from frame `first` to `last`; label 0 is the rest."""

    first: int
    last: int
    count: int
    label: IntArray
    area: FloatArray

    @staticmethod
    def of(mask: BoolArray, first: int, last: int) -> _Found:
        joined = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8))
        count, label = cv2.connectedComponents(joined, connectivity=8)
        return _Found(first, last, count, label, np.bincount(label.ravel(), minlength=count))

    def parts(self, numbers: IntArray) -> BoolArray:
        return np.isin(self.label, numbers[numbers > 0])


def _scene_moved(sums: _Sums, height: int, width: int) -> BoolArray:
    """(h, w), True where the scene is known to have moved on between the samples."""
    spread = np.sqrt(
        np.maximum(sums.place_squared / sums.count - np.square(sums.place / sums.count).sum(-1), 0)
    )
    known = (sums.weight >= _MIN_NEWS - 0.5) & (spread >= _SPREAD_PX)
    return cv2.resize(known.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0


def _coherent_mask(sums: _Sums, coherent: float) -> BoolArray:
    """Where the mean gradient stayed what it was, with what it encloses."""
    height, width = sums.energy.shape
    fine = _scene_moved(sums, height, width)
    if not fine.any():
        return np.zeros((height, width), bool)
    weight = np.maximum(cv2.resize(sums.weight.astype(np.float32), (width, height)), 1e-3)
    gradient = sums.gradient / weight[..., None]
    energy = sums.energy / weight

    def mean(image: FloatArray) -> FloatArray:
        return cv2.boxFilter(image, cv2.CV_32F, (9, 9))

    gx, gy = gradient[..., 0], gradient[..., 1]
    xx, xy, yy = mean(gx * gx), mean(gx * gy), mean(gy * gy)
    coherence = (xx + yy) / (mean(energy) + 4.0)
    corner = (xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy * xy)
    bound = np.maximum(coherent, 3.0 / weight)
    seed = fine & (coherence > bound) & (corner > _CORNER / 9)
    if seed.sum() < 12:
        return np.zeros((height, width), bool)
    # Lines that stay (the border of a box) and even ground belong to it where they touch what has corners.
    line = fine & (gx * gx + gy * gy > 0.5 * energy) & (np.hypot(gx, gy) > _EDGE)
    level = sums.level / sums.count
    flat = fine & (sums.level_squared / sums.count - level * level < _FLAT**2)
    flat = cv2.morphologyEx(flat.astype(np.uint8), cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)) > 0
    both = (seed | line | flat).astype(np.uint8)
    joined = cv2.dilate(both, np.ones((3, 3), np.uint8))
    _, label = cv2.connectedComponents(joined, connectivity=8)
    kept = np.isin(label, np.unique(label[seed])) & (joined > 0)
    contours, _ = cv2.findContours(kept.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    filled = np.zeros((height, width), np.uint8)
    cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
    return filled > 0


def _rest_moves(overlay: Overlay, steps: Sequence[tuple[FloatArray, FloatArray]], motion: FloatArray) -> bool:
    """Whether what is left moves: before a resting camera the background stands still, and is no overlay."""
    if not overlay.spans:
        return True
    still = total = 0
    for number, (start, step) in enumerate(steps):
        if not motion[number].any():
            continue
        outside = ~overlay.covers(number + 1, start)
        still += int((np.linalg.norm(step[outside], axis=1) < _STILL_PX).sum())
        total += int(outside.sum())
    return total > 0 and still <= _MAX_STILL_OUTSIDE * total
