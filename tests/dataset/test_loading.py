"""Loaders: order that survives kills, ranks and workers; no clip lost or doubled; the right pictures and
cameras."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import theodolite.dataset
import torch
from theodolite.dataset.frames import read_frames
from theodolite.dataset.loading import (
    CameraDataset,
    ClipStream,
    Sampling,
    Share,
    epoch_order,
    latents_from_folder,
    make_sample,
)
from theodolite.dataset.rows import Row

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
NUM_CLIPS = 11


@pytest.fixture
def out(
    tmp_path: Path, make_row: Callable[..., Row], make_rejected: Callable[..., Row], make_dataset: Callable
) -> Path:
    rows = [make_row(i, frames=9) for i in range(NUM_CLIPS)]
    return make_dataset(
        tmp_path / "d", {"a": rows[:6], "b": [*rows[6:], make_rejected(50), make_row(60, frames=4)]}
    )


def _ids(stream: ClipStream, count: int | None = None) -> list[str]:
    result = []
    for sample in stream:
        result.append(sample["clip_id"])
        if len(result) == count:
            break
    return result


NINE = Sampling(num_frames=9)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_clip_once_per_epoch_and_the_same_after_a_kill(out: Path, ranks: int) -> None:
    clips = theodolite.dataset.open(out)
    whole = [_ids(ClipStream(clips, NINE, seed=3, rank=r, world_size=ranks)) for r in range(ranks)]
    assert Counter(c for part in whole for c in part) == {f"clip_{i:04d}": 1 for i in range(NUM_CLIPS)}
    for rank in range(ranks):
        for stop in range(1, len(whole[rank])):
            first = ClipStream(clips, NINE, seed=3, rank=rank, world_size=ranks)
            assert _ids(first, stop) == whole[rank][:stop]
            resumed = ClipStream(clips, NINE, seed=3, rank=rank, world_size=ranks)
            resumed.load_state_dict(first.state_dict())
            assert len(resumed) == len(whole[rank]) - stop
            assert _ids(resumed) == whole[rank][stop:]
            assert resumed.position.epoch == 1


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_workers_change_nothing(out: Path, ranks: int) -> None:
    clips = theodolite.dataset.open(out)
    rank = ranks - 1
    plain = _ids(ClipStream(clips, NINE, rank=rank, world_size=ranks))
    first = ClipStream(clips, NINE, rank=rank, world_size=ranks, num_workers=2)
    stop = len(plain) // 2
    assert _ids(first, stop) == plain[:stop]  # workers had prepared more: those must come again
    resumed = ClipStream(clips, NINE, rank=rank, world_size=ranks, num_workers=2)
    resumed.load_state_dict(first.state_dict())
    assert _ids(resumed) == plain[stop:]


def test_epochs_differ_and_a_run_can_continue_with_other_ranks(out: Path) -> None:
    clips = theodolite.dataset.open(out)
    stream = ClipStream(clips, NINE)
    assert _ids(stream) != _ids(stream)
    assert stream.position.epoch == 2
    two = [ClipStream(clips, NINE, rank=r, world_size=2) for r in range(2)]
    taken = [c for s in two for c in _ids(s, 2)]
    rest = []
    for rank in range(4):
        more = ClipStream(clips, NINE, rank=rank, world_size=4)
        more.load_state_dict(two[0].state_dict())
        rest += _ids(more)
    assert Counter(taken + rest) == {f"clip_{i:04d}": 1 for i in range(NUM_CLIPS)}
    with pytest.raises(ValueError, match="saved position has seed 0, this run 1"):
        ClipStream(clips, NINE, seed=1).load_state_dict(stream.state_dict())


def test_drop_last_gives_every_rank_equally_many(out: Path) -> None:
    clips = theodolite.dataset.open(out)
    parts = [_ids(ClipStream(clips, NINE, rank=r, world_size=4, drop_last=True)) for r in range(4)]
    assert [len(p) for p in parts] == [2, 2, 2, 2]
    assert len({c for p in parts for c in p}) == 8


def test_context_parallel_ranks_share_one_clip(out: Path) -> None:
    clips = theodolite.dataset.open(out)
    streams = [ClipStream(clips, NINE, rank=r, world_size=4, context_parallel=2) for r in range(4)]
    samples = [list(s) for s in streams]
    full = {s["clip_id"]: s for s in ClipStream(clips, NINE)}
    for a, b in ((0, 1), (2, 3)):
        for x, y in zip(samples[a], samples[b], strict=True):
            assert x["clip_id"] == y["clip_id"]
            assert torch.cat([x["frame_index"], y["frame_index"]]).tolist() == list(range(9))
            joined = torch.cat([x["camera_to_world"], y["camera_to_world"]])
            torch.testing.assert_close(joined, full[x["clip_id"]]["camera_to_world"])
    assert {s["clip_id"] for s in samples[0]}.isdisjoint(s["clip_id"] for s in samples[2])
    with pytest.raises(ValueError, match="does not divide"):
        ClipStream(clips, NINE, world_size=3, context_parallel=2)


def test_shares_cover_everything() -> None:
    for count in (1, 7, 121, 961):
        for size in (1, 2, 3, 8):
            parts = [range(count)[Share(rank=r, size=size).slice(count)] for r in range(size)]
            assert [i for p in parts for i in p] == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_map_style_dataset_and_resized_intrinsics(out: Path) -> None:
    clips = theodolite.dataset.open(out)
    dataset = CameraDataset(clips, Sampling(num_frames=9, size=(360, 320)))
    assert len(dataset) == NUM_CLIPS
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=4)))
    assert batch["camera_to_world"].shape == (4, 9, 4, 4)
    row = clips.row("clip_0000")
    expected = np.concatenate([row.focal_px, row.principal_point_px], 1) * [0.25, 0.5, 0.25, 0.5]
    np.testing.assert_allclose(batch["intrinsics"][0], expected, rtol=1e-6)
    torch.testing.assert_close(batch["camera_to_world"][:, 0], torch.eye(4).expand(4, 4, 4))
    assert batch["caption"] == ["A room."] * 4


def test_latents_go_with_the_cameras_of_their_last_video_frame(
    tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    row = make_row(0, frames=33)
    clips = theodolite.dataset.open(make_dataset(tmp_path / "d", {"a": [row]}))
    z = np.random.default_rng(0).normal(size=(4, 5, 2, 3)).astype(np.float32)
    np.savez(tmp_path / "clip_0000.npz", z=z)
    sampling = Sampling(content="latents", latents=latents_from_folder(tmp_path))
    shares = [
        next(iter(ClipStream(clips, sampling, rank=r, world_size=2, context_parallel=2))) for r in range(2)
    ]
    np.testing.assert_array_equal(torch.cat([s["latents"] for s in shares], dim=1), z)
    assert [s["frame_index"].tolist() for s in shares] == [[0, 8, 16], [24, 32]]
    assert [s["latent_index"].tolist() for s in shares] == [[0, 1, 2], [3, 4]]
    np.savez(tmp_path / "clip_0000.npz", z=z[:, :3])
    with pytest.raises(ValueError, match="3 latent frames, 33 video frames at stride 8 need 5"):
        next(iter(ClipStream(clips, sampling)))
    with pytest.raises(ValueError, match="needs a reader"):
        Sampling(content="latents")


def test_stand_ins_and_short_clips_are_no_training_data(
    tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    fake = theodolite.dataset.open(make_dataset(tmp_path / "f", {"a": [make_row(0, stand_in=True)]}))
    with pytest.raises(ValueError, match="stand-in"):
        ClipStream(fake)
    short = theodolite.dataset.open(make_dataset(tmp_path / "s", {"a": [make_row(0, frames=4)]}))
    with pytest.raises(ValueError, match="no accepted clip of at least 9 frames"):
        CameraDataset(short, NINE)


def test_order_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    a = epoch_order(100, seed=0, epoch=0)
    assert sorted(a) == list(range(100))
    assert (a == epoch_order(100, seed=0, epoch=0)).all()
    assert not (a == epoch_order(100, seed=0, epoch=1)).all()


def test_frames_of_an_image_folder(tmp_path: Path, make_row: Callable[..., Row]) -> None:
    folder = tmp_path / "stills"
    folder.mkdir()
    for i in range(12):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((8, 16, 3), 20 * i, np.uint8))
    row = make_row(
        0, frames=4, media_kind="images", media="stills", frame_index=[0, 2, 10, 11], height=8, width=16
    )
    sample = make_sample(
        row, Sampling(content="frames", media_root=tmp_path, size=(4, 8)), Share(rank=1, size=2)
    )
    assert sample["frames"].shape == (2, 3, 4, 8)
    assert sample["frames"][:, 0, 0, 0].tolist() == [200, 220]
    for changes, message in [
        ({"frame_index": [0, 2, 10, 12]}, "holds 12 images, the row names number 12"),
        ({"media": "absent"}, "no such folder"),
        ({"media_kind": "rendered"}, "no files to read"),
        ({"media_kind": "video", "media": "absent.mp4"}, "no such file"),
    ]:
        values = {
            "frames": 4,
            "media_kind": "images",
            "media": "stills",
            "frame_index": [0, 2, 10, 11],
            **changes,
        }
        with pytest.raises(ValueError, match=message):
            read_frames(make_row(0, **values), tmp_path)
    with pytest.raises(ValueError, match="positions must increase"):
        read_frames(row, tmp_path, positions=[2, 1])


@pytest.mark.skipif(not SHARED.is_dir(), reason="real recordings (../shared/data) are not here")
@pytest.mark.parametrize(
    "video", sorted((SHARED / "edge-videos").glob("*.mp4")) if SHARED.is_dir() else [], ids=lambda p: p.stem
)
def test_frames_are_those_that_annotation_saw(video: Path, make_row: Callable[..., Row]) -> None:
    from theodolite.annotate.clip import ClipRef, ClipRejection
    from theodolite.annotate.decode import DecodeConfig, open_clip

    clip = ClipRef(clip_id="v", source="s", original_id="v", media_kind="video", media_path=video)
    try:
        annotated = open_clip(clip, DecodeConfig())
        theirs = list(annotated)
    except ClipRejection:
        return  # no row with frames comes from this file
    n = len(annotated)
    row = make_row(
        0,
        frames=n,
        media=str(video),
        frame_index=annotated.timing.frame_index,
        time_s=annotated.timing.time_s,
        height=annotated.height,
        width=annotated.width,
    )
    ours = read_frames(row, positions=[0, n // 2, n - 1])
    for mine, i in zip(ours, (0, n // 2, n - 1), strict=True):
        assert np.abs(mine.astype(int) - theirs[i]).mean() < 1.0  # two converters of the same picture
