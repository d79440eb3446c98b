"""Loaders: order that survives kills, ranks and workers; no clip lost or doubled; the right pictures and
cameras."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import theodolite.dataset
import torch
from theodolite.dataset.loading import (
    CameraDataset,
    ClipStream,
    Ranks,
    Sampling,
    Share,
    epoch_order,
    latents_from_folder,
    make_sample,
)
from theodolite.dataset.media.read import read_frames
from theodolite.dataset.moving_masks import unpacked_masks
from theodolite.dataset.rows import Row

from ..support import SHARED

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


def test_masks_of_what_moves_come_with_their_frames(make_row: Callable[..., Row]) -> None:
    row = make_row(0, frames=20)
    assert row.moving_mask is not None
    sampling = Sampling(num_frames=9, moving_masks=True)
    sample = make_sample(row, sampling, Share(rank=1, size=2), start=4)
    np.testing.assert_array_equal(sample["frame_index"], np.arange(9, 13))
    np.testing.assert_array_equal(sample["moving_masks"], unpacked_masks(row.moving_mask)[9:13])
    with pytest.raises(ValueError, match=r"clip clip_0000: has no moving_mask; annotate with"):
        make_sample(make_row(0, frames=20, moving_mask=None), sampling)
    with pytest.raises(ValueError, match="stored pictures: ask for them without undistort"):
        Sampling(moving_masks=True, undistort=True)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_clip_once_per_epoch_and_the_same_after_a_kill(out: Path, ranks: int) -> None:
    clips = theodolite.dataset.open(out)
    whole = [_ids(ClipStream(clips, NINE, seed=3, ranks=Ranks(r, ranks))) for r in range(ranks)]
    assert Counter(c for part in whole for c in part) == {f"clip_{i:04d}": 1 for i in range(NUM_CLIPS)}
    for rank in range(ranks):
        for stop in range(1, len(whole[rank])):
            first = ClipStream(clips, NINE, seed=3, ranks=Ranks(rank, ranks))
            assert _ids(first, stop) == whole[rank][:stop]
            resumed = ClipStream(clips, NINE, seed=3, ranks=Ranks(rank, ranks))
            resumed.load_state_dict(first.state_dict())
            assert len(resumed) == len(whole[rank]) - stop
            assert _ids(resumed) == whole[rank][stop:]
            assert resumed.position.epoch == 1


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_workers_change_nothing(out: Path, ranks: int) -> None:
    clips = theodolite.dataset.open(out)
    rank = ranks - 1
    plain = _ids(ClipStream(clips, NINE, ranks=Ranks(rank, ranks)))
    first = ClipStream(clips, NINE, ranks=Ranks(rank, ranks), num_workers=2)
    stop = len(plain) // 2
    assert _ids(first, stop) == plain[:stop]  # workers had prepared more: those must come again
    resumed = ClipStream(clips, NINE, ranks=Ranks(rank, ranks), num_workers=2)
    resumed.load_state_dict(first.state_dict())
    assert _ids(resumed) == plain[stop:]


def test_epochs_differ_and_a_run_can_continue_with_other_ranks(out: Path) -> None:
    clips = theodolite.dataset.open(out)
    stream = ClipStream(clips, NINE)
    assert _ids(stream) != _ids(stream)
    assert stream.position.epoch == 2
    two = [ClipStream(clips, NINE, ranks=Ranks(r, 2)) for r in range(2)]
    taken = [c for s in two for c in _ids(s, 2)]
    rest = []
    for rank in range(4):
        more = ClipStream(clips, NINE, ranks=Ranks(rank, 4))
        more.load_state_dict(two[0].state_dict())
        rest += _ids(more)
    assert Counter(taken + rest) == {f"clip_{i:04d}": 1 for i in range(NUM_CLIPS)}
    with pytest.raises(ValueError, match="saved position has seed 0, this run 1"):
        ClipStream(clips, NINE, seed=1).load_state_dict(stream.state_dict())


@pytest.mark.slow
def test_random_windows_are_drawn_anew_each_epoch_and_again_after_a_kill(out: Path) -> None:
    clips = theodolite.dataset.open(out)
    four = Sampling(num_frames=4, window="random", relative=False)

    def taken(stream: ClipStream) -> list[tuple[str, int]]:
        return [(s["clip_id"], int(s["frame_index"][0])) for s in stream]

    stream = ClipStream(clips, four, seed=3)
    first, second = taken(stream), taken(stream)
    assert dict(first) != dict(second)  # other windows, not only another order
    starts = {start for epoch in (first, second) for _clip, start in epoch}
    assert starts <= set(range(6))
    assert len(starts) > 3
    assert dict(first)["clip_0060"] == 0  # four frames: no choice
    half = ClipStream(clips, four, seed=3, num_workers=2)
    head = [(s["clip_id"], int(s["frame_index"][0])) for s in islice(half, 5)]
    resumed = ClipStream(clips, four, seed=3)
    resumed.load_state_dict(half.state_dict())
    assert head + taken(resumed) == first
    ranks = [taken(ClipStream(clips, four, seed=3, ranks=Ranks(r, 2))) for r in (0, 1)]
    assert sorted(ranks[0] + ranks[1]) == sorted(first)
    row = clips.row("clip_0003")
    for sample in ClipStream(clips, four, seed=3):
        if sample["clip_id"] == "clip_0003":
            chosen = sample["frame_index"].numpy()
            np.testing.assert_array_equal(np.diff(chosen), 1)
            np.testing.assert_allclose(sample["camera_to_world"], row.camera_to_world[chosen], atol=1e-6)
            np.testing.assert_allclose(sample["intrinsics"][:, :2], row.focal_px[chosen])
    dataset = CameraDataset(clips, four, seed=3)
    before = [int(dataset[i]["frame_index"][0]) for i in range(len(dataset))]
    dataset.epoch = 1
    assert dict(zip(dataset.clip_ids, before, strict=True)) == dict(first)
    assert [int(dataset[i]["frame_index"][0]) for i in range(len(dataset))] != before


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_each_clip_once_in_the_order_of_single_samples(out: Path, workers: int) -> None:
    clips = theodolite.dataset.open(out)
    for ranks in (1, 2) if not workers else (2,):
        for rank in range(ranks):
            options = {"seed": 3, "ranks": Ranks(rank, ranks)}
            single = list(ClipStream(clips, NINE, **options))
            stream = ClipStream(clips, NINE, **options, batch_size=3, num_workers=workers)
            assert len(stream) == -(-len(single) // 3)
            batches = list(stream)
            assert [len(b["clip_id"]) for b in batches][:-1] == [3] * (len(batches) - 1)
            assert [c for b in batches for c in b["clip_id"]] == [s["clip_id"] for s in single]
            together = torch.cat([b["camera_to_world"] for b in batches])
            torch.testing.assert_close(together, torch.stack([s["camera_to_world"] for s in single]))
            assert batches[0]["size"].tolist() == [[720, 1280]] * 3
            assert stream.position.epoch == 1


def test_batches_resume_with_other_ranks_and_batch_sizes(out: Path) -> None:
    clips = theodolite.dataset.open(out)
    two = [ClipStream(clips, NINE, ranks=Ranks(r, 2), batch_size=2) for r in range(2)]
    taken = [c for s in two for c in next(iter(s))["clip_id"]]
    states = [s.state_dict() for s in two]
    assert states[0] == states[1]
    rest = []
    for rank in range(3):
        more = ClipStream(clips, NINE, ranks=Ranks(rank, 3), batch_size=2, drop_last=True)
        more.load_state_dict(states[0])
        batches = list(more)
        assert [len(b["clip_id"]) for b in batches] == [2]  # seven are left, six go round
        rest += [c for b in batches for c in b["clip_id"]]
    assert len(set(taken) | set(rest)) == 10
    whole = ClipStream(clips, NINE, batch_size=7)
    whole.load_state_dict(states[0])
    assert Counter(taken + next(iter(whole))["clip_id"]) == {f"clip_{i:04d}": 1 for i in range(NUM_CLIPS)}


@pytest.mark.parametrize("wrong", [-1, 2.5, True, "4", np.float64(2), float("nan")])
def test_counts_are_whole_numbers_or_refused_at_once(out: Path, wrong: Any) -> None:
    clips = theodolite.dataset.open(out)
    calls: dict[str, Callable[[], object]] = {
        "num_workers": lambda: ClipStream(clips, NINE, num_workers=wrong),
        "batch_size": lambda: ClipStream(clips, NINE, batch_size=wrong),
        "seed": lambda: ClipStream(clips, NINE, seed=wrong),
        "num_frames": lambda: Sampling(num_frames=wrong),
        "latent_stride": lambda: Sampling(latent_stride=wrong),
        "width of size": lambda: Sampling(size=(16, wrong)),
        "world_size": lambda: Ranks(0, wrong),
        "context_parallel": lambda: Ranks(0, 4, wrong),
        "rank": lambda: Ranks(wrong, 4),
        "size": lambda: Share(rank=0, size=wrong),
    }
    for name, call in calls.items():
        with pytest.raises(
            ValueError, match=rf"^{name} is {re.escape(repr(wrong))}, expected a whole number"
        ):
            call()
    with pytest.raises(ValueError, match=r"^seed is"):
        CameraDataset(clips, NINE, seed=wrong)
    with pytest.raises(ValueError, match=r"^batch_size is"):
        next(clips.batches(batch_size=wrong))
    four = Sampling(num_frames=4)
    assert len(ClipStream(clips, four, batch_size=cast(int, np.int64(2)))) == 6


def test_what_makes_no_batch_or_goes_round_no_ranks_is_said_at_once(
    out: Path, tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    clips = theodolite.dataset.open(out)
    with pytest.raises(ValueError, match="clip_0000 and clip_0060 have 9 and 4 frames, which make no batch"):
        ClipStream(clips, batch_size=2)
    with pytest.raises(ValueError, match="11 clips for 12 data-parallel ranks: some ranks would get nothing"):
        ClipStream(clips, NINE, ranks=Ranks(0, 12))
    with pytest.raises(ValueError, match="at least 12 clips"):
        ClipStream(clips, NINE, ranks=Ranks(0, 4), batch_size=3, drop_last=True)
    with pytest.raises(
        ValueError, match=r"1 of 12 accepted clips have fewer than 9 frames, e\.g\. clip_0060 with 4"
    ):
        ClipStream(clips, Sampling(num_frames=9, short_clips="error"))
    with pytest.warns(UserWarning, match="1 of 12 .* clip_0060 with 4; they are left out"):
        ClipStream(clips, NINE)
    sizes = [make_row(0), make_row(1, height=360, width=640)]
    mixed = theodolite.dataset.open(make_dataset(tmp_path / "mixed", {"a": sizes}))
    with pytest.raises(ValueError, match="clip_0000 and clip_0001 are 1280x720 and 640x360"):
        ClipStream(mixed, Sampling(content="frames", num_frames=9), batch_size=2)
    assert len(next(iter(ClipStream(mixed, NINE, batch_size=2)))["clip_id"]) == 2
    bent = [make_row(0, radial_k1=0.2), make_row(1, radial_k1=-0.2)]  # one of which loses its border
    bent_clips = theodolite.dataset.open(make_dataset(tmp_path / "bent", {"a": bent}))
    straight = Sampling(content="frames", num_frames=9, undistort=True)
    with pytest.raises(ValueError, match="undistorted pictures are as large as the lens of each clip shows"):
        ClipStream(bent_clips, straight, batch_size=2)
    assert len(ClipStream(bent_clips, replace(straight, size=(64, 128)), batch_size=2)) == 1
    pinholes = make_dataset(
        tmp_path / "pinholes", {"a": [make_row(0, radial_k1=None), make_row(1, radial_k1=0.0)]}
    )
    assert len(ClipStream(theodolite.dataset.open(pinholes), straight, batch_size=2)) == 1  # their size stays
    part = next((pinholes / "data").rglob("*.parquet"))
    earlier = pq.read_table(part).drop_columns(["radial_k1", "radial_k2", "lens_model"])
    pq.write_table(earlier, tmp_path / "earlier.parquet")
    for sampling in (straight, NINE):
        assert (
            len(ClipStream(theodolite.dataset.open(tmp_path / "earlier.parquet"), sampling, batch_size=2))
            == 1
        )
    cases: list[dict[str, Any]] = [
        {"num_frames": 0},
        {"num_frames": 33.0},
        {"window": "random"},
        {"window": "middle", "num_frames": 3},
        {"content": "latents", "latents": print, "window": "random", "num_frames": 9},
    ]
    for case in cases:
        with pytest.raises(ValueError, match=r"expected|needs"):
            Sampling(**case)


def test_inside_a_torch_data_loader(out: Path) -> None:
    clips = theodolite.dataset.open(out)
    stream = ClipStream(clips, NINE, seed=3)
    expected = _ids(ClipStream(clips, NINE, seed=3))
    loader = torch.utils.data.DataLoader(stream, batch_size=4)
    batches = list(loader)
    assert [c for b in batches for c in b["clip_id"]] == expected
    assert stream.position.epoch == 1
    assert [c for b in loader for c in b["clip_id"]] != expected  # the next epoch
    first = next(iter(torch.utils.data.DataLoader(ClipStream(clips, NINE, batch_size=2), batch_size=None)))
    assert first["camera_to_world"].shape == (2, 9, 4, 4)
    with pytest.raises(ValueError, match="inside a DataLoader with workers"):
        next(iter(torch.utils.data.DataLoader(stream, batch_size=4, num_workers=1)))


@pytest.mark.slow
def test_a_plain_script_without_a_guard_may_use_workers(out: Path, tmp_path: Path) -> None:
    """Fork servers and spawned processes run the main script again, which then starts workers of its own."""
    page = (Path(__file__).parents[2] / "docs/datasets.md").read_text(encoding="utf-8")
    (example,) = (part for part in page.split("```python\n") if "ClipStream" in part.split("```")[0])
    code = example.split("```")[0]
    for written, here in (
        ("runs/rgbd", str(out)),
        ('content="frames", media_root="/data", num_frames=161', "num_frames=4"),
        ('batch["frames"].shape, ', ""),
        ("batch_size=2", "batch_size=6"),
    ):
        assert written in code
        code = code.replace(written, here)
    (tmp_path / "train.py").write_text(f"{code}\nassert __file__.endswith('train.py')\n")
    command = [sys.executable, "train.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shapes = f"{torch.Size([6, 4, 4, 4])} {torch.Size([6, 4, 4])}"
    assert done.stdout.splitlines() == [shapes] * 2


@pytest.mark.slow
def test_drop_last_gives_every_rank_equally_many(out: Path) -> None:
    clips = theodolite.dataset.open(out)
    parts = [_ids(ClipStream(clips, NINE, ranks=Ranks(r, 4), drop_last=True)) for r in range(4)]
    assert [len(p) for p in parts] == [2, 2, 2, 2]
    assert len({c for p in parts for c in p}) == 8


@pytest.mark.slow
def test_context_parallel_ranks_share_one_clip(out: Path) -> None:
    clips = theodolite.dataset.open(out)
    streams = [ClipStream(clips, NINE, ranks=Ranks(r, 4, 2)) for r in range(4)]
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
        ClipStream(clips, NINE, ranks=Ranks(0, 3, 2))


def test_shares_cover_everything() -> None:
    for count in (1, 7, 121, 961):
        for size in (1, 2, 3, 8):
            parts = [range(count)[Share(rank=r, size=size).slice(count)] for r in range(size)]
            assert [i for p in parts for i in p] == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.slow
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
    shares = [next(iter(ClipStream(clips, sampling, ranks=Ranks(r, 2, 2)))) for r in range(2)]
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


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="real recordings (../shared/data) are not here")
@pytest.mark.parametrize(
    "video", sorted((SHARED / "edge-videos").glob("*.mp4")) if SHARED.is_dir() else [], ids=lambda p: p.stem
)
def test_frames_are_those_that_annotation_saw(video: Path, make_row: Callable[..., Row]) -> None:
    from theodolite.annotate.frames.base import DecodeConfig
    from theodolite.annotate.frames.open import open_clip
    from theodolite.annotate.sources.clip import ClipRef, ClipRejection

    clip = ClipRef(clip_id="v", source="s", original_id="v", media_kind="video", media_path=video)
    try:
        annotated = open_clip(clip, DecodeConfig(detect_cuts=False))
        theirs = list(annotated)
    except ClipRejection:
        return  # no row with frames comes from this file
    n = len(annotated)
    row = make_row(
        0,
        frames=n,
        media=video.name,
        frame_index=annotated.timing.frame_index,
        time_s=annotated.timing.time_s,
        height=annotated.height,
        width=annotated.width,
    )
    ours = read_frames(row, root=video.parent, positions=[0, n // 2, n - 1])
    for mine, i in zip(ours, (0, n // 2, n - 1), strict=True):
        assert np.array_equal(mine, theirs[i])


def _latents_but(*damaged: str):
    """A reader of latents that some clips have none of."""

    def read(row: Row) -> np.ndarray:
        if row.clip_id in damaged:
            raise ValueError(f"clip {row.clip_id}: no latents")
        return np.zeros((2, 2, 1, 1), np.float32)

    return read


@pytest.mark.parametrize("batch_size", [None, 3])
def test_damaged_clips_are_passed_by_choice_and_counted(out: Path, batch_size: int | None) -> None:
    clips = theodolite.dataset.open(out)
    bad = {"clip_0002", "clip_0003", "clip_0007"}
    latents = Sampling(num_frames=9, content="latents", latents=_latents_but(*bad))
    with pytest.raises(ValueError, match="no latents"):
        list(ClipStream(clips, latents))
    passing = Sampling(num_frames=9, content="latents", latents=latents.latents, damaged_clips="replace")
    options = {"batch_size": batch_size, "drop_last": True}
    streams = [ClipStream(clips, passing, ranks=Ranks(rank, 2), **options) for rank in range(2)]
    wanted = [len(stream) for stream in streams]
    taken = [list(stream) for stream in streams]
    assert [len(samples) for samples in taken] == wanted, "ranks keep making equally many steps"
    ids = [sample["clip_id"] for samples in taken for sample in samples]
    flat = ids if batch_size is None else [i for batch in ids for i in batch]
    assert not bad & set(flat)
    assert not any("_damaged" in sample for samples in taken for sample in samples)
    found = [bad & set(stream.damaged) for stream in streams]
    assert found[0] | found[1] == {c for c in bad if c in {*streams[0].damaged, *streams[1].damaged}}
    assert sum(stream.num_damaged for stream in streams) >= len(found[0] | found[1]) > 0
    resumed = ClipStream(clips, passing, ranks=Ranks(0, 2), **options)
    resumed.load_state_dict(streams[0].state_dict())
    assert resumed.num_damaged == streams[0].num_damaged
    assert bad.isdisjoint(sample["clip_id"] for sample in resumed if batch_size is None)
    assert resumed.num_damaged >= streams[0].num_damaged
    everything = Sampling(
        num_frames=9,
        content="latents",
        latents=_latents_but(*(f"clip_{i:04d}" for i in range(11))),
        damaged_clips="replace",
    )
    with pytest.raises(ValueError, match="is their storage away"):
        next(iter(ClipStream(clips, everything)))
    with pytest.raises(ValueError, match="context_parallel"):
        ClipStream(clips, everything, ranks=Ranks(0, 2, 2))


def test_cameras_that_are_not_finite_name_their_clip(make_row: Callable[..., Row]) -> None:
    row = make_row(4, frames=9)
    focal_px = row.focal_px.copy()
    focal_px[3, 0] = np.nan
    object.__setattr__(row, "focal_px", focal_px)  # as rows of strangers come in
    with pytest.raises(ValueError, match="clip clip_0004: cameras are not finite"):
        make_sample(row, NINE)


def test_ranks_make_equally_many_steps_wherever_they_resume(
    tmp_path: Path, make_row: Callable[..., Row], make_dataset: Callable
) -> None:
    """24 clips, begun on any number of ranks and continued on any other, at every place."""
    clips = theodolite.dataset.open(make_dataset(tmp_path, {"a": [make_row(i, frames=9) for i in range(24)]}))
    for after in range(1, 9):
        streams = [
            ClipStream(clips, NINE, ranks=Ranks(r, after), drop_last=True, batch_size=2) for r in range(after)
        ]
        for taken in range(25):
            for stream in streams:
                stream.load_state_dict({"epoch": 0, "clips_taken": taken, "seed": 0, "num_clips": 24})
            assert {len(stream) for stream in streams} == {(24 - taken) // (2 * after)}
