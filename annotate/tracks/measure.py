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

from __future__ import annotations

# OpenCV types every image as MatLike and leaves functions out of its stubs.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false
from collections.abc import Collection, Iterable
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import FloatArray
from .descriptors import root_sift
from .flow import THUMBNAIL_WIDTH, FlowTracker, flow_tracks, gray_of, normalised_gray
from .overlay import Overlay, OverlayFinder
from .records import Features, ImageMeasurements, TracksConfig


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
    measuring = _Measuring(height, width, config, frozenset(keyframes))
    for rgb in frames:
        measuring.add(rgb)
    return measuring.finish()


class _Measuring:
    """What `measure_images` knows so far.

    Attributes:
        frame: last one that was added.
        keyframes, features: clip frames, and the features of each.
        sharpness: of each frame.
        at_keyframe: tracks that were alive at the last keyframe, and where they were.
    """

    def __init__(self, height: int, width: int, config: TracksConfig, chosen: frozenset[int]) -> None:
        self.height, self.width, self.config, self.chosen = height, width, config, chosen
        shrink = min(1.0, config.max_side_px / max(height, width))
        self.size_wh = (max(16, round(width * shrink)), max(16, round(height * shrink)))
        self.to_stored = np.array([width / self.size_wh[0], height / self.size_wh[1]])
        self.tracker = FlowTracker(self.size_wh, config)
        self.keyframes: list[int] = []
        self.features: list[Features] = []
        self.sharpness: list[float] = []
        self.finder = OverlayFinder() if config.leave_out_overlays else None
        self.at_keyframe = (self.tracker.track, self.tracker.xy)
        self.gray = np.zeros(0, np.uint8)
        self.frame = -1

    def add(self, rgb: NDArray[np.uint8]) -> None:
        """The next frame."""
        self.frame += 1
        plain = gray_of(rgb, self.size_wh)
        previous, self.gray = self.gray, normalised_gray(plain)
        self.sharpness.append(float(cv2.Laplacian(self.gray, cv2.CV_32F).var()))
        if self.finder is not None:
            self.finder.add(self.frame, plain)
        alive = self.tracker.add(self.frame, self.gray)
        if not self.keyframes:
            self._take_keyframe()
            return
        wanted = self._moved_on() or self.frame in self.chosen
        if alive < 0.5 and self.keyframes[-1] < self.frame - 1:
            # A large step: bridge it with descriptors on both of its sides.
            self._describe(self.frame - 1, previous)
        if wanted or self.frame - self.keyframes[-1] >= self.config.max_keyframe_gap:
            self._take_keyframe()

    def _moved_on(self) -> bool:
        """Whether tracks have ended or moved far since the last keyframe."""
        before, xy = self.at_keyframe
        common, now, then = np.intersect1d(
            self.tracker.track, before, assume_unique=True, return_indices=True
        )
        steps = np.linalg.norm(self.tracker.xy[now] - xy[then], axis=1)
        moved = float(np.median(steps)) if len(common) else np.inf
        gone = len(common) < 0.6 * max(1, len(before))
        return gone or moved > self.config.keyframe_flow * float(np.hypot(*self.size_wh))

    def _describe(self, frame: int, image: NDArray[np.uint8]) -> None:
        xy, descriptors = root_sift(image, self.config)
        self.keyframes.append(frame)
        small = (THUMBNAIL_WIDTH, max(8, round(THUMBNAIL_WIDTH * self.height / self.width)))
        self.features.append(
            Features(
                frame=frame,
                xy_px=(xy + 0.5) * self.to_stored,
                descriptors=descriptors,
                thumbnail=cv2.resize(image, small, interpolation=cv2.INTER_AREA),
            )
        )

    def _take_keyframe(self) -> None:
        self._describe(self.frame, self.gray)
        self.at_keyframe = self.tracker.track, self.tracker.xy

    def finish(self) -> ImageMeasurements:
        """The measurements; the last frame is a keyframe, and what lies on an overlay is left out."""
        if self.frame < 0:
            raise ValueError("no frames to measure")
        if self.keyframes[-1] != self.frame:
            self._take_keyframe()
        overlay = Overlay((), self.frame + 1)
        if self.finder is not None:
            overlay = self.finder.find([(track, xy) for _, track, xy in self.tracker.observed])
        survival, median_flow = self.tracker.without(overlay)
        return ImageMeasurements(
            flow=flow_tracks(self.tracker, self.frame + 1, self.height, self.width, self.to_stored),
            keyframes=np.array(self.keyframes),
            features=[_without_overlay(f, overlay, self.to_stored) for f in self.features],
            survival=survival,
            median_flow_px=median_flow * float(self.to_stored.mean()),
            sharpness=np.array(self.sharpness),
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
