"""The live tracks as arrays of fixed size, moved from frame to frame without asking the device how many there are."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

LEVELS = 3
"""Coarsest level of the step from frame to frame; the way back begins at level 1."""
RADIUS = 9
"""Half of the window."""
REFERENCE_BACK_PX, REFERENCE_MOVED_PX = 0.5, 1.5
"""Where a track was first seen: how well it must be found there again, and how far that may move it."""


@dataclass
class State:
    """N places for tracks; changed in place by the kernel.

    Attributes:
        xy: (N, 2) float32, where each is. reference_xy, reference_frame: where and when its patch was taken.
        track: (N,) int32 its number, -1: none. age: (N,) int32 frames.
        count: (1,) int32, tracks so far.
    """

    xy: Tensor
    reference_xy: Tensor
    reference_frame: Tensor
    track: Tensor
    age: Tensor
    count: Tensor

    @staticmethod
    def empty(number: int, device: torch.device) -> State:
        """No tracks."""

        def ints(value: int, size: int = number) -> Tensor:
            return torch.full((size,), value, dtype=torch.int32, device=device)

        return State(
            xy=torch.zeros(number, 2, device=device),
            reference_xy=torch.zeros(number, 2, device=device),
            reference_frame=ints(0),
            track=ints(-1),
            age=ints(0),
            count=ints(0, 1),
        )


@dataclass(frozen=True)
class Log:
    """What is told of some frames.

    Attributes:
        start, after: (C, N, 2) float32 places in the frame before and in this one, of the tracks that lived before it.
        before: (C, N) int32 those tracks. found: (C, N) int32, 1 where the track was found in the frame.
        xy: (C, N, 2) float32 where tracks are seen in the frame, and track: (C, N) int32 which.
    """

    start: Tensor
    after: Tensor
    before: Tensor
    found: Tensor
    xy: Tensor
    track: Tensor

    @staticmethod
    def empty(frames: int, number: int, device: torch.device) -> Log:
        """Room for so many frames and tracks."""

        def places() -> Tensor:
            return torch.zeros(frames, number, 2, device=device)

        def ints(value: int) -> Tensor:
            return torch.full((frames, number), value, dtype=torch.int32, device=device)

        return Log(
            start=places(), after=places(), before=ints(-1), found=ints(0), xy=places(), track=ints(-1)
        )

    def packed(self) -> Tensor:
        """(C, 9 N) int32, all of it."""
        parts = [getattr(self, each.name).view(torch.int32).flatten(1) for each in fields(self)]
        return torch.cat(parts, 1)

    @staticmethod
    def unpacked(packed: Tensor) -> Log:
        """What `packed` made, of a copy."""
        number = packed.shape[1] // 9
        parts = packed.split([2 * number, 2 * number, number, number, 2 * number, number], 1)

        def places(part: Tensor) -> Tensor:
            return part.contiguous().view(torch.float32).view(len(packed), number, 2)

        return Log(places(parts[0]), places(parts[1]), parts[2], parts[3], places(parts[4]), parts[5])
