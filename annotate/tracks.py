"""Image measurements between frames: short-step optical-flow tracks on every frame, descriptor tracks on keyframes.

Two families, because each covers what the other cannot:

* **flow tracks** live on every frame. A dense flow field (DIS) predicts, pyramidal Lucas-Kanade refines, a
  forward-backward check rejects. Each track is refined once more against the frame in which it was first seen, so
  its error does not add up step by step.
* **descriptor tracks** (RootSIFT) live on keyframes, survive blur, large steps and leaving the view, and carry
  loop closures: places seen again seconds later get the same track.

What lies on the picture and does not move with the scene (`overlay`) is left out of both. Outliers that pass (moving
objects, repeated texture) are left to the bundle's robust loss.
Pixel coordinates leave this module in the stored frame size, pixel centres at +0.5.
"""

# OpenCV types every image as MatLike and leaves functions out of its stubs.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..dataset.arrays import FloatArray, IntArray
from ..dataset.strict import Strict
from .overlay import Overlay, OverlayFinder

FLOW, DESCRIPTOR, DENSE = 0, 1, 2
_THUMBNAIL_WIDTH = 192


class TracksConfig(Strict):
    """How image measurements are made; sizes in pixels of the working image (long side `max_side_px`)."""

    max_side_px: Annotated[int, Field(ge=160, le=1920)] = 640
    """Frames are measured at this long side; larger gains little accuracy and costs quadratically."""
    num_flow_tracks: Annotated[int, Field(ge=50, le=4000)] = 350
    """Flow tracks kept alive in each frame, spread over a grid."""
    forward_backward_px: Annotated[float, Field(gt=0)] = 0.6
    """Largest distance between a point and its image tracked there and back."""
    max_track_frames: Annotated[int, Field(ge=5, le=120)] = 30
    """A flow track is ended after this many frames; the descriptor tracks carry longer memory."""
    num_descriptors: Annotated[int, Field(ge=100, le=8000)] = 1200
    """SIFT features per keyframe, spread over a grid."""
    keyframe_flow: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """A keyframe is taken when the median track moved by this fraction of the image diagonal."""
    max_keyframe_gap: Annotated[int, Field(ge=1, le=64)] = 6
    """... or after this many frames, or when 40 % of the tracks of the last keyframe are gone."""
    descriptor_ratio: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Lowe's ratio between best and second-best match."""
    max_loops_per_keyframe: Annotated[int, Field(ge=0, le=50)] = 2
    """Loop-closure candidates tried for each keyframe; 0 switches loop closure off."""
    leave_out_overlays: bool = True
    """Leave out what stands still on the picture while the scene moves: logos, interfaces, subtitles."""


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """Point observations over a clip, sorted by track, then frame.

    Attributes:
        frame, track: (N,) int64 clip frame and track number of each observation.
        xy_px: (N, 2) position in the stored frame, pixel centres at +0.5.
        kind: (N,) uint8, FLOW, DESCRIPTOR or DENSE (grid points of an RGB-D alignment, `dense.link_points`).
        sigma_px: (N,) standard deviation in stored pixels of DENSE observations; 0 for the others, whose error the
            bundle's configuration states.
        num_frames, num_tracks, height, width: of the clip and of the stored frame.
    """

    frame: IntArray
    track: IntArray
    xy_px: FloatArray
    kind: NDArray[np.uint8]
    sigma_px: FloatArray
    num_frames: int
    num_tracks: int
    height: float
    width: float


@dataclass(frozen=True, kw_only=True)
class Features:
    """What is kept of one keyframe.

    Attributes:
        frame: clip frame.
        xy_px: (n, 2) positions in stored pixels.
        descriptors: (n, 128) float32 unit RootSIFT.
        thumbnail: (h, 192) uint8 grey image, for direct alignment where points fail.
        overlay: (h, 192) bool, True where the thumbnail shows an overlay; None if nowhere.
    """

    frame: int
    xy_px: FloatArray
    descriptors: NDArray[np.float32]
    thumbnail: NDArray[np.uint8]
    overlay: NDArray[np.bool_] | None = None


