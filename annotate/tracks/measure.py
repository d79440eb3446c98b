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
    shrink = min(1.0, config.max_side_px / max(height, width))
    size_wh = (max(16, round(width * shrink)), max(16, round(height * shrink)))
    to_stored = np.array([width / size_wh[0], height / size_wh[1]])
    tracker = FlowTracker(size_wh, config)
    diagonal = float(np.hypot(*size_wh))
    chosen, keyframes = keyframes, []
    features: list[Features] = []
    sharpness: list[float] = []
    finder = OverlayFinder() if config.leave_out_overlays else None
    at_keyframe = (tracker.track, tracker.xy)
    gray = np.zeros(0, np.uint8)
    frame = -1

    def describe(of_frame: int, image: NDArray[np.uint8]) -> None:
        xy, descriptors = root_sift(image, config)
        keyframes.append(of_frame)
        small = (THUMBNAIL_WIDTH, max(8, round(THUMBNAIL_WIDTH * height / width)))
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
        plain = gray_of(rgb, size_wh)
        previous, gray = gray, normalised_gray(plain)
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
    flow = flow_tracks(tracker, frame + 1, height, width, to_stored)
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
