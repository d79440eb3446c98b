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

from collections.abc import Collection, Iterable
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import FloatArray, IntArray
from .flow import gray_of, normalised_gray
from .opencv import OpenCVTracker
from .overlay import Overlay, OverlayFinder
from .records import FLOW, Features, ImageMeasurements, Tracks, TracksConfig, make_tracks
from .tracker import MakeTracker, Seen, WorkingSize


def measure_images(
    frames: Iterable[NDArray[np.uint8]],
    *,
    height: int,
    width: int,
    config: TracksConfig,
    keyframes: Collection[int] = (),
    tracker: MakeTracker = OpenCVTracker,
) -> ImageMeasurements:
    """One pass over the frames: flow tracks on all of them, descriptors on keyframes.

    Args:
        frames: (height, width, 3) uint8 RGB, in order. Only a few are alive at a time.
        height, width: stored frame size.
        config: sizes and thresholds.
        keyframes: clip frames that are keyframes whatever moves (those that carry depth, where not all do).
        tracker: who follows the points.
    Returns:
        The measurements, in stored pixels.
    Raises:
        ValueError: if there is no frame.
    """
    size = WorkingSize.of(height, width, config)
    following = tracker(size, config, frozenset(keyframes))
    finder = OverlayFinder() if config.leave_out_overlays else None
    number = -1
    for number, rgb in enumerate(frames):
        plain = gray_of(rgb, size.wh)
        if finder is not None:
            finder.add(number, plain)
        following.add(normalised_gray(plain))
    if number < 0:
        raise ValueError("no frames to measure")
    seen = following.finish()
    overlay = Overlay((), number + 1) if finder is None else finder.find(seen.observed)
    return replace(measurements(seen, overlay, size), tracker=following.name)


def measurements(seen: Seen, overlay: Overlay, size: WorkingSize) -> ImageMeasurements:
    """What was seen outside the overlay, in stored pixels."""
    observed, survival, median_flow = _without_overlay(seen, overlay)
    width, height = size.stored_wh
    kept = [_outside(f, overlay, size.to_stored) for f in seen.features]
    return ImageMeasurements(
        flow=_flow_tracks(observed, height, width, size.to_stored),
        keyframes=np.array(seen.keyframes),
        features=[_features_without(f, overlay, keep) for f, keep in zip(seen.features, kept, strict=True)],
        survival=survival,
        median_flow_px=median_flow * float(size.to_stored.mean()),
        sharpness=np.array(seen.sharpness),
        overlay_share=overlay.share(),
        nearest={(a, b): _renumbered(match, kept[a], kept[b]) for (a, b), match in seen.nearest.items()},
    )


def _without_overlay(
    seen: Seen, overlay: Overlay
) -> tuple[list[tuple[NDArray, NDArray]], FloatArray, FloatArray]:
    """Tracks without what was seen on the overlay; one that comes upon it ends there.

    Returns:
        The observations of each frame, (F,) survival of the tracks and (F,) median displacement in working pixels.
    """
    ended: set[int] = set()
    observed = []
    survival, median = [1.0], [0.0]
    for number, (track, xy) in enumerate(seen.observed):
        covered = overlay.covers(number, xy)
        ended.update(track[covered].tolist())
        keep = ~np.isin(track, np.fromiter(ended, np.int64, len(ended)))
        observed.append((track[keep], xy[keep]))
        if number == 0:
            continue
        before, moved, found = seen.tried[number]
        outside = ~overlay.covers(number, before)
        found, moved = found[outside], moved[outside]
        survival.append(float(found.mean()) if len(found) else 0.0)
        median.append(float(np.median(moved[found])) if found.any() else float("nan"))
    return observed, np.array(survival), np.array(median)


def _flow_tracks(
    observed: list[tuple[NDArray, NDArray]], height: int, width: int, to_stored: FloatArray
) -> Tracks:
    frame = np.concatenate([np.full(len(track), number) for number, (track, _) in enumerate(observed)])
    track = np.concatenate([track for track, _ in observed])
    xy = (np.concatenate([xy for _, xy in observed]).astype(np.float64) + 0.5) * to_stored
    return make_tracks(frame, track, xy, np.full(len(frame), FLOW, np.uint8), len(observed), height, width)


def _outside(features: Features, overlay: Overlay, to_stored: FloatArray) -> NDArray[np.bool_]:
    """(n,) bool, True for features that do not lie on the overlay."""
    return ~overlay.covers(features.frame, features.xy_px / to_stored - 0.5)


def _features_without(features: Features, overlay: Overlay, keep: NDArray[np.bool_]) -> Features:
    mask = overlay.mask(features.frame)
    if mask is None:
        return features
    height, width = features.thumbnail.shape
    small = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_AREA) > 0
    return replace(
        features, xy_px=features.xy_px[keep], descriptors=features.descriptors[keep], overlay=small
    )


def _renumbered(matches: IntArray, a: NDArray[np.bool_], b: NDArray[np.bool_]) -> IntArray:
    """Those of (M, 2) matches whose features are both kept, by the numbers that these have then."""
    held = matches[a[matches[:, 0]] & b[matches[:, 1]]]
    return np.stack([np.cumsum(a)[held[:, 0]], np.cumsum(b)[held[:, 1]]], 1) - 1
