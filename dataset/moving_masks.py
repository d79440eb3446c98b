"""Masks of what moves on its own, as rows carry them: a grid over each picture, a bit a cell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MASK_HEIGHT, MASK_WIDTH = 36, 64
"""Cells of the grid, which covers the picture whatever its shape."""
MASK_WORDS = MASK_HEIGHT * MASK_WIDTH // 32
"""A frame's entries in the column `moving_mask`. Words and not bytes: Parquet has no integers below 32 bits."""


def packed_masks(masks: NDArray[np.bool_]) -> NDArray[np.int32]:
    """(F, 72) words of masks (F, 36, 64): rows from the top, cells from the left, the first the highest bit."""
    packed = np.packbits(masks.reshape(len(masks), MASK_HEIGHT * MASK_WIDTH), axis=1)
    return packed.view(">u4").astype(np.uint32).view(np.int32)


def unpacked_masks(column: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(F, 36, 64) bool of a row's `moving_mask`, True where something moves.

    Args:
        column: (F, 72), or flat as files hold it.
    Raises:
        ValueError: it is not of whole frames.
    """
    packed = np.asarray(column, np.int32).view(np.uint32).astype(">u4")
    if packed.size % MASK_WORDS:
        raise ValueError(f"moving_mask has {packed.size} numbers, which is no multiple of {MASK_WORDS}")
    bits = np.unpackbits(packed.reshape(-1, MASK_WORDS).view(np.uint8), axis=1)
    return bits.astype(bool).reshape(-1, MASK_HEIGHT, MASK_WIDTH)
