"""Clips for training: a map-style dataset, and a stream that shards, resumes and shares frames between ranks.

The order of an epoch is one permutation of all clips, given by seed and epoch alone. Data-parallel rank `r`
of `R` takes every R-th clip of it, its DataLoader workers take turns, and the loader returns them in order:
neither the number of workers nor a restart changes what comes next.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from .cameras import relative_to_first
from .frames import read_frames
from .reading import ClipDataset
from .rows import Row

Content = Literal["cameras", "frames", "latents"]
LatentReader = Callable[[Row], NDArray]
"""Gives the latents of a clip, (C, T, H, W); see `latents_from_folder`."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a sample holds.

    Attributes:
        content: `cameras` alone; `frames` adds decoded pictures; `latents` adds latents instead.
        media_root: folder to which relative media paths refer.
        size: (height, width) of frames; intrinsics are scaled along. None: stored size.
        num_frames: first frames of each clip; shorter clips are left out. None: all (batches need one
            length).
        latents: reader of latents, needed for `latents`.
        latent_stride: video frames per latent frame after the first (LTX-2: 8).
        relative: poses relative to the clip's first camera.
    """

    content: Content = "cameras"
    media_root: str | Path = "."
    size: tuple[int, int] | None = None
    num_frames: int | None = None
    latents: LatentReader | None = None
    latent_stride: int = 8
    relative: bool = True

    def __post_init__(self) -> None:
        if self.content == "latents" and self.latents is None:
            raise ValueError("content `latents` needs a reader of latents, e.g. latents_from_folder(FOLDER)")


@dataclass(frozen=True, kw_only=True)
class Share:
    """Part of the frames of a clip that one rank of a context-parallel group gets: `rank` of `size`,
    contiguous."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"context-parallel rank {self.rank} of {self.size}")

    def slice(self, count: int) -> slice:
        """Indices of this share of `count` items; shares differ by at most one item and cover all."""
        base, extra = divmod(count, self.size)
        start = self.rank * base + min(self.rank, extra)
        return slice(start, start + base + (self.rank < extra))


def latents_from_folder(folder: str | Path, *, key: str = "z") -> LatentReader:
    """Reader of `<folder>/<clip_id>.npz` with an array `key` of shape (C, T, H, W)."""

    def read(row: Row) -> NDArray:
        path = Path(folder) / f"{row.clip_id}.npz"
        if not path.is_file():
            raise ValueError(f"clip {row.clip_id}: no latents at {path}")
        with np.load(path, allow_pickle=False) as data:
            if key not in data or data[key].ndim != 4:
                raise ValueError(
                    f"{path}: expected an array {key!r} of shape (C, T, H, W), found {list(data)}"
                )
            return data[key]

    return read


def make_sample(row: Row, sampling: Sampling, share: Share | None = None) -> dict[str, Any]:
    """Tensors of one clip, or of one rank's share of it.

    Returns:
        `clip_id`, `caption` (text, may be empty), `camera_to_world` (F, 4, 4) float32 metres, `intrinsics`
        (F, 4) float32 fx fy cx cy for the size returned, `frame_index` (F,) clip frames, `size` (2,) height,
        width; plus `frames` (F, 3, H, W) uint8 or `latents` (C, T, H, W) float32 with `latent_index` (T,),
        whose cameras are those of every latent's last video frame (frames 0, s, 2s, ...).
    Raises:
        ValueError: the clip lacks cameras, is too short, or its media or latents do not fit it.
    """
    share = share or Share()
    if not len(row.camera_to_world):
        raise ValueError(f"clip {row.clip_id}: has no cameras; filter on verdict == 'accepted'")
    frames = row.num_frames if sampling.num_frames is None else sampling.num_frames
    if frames > row.num_frames:
        raise ValueError(f"clip {row.clip_id}: {row.num_frames} frames, {frames} are asked for")
    poses = row.camera_to_world[:frames].astype(np.float64)
    if sampling.relative:
        poses = relative_to_first(poses)
    height, width = sampling.size or (row.height, row.width)
    factor = np.array([width / row.width, height / row.height] * 2)
    intrinsics = np.concatenate([row.focal_px, row.principal_point_px], axis=1)[:frames] * factor
    sample: dict[str, Any] = {
        "clip_id": row.clip_id,
        "caption": next(iter((row.captions or {}).values()), ""),
        "size": torch.tensor([height, width]),
    }
    if sampling.content == "latents":
        assert sampling.latents is not None
        latents = sampling.latents(row)
        index = np.arange(0, frames, sampling.latent_stride)
        if latents.shape[1] < len(index):
            raise ValueError(
                f"clip {row.clip_id}: {latents.shape[1]} latent frames, {frames} video frames at stride "
                f"{sampling.latent_stride} need {len(index)}"
            )
        part = share.slice(len(index))
        chosen = index[part]
        sample["latents"] = torch.from_numpy(np.ascontiguousarray(latents[:, : len(index)][:, part])).float()
        sample["latent_index"] = torch.arange(len(index))[part]
    else:
        chosen = np.arange(frames)[share.slice(frames)]
        if sampling.content == "frames":
            pixels = read_frames(row, sampling.media_root, positions=chosen.tolist(), size=(height, width))
            sample["frames"] = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    sample["camera_to_world"] = torch.from_numpy(poses[chosen]).float()
    sample["intrinsics"] = torch.from_numpy(intrinsics[chosen]).float()
    sample["frame_index"] = torch.from_numpy(chosen)
    return sample


