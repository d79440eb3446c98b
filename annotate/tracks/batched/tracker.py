"""The tracker for a GPU: many frames at a time, and nothing in between that waits for the device.

What depends on nothing before it (pyramids, corners, about where things move) is made for a chunk of frames at once.
Only the tracks themselves go from frame to frame, each of them in a program of its own, with new ones chosen on the
device. What is told of a chunk comes to the processor while the next one is on its way; then keyframes are chosen and
described together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ....dataset.arrays import U8
from ..records import MATCHED_GAPS, TracksConfig
from ..tracker import Keyframes, Seen, WorkingSize
from .corners import find_corners
from .images import Images
from .matching import nearest
from .moving import move, refill
from .prediction import predict
from .sift import Described, root_sift
from .state import Log, State

CHUNK = 32
"""Frames that go to the device together. Each operation costs the processor its launch, however large it is."""


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all clips of a process: memory is kept by stream. Its short kernels do not wait for a network's long
    ones."""
    return torch.cuda.Stream(device, priority=-1)


@dataclass(frozen=True)
class _Handed:
    """Frames that were handed to the device, and what it will tell of them.

    Attributes:
        first: number of the first. gray: their images. told: `Log.packed`. sharpness: (C,).
        done: None where nothing needs to be waited for.
    """

    first: int
    gray: list[U8]
    told: Tensor
    sharpness: Tensor
    done: torch.cuda.Event | None


@dataclass(frozen=True)
class _Describing:
    """Keyframes under way, their images, what comes of them, and the pairs of keyframe numbers that are matched."""

    frames: list[int]
    images: list[U8]
    described: Described
    pairs: list[tuple[int, int]]
    nearest: Tensor
    done: torch.cuda.Event | None


