"""What annotation costs: every figure with the measurement that it comes from, in one place.

`theodolite plan` multiplies these and nothing else. Another machine has other ones: the script is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One measured cost.

    Attributes:
        seconds: for one clip of `clip_s` seconds.
        of: what is busy: one GPU, or one core.
        measured: how and on what.
    """

    name: str
    clip_s: float
    seconds: float
    of: Literal["GPU", "core"]
    measured: str

    def for_clip(self, clip_s: float) -> float:
        """Seconds for a clip of another duration, in proportion."""
        return self.seconds * clip_s / self.clip_s


_CLIPS = "benchmarks/estimate_gpu.py clips: one H200, 16 cores, 1280x720, random weights of full size"

NETWORK_CLIP = (
    Cost(
        name="a GPU held", clip_s=10, seconds=2.0, of="GPU", measured=f"{_CLIPS}; six clips of 10 s in 12 s"
    ),
    Cost(
        name="a GPU held",
        clip_s=60,
        seconds=13.2,
        of="GPU",
        measured=f"{_CLIPS}; eight clips of 60 s after ten others",
    ),
)
"""Throughput of the whole recipe, networks and bundles overlapped: how long a clip holds a GPU with its cores."""
NETWORKS = Cost(name="networks", clip_s=60, seconds=12.7, of="GPU", measured=f"{_CLIPS}; one clip of 60 s")
TRACKS = Cost(
    name="decoding and tracks", clip_s=60, seconds=60.0, of="core", measured=f"{_CLIPS}; one clip of 60 s"
)
BUNDLE = Cost(name="bundle", clip_s=60, seconds=60.0, of="core", measured=f"{_CLIPS}; one clip of 60 s")
PICTURES = Cost(
    name="quality of the pictures",
    clip_s=60,
    seconds=8.0,
    of="core",
    measured="benchmarks/quality_cost.py: 7.5 and 8.4 ms a frame of 1280x720 in two videos, one core of a busy"
    " two-core machine",
)
ALL_COSTS = (*NETWORK_CLIP, NETWORKS, TRACKS, PICTURES, BUNDLE)


def held_gpu_s(clip_s: float) -> float:
    """Seconds that a clip holds a GPU where networks run: as measured for the nearest duration, in proportion."""
    nearest = min(NETWORK_CLIP, key=lambda cost: abs(cost.clip_s - clip_s))
    return nearest.for_clip(clip_s)
