"""Encoded windows as batches: cameras of windows of any lengths, and what cannot be."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from theodolite.model.conditioning import condition_cameras, without_cameras
from theodolite.train import feed
from theodolite.train.feed import make_batch

sys.path.insert(0, str(Path(__file__).parent))
from encoded_clips import HEIGHT, WIDTH, encoded_clip, encoding


def test_cameras_that_are_made_together_are_those_of_each_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three lengths, one window without cameras; five windows of one length in parts of two."""
    monkeypatch.setattr(feed, "_MADE_TOGETHER", 2 * 5 * (HEIGHT // 32) * (WIDTH // 32))
    lengths = [33, 17, 33, 33, 25, 33, 33, 17]
    clips = [encoded_clip(n, frames=frames, cameras=n != 4) for n, frames in enumerate(lengths)]
    found = make_batch(clips, encoding(), "both").cameras
    assert found is not None
    assert found.plucker is not None
    for i, clip in enumerate(clips):
        if clip.camera_to_world is None or clip.intrinsics_px is None:
            alone = without_cameras(1, 4, height=HEIGHT // 32, width=WIDTH // 32)
        else:
            alone = condition_cameras(
                clip.camera_to_world[None], clip.intrinsics_px[None], height=HEIGHT, width=WIDTH
            )
        frames = alone.camera_to_world.shape[1]
        torch.testing.assert_close(found.camera_to_world[i, :frames], alone.camera_to_world[0])
        torch.testing.assert_close(found.intrinsics[i, :frames], alone.intrinsics[0])
        assert alone.plucker is not None
        torch.testing.assert_close(found.plucker[i, :, :frames], alone.plucker[0])
        assert bool((found.camera_to_world[i, frames:] == found.camera_to_world[i, frames - 1]).all())


def test_of_many_windows_that_whose_camera_cannot_be_is_named() -> None:
    clips = [encoded_clip(n) for n in range(4)]
    lens = clips[2].intrinsics_px
    assert lens is not None
    clips[2] = replace(clips[2], intrinsics_px=torch.cat([lens[:-1], -lens[-1:]]))
    with pytest.raises(ValueError, match=f"window {clips[2].window.id}: focal lengths must be positive"):
        make_batch(clips, encoding(), "both")
