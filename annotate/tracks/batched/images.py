"""The last frames of a clip as grey pyramids in one piece of memory, so that a point may ask for any of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .filters import both_ways

SMALLEST_PX = 10
"""Short side of the coarsest level."""
_TAPS = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


@dataclass(frozen=True)
class Level:
    """Where one level of every pyramid lies: `offset` bytes into its slot, (height, width) pixels."""

    offset: int
    height: int
    width: int


class Images:
    """A ring of `slots` pyramids; frame number i lies in slot i % slots until a later one takes it.

    Levels are halved by the kernel (1 4 6 4 1) / 16 and rounded to whole grey levels, pixel (y, x) of one over pixel
    (2 y, 2 x) of the one below it, as OpenCV's are.

    Attributes:
        data: (slots * stride,) uint8.
        table: (levels, 3) int32, offset, height and width, for kernels.
    """

    def __init__(self, size_wh: tuple[int, int], slots: int, device: torch.device) -> None:
        self.slots, self.device = slots, device
        self.levels: list[Level] = []
        width, height = size_wh
        offset = 0
        while not self.levels or min(height, width) >= SMALLEST_PX:
            self.levels.append(Level(offset, height, width))
            offset += height * width
            height, width = (height + 1) // 2, (width + 1) // 2
        self.stride = -(-offset // 128) * 128
        self.data = torch.zeros(slots * self.stride, dtype=torch.uint8, device=device)
        table = [(each.offset, each.height, each.width) for each in self.levels]
        self.table = torch.tensor(table, dtype=torch.int32).to(device, non_blocking=True)

    def level(self, number: int) -> Tensor:
        """(slots, h, w) uint8, a view."""
        level = self.levels[number]
        part = self.data.view(self.slots, self.stride)[
            :, level.offset : level.offset + level.height * level.width
        ]
        return part.view(self.slots, level.height, level.width)

    def coarsest(self, number: int) -> int:
        """Level `number`, or the coarsest that there is."""
        return min(number, len(self.levels) - 1)

    def put(self, first: int, gray: Tensor) -> None:
        """Take frames `first`, `first` + 1, ...: (n, h, w) uint8 on this device."""
        finer = gray.float()
        for number in range(len(self.levels)):
            if number:
                # Sums of whole numbers over 256, exact in float32.
                finer = torch.floor(both_ways(finer, _TAPS, stride=2) + 0.5)
            level = self.level(number)
            done = 0
            while done < len(gray):  # twice where the ring begins anew
                slot = (first + done) % self.slots
                count = min(len(gray) - done, self.slots - slot)
                level[slot : slot + count] = finer[done : done + count].to(torch.uint8)
                done += count
