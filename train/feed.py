"""Encoded clips in the order of training: an endless stream that any number of ranks and workers reads alike.

Which window sample g of a run is, the seed and g alone say (`order`). A step takes the next
samples for all data-parallel ranks together, so how many were taken is the whole position, and another number of ranks,
another batch or a restart goes on exactly there.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..dataset.cameras.transforms import rigid_error
from ..dataset.counts import check_count
from ..dataset.encoded import EncodedClip, EncodedDataset, Encoding
from ..dataset.workers import worker_settings
from ..model.conditioning import condition_cameras, without_cameras
from ..model.context import Cameras
from ..model.samplers import Text
from .deaf import deaf_children
from .objective import Batch
from .order import SampleOrder, sample_order

Paths = Callable[[str], Tensor]
"""The teacher's trajectory (K, C, T, H, W) of a window, by its id."""
Control = Literal["both", "ucpe", "plucker", "none"]
"""Which camera controls the network is given: rays in attention (UCPE), the Plücker map, both or none."""
_TRIES = 16
"""Other windows that are tried in place of one that cannot be read."""


@dataclass(frozen=True)
class Fault:
    """A window that could not be read, and why."""

    window: str
    why: str


@dataclass(frozen=True)
class Samples:
    """One micro-batch, on the CPU or a device.

    Attributes:
        batch: for the objective.
        ids: windows, in order.
        numbers: of the samples in the run: what their draws are seeded by.
        faults: windows in whose place others stand.
    """

    batch: Batch
    ids: tuple[str, ...]
    numbers: tuple[int, ...]
    faults: tuple[Fault, ...] = ()

    def to(self, device: torch.device) -> Samples:
        """On a device."""

        def moved(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device, non_blocking=True)

        b = self.batch
        cameras = None
        if b.cameras is not None:
            values: list[Any] = [moved(x) for x in vars(b.cameras).values()]
            cameras = Cameras(*values)
        text = Text(b.text.states.to(device, non_blocking=True), moved(b.text.mask))
        latents = b.latents.to(device, non_blocking=True)
        batch = Batch(latents, text, cameras, moved(b.valid), moved(b.trajectory), moved(b.start))
        return replace(self, batch=batch)

    @property
    def num_tokens(self) -> int:
        """Video tokens that count."""
        b, _, t, h, w = self.batch.latents.shape
        frames = b * t if self.batch.valid is None else int(self.batch.valid.sum())
        return frames * h * w


def make_batch(clips: Sequence[EncodedClip], encoding: Encoding, control: Control) -> Batch:
    """Windows of one size of picture as a batch; shorter ones are filled up, and what was filled does not count.

    Cameras of a filled frame are those of the window's last frame. A window without cameras gets those that stand for
    none, where others have some.

    Raises:
        ValueError: a window's cameras cannot be (not rigid, a focal length that is not positive); names it.
    """
    frames = [clip.latents.shape[1] for clip in clips]
    longest = max(frames)
    latents = torch.stack([_filled(clip.latents, longest, dim=1, repeat=False) for clip in clips])
    valid = None
    if min(frames) < longest:
        valid = torch.arange(longest) < torch.tensor(frames)[:, None]
    text = Text(torch.stack([clip.text for clip in clips]), torch.stack([clip.text_mask for clip in clips]))
    cameras = None
    if control != "none":
        found = _cameras(clips, encoding, plucker=control != "ucpe")
        cameras = Cameras(
            torch.cat([_filled(c.camera_to_world, longest, dim=1, repeat=True) for c in found]),
            torch.cat([_filled(c.intrinsics, longest, dim=1, repeat=True) for c in found]),
            None
            if control == "ucpe"
            else torch.cat(
                [_filled(c.plucker, longest, dim=2, repeat=True) for c in found if c.plucker is not None]
            ),
        )
    starts = [_filled(clip.start, longest, dim=1, repeat=False) for clip in clips if clip.start is not None]
    return Batch(latents, text, cameras, valid, start=torch.stack(starts) if starts else None)


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches of windows of one size and length, none of them filled up or with further latents, as one."""
    first = batches[0]
    assert all(b.valid is None and b.trajectory is None and b.start is None for b in batches)
    masks = [b.text.mask for b in batches if b.text.mask is not None]
    text = Text(torch.cat([b.text.states for b in batches]), torch.cat(masks) if masks else None)
    cameras = None
    if first.cameras is not None:
        each = [vars(b.cameras) for b in batches if b.cameras is not None]
        values: dict[str, Any] = {
            name: None if value is None else torch.cat([one[name] for one in each])
            for name, value in each[0].items()
        }
        cameras = Cameras(**values)
    return Batch(torch.cat([b.latents for b in batches]), text, cameras)


def _filled(x: Tensor, size: int, *, dim: int, repeat: bool) -> Tensor:
    """x with `dim` filled up to `size`, by zeros or by its last entry."""
    missing = size - x.shape[dim]
    if missing == 0:
        return x
    last = x.narrow(dim, x.shape[dim] - 1, 1)
    shape = list(x.shape)
    shape[dim] = missing
    more = last.expand(shape) if repeat else x.new_zeros(shape)
    return torch.cat([x, more], dim=dim)


_MADE_TOGETHER = 32768
"""Tokens of windows whose cameras are made in one call: those of short ones cost by the call, and the ray maps of many
long ones would leave the processor's cache."""


