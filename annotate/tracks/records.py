"""Tracks, features and measurements of a clip as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...dataset.arrays import U8, FloatArray, IntArray
from ...dataset.strict import Strict

FLOW, DESCRIPTOR, DENSE = 0, 1, 2
MATCHED_GAPS = (1, 2, 4)
"""A keyframe is matched with those so many keyframes before it; others where a place seems to be seen again."""


class TracksConfig(Strict):
    """How image measurements are made; sizes in pixels of the working image (long side `max_side_px`)."""

    tracker: Literal["opencv", "batched", "auto"] = "opencv"
    """Who follows the points: OpenCV on the processor, or many frames at a time on `annotate.geometry.device`. Auto:
    `batched` where networks run on a GPU, else `opencv`."""
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
        descriptors: (n, 128) uint8 SIFT, a quarter of what is compared; or that itself, `unit_descriptors`.
        thumbnail: (h, 192) uint8 grey image, for direct alignment where points fail.
        overlay: (h, 192) bool, True where the thumbnail shows an overlay; None if nowhere.
    """

    frame: int
    xy_px: FloatArray
    descriptors: U8 | NDArray[np.float32]
    thumbnail: NDArray[np.uint8]
    overlay: NDArray[np.bool_] | None = None

    @property
    def unit_descriptors(self) -> NDArray[np.float32]:
        """(n, 128) float32 unit RootSIFT (Arandjelovic and Zisserman 2012)."""
        found = self.descriptors.astype(np.float32, copy=False)
        if self.descriptors.dtype != np.uint8:
            return found
        return np.sqrt(found / np.maximum(found.sum(1, keepdims=True), 1e-9))


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
        tracker: who followed the points (`Tracker.name`).
        nearest: mutual nearest neighbours of keyframe pairs (lower number first), where the tracker knows them.
    """

    flow: Tracks
    keyframes: IntArray
    features: list[Features]
    survival: FloatArray
    median_flow_px: FloatArray
    sharpness: FloatArray
    overlay_share: float = 0.0
    tracker: str = "opencv"
    nearest: Mapping[tuple[int, int], IntArray] = field(default_factory=dict)


def spread_out(
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


def indices_by_group(group: IntArray, size: int) -> list[IntArray]:
    """For each group 0..size-1 the (increasing) numbers of its elements, in one sort however many groups there are."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.searchsorted(group[order], np.arange(1, size)))
