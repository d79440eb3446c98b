"""Corners followed from frame to frame by optical flow, forwards and back."""

from __future__ import annotations

# OpenCV types every image as MatLike and leaves functions out of its stubs.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false
import cv2
import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import BoolArray, FloatArray, IntArray
from ..frames.dense_flow import DenseFlow
from ..frames.grey import grey_of
from .records import TracksConfig, spread_out

_LK_WINDOW = (19, 19)
_LK_LEVELS = 3
_LK_CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 0.01)


def gray_of(rgb: NDArray[np.uint8], size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """Gray working image."""
    gray = grey_of(rgb)
    if (gray.shape[1], gray.shape[0]) != size_wh:
        gray = cv2.resize(gray, size_wh, interpolation=cv2.INTER_AREA)
    return gray


def normalised_gray(gray: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same with mean 118 and spread 48, so that exposure steps do not look like motion."""
    mean, spread = cv2.meanStdDev(gray)
    gain = 48.0 / max(float(spread[0, 0]), 4.0)
    return cv2.convertScaleAbs(gray, alpha=gain, beta=118.0 - gain * float(mean[0, 0]))


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
    chosen = spread_out(xy, response[y, x], (gray.shape[1], gray.shape[0]), want, cells=max(48, want))
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


class FlowTracker:
    """Keeps the live tracks and the images that they refer to."""

    def __init__(self, size_wh: tuple[int, int], config: TracksConfig) -> None:
        self.config = config
        self.size_wh = size_wh
        self.dense_scale = min(1.0, 320.0 / max(size_wh))
        self.dense = DenseFlow("fast")
        self.images: dict[int, NDArray[np.uint8]] = {}
        self.previous_small: NDArray | None = None
        self.xy = np.zeros((0, 2), np.float32)
        self.track = np.zeros(0, np.int64)
        self.age = np.zeros(0, np.int64)
        self.reference_frame = np.zeros(0, np.int64)
        self.reference_xy = np.zeros((0, 2), np.float32)
        self.num_tracks = 0
        self.observed: list[tuple[IntArray, FloatArray]] = []
        self.tried: list[tuple[FloatArray, FloatArray, BoolArray]] = []
        """Both as in `tracker.Seen`."""

    def _step(self, frame: int, gray: NDArray[np.uint8], small: NDArray) -> float:
        """Move live tracks into `frame`; returns their survival."""
        assert self.previous_small is not None
        forward = self.dense.between(self.previous_small, small)
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
            indices = np.nonzero(old & (self.reference_frame == reference))[0]
            source = self.images.get(int(reference))
            if source is None:
                continue
            refined, good = _lucas_kanade(source, gray, self.reference_xy[indices], after[indices], 0)
            back, back_good = _lucas_kanade(gray, source, refined, self.reference_xy[indices], 0)
            good &= back_good & (np.linalg.norm(back - self.reference_xy[indices], axis=1) < 0.5)
            good &= np.linalg.norm(refined - after[indices], axis=1) < 1.5
            after[indices[good]] = refined[good]
            # The view has changed too much for the old patch: go on from the present one.
            stale = indices[~good]
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
        self.observed.append((self.track.copy(), self.xy.copy()))
        self.previous_small = small
        self.images[frame] = gray
        needed = set(self.reference_frame.tolist()) | {frame}
        for stale in [f for f in self.images if f not in needed]:
            del self.images[stale]
        return survival