def trainable(clips: ClipDataset, sampling: Sampling) -> tuple[str, ...]:
    """Ids of accepted clips that are long enough, sorted: the same list on every rank.

    Raises:
        ValueError: none, or stand-in rows among them.
    """
    accepted = clips.where(pc.field("verdict") == "accepted")
    if sampling.num_frames is not None:
        accepted = accepted.where(pc.field("num_frames") >= sampling.num_frames)
    if len(accepted.where(pc.field("stand_in"))):
        raise ValueError(f"{clips.path}: rows made with stand-in weights; they are not data to train on")
    ids = tuple(sorted(accepted.to_table(["clip_id"])["clip_id"].to_pylist()))
    if not ids:
        raise ValueError(f"{clips.path}: no accepted clip of at least {sampling.num_frames or 1} frames")
    return ids


class CameraDataset(Dataset[dict[str, Any]]):
    """Map-style dataset of accepted clips, sorted by id."""

    def __init__(
        self, clips: ClipDataset, sampling: Sampling | None = None, *, share: Share | None = None
    ) -> None:
        self._clips, self._sampling, self._share = clips, sampling or Sampling(), share or Share()
        self.clip_ids = trainable(clips, self._sampling)

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return make_sample(self._clips.row(self.clip_ids[index]), self._sampling, self._share)


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run is: how many clips of this epoch all ranks together have taken."""

    epoch: int = 0
    clips_taken: int = 0


def epoch_order(num_clips: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Permutation of an epoch; the same everywhere."""
    return np.random.default_rng([seed, epoch]).permutation(num_clips)


class _Stream(IterableDataset[dict[str, Any]]):
    """What one rank still has to take of an epoch, dealt to DataLoader workers in turns."""

    def __init__(self, clips: ClipDataset, ids: Sequence[str], sampling: Sampling, share: Share) -> None:
        self._clips, self._ids, self._sampling, self._share = clips, ids, sampling, share

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        mine = self._ids if worker is None else self._ids[worker.id :: worker.num_workers]
        for clip_id in mine:
            yield make_sample(self._clips.row(clip_id), self._sampling, self._share)


def _worker_context() -> Any:
    """Workers never fork from this process: threads and locks of Arrow and PyAV do not survive that.

    A fork server starts clean, imports this module once, and starts workers in milliseconds; elsewhere they
    are spawned.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _end_with_parent(_worker: int) -> None:
    """Make a DataLoader worker end when the training process is killed.

    torch watches the parent's process id, which in a worker is the fork server's; that one lives as long as its
    workers do, so without this a killed rank would leave all of them behind for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None  # workers are never the main process

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


class ClipStream:
    """Endless epochs for one rank of a distributed run; iterate it once per epoch.

    Args:
        rank, world_size: of the whole run.
        context_parallel: ranks that share a clip; neighbours in rank order. They get the same clip and
            contiguous shares of its frames.
        drop_last: leave out the last clips of an epoch that do not go round, so that every rank makes equally
            many steps (needed with collective operations). False: no clip is lost or doubled, ranks may
            differ by one.
        num_workers: DataLoader processes.
    """

    def __init__(
        self,
        clips: ClipDataset,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        context_parallel: int = 1,
        drop_last: bool = False,
        num_workers: int = 0,
    ) -> None:
        if world_size % context_parallel or not 0 <= rank < world_size:
            raise ValueError(
                f"rank {rank} of {world_size} with context_parallel {context_parallel} does not divide"
            )
        self._clips, self._sampling = clips, sampling or Sampling()
        self._ids = trainable(clips, self._sampling)
        self._seed, self._drop_last, self._num_workers = seed, drop_last, num_workers
        self._group, self._groups = rank // context_parallel, world_size // context_parallel
        self._share = Share(rank=rank % context_parallel, size=context_parallel)
        self._position = Position()

    @property
    def position(self) -> Position:
        """Current place, counted in samples that were handed out, not in those that workers prepared
        ahead."""
        return self._position

    def __len__(self) -> int:
        """Samples that this rank still gets in the current epoch."""
        return len(self._remaining())

    def _remaining(self) -> list[str]:
        order = epoch_order(len(self._ids), seed=self._seed, epoch=self._position.epoch)
        usable = len(order) - len(order) % self._groups if self._drop_last else len(order)
        return [self._ids[i] for i in order[self._position.clips_taken : usable][self._group :: self._groups]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        stream = _Stream(self._clips, self._remaining(), self._sampling, self._share)
        loader: DataLoader[dict[str, Any]] = DataLoader(
            stream,
            batch_size=None,
            num_workers=self._num_workers,
            multiprocessing_context=_worker_context() if self._num_workers else None,
            worker_init_fn=_end_with_parent,
        )
        for sample in loader:
            # Counted before the sample is used: a state saved while it is being used says that it was taken.
            self._position = replace(self._position, clips_taken=self._position.clips_taken + self._groups)
            yield sample
        self._position = Position(epoch=self._position.epoch + 1)

    def state_dict(self) -> dict[str, int]:
        """Plain state for a checkpoint; the same on all ranks that have taken equally many samples."""
        return {
            "epoch": self._position.epoch,
            "clips_taken": self._position.clips_taken,
            "seed": self._seed,
            "num_clips": len(self._ids),
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue at a saved place, also with another number of ranks or workers.

        Raises:
            ValueError: the state belongs to another seed or another set of clips.
        """
        for key, mine in (("seed", self._seed), ("num_clips", len(self._ids))):
            if state[key] != mine:
                raise ValueError(
                    f"the saved position has {key} {state[key]}, this run {mine}; the order would differ"
                )
        self._position = Position(epoch=state["epoch"], clips_taken=state["clips_taken"])