def _cameras(clips: Sequence[EncodedClip], encoding: Encoding, *, plucker: bool) -> list[Cameras]:
    """Of each window, as a batch of one; those of one length are made together.

    Raises:
        ValueError: as `make_batch`.
    """
    height, width = (size // encoding.spatial_stride for size in (encoding.height, encoding.width))
    found: dict[int, Cameras] = {}
    by_length: dict[int, list[int]] = {}
    for i, clip in enumerate(clips):
        frames = clip.latents.shape[1]
        if clip.camera_to_world is None or clip.intrinsics_px is None:
            none = without_cameras(1, frames, height=height, width=width)
            found[i] = none if plucker else replace(none, plucker=None)
        else:
            by_length.setdefault(frames, []).append(i)
    for frames, members in by_length.items():
        count = max(1, _MADE_TOGETHER // (frames * height * width))
        for first in range(0, len(members), count):
            part = members[first : first + count]
            made = _conditioned([clips[i] for i in part], encoding, plucker=plucker)
            found.update(zip(part, made, strict=True))
    return [found[i] for i in range(len(clips))]


def _conditioned(clips: Sequence[EncodedClip], encoding: Encoding, *, plucker: bool) -> list[Cameras]:
    """Of windows of one length that have cameras."""
    poses = torch.stack([clip.camera_to_world for clip in clips if clip.camera_to_world is not None])
    lenses = torch.stack([clip.intrinsics_px for clip in clips if clip.intrinsics_px is not None])
    try:
        made = condition_cameras(poses, lenses, height=encoding.height, width=encoding.width, plucker=plucker)
    except ValueError as error:
        if len(clips) == 1:
            raise ValueError(f"window {clips[0].window.id}: {error}") from None
        return [one for clip in clips for one in _conditioned([clip], encoding, plucker=plucker)]
    maps = [None] * len(clips) if made.plucker is None else made.plucker.split(1)
    return [
        Cameras(*each)
        for each in zip(made.camera_to_world.split(1), made.intrinsics.split(1), maps, strict=True)
    ]


def check_cameras(clip: EncodedClip) -> None:
    """Raise ValueError, naming the window, where its cameras cannot be."""
    if clip.camera_to_world is None or clip.intrinsics_px is None:
        return
    if not bool((rigid_error(clip.camera_to_world.double()) < 1e-3).all()):
        raise ValueError(f"window {clip.window.id}: a camera is no rigid transform")
    if not bool((clip.intrinsics_px[:, :2] > 0).all()):
        raise ValueError(f"window {clip.window.id}: a focal length is not positive")


def hold_out(data: EncodedDataset, clips: int, *, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of windows to train on, and of the first window of `clips` clips that are kept out of training.

    Which clips is told by their ids and the seed, not by what else there is.

    Raises:
        ValueError: nothing would be left to train on.
    """
    ids = sorted({w.clip_id for w in data.windows}, key=lambda i: (zlib.crc32(f"{seed} {i}".encode()), i))
    if clips >= len(ids):
        raise ValueError(
            f"{len(ids)} clips, {clips} of them to be held out: nothing is left to train on. Hold out fewer "
            "(--set data.held_out=N), or none (--set data.held_out=0 --set validation.every=0 --set "
            "validation.sample_clips=0)"
        )
    kept = set(ids[:clips])
    train = [i for i, w in enumerate(data.windows) if w.clip_id not in kept]
    first: dict[str, int] = {}
    for i, w in enumerate(data.windows):
        if w.clip_id in kept:
            first.setdefault(w.clip_id, i)
    return train, [first[i] for i in sorted(first)]


def held_out_faults(
    data: EncodedDataset, windows: Sequence[int], read: Callable[[int], object], *, skip: bool
) -> dict[str, str]:
    """Why windows that are held out cannot be read, by their ids.

    Raises:
        BadClip: one cannot, and is not to be skipped.
    """
    faults: dict[str, str] = {}
    for index in windows:
        try:
            read(index)
        except ValueError as error:
            if not skip:
                raise BadClip(
                    f"a held-out window cannot be read: {error} (data.on_bad_clip: skip leaves it out)"
                ) from error
            faults[data.windows[index].id] = str(error)
    return faults


def told_apart(data: EncodedDataset, windows: Sequence[int], seed: int) -> dict[str, Any]:
    """What tells an order of clips from others: the seed, how many windows, a digest of their ids."""
    names = "\n".join(data.windows[i].id for i in windows)
    return {"seed": seed, "windows": len(windows), "clips": f"{zlib.crc32(names.encode()):08x}"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which part of each step a rank takes.

    Attributes:
        rank, ranks: data-parallel; ranks that share a clip have the same number.
        batch: windows of a micro-batch.
        accumulate: micro-batches of a step.
    """

    rank: int = 0
    ranks: int = 1
    batch: int = 1
    accumulate: int = 1

    @property
    def per_step(self) -> int:
        """Samples of a step, over all ranks."""
        return self.ranks * self.batch * self.accumulate

    def numbers(self, taken: int) -> list[list[int]]:
        """Samples of this rank's micro-batches in the step that begins after `taken` samples."""
        first = [taken + (m * self.ranks + self.rank) * self.batch for m in range(self.accumulate)]
        return [list(range(f, f + self.batch)) for f in first]


class _Steps(Dataset[list[Samples]]):
    """Item `taken`: this rank's micro-batches of the step that begins there."""

    def __init__(
        self,
        data: EncodedDataset,
        windows: Sequence[int],
        place: Place,
        control: Control,
        *,
        order: SampleOrder,
        replaces: bool,
    ) -> None:
        self.data, self.windows, self.place = data, list(windows), place
        self.trajectories: Paths | None = None
        self.control: Control = control
        self.order, self.replaces = order, replaces

    def __getitem__(self, index: int) -> list[Samples]:
        return [self._samples(numbers) for numbers in self.place.numbers(index)]

    def _samples(self, numbers: list[int]) -> Samples:
        found = [self._clip(number) for number in numbers]
        faults = [fault for _, mine in found for fault in mine]
        known = [clip for clip, _ in found if clip is not None]
        if len(known) < len(found):
            empty = Batch(torch.empty(0), Text(torch.empty(0)))
            return Samples(empty, (), tuple(numbers), tuple(faults))
        batch = make_batch([clip for clip, _ in known], self.data.encoding, self.control)
        if self.trajectories is not None:
            paths = [path for _, path in known if path is not None]
            batch = replace(batch, trajectory=torch.stack(paths))
        return Samples(batch, tuple(clip.window.id for clip, _ in known), tuple(numbers), tuple(faults))

    def _clip(self, number: int) -> tuple[tuple[EncodedClip, Tensor | None] | None, list[Fault]]:
        """The sample's window; where it is broken, another of the epoch if faults are replaced, else nothing."""
        faults: list[Fault] = []
        for attempt in range(min(self.order.alternatives, _TRIES) if self.replaces else 1):
            index = self.windows[self.order.position(number, attempt)]
            try:
                clip = self.data.read(index)
                check_cameras(clip)
                path = None if self.trajectories is None else self.trajectories(clip.window.id)
                return (clip, path), faults
            except ValueError as error:
                faults.append(Fault(self.data.windows[index].id, str(error)))
        return None, faults


class BadClip(RuntimeError):
    """A window that cannot be read ends the run, as the recipe says."""


class Feed:
    """This rank's micro-batches, step after step, for ever.

    Args:
        sources: weights by source; None: all windows alike.
        max_faults: windows that cannot be read are replaced by others, up to so many; None: the first ends the run.
    Attributes:
        taken: samples that all ranks have taken before the next step.
        faults: windows that could not be read so far, by id.
        tells: what would end the run is left in `problem`, beside a step that cannot be taken: for ranks that end
            together.
        ending: whether a signal asked the run to end. Those of terminals and batch systems go to workers as well, which
            end at once, but for SIGUSR1, of which they know nothing; the step under way is then read in this process.
    """

    def __init__(
        self,
        data: EncodedDataset,
        windows: Sequence[int],
        place: Place,
        *,
        control: Control = "both",
        seed: int = 0,
        sources: Mapping[str, float] | None = None,
        workers: int = 0,
        max_faults: int | None = None,
    ) -> None:
        check_count("seed", seed, least=0)
        check_count("workers", workers, least=0)
        check_count("max_faults", max_faults, least=0, none="an end with the first")
        replaces = max_faults is not None
        order = sample_order([data.windows[i] for i in windows], seed=seed, weights=sources)
        self._steps = _Steps(data, windows, place, control, order=order, replaces=replaces)
        self._workers, self._max_faults = workers, max_faults or 0
        self.place, self.taken = place, 0
        self.faults: dict[str, str] = {}
        self.tells = False
        self.problem: str | None = None
        self.ending: Callable[[], bool] = lambda: False

    def read_beside(self, trajectories: Paths | None) -> None:
        """Read a trajectory beside every window from now on; one that cannot be read is a fault of its window."""
        self._steps.trajectories = trajectories

    def __iter__(self) -> Iterator[list[Samples]]:
        """Steps from `taken` on; a step counts as taken when it is handed out.

        Raises:
            BadClip: a window cannot be read, and faults are not replaced or there were too many.
        """
        for micro in self._read():
            try:
                for samples in micro:
                    self._note(samples)
            except BadClip as error:
                if not self.tells:
                    raise
                self.problem = str(error)
            self.taken += self.place.per_step
            yield micro

    def _read(self) -> Iterator[list[Samples]]:
        loader: Any = DataLoader(
            self._steps,
            batch_size=None,
            sampler=_Counting(self.taken, self.place.per_step),
            **worker_settings(self._workers, preload="theodolite.dataset.loading"),
        )
        try:
            with deaf_children():
                steps = iter(loader)
            yield from steps
        except RuntimeError:  # a worker is no more
            if not self.ending():
                raise
            for taken in _Counting(self.taken, self.place.per_step):
                yield self._steps[taken]

    def _note(self, samples: Samples) -> None:
        for fault in samples.faults:
            self.faults.setdefault(fault.window, fault.why)
        if samples.faults and (not samples.ids or len(self.faults) > self._max_faults):
            text = "; ".join(f.why for f in samples.faults)
            raise BadClip(
                f"{len(self.faults)} windows cannot be read: {text} (data.on_bad_clip: skip and data.max_bad_clips let "
                "a run go on without them)"
            )


class _Counting:
    """taken, taken + step, ...: an endless sampler."""

    def __init__(self, first: int, step: int) -> None:
        self._first, self._step = first, step

    def __iter__(self) -> Iterator[int]:
        number = self._first
        while True:
            yield number
            number += self._step