@dataclass(frozen=True, kw_only=True)
class ImageMeasurements:
    """Everything later stages know about the pixels.

    Attributes:
        flow: flow tracks over all frames.
        keyframes: (K,) clip frames with descriptors, first and last frame included.
        features: one per keyframe.
        survival: (F,) share of the tracks alive in frame i-1 that were found in frame i (1 for i = 0).
        median_flow_px: (F,) median displacement from frame i-1 in stored pixels (0 for i = 0).
        sharpness: (F,) variance of the Laplacian at working size, a blur score.
        overlay_share: mean share of the picture that was left out as an overlay.
    """

    flow: Tracks
    keyframes: IntArray
    features: list[Features]
    survival: FloatArray
    median_flow_px: FloatArray
    sharpness: FloatArray
    overlay_share: float = 0.0


_LK_WINDOW = (19, 19)
_LK_LEVELS = 3
_LK_CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 0.01)


def _gray(rgb: NDArray[np.uint8], size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """Gray working image."""
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    if (gray.shape[1], gray.shape[0]) != size_wh:
        gray = cv2.resize(gray, size_wh, interpolation=cv2.INTER_AREA)
    return gray


def _normalised(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same with mean 118 and spread 48, so that exposure steps do not look like motion."""
    mean, spread = cv2.meanStdDev(gray)
    gain = 48.0 / max(float(spread[0, 0]), 4.0)
    return cv2.convertScaleAbs(gray, alpha=gain, beta=118.0 - gain * float(mean[0, 0]))


def _spread(
    xy: FloatArray, strength: FloatArray, size_wh: tuple[int, int], keep: int, cells: int
) -> IntArray:
    """Indices of about `keep` points, the strongest of each grid cell first, so that no area dominates."""
    width, height = size_wh
    side = max(1.0, np.sqrt(width * height / cells))
    cell = (xy[:, 1] // side).astype(np.int64) * 10_000 + (xy[:, 0] // side).astype(np.int64)
    order = np.lexsort((-strength, cell))
    sorted_cell = cell[order]
    first = np.r_[True, sorted_cell[1:] != sorted_cell[:-1]]
    start = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    rank = np.arange(len(order)) - start
    # Round robin over the cells: every cell's best, then every cell's second ...
    return order[np.lexsort((-strength[order], rank))][:keep]


def _new_corners(
    gray: NDArray[np.uint8], occupied_xy: FloatArray, want: int, min_distance: int
) -> NDArray[np.float32]:
    """Corners (n, 2) in OpenCV pixel coordinates, away from `occupied_xy`, spread over the image."""
    response = cv2.cornerMinEigenVal(gray, 5, ksize=3)
    peak = cv2.dilate(response, np.ones((5, 5), np.uint8))
    border = 8
    candidate = (response == peak) & (response > 2e-4)
    candidate[:border], candidate[-border:] = False, False
    candidate[:, :border], candidate[:, -border:] = False, False
    if len(occupied_xy):
        blocked = np.zeros(gray.shape, np.uint8)
        for x, y in np.round(occupied_xy).astype(int):
            cv2.circle(blocked, (int(x), int(y)), min_distance, 255, -1)
        candidate &= blocked == 0
    y, x = np.nonzero(candidate)
    if len(x) == 0 or want <= 0:
        return np.zeros((0, 2), np.float32)
    xy = np.stack([x, y], 1).astype(np.float32)
    chosen = _spread(xy, response[y, x], (gray.shape[1], gray.shape[0]), want, cells=max(48, want))
    return xy[chosen]


def _sample_flow(flow: NDArray[np.float32], xy: FloatArray, scale: float) -> NDArray[np.float32]:
    """Dense flow (on an image `scale` times the working size) at working-size points, in working pixels."""
    x = np.clip(np.round(xy[:, 0] * scale).astype(int), 0, flow.shape[1] - 1)
    y = np.clip(np.round(xy[:, 1] * scale).astype(int), 0, flow.shape[0] - 1)
    return flow[y, x] / scale


def _lucas_kanade(
    source: NDArray[np.uint8], target: NDArray[np.uint8], xy: NDArray, guess: NDArray, levels: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Track points from one image into another; returns positions and which converged."""
    found, status, _ = cv2.calcOpticalFlowPyrLK(
        source,
        target,
        np.ascontiguousarray(xy, np.float32).reshape(-1, 1, 2),
        np.ascontiguousarray(guess, np.float32).reshape(-1, 1, 2).copy(),
        winSize=_LK_WINDOW,
        maxLevel=levels,
        criteria=_LK_CRITERIA,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
        minEigThreshold=1e-4,
    )
    return found.reshape(-1, 2), status.reshape(-1) == 1


class _FlowTracker:
    """Keeps the live tracks and the images that they refer to."""

    def __init__(self, size_wh: tuple[int, int], config: TracksConfig) -> None:
        self.config = config
        self.size_wh = size_wh
        self.dense_scale = min(1.0, 320.0 / max(size_wh))
        self.dense = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self.images: dict[int, NDArray[np.uint8]] = {}
        self.previous_small: NDArray | None = None
        self.xy = np.zeros((0, 2), np.float32)
        self.track = np.zeros(0, np.int64)
        self.age = np.zeros(0, np.int64)
        self.reference_frame = np.zeros(0, np.int64)
        self.reference_xy = np.zeros((0, 2), np.float32)
        self.num_tracks = 0
        self.observed: list[tuple[NDArray, NDArray, NDArray]] = []
        self.tried: list[tuple[NDArray, NDArray, NDArray]] = []
        """Per frame of those alive before it: place before, step, whether it was found."""

    def _step(self, frame: int, gray: NDArray[np.uint8], small: NDArray) -> float:
        """Move live tracks into `frame`; returns their survival."""
        assert self.previous_small is not None
        forward = self.dense.calc(self.previous_small, small, None)
        before = self.xy
        guess = before + _sample_flow(forward, before, self.dense_scale)
        previous = self.images[frame - 1]
        after, ok = _lucas_kanade(previous, gray, before, guess, _LK_LEVELS)
        back, back_ok = _lucas_kanade(gray, previous, after, before, 1)
        ok &= back_ok & (np.linalg.norm(back - before, axis=1) < self.config.forward_backward_px)
        width, height = self.size_wh
        ok &= (after[:, 0] > 3) & (after[:, 1] > 3) & (after[:, 0] < width - 4) & (after[:, 1] < height - 4)
        self.tried.append((before, np.linalg.norm(after - before, axis=1), ok.copy()))
        survival = float(ok.mean()) if len(ok) else 0.0
        self._refine_on_reference(frame, gray, after, ok)
        keep = ok & (self.age + 1 < self.config.max_track_frames)
        self.xy, self.track, self.age = after[keep], self.track[keep], self.age[keep] + 1
        self.reference_frame, self.reference_xy = self.reference_frame[keep], self.reference_xy[keep]
        return survival

    def _refine_on_reference(self, frame: int, gray: NDArray[np.uint8], after: NDArray, ok: NDArray) -> None:
        """Replace step-wise positions by matches against each track's first frame, where these agree."""
        old = ok & (self.reference_frame < frame - 1)
        for reference in np.unique(self.reference_frame[old]):
            of = np.nonzero(old & (self.reference_frame == reference))[0]
            source = self.images.get(int(reference))
            if source is None:
                continue
            refined, good = _lucas_kanade(source, gray, self.reference_xy[of], after[of], 0)
            back, back_good = _lucas_kanade(gray, source, refined, self.reference_xy[of], 0)
            good &= back_good & (np.linalg.norm(back - self.reference_xy[of], axis=1) < 0.5)
            good &= np.linalg.norm(refined - after[of], axis=1) < 1.5
            after[of[good]] = refined[good]
            # The view has changed too much for the old patch: go on from the present one.
            stale = of[~good]
            self.reference_frame[stale] = frame
            self.reference_xy[stale] = after[stale]

    def add(self, frame: int, gray: NDArray[np.uint8]) -> float:
        """Process one frame in order; returns the survival of the tracks."""
        small = cv2.resize(gray, None, fx=self.dense_scale, fy=self.dense_scale, interpolation=cv2.INTER_AREA)
        survival = 1.0
        if frame > 0 and len(self.xy):
            survival = self._step(frame, gray, small)
        else:
            survival = 1.0 if frame == 0 else 0.0
            self.tried.append((np.zeros((0, 2)), np.zeros(0), np.zeros(0, bool)))
        want = self.config.num_flow_tracks - len(self.xy)
        if want > 0.15 * self.config.num_flow_tracks or frame == 0:
            spacing = max(
                4, int(0.4 * np.sqrt(self.size_wh[0] * self.size_wh[1] / self.config.num_flow_tracks))
            )
            fresh = _new_corners(gray, self.xy, want, spacing)
            self.xy = np.concatenate([self.xy, fresh])
            self.track = np.r_[self.track, self.num_tracks + np.arange(len(fresh))]
            self.age = np.r_[self.age, np.zeros(len(fresh), np.int64)]
            self.reference_frame = np.r_[self.reference_frame, np.full(len(fresh), frame)]
            self.reference_xy = np.concatenate([self.reference_xy, fresh])
            self.num_tracks += len(fresh)
        self.observed.append((np.full(len(self.xy), frame), self.track.copy(), self.xy.copy()))
        self.previous_small = small
        self.images[frame] = gray
        needed = set(self.reference_frame.tolist()) | {frame}
        for stale in [f for f in self.images if f not in needed]:
            del self.images[stale]
        return survival

    def without(self, overlay: Overlay) -> tuple[FloatArray, FloatArray]:
        """Forget what was seen on the overlay; a track that comes upon it ends there.

        Returns:
            (F,) survival of the tracks and (F,) median displacement in working pixels, both outside the overlay.
        """
        ended: set[int] = set()
        survival, median = [1.0], [0.0]
        for number, (frame, track, xy) in enumerate(self.observed):
            covered = overlay.covers(number, xy)
            ended.update(track[covered].tolist())
            keep = ~np.isin(track, np.fromiter(ended, np.int64, len(ended)))
            self.observed[number] = (frame[keep], track[keep], xy[keep])
            if number == 0:
                continue
            before, moved, found = self.tried[number]
            outside = ~overlay.covers(number, before)
            found, moved = found[outside], moved[outside]
            survival.append(float(found.mean()) if len(found) else 0.0)
            median.append(float(np.median(moved[found])) if found.any() else float("nan"))
        return np.array(survival), np.array(median)


def _root_sift(gray: NDArray[np.uint8], config: TracksConfig) -> tuple[FloatArray, NDArray[np.float32]]:
    """Spread SIFT features with RootSIFT descriptors (Arandjelovic and Zisserman 2012)."""
    sift = cv2.SIFT_create(nfeatures=3 * config.num_descriptors, contrastThreshold=0.02, edgeThreshold=12)
    keypoints, descriptors = sift.detectAndCompute(gray, None)
    if descriptors is None or len(keypoints) == 0:
        return np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    xy = np.array([k.pt for k in keypoints])
    response = np.array([k.response for k in keypoints])
    size_wh = (gray.shape[1], gray.shape[0])
    chosen = _spread(
        xy, response, size_wh, config.num_descriptors, cells=max(64, config.num_descriptors // 4)
    )
    descriptors = descriptors[chosen].astype(np.float32)
    descriptors /= np.maximum(np.abs(descriptors).sum(1, keepdims=True), 1e-9)
    return xy[chosen], np.sqrt(descriptors)


def measure_images(
    frames: Iterable[NDArray[np.uint8]],
    *,
    height: int,
    width: int,
    config: TracksConfig,
    keyframes: Collection[int] = (),
) -> ImageMeasurements:
    """One pass over the frames: flow tracks on all of them, descriptors on keyframes.

    Args:
        frames: (height, width, 3) uint8 RGB, in order. Only a few are alive at a time.
        height, width: stored frame size.
        config: sizes and thresholds.
        keyframes: clip frames that are keyframes whatever moves (those that carry depth, where not all do).
    Returns:
        The measurements, in stored pixels.
    Raises:
        ValueError: if there is no frame.
    """
    shrink = min(1.0, config.max_side_px / max(height, width))
    size_wh = (max(16, round(width * shrink)), max(16, round(height * shrink)))
    to_stored = np.array([width / size_wh[0], height / size_wh[1]])
    tracker = _FlowTracker(size_wh, config)
    diagonal = float(np.hypot(*size_wh))
    chosen, keyframes = keyframes, []
    features: list[Features] = []
    sharpness: list[float] = []
    finder = OverlayFinder() if config.leave_out_overlays else None
    at_keyframe = (tracker.track, tracker.xy)
    gray = np.zeros(0, np.uint8)
    frame = -1

    def describe(of_frame: int, image: NDArray[np.uint8]) -> None:
        xy, descriptors = _root_sift(image, config)
        keyframes.append(of_frame)
        small = (_THUMBNAIL_WIDTH, max(8, round(_THUMBNAIL_WIDTH * height / width)))
        features.append(
            Features(
                frame=of_frame,
                xy_px=(xy + 0.5) * to_stored,
                descriptors=descriptors,
                thumbnail=cv2.resize(image, small, interpolation=cv2.INTER_AREA),
            )
        )

    def take_keyframe() -> None:
        nonlocal at_keyframe
        describe(frame, gray)
        at_keyframe = tracker.track, tracker.xy

    for frame, rgb in enumerate(frames):
        plain = _gray(rgb, size_wh)
        previous, gray = gray, _normalised(plain)
        sharpness.append(float(cv2.Laplacian(gray, cv2.CV_32F).var()))
        if finder is not None:
            finder.add(frame, plain)
        alive = tracker.add(frame, gray)
        if not keyframes:
            take_keyframe()
            continue
        common, now, then = np.intersect1d(
            tracker.track, at_keyframe[0], assume_unique=True, return_indices=True
        )
        steps = np.linalg.norm(tracker.xy[now] - at_keyframe[1][then], axis=1)
        moved = np.median(steps) if len(common) else np.inf
        gone = len(common) < 0.6 * max(1, len(at_keyframe[0]))
        if alive < 0.5 and keyframes[-1] < frame - 1:
            # A large step: bridge it with descriptors on both of its sides.
            describe(frame - 1, previous)
        if (
            gone
            or frame in chosen
            or moved > config.keyframe_flow * diagonal
            or frame - keyframes[-1] >= config.max_keyframe_gap
        ):
            take_keyframe()
    if frame < 0:
        raise ValueError("no frames to measure")
    if keyframes[-1] != frame:
        take_keyframe()
    overlay = Overlay((), frame + 1)
    if finder is not None:
        overlay = finder.find([(track, xy) for _, track, xy in tracker.observed])
    survival, median_flow = tracker.without(overlay)
    features = [_without_overlay(f, overlay, to_stored) for f in features]
    flow = _flow_tracks(tracker, frame + 1, height, width, to_stored)
    return ImageMeasurements(
        flow=flow,
        keyframes=np.array(keyframes),
        features=features,
        survival=survival,
        median_flow_px=median_flow * float(to_stored.mean()),
        sharpness=np.array(sharpness),
        overlay_share=overlay.share(),
    )


def _without_overlay(features: Features, overlay: Overlay, to_stored: FloatArray) -> Features:
    mask = overlay.mask(features.frame)
    if mask is None:
        return features
    keep = ~overlay.covers(features.frame, features.xy_px / to_stored - 0.5)
    height, width = features.thumbnail.shape
    small = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_AREA) > 0
    return replace(
        features, xy_px=features.xy_px[keep], descriptors=features.descriptors[keep], overlay=small
    )


def _flow_tracks(
    tracker: _FlowTracker, num_frames: int, height: int, width: int, to_stored: FloatArray
) -> Tracks:
    frame = np.concatenate([f for f, _, _ in tracker.observed])
    track = np.concatenate([t for _, t, _ in tracker.observed])
    xy = (np.concatenate([x for _, _, x in tracker.observed]).astype(np.float64) + 0.5) * to_stored
    return make_tracks(frame, track, xy, np.full(len(frame), FLOW, np.uint8), num_frames, height, width)


def make_tracks(
    frame: IntArray,
    track: IntArray,
    xy_px: FloatArray,
    kind: NDArray[np.uint8],
    num_frames: int,
    height: float,
    width: float,
    sigma_px: FloatArray | None = None,
) -> Tracks:
    """Sort observations, drop tracks with a single one, number the rest without gaps."""
    order = np.lexsort((frame, track))
    frame, track, xy_px, kind = frame[order], track[order], xy_px[order], kind[order]
    sigma_px = np.zeros(len(frame)) if sigma_px is None else sigma_px[order]
    _, inverse, count = np.unique(track, return_inverse=True, return_counts=True)
    keep = count[inverse] >= 2
    _, renumbered = np.unique(inverse[keep], return_inverse=True)
    return Tracks(
        frame=frame[keep].astype(np.int64),
        track=renumbered.astype(np.int64),
        xy_px=xy_px[keep],
        kind=kind[keep],
        sigma_px=sigma_px[keep],
        num_frames=num_frames,
        num_tracks=int(renumbered.max()) + 1 if len(renumbered) else 0,
        height=height,
        width=width,
    )


def match_features(a: Features, b: Features, config: TracksConfig, *, diagonal_px: float) -> IntArray:
    """Verified matches between two keyframes.

    Mutual nearest neighbours that pass the ratio test and lie near an epipolar geometry found by MAGSAC
    (1.5 px of a 640 px image).

    Returns:
        (M, 2) feature numbers in `a` and `b`; empty if fewer than 16 agree.
    """
    none = np.zeros((0, 2), np.int64)
    if len(a.descriptors) < 16 or len(b.descriptors) < 16:
        return none
    similarity = a.descriptors @ b.descriptors.T
    rows = np.arange(len(similarity))
    best = similarity.argmax(1)
    s1 = similarity[rows, best]
    mutual = similarity.argmax(0)[best] == rows
    similarity[rows, best] = -1.0
    s2 = similarity.max(1)
    # Unit vectors: squared distance = 2 - 2 * similarity.
    ratio_ok = np.sqrt(np.maximum(2 - 2 * s1, 0)) < config.descriptor_ratio * np.sqrt(
        np.maximum(2 - 2 * s2, 1e-12)
    )
    i = np.nonzero(ratio_ok & mutual)[0]
    if len(i) < 16:
        return none
    matches = np.stack([i, best[i]], 1)
    threshold_px = 1.5 * diagonal_px / 800.0
    try:
        _, inlier = cv2.findFundamentalMat(
            a.xy_px[matches[:, 0]], b.xy_px[matches[:, 1]], cv2.USAC_MAGSAC, threshold_px, 0.999, 2000
        )
    except cv2.error:
        return none
    if inlier is None:
        return none
    matches = matches[inlier.reshape(-1) > 0]
    return matches if len(matches) >= 16 else none


def descriptor_tracks(
    features: Sequence[Features],
    matches: dict[tuple[int, int], IntArray],
    *,
    num_frames: int,
    height: float,
    width: float,
) -> Tracks:
    """Join pairwise matches into tracks.

    Args:
        features: the keyframes' features.
        matches: (keyframe number, keyframe number) -> (M, 2) feature numbers.
    Returns:
        Tracks over keyframes. A track that would hold two features of one frame is contradictory and is dropped.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    start = np.cumsum([0] + [len(f.xy_px) for f in features])
    left, right = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for (a, b), m in matches.items():
        left.append(start[a] + m[:, 0])
        right.append(start[b] + m[:, 1])
    i, j = np.concatenate(left), np.concatenate(right)
    graph = coo_matrix((np.ones(len(i), np.int8), (i, j)), shape=(start[-1], start[-1]))
    _, label = connected_components(graph, directed=False)
    frame = np.concatenate([np.full(len(f.xy_px), f.frame) for f in features])
    xy = np.concatenate([f.xy_px for f in features])
    used = np.zeros(start[-1], bool)
    used[i] = used[j] = True
    node = np.nonzero(used)[0]
    order = node[np.lexsort((frame[node], label[node]))]
    twice = (label[order][1:] == label[order][:-1]) & (frame[order][1:] == frame[order][:-1])
    contradictory = np.unique(label[order][1:][twice])
    node = node[~np.isin(label[node], contradictory)]
    kind = np.full(len(node), DESCRIPTOR, np.uint8)
    return make_tracks(frame[node], label[node], xy[node], kind, num_frames, height, width)


def join_tracks(a: Tracks, b: Tracks) -> Tracks:
    """Both sets in one, `b`'s tracks numbered after `a`'s."""
    return make_tracks(
        np.r_[a.frame, b.frame],
        np.r_[a.track, b.track + a.num_tracks],
        np.concatenate([a.xy_px, b.xy_px]),
        np.r_[a.kind, b.kind],
        a.num_frames,
        a.height,
        a.width,
        np.r_[a.sigma_px, b.sigma_px],
    )


def members(group: IntArray, size: int) -> list[IntArray]:
    """For each group 0..size-1 the (increasing) numbers of its elements, in one sort however many groups there are."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.searchsorted(group[order], np.arange(1, size)))
