"""Features of keyframes and their matches, which hold where flow breaks."""

from __future__ import annotations

# OpenCV types every image as MatLike and leaves functions out of its stubs.
# pyright: reportArgumentType=false, reportReturnType=false, reportAttributeAccessIssue=false
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import U8, FloatArray, IntArray
from .records import DESCRIPTOR, Features, ImageMeasurements, Tracks, TracksConfig, make_tracks, spread_out


def sift(gray: NDArray[np.uint8], config: TracksConfig) -> tuple[FloatArray, U8]:
    """Places (n, 2) and descriptors (n, 128) of SIFT features that are spread over the picture."""
    finder = cv2.SIFT_create(nfeatures=3 * config.num_descriptors, contrastThreshold=0.02, edgeThreshold=12)
    keypoints, descriptors = finder.detectAndCompute(gray, None)
    if descriptors is None or len(keypoints) == 0:
        return np.zeros((0, 2)), np.zeros((0, 128), np.uint8)
    xy = np.array([k.pt for k in keypoints])
    response = np.array([k.response for k in keypoints])
    size_wh = (gray.shape[1], gray.shape[0])
    chosen = spread_out(
        xy, response, size_wh, config.num_descriptors, cells=max(64, config.num_descriptors // 4)
    )
    return xy[chosen], descriptors[chosen].astype(
        np.uint8
    )  # whole numbers below 256, though they come as float32


MIN_MATCHES = 16


def nearest_features(a: Features, b: Features, config: TracksConfig) -> IntArray:
    """(M, 2) feature numbers of mutual nearest neighbours that pass the ratio test."""
    similarity = a.unit_descriptors @ b.unit_descriptors.T
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
    return np.stack([i, best[i]], 1)


def match_features(
    a: Features, b: Features, config: TracksConfig, *, diagonal_px: float, nearest: IntArray | None = None
) -> IntArray:
    """Verified matches between two keyframes.

    Mutual nearest neighbours that pass the ratio test and lie near an epipolar geometry found by MAGSAC
    (1.5 px of a 640 px image).

    Args:
        nearest: of `nearest_features`, where they are known.
    Returns:
        (M, 2) feature numbers in `a` and `b`; empty if fewer than 16 agree.
    """
    none = np.zeros((0, 2), np.int64)
    if len(a.descriptors) < MIN_MATCHES or len(b.descriptors) < MIN_MATCHES:
        return none
    matches = nearest_features(a, b, config) if nearest is None else nearest
    if len(matches) < MIN_MATCHES:
        return none
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
    return matches if len(matches) >= MIN_MATCHES else none


def match_keyframes(
    measured: ImageMeasurements, pairs: Iterable[tuple[int, int]], config: TracksConfig
) -> dict[tuple[int, int], IntArray]:
    """Verified matches (M, 2) of pairs of keyframe numbers."""
    features, flow = measured.features, measured.flow
    diagonal = float(np.hypot(flow.height, flow.width))
    return {
        (a, b): match_features(
            features[a], features[b], config, diagonal_px=diagonal, nearest=measured.nearest.get((a, b))
        )
        for a, b in pairs
    }


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
