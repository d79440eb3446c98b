"""Depth maps that a test holds in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Maps:
    """`DepthMaps` of a list; None where a frame has none."""

    def __init__(self, maps: Sequence[np.ndarray | None]) -> None:
        self.maps = maps

    def __len__(self) -> int:
        return len(self.maps)

    def read(self, frame: int) -> np.ndarray | None:
        return self.maps[frame]
