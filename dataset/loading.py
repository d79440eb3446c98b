"""Clips for training: a map-style dataset, and a stream that shards, resumes and shares frames between ranks.

The order of an epoch is one permutation of all clips, given by seed and epoch alone, and so is the window of frames
that each clip gives. Data-parallel rank `r` of `R` takes every R-th clip of it, its DataLoader workers take turns, a
batch each, and the loader returns them in order: neither the number of workers nor a restart changes what comes next.
"""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from .cameras.transforms import relative_to_first
from .counts import check_count
from .inputs import Archive, InputError
from .media.undistort import ClipPictures, bends
from .moving_masks import unpacked_masks
from .reading import ClipDataset
from .rows import Row
from .workers import worker_settings

log = logging.getLogger(__name__)

Content = Literal["cameras", "frames", "latents"]
Window = Literal["start", "random"]
LatentReader = Callable[[Row], NDArray]
"""Gives the latents of a clip, (C, T, H, W); see `latents_from_folder`."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What a sample holds.

    Attributes:
        content: `cameras` alone; `frames` adds decoded pictures; `latents` adds latents instead.
        media_root: folder to which relative media paths refer.
        size: (height, width) of frames; intrinsics are scaled along. None: stored size.
        num_frames: frames of a sample, consecutive ones of its clip; None: all (batches need one length).
        window: which ones: the first, or a stretch drawn anew for every clip in every epoch.
        short_clips: clips with fewer than `num_frames` are left out (`skip`, with a warning that counts them), or an
            error that names one.
        damaged_clips: a clip whose files are damaged or gone is an error that names it, or (`replace`) its place goes
            to the next whole clip of its rank, and the stream counts it (`ClipStream.damaged`).
        latents: reader of latents, needed for `latents`.
        latent_stride: video frames per latent frame after the first (LTX-2: 8).
        relative: poses relative to the sample's first camera.
        undistort: pictures and cameras are those of a pinhole (`undistort.ClipPictures`); else pictures are bent as
            they are, and cameras are pinholes all the same: `radial_k1`, `radial_k2` and `lens_model` stay in the row.
        moving_masks: adds where each picture, as it is stored, moves on its own.
    """

    content: Content = "cameras"
    media_root: str | Path = "."
    size: tuple[int, int] | None = None
    num_frames: int | None = None
    window: Window = "start"
    short_clips: Literal["skip", "error"] = "skip"
    damaged_clips: Literal["error", "replace"] = "error"
    latents: LatentReader | None = None
    latent_stride: int = 8
    relative: bool = True
    undistort: bool = False
    moving_masks: bool = False

    def __post_init__(self) -> None:
        if self.content == "latents" and self.latents is None:
            raise ValueError("content `latents` needs a reader of latents, e.g. latents_from_folder(FOLDER)")
        for name, value, known in (
            ("content", self.content, get_args(Content)),
            ("window", self.window, get_args(Window)),
            ("short_clips", self.short_clips, ("skip", "error")),
            ("damaged_clips", self.damaged_clips, ("error", "replace")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")
        check_count("num_frames", self.num_frames, none="all")
        check_count("latent_stride", self.latent_stride)
        if self.size is not None:
            if len(self.size) != 2:
                raise ValueError(f"size is {self.size}, expected (height, width) in pixels")
            for name, side in zip(("height", "width"), self.size, strict=True):
                check_count(f"{name} of size", side)
        if self.undistort and self.moving_masks:
            raise ValueError("moving_masks are those of stored pictures: ask for them without undistort")
        if self.window == "random" and self.num_frames is None:
            raise ValueError("window `random` needs num_frames: how many frames of each clip")
        if self.window == "random" and self.content == "latents":
            raise ValueError(
                "window `random` needs frames or cameras: latents were made from a clip's first frame on, and a later "
                "stretch of them is not what the encoder gives for that stretch"
            )

    def start(self, row_frames: int, clip_id: str, *, seed: int, epoch: int) -> int:
        """First frame of the sample that a clip of `row_frames` frames gives in an epoch."""
        if self.window == "start" or self.num_frames is None:
            return 0
        draw = np.random.default_rng([seed, epoch, zlib.crc32(clip_id.encode())])
        return int(draw.integers(row_frames - self.num_frames + 1))


@dataclass(frozen=True, kw_only=True)
class Share:
    """Part of the frames of a clip that one rank of a context-parallel group gets: `rank` of `size`,
    contiguous."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        check_count("rank", self.rank, least=0)
        check_count("size", self.size)
        if not 0 <= self.rank < self.size:
            raise ValueError(f"context-parallel rank {self.rank} of {self.size}")

    def slice(self, count: int) -> slice:
        """Indices of this share of `count` items; shares differ by at most one item and cover all."""
        base, extra = divmod(count, self.size)
        start = self.rank * base + min(self.rank, extra)
        return slice(start, start + base + (self.rank < extra))


@dataclass(frozen=True)
class Ranks:
    """Place of a process in a distributed run.

    Attributes:
        rank, world_size: of the whole run.
        context_parallel: ranks that share a clip; neighbours in rank order. They get the same clip and contiguous
            shares of its frames.
    """

    rank: int = 0
    world_size: int = 1
    context_parallel: int = 1

    def __post_init__(self) -> None:
        check_count("rank", self.rank, least=0)
        check_count("world_size", self.world_size)
        shared = self.context_parallel
        check_count("context_parallel", shared)
        if self.world_size % shared or not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"rank {self.rank} of {self.world_size} with context_parallel {shared} does not divide"
            )

    @property
    def group(self) -> int:
        """Which of `num_groups` this one belongs to; a group gets clips of its own."""
        return self.rank // self.context_parallel

    @property
    def num_groups(self) -> int:
        """Data-parallel groups of the run."""
        return self.world_size // self.context_parallel

    @property
    def share(self) -> Share:
        """What this rank gets of the frames of its group's clips."""
        return Share(rank=self.rank % self.context_parallel, size=self.context_parallel)


def latents_from_folder(folder: str | Path, *, key: str = "z") -> LatentReader:
    """Reader of `<folder>/<clip_id>.npz` with an array `key` of shape (C, T, H, W)."""

    def read(row: Row) -> NDArray:
        path = Path(folder) / f"{row.clip_id}.npz"
        if not path.is_file():
            raise ValueError(f"clip {row.clip_id}: no latents at {path}")
        with Archive(path, "file of latents") as archive:
            latents = archive.array(key) if key in archive.arrays else None
        if latents is None or latents.ndim != 4 or latents.dtype.kind not in "iuf":
            found = archive.arrays[:10] if latents is None else f"{latents.shape} of {latents.dtype}"
            raise InputError(f"{path}: expected an array {key!r} of shape (C, T, H, W), found {found}")
        return latents

    return read


def make_sample(
    row: Row, sampling: Sampling, share: Share | None = None, *, start: int = 0
) -> dict[str, Any]:
    """Tensors of one clip, or of one rank's share of it.

    Args:
        start: clip frame at which the sample begins.
    Returns:
        `clip_id`, `caption` (text, may be empty), `camera_to_world` (F, 4, 4) float32 metres, `intrinsics`
        (F, 4) float32 fx fy cx cy for the size returned, `frame_index` (F,) clip frames, `size` (2,) height,
        width; plus `frames` (F, 3, H, W) uint8 or `latents` (C, T, H, W) float32 with `latent_index` (T,),
        whose cameras are those of every latent's last video frame (frames 0, s, 2s, ...); plus `moving_masks`
        (F, 36, 64) bool, one a camera.
    Raises:
        ValueError: the clip lacks cameras or masks, is too short, or its media or latents do not fit it; or it is seen
            through a fisheye, and not to be undistorted.
    """
    share = share or Share()
    pictures = ClipPictures(row, sampling.media_root, undistort=sampling.undistort)
    row = pictures.row
    if row.lens_model == "fisheye":
        raise ValueError(
            f"clip {row.clip_id}: seen through a fisheye; Sampling(undistort=True) gives pictures of a pinhole"
        )
    if not len(row.camera_to_world):
        raise ValueError(f"clip {row.clip_id}: has no cameras; filter on verdict == 'accepted'")
    frames = row.num_frames - start if sampling.num_frames is None else sampling.num_frames
    if start < 0 or start + frames > row.num_frames:
        where = f" from frame {start} on" if start else ""
        raise ValueError(f"clip {row.clip_id}: {row.num_frames} frames, {frames}{where} are asked for")
    window = slice(start, start + frames)
    poses = row.camera_to_world[window].astype(np.float64)
    lens = np.concatenate([row.focal_px, row.principal_point_px], axis=1)[window]
    if not (np.isfinite(poses).all() and np.isfinite(lens).all()):
        raise ValueError(f"clip {row.clip_id}: cameras are not finite; filter on verdict == 'accepted'")
    if sampling.relative:
        poses = relative_to_first(poses)
    height, width = sampling.size or (row.height, row.width)
    factor = np.array([width / row.width, height / row.height] * 2)
    intrinsics = lens * factor
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
            positions = (start + chosen).tolist()
            pixels = pictures.read(positions=positions, size=(height, width))
            sample["frames"] = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    sample["camera_to_world"] = torch.from_numpy(poses[chosen]).float()
    sample["intrinsics"] = torch.from_numpy(intrinsics[chosen]).float()
    sample["frame_index"] = torch.from_numpy(start + chosen)
    if sampling.moving_masks:
        if row.moving_mask is None:
            raise ValueError(
                f"clip {row.clip_id}: has no moving_mask; annotate with annotate.bundle.moving_masks, or filter on it"
            )
        sample["moving_masks"] = torch.from_numpy(unpacked_masks(row.moving_mask[start + chosen]))
    return sample


@dataclass(frozen=True, kw_only=True)
class _Clip:
    """What has to be known of a clip to deal it: id, frames, stored size, and whether undistorting changes that."""

    clip_id: str
    num_frames: int
    height: int
    width: int
    bends: bool


_LENS = ("radial_k1", "radial_k2", "lens_model")


def trainable(clips: ClipDataset, sampling: Sampling) -> tuple[str, ...]:
    """Ids of accepted clips that are long enough, sorted: the same list on every rank.

    Warns of those that are too short.

    Raises:
        ValueError: none, stand-in rows among them, or (`short_clips` is `error`) one that is too short.
    """
    return tuple(clip.clip_id for clip in _trainable(clips, sampling))


def _trainable(clips: ClipDataset, sampling: Sampling) -> list[_Clip]:
    accepted = clips.where(pc.field("verdict") == "accepted")
    wanted = sampling.num_frames or 1
    lens = _LENS if sampling.undistort else ()
    table = accepted.to_table(["clip_id", "num_frames", "height", "width", "stand_in", *lens])
    known = sorted(table.to_pylist(), key=lambda clip: clip["clip_id"])
    good = [clip for clip in known if clip["num_frames"] >= wanted]
    if any(clip.pop("stand_in") for clip in good):
        raise ValueError(f"{clips.path}: rows made with stand-in weights; they are not data to train on")
    short = [clip for clip in known if clip["num_frames"] < wanted]
    if not good:
        longest = max(short, key=lambda clip: clip["num_frames"], default=None)
        found = "" if longest is None else f"; the longest, {longest['clip_id']}, has {longest['num_frames']}"
        raise ValueError(f"{clips.path}: no accepted clip of at least {wanted} frames{found}")
    if short:
        message = (
            f"{clips.path}: {len(short)} of {len(known)} accepted clips have fewer than {wanted} frames, e.g. "
            f"{short[0]['clip_id']} with {short[0]['num_frames']}"
        )
        if sampling.short_clips == "error":
            raise ValueError(f"{message}; lower num_frames, or leave them out with short_clips='skip'")
        warnings.warn(f"{message}; they are left out", stacklevel=3)
    return [_Clip(bends=bends(*(clip.pop(name, None) for name in _LENS)), **clip) for clip in good]


class CameraDataset(Dataset[dict[str, Any]]):
    """Map-style dataset of accepted clips, sorted by id.

    Attributes:
        epoch: number that random windows depend on; set it before every pass over the data.
    """

    def __init__(
        self,
        clips: ClipDataset,
        sampling: Sampling | None = None,
        *,
        share: Share | None = None,
        seed: int = 0,
    ) -> None:
        check_count("seed", seed, least=0)
        self._clips, self._sampling, self._share = clips, sampling or Sampling(), share or Share()
        self.clip_ids = tuple(clip.clip_id for clip in _trainable(clips, self._sampling))
        self._seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._clips.row(self.clip_ids[index])
        start = self._sampling.start(row.num_frames, row.clip_id, seed=self._seed, epoch=self.epoch)
        return make_sample(row, self._sampling, self._share, start=start)


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run is: how many clips of this epoch all ranks together have taken."""

    epoch: int = 0
    clips_taken: int = 0


def epoch_order(num_clips: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Permutation of an epoch; the same everywhere."""
    return np.random.default_rng([seed, epoch]).permutation(num_clips)


_Task = tuple[str, int]
"""Clip, and the frame at which its sample begins."""


class _Stream(IterableDataset[dict[str, Any]]):
    """What one rank still has to take of an epoch, dealt to DataLoader workers in turns.

    Args:
        steps: the samples of each step; a batch of them if `collate`, else a single one.
    """

    def __init__(
        self,
        clips: ClipDataset,
        steps: Sequence[Sequence[_Task]],
        sampling: Sampling,
        share: Share,
        *,
        collate: bool,
    ) -> None:
        self._clips, self._steps, self._sampling, self._share = clips, steps, sampling, share
        self._collate = collate

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step in islice(self._steps, first, None, stride):
            damaged: list[tuple[str, str]] = []
            samples = [self._sample(task, damaged) for task in step]
            sample = _batch(samples) if self._collate else samples[0]
            yield sample | {_DAMAGED: damaged} if damaged else sample

    def _sample(self, task: _Task, damaged: list[tuple[str, str]]) -> dict[str, Any]:
        """The sample of a task, or of the next one whose clip is whole; those passed on the way are noted."""
        try:
            return self._make(task)
        except (ValueError, OSError) as problem:
            if self._sampling.damaged_clips == "error":
                raise
            error = problem
        damaged.append((task[0], str(error)))
        tasks = [task for step in self._steps for task in step]
        place = tasks.index(task)
        for candidate in (tasks[place + 1 :] + tasks[:place])[:_MOST_DAMAGED]:
            try:
                return self._make(candidate)
            except (ValueError, OSError) as problem:
                error = problem
                damaged.append((candidate[0], str(error)))
        raise ValueError(
            f"{len(damaged)} clips one after the other are damaged or gone; is their storage away? The last: {error}"
        ) from error

    def _make(self, task: _Task) -> dict[str, Any]:
        clip_id, start = task
        return make_sample(self._clips.row(clip_id), self._sampling, self._share, start=start)


_DAMAGED = "_damaged"
"""Key under which a stream's workers tell which clips they passed."""
_MOST_DAMAGED = 16
"""Damaged clips one after the other that are passed."""


def _batch(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One dictionary of stacked tensors and lists of texts."""
    for name, value in samples[0].items():
        for other in samples[1:]:
            if isinstance(value, torch.Tensor) and value.shape != other[name].shape:
                raise ValueError(
                    f"clips {samples[0]['clip_id']} and {other['clip_id']} give {name} of shapes {tuple(value.shape)} "
                    f"and {tuple(other[name].shape)}, which make no batch"
                )
    return default_collate(list(samples))


class ClipStream(IterableDataset[dict[str, Any]]):
    """Endless epochs for one rank of a distributed run; iterate it once per epoch.

    It brings its own workers. A torch `DataLoader` may wrap it with `num_workers=0` (`batch_size=None`, or it makes the
    batches); with workers it would hand each of them a copy whose place nobody learns of, and is refused.

    Args:
        ranks: which clips, and which of their frames, this process gets; None: it is alone.
        drop_last: leave out the last clips of an epoch that do not go round, so that every rank makes equally
            many steps with full batches (needed with collective operations). False: no clip is lost or doubled, ranks
            may differ by one.
        batch_size: samples of each step, stacked (texts become lists); None: single samples without that dimension.
        num_workers: DataLoader processes.
    Attributes:
        damaged: clips that were passed since this stream was made (`Sampling.damaged_clips`), and why.
        num_damaged: how often one was, those before a resume included.
    Raises:
        ValueError: no clip to train on, fewer clips than go round once, or clips whose samples do not stack.
    """

    def __init__(
        self,
        clips: ClipDataset,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        ranks: Ranks | None = None,
        drop_last: bool = False,
        batch_size: int | None = None,
        num_workers: int = 0,
    ) -> None:
        check_count("seed", seed, least=0)
        check_count("batch_size", batch_size, none="single samples")
        check_count("num_workers", num_workers, least=0)
        self._clips, self._sampling = clips, sampling or Sampling()
        self._known = _trainable(clips, self._sampling)
        self._seed, self._drop_last, self._num_workers = seed, drop_last, num_workers
        self._batch_size = batch_size
        self.damaged: dict[str, str] = {}
        self.num_damaged = 0
        self._ranks = ranks or Ranks()
        if self._sampling.damaged_clips == "replace" and self._ranks.context_parallel > 1:
            raise ValueError(
                "damaged_clips `replace` with context_parallel: a clip may be whole for one rank of a group and damaged"
                " for its neighbour"
            )
        self._position = Position()
        needed = self._step if drop_last else self._ranks.num_groups
        if len(self._known) < needed:
            batches = f" with batches of {batch_size} (drop_last)" if drop_last and batch_size else ""
            raise ValueError(
                f"{clips.path}: {len(self._known)} clips for {self._ranks.num_groups} data-parallel ranks{batches}: "
                f"some ranks would get nothing; at least {needed} clips are needed, or fewer ranks"
            )
        if batch_size is not None and batch_size > 1:
            self._check_shapes()

    def _check_shapes(self) -> None:
        """Refuse clips whose samples differ in shape before the first batch meets two of them."""
        first = self._known[0]
        own_size = self._sampling.content == "frames" and self._sampling.size is None
        by_lens = self._sampling.undistort and any(clip.bends for clip in self._known)
        if own_size and by_lens and len(self._known) > 1:
            raise ValueError(
                f"{self._clips.path}: undistorted pictures are as large as the lens of each clip shows, which makes no"
                " batch; give the frames' size=(height, width)"
            )
        for clip in self._known[1:]:
            if self._sampling.num_frames is None and clip.num_frames != first.num_frames:
                raise ValueError(
                    f"clips {first.clip_id} and {clip.clip_id} have {first.num_frames} and {clip.num_frames} frames, "
                    "which make no batch; say how many frames a sample has: num_frames"
                )
            same = (clip.height, clip.width) == (first.height, first.width)
            if own_size and not same:
                raise ValueError(
                    f"clips {first.clip_id} and {clip.clip_id} are {first.width}x{first.height} and "
                    f"{clip.width}x{clip.height}, which make no batch; give the frames' size=(height, width)"
                )

    @property
    def position(self) -> Position:
        """Current place, counted in samples that were handed out, not in those that workers prepared
        ahead."""
        return self._position

    @property
    def _step(self) -> int:
        """Clips that all ranks together take in a step."""
        return self._ranks.num_groups * (self._batch_size or 1)

    def __len__(self) -> int:
        """Steps (samples, or batches) that this rank still gets in the current epoch."""
        return len(self._remaining())

    def _remaining(self) -> list[list[_Task]]:
        epoch, taken = self._position.epoch, self._position.clips_taken
        order = epoch_order(len(self._known), seed=self._seed, epoch=epoch)[taken:]
        if self._drop_last:  # of what is left: another number of ranks may have begun the epoch
            order = order[: len(order) - len(order) % self._step]
        mine = [self._known[i] for i in order[self._ranks.group :: self._ranks.num_groups]]
        tasks = [
            (c.clip_id, self._sampling.start(c.num_frames, c.clip_id, seed=self._seed, epoch=epoch))
            for c in mine
        ]
        size = self._batch_size or 1
        return [tasks[i : i + size] for i in range(0, len(tasks), size)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if get_worker_info() is not None:
            raise ValueError(
                "a ClipStream inside a DataLoader with workers: each would hold a copy of it, and neither the epoch "
                "nor the place to resume from would move; iterate over ClipStream(..., batch_size=, num_workers=) "
                "itself, or wrap it with num_workers=0"
            )
        collate = self._batch_size is not None
        stream = _Stream(self._clips, self._remaining(), self._sampling, self._ranks.share, collate=collate)
        loader: DataLoader[dict[str, Any]] = DataLoader(
            stream,
            batch_size=None,
            **worker_settings(self._num_workers, preload=__name__),
        )
        for sample in loader:
            # Counted before the sample is used: a state saved while it is being used says that it was taken.
            taken = min(self._position.clips_taken + self._step, len(self._known))
            self._position = replace(self._position, clips_taken=taken)
            self._note(sample.pop(_DAMAGED, ()))
            yield sample
        self._position = Position(epoch=self._position.epoch + 1)

    def _note(self, damaged: Iterable[tuple[str, str]]) -> None:
        for clip_id, why in damaged:
            self.num_damaged += 1
            if clip_id not in self.damaged:
                self.damaged[clip_id] = why
                log.warning("passed, because it is damaged: %s", why)

    def state_dict(self) -> dict[str, int]:
        """Plain state for a checkpoint; the same on all ranks that have taken equally many samples, but for the number
        of damaged clips, which is the rank's own."""
        return {
            "epoch": self._position.epoch,
            "clips_taken": self._position.clips_taken,
            "seed": self._seed,
            "num_clips": len(self._known),
            "num_damaged": self.num_damaged,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue at a saved place, also with another number of ranks or workers or another batch size.

        Raises:
            ValueError: the state belongs to another seed or another set of clips.
        """
        for key, mine in (("seed", self._seed), ("num_clips", len(self._known))):
            if state[key] != mine:
                raise ValueError(
                    f"the saved position has {key} {state[key]}, this run {mine}; the order would differ"
                )
        self.num_damaged = state.get("num_damaged", 0)
        self._position = Position(epoch=state["epoch"], clips_taken=state["clips_taken"])
