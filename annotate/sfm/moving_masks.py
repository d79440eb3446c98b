"""Where something moves on its own, as one small mask a frame: tracks that contradict the cameras, grown by area.

Tracks tell what moves and what does not, but they lie on corners. What lies between them goes with the nearest of them
in the picture and in depth: a bare wall behind a person is a layer of its own, though the person's tracks are closest.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from ...dataset.arrays import FloatArray, IntArray
from ...dataset.moving_masks import MASK_HEIGHT, MASK_WIDTH
from ..geometry.base import DepthMaps

_REACH, _BARE_REACH = 1 / 10, 1 / 16
"""Of the picture's width, beyond which nothing is taken for a part of what moves, however its depth is; and where it
has none."""
_DEPTH_SPREAD = 0.4
"""Difference of log depth that counts as much as the picture's width."""
_VOTES = 7
"""Tracks that are asked. Rendered, overlap with the truth: 0.87 to 0.98 with given depth, with that of a simulated
network 0.73 to 0.90 on its keyframes and 0.57 to 0.78 between them."""
_LEAST_CELLS = 12
"""Smaller patches are mismatches."""


def moving_masks(
    frame: IntArray,
    uv: FloatArray,
    log_depth: FloatArray,
    moves: NDArray[np.bool_],
    depth: DepthMaps,
) -> NDArray[np.bool_]:
    """(F, 36, 64) bool, the cells of each picture in which something moves on its own.

    Where a frame has no depth the picture alone says which tracks are near: what is seen beside a thing counts as a
    part of it up to a sixteenth of the picture's width.

    Args:
        frame, uv: (N,), (N, 2) of the observations, positions as shares of width and height.
        log_depth: (N,) measured, NaN where none.
        moves: (N,) whether their tracks contradict the cameras.
        depth: of F frames, z-depth in the unit of `log_depth`.
    """
    out = np.zeros((len(depth), MASK_HEIGHT, MASK_WIDTH), bool)
    order = np.argsort(frame, kind="stable")
    start = np.searchsorted(frame[order], np.arange(len(depth) + 1))
    for i in range(len(depth)):
        seen = order[start[i] : start[i + 1]]
        if moves[seen].any():
            out[i] = _mask(uv[seen], log_depth[seen], moves[seen], depth.read(i))
    return out


def _mask(
    uv: FloatArray, log_depth: FloatArray, moves: NDArray[np.bool_], depth: FloatArray | None
) -> NDArray[np.bool_]:
    """(36, 64) bool of one frame; its depth (h, w), or None."""
    y, x = np.mgrid[:MASK_HEIGHT, :MASK_WIDTH]
    # In shares of the picture's width, as if its shape were that of the grid.
    cells = np.stack([(x + 0.5) / MASK_WIDTH, (y + 0.5) / MASK_WIDTH], -1).reshape(-1, 2)
    tracks = uv * (1.0, MASK_HEIGHT / MASK_WIDTH)
    away = KDTree(tracks[moves]).query(cells)[0]
    layer = np.full(len(cells), np.nan) if depth is None else _layers(depth)
    used, known = np.isfinite(log_depth), np.isfinite(layer)
    grown = np.zeros(len(cells), bool)
    deep, bare = known & (away < _REACH), ~known & (away < _BARE_REACH)
    for some, seen in ((deep, used), (bare, np.ones_like(used))):
        if some.any() and moves[seen].any():
            asked, voters = cells[some], tracks[seen]
            if some is deep:
                asked = np.column_stack([asked, layer[some] / _DEPTH_SPREAD])
                voters = np.column_stack([voters, log_depth[seen] / _DEPTH_SPREAD])
            grown[some] = _vote(asked, voters, moves[seen])
    count, label, stats, _ = cv2.connectedComponentsWithStats(
        grown.reshape(MASK_HEIGHT, MASK_WIDTH).astype(np.uint8)
    )
    large = np.arange(count)[stats[:, cv2.CC_STAT_AREA] >= _LEAST_CELLS]
    return np.isin(label, large[large > 0])


def _layers(depth: FloatArray) -> FloatArray:
    """(2304,) log depth in the middle of the cells, NaN where there is none: an average over an edge lies nowhere."""
    high, wide = depth.shape
    rows = ((np.arange(MASK_HEIGHT) + 0.5) / MASK_HEIGHT * high).astype(int)
    columns = ((np.arange(MASK_WIDTH) + 0.5) / MASK_WIDTH * wide).astype(int)
    z = np.asarray(depth, np.float64)[rows[:, None], columns].ravel()
    return np.log(np.where(np.isfinite(z) & (z > 0), z, np.nan))


def _vote(cells: FloatArray, tracks: FloatArray, moves: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n,) whether most of the tracks (N, d) that are nearest to each cell (n, d) move."""
    number = min(_VOTES, len(moves))
    _, nearest = KDTree(tracks).query(cells, k=number)
    return moves[nearest.reshape(-1, number)].mean(1) > 0.5
