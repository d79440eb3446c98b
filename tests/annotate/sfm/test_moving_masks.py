"""Small masks of what moves: grown from tracks, within a layer of depth."""

from __future__ import annotations

import numpy as np
import pytest
from theodolite.annotate.sfm.moving_masks import moving_masks
from theodolite.dataset.moving_masks import MASK_HEIGHT, MASK_WIDTH, MASK_WORDS, packed_masks, unpacked_masks

LEFT, RIGHT, TOP, BOTTOM = 0.4, 0.6, 0.3, 0.8
"""A thing at 1.5 m in a room at 4 m, as shares of the picture."""


class Depth:
    """The same in all frames but one, which has none."""

    def __init__(self, bare: int) -> None:
        self.bare = bare

    def __len__(self) -> int:
        return 3

    def read(self, frame: int) -> np.ndarray | None:
        z = np.full((90, 160), 4.0, np.float32)
        z[int(TOP * 90) : int(BOTTOM * 90), int(LEFT * 160) : int(RIGHT * 160)] = 1.5
        return None if frame == self.bare else z


def tracks(number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, log depth and motion of tracks of one frame; the wall has none about the thing."""
    uv = rng.uniform(0, 1, (number, 2))
    own = (uv[:, 0] > LEFT) & (uv[:, 0] < RIGHT) & (uv[:, 1] > TOP) & (uv[:, 1] < BOTTOM)
    beside = ~own & (np.abs(uv[:, 0] - 0.5) < 0.25)
    uv, own = uv[~beside], own[~beside]
    return uv, np.log(np.where(own, 1.5, 4.0)), own


def overlap(found: np.ndarray) -> float:
    y, x = np.mgrid[:MASK_HEIGHT, :MASK_WIDTH]
    u, v = (x + 0.5) / MASK_WIDTH, (y + 0.5) / MASK_HEIGHT
    true = (u > LEFT) & (u < RIGHT) & (v > TOP) & (v < BOTTOM)
    return float((found & true).sum() / (found | true).sum())


def test_a_thing_is_marked_to_its_border_where_depth_says_where_that_is() -> None:
    uv, log_depth, own = tracks(400, np.random.default_rng(0))
    frame = np.repeat([0, 2], len(uv))
    found = moving_masks(frame, np.tile(uv, (2, 1)), np.tile(log_depth, 2), np.tile(own, 2), Depth(bare=2))
    assert not found[1].any()  # nothing was seen
    assert overlap(found[0]) > 0.95
    assert 0.4 < overlap(found[2]) < 0.8  # without depth, as far as the reach on the bare wall


def test_mismatches_and_pictures_without_motion_mark_nothing() -> None:
    uv, log_depth, own = tracks(400, np.random.default_rng(0))
    frame = np.zeros(len(uv), int)
    assert not moving_masks(frame, uv, log_depth, np.zeros_like(own), Depth(bare=2)).any()
    lone = np.zeros_like(own)
    lone[np.flatnonzero(~own)[:2]] = True
    assert not moving_masks(frame, uv, log_depth, lone, Depth(bare=2)).any()


def test_masks_come_back_from_a_column() -> None:
    masks = np.random.default_rng(0).random((5, MASK_HEIGHT, MASK_WIDTH)) < 0.5
    column = packed_masks(masks)
    assert column.shape == (5, MASK_WORDS)
    assert (column[0, 0] < 0) == masks[0, 0, 0]
    assert column[1, 2] & 1 == masks[1, 1, 31]
    np.testing.assert_array_equal(unpacked_masks(column), masks)
    np.testing.assert_array_equal(unpacked_masks(column.ravel()), masks)
    with pytest.raises(ValueError, match="359 numbers, which is no multiple of 72"):
        unpacked_masks(column.ravel()[:-1])