class BatchedTracker:
    """See `tracker.Tracker`.

    Args:
        device: where it works.
    """

    def __init__(
        self,
        size: WorkingSize,
        config: TracksConfig,
        chosen: frozenset[int] = frozenset(),
        *,
        device: torch.device,
    ) -> None:
        self.name = f"batched-{device.type}"
        self._size, self._config, self._device = size, config, device
        width, height = size.wh
        self._keyframes = Keyframes(size, config, chosen)
        self._stream = _stream(device) if device.type == "cuda" else None
        area = (width * height / config.num_flow_tracks) ** 0.5
        self._spacing_px = max(4, int(0.4 * area))
        with self._working():
            # The frame before a chunk, the chunk that is told of, and what tracks may look back to.
            self._images = Images(size.wh, 2 * CHUNK + config.max_track_frames + 2, device)
            self._state = State.empty(config.num_flow_tracks, device)
        self._waiting: list[U8] = []
        self._handed: _Handed | None = None
        self._describing: list[_Describing] = []
        self._recent: dict[int, tuple[Tensor, Tensor]] = {}
        """Descriptors of the last keyframes by their numbers, and which are valid."""
        self._last: U8 | None = None
        self._frame = -1
        self._seen = Seen(keyframes=self._keyframes.frames)

    @contextmanager
    def _working(self) -> Iterator[None]:
        with (
            torch.inference_mode(),
            nullcontext() if self._stream is None else torch.cuda.stream(self._stream),
        ):
            yield

    def add(self, gray: U8) -> None:
        """See `tracker.Tracker`."""
        self._waiting.append(gray)
        if len(self._waiting) == CHUNK:
            self._hand_over()

    def finish(self) -> Seen:
        """See `tracker.Tracker`."""
        if self._waiting:
            self._hand_over()
        self._take(last=True)
        for each in self._describing:
            self._tell_of_keyframes(each)
        return self._seen

    def _tell_of_keyframes(self, each: _Describing) -> None:
        if each.done is not None:
            each.done.synchronize()
        xy, descriptors = each.described.xy.numpy().astype(np.float64), each.described.descriptor.numpy()
        for i, frame in enumerate(each.frames):
            count = int(each.described.valid[i].sum())  # they come first
            self._seen.features.append(
                self._size.features(frame, xy[i, :count], descriptors[i, :count], each.images[i])
            )
        for pair, match in zip(each.pairs, each.nearest.numpy(), strict=True):
            known = np.nonzero(match >= 0)[0]
            self._seen.nearest[pair] = np.stack([known, match[known]], 1).astype(np.int64)

    def _hand_over(self) -> None:
        """Give the waiting frames to the device, then see what it tells of those before."""
        first, gray = self._frame + 1, self._waiting
        self._waiting, self._frame = [], self._frame + len(gray)
        with self._working():
            images = self._uploaded(gray)
            self._images.put(first, images)
            sharpness = _sharpness(images)
            log = self._tracked(first, images)
            handed = _Handed(first, gray, self._home(log.packed()), self._home(sharpness), self._mark())
        self._take()
        self._handed = handed

    def _tracked(self, first: int, images: Tensor) -> Log:
        config, number = self._config, self._config.num_flow_tracks
        count = len(images)
        cells = [number if first + i == 0 else max(48, number // 5) for i in range(count)]
        corners = find_corners(images, tile_px=self._spacing_px, cells=cells)
        log = Log.empty(count, number, self._device)
        field = predict(self._images, first, count)
        for row in range(count):
            if first + row > 0:
                move(self._state, self._images, field, log, row, frame=first + row, config=config)
            refill(
                self._state,
                corners,
                log,
                row,
                frame=first + row,
                number=number,
                spacing_px=self._spacing_px,
            )
        return log

    def _take(self, *, last: bool = False) -> None:
        """See what the device tells of the frames that were handed to it last, and have their keyframes described."""
        handed, self._handed = self._handed, None
        if handed is None:
            return
        if handed.done is not None:
            handed.done.synchronize()
        log = Log.unpacked(handed.told)
        wanted: list[int] = []
        for row in range(len(handed.gray)):
            survival = self._tell(log, row)
            wanted += self._keyframes.add(survival, *self._seen.observed[-1])
        if last:
            wanted += self._keyframes.last()
        self._seen.sharpness.extend(handed.sharpness.tolist())
        if wanted:
            images = dict(enumerate(handed.gray, handed.first))
            if self._last is not None:
                images[handed.first - 1] = self._last
            with self._working():
                self._describe(wanted, [images[frame] for frame in wanted])
        self._last = handed.gray[-1]

    def _tell(self, log: Log, row: int) -> float:
        """Put down one frame; returns the survival of the tracks."""
        lived = log.before[row].numpy() >= 0
        start, after = log.start[row].numpy()[lived], log.after[row].numpy()[lived]
        found = log.found[row].numpy()[lived] > 0
        self._seen.tried.append((start, np.linalg.norm(after - start, axis=1), found))
        track = log.track[row].numpy()
        self._seen.observed.append((track[track >= 0].astype(np.int64), log.xy[row].numpy()[track >= 0]))
        if len(self._seen.observed) == 1:
            return 1.0
        return float(found.mean()) if len(found) else 0.0

    def _describe(self, frames: list[int], images: list[U8]) -> None:
        slots = torch.tensor([frame % self._images.slots for frame in frames], device="cpu")
        level = self._images.level(0)[slots.to(self._device, non_blocking=True)]
        found = root_sift(level, self._config.num_descriptors)
        pairs, matched = self._matched(found)
        described = Described(*(self._home(x) for x in (found.xy, found.descriptor, found.valid)))
        self._describing.append(
            _Describing(frames, images, described, pairs, self._home(matched), self._mark())
        )

    def _matched(self, found: Described) -> tuple[list[tuple[int, int]], Tensor]:
        """Pairs of the new keyframes with those before them, and their nearest neighbours."""
        first = sum(len(each.frames) for each in self._describing)
        numbers = range(first, first + len(found.xy))
        self._recent |= dict(zip(numbers, zip(found.descriptor, found.valid, strict=True), strict=True))
        pairs = [(b - gap, b) for b in numbers for gap in MATCHED_GAPS if b >= gap]
        if not pairs:
            return [], found.valid.new_zeros((0, found.valid.shape[1]), dtype=torch.int32)
        sides = [
            [torch.stack([self._recent[pair[side]][i] for pair in pairs]) for i in (0, 1)] for side in (0, 1)
        ]
        self._recent = {n: kept for n, kept in self._recent.items() if n > numbers[-1] - max(MATCHED_GAPS)}
        return pairs, nearest(*sides, ratio=self._config.descriptor_ratio)

    def _uploaded(self, gray: list[U8]) -> Tensor:
        images = torch.empty(
            (len(gray), *gray[0].shape), dtype=torch.uint8, pin_memory=self._stream is not None
        )
        np.stack(gray, out=images.numpy())
        return images.to(self._device, non_blocking=True)

    def _home(self, x: Tensor) -> Tensor:
        """A copy on the processor, complete when the device has come to the next mark."""
        if self._stream is None:
            return x
        pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        return pinned.copy_(x, non_blocking=True)

    def _mark(self) -> torch.cuda.Event | None:
        if self._stream is None:
            return None
        # One that sleeps: a thread that spins would take the core from another clip's decoder.
        event = torch.cuda.Event(blocking=True)
        event.record(self._stream)
        return event


def _sharpness(images: Tensor) -> Tensor:
    """(C,) variance of the Laplacian of (C, h, w) uint8."""
    image = F.pad(images.float()[:, None], (1, 1, 1, 1), mode="reflect")
    middle = image[:, :, 1:-1, 1:-1]
    around = image[:, :, :-2, 1:-1] + image[:, :, 2:, 1:-1] + image[:, :, 1:-1, :-2] + image[:, :, 1:-1, 2:]
    return (around - 4 * middle).flatten(1).var(1, correction=0)
