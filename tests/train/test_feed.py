"""Encoded windows as batches: cameras of windows of any lengths, and what cannot be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from theodolite.dataset.encoded import open_encoded
from theodolite.model.conditioning import condition_cameras, without_cameras
from theodolite.train import feed
from theodolite.train.feed import Feed, Place, make_batch

sys.path.insert(0, str(Path(__file__).parent))
from encoded_clips import HEIGHT, WIDTH, encoded_clip, encoding, write_encoded


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


@pytest.mark.parametrize("wrong", [-1, 2.5, True])
@pytest.mark.parametrize("name", ["workers", "seed", "max_faults"])
def test_counts_of_a_feed_are_whole_numbers(tmp_path: Path, name: str, wrong: Any) -> None:
    data = open_encoded(write_encoded(tmp_path / "data", 1))
    with pytest.raises(ValueError, match=f"^{name} is {wrong}, expected a whole number"):
        Feed(data, range(1), Place(), **{name: wrong})


def test_a_run_that_ends_reads_on_where_the_signal_ended_its_workers_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C and batch systems signal every process of a run: a rank that waited for a clip lost its checkpoint."""
    data = open_encoded(write_encoded(tmp_path / "data", 4))

    def fed() -> Feed:
        return Feed(data, range(4), Place(batch=2))

    steps = iter(fed())
    expected = [next(steps)[0].ids for _ in range(3)]

    class Loader:
        """Its worker is gone when the second step is read."""

        def __init__(self, steps: Any, *, sampler: Any, **_settings: Any) -> None:
            self.steps, self.sampler = steps, sampler

        def __iter__(self) -> Iterator[Any]:
            yield self.steps[next(iter(self.sampler))]
            raise RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly")

    monkeypatch.setattr(feed, "DataLoader", Loader)
    ending = fed()
    ending.ending = lambda: True
    steps = iter(ending)
    assert [next(steps)[0].ids for _ in range(3)] == expected
    steps = iter(fed())
    next(steps)
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        next(steps)
