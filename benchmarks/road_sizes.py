"""How large the road is (`road.py --size`): pictures, clips, networks, steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from road_clips import Rooms
from road_codec import Codec

ROOMS: dict[str, Any] = {}


RECIPES = {"rooms": "posed", "depth": "rgbd", "other": "posed"}
"""By which recipe each set is annotated. Most clips come with their cameras, as rendered sources do (a third of the
time of those whose cameras must be found); some come with depth and a lens alone."""
FEW_TRACKS = (
    "annotate.bundle.max_observations=40",
    "annotate.bundle.max_descriptor_observations=60",
    "annotate.bundle.lens_model=near_pinhole",
    "annotate.bundle.max_iterations=10",
    "annotate.tracks.num_flow_tracks=80",
    "annotate.tracks.num_descriptors=200",
    "annotate.tracks.max_loops_per_keyframe=0",
)
"""What checks given cameras of pictures this small, in two thirds of the time of the recipe's own numbers."""
OTHER: dict[str, Any] = dict(fov_deg=(96.0, 110.0), zoom=0.2, turn=1.4)
"""The changed domain: wide lenses that zoom, faster turns. (Long ones see too little texture here: annotation rejects
them.)"""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large everything is.

    Attributes:
        model: sizes of the world model, as keys of its recipe.
        steps: of each training; lora_steps: of the LoRA.
        train, depth, other, held: clips to train on, such with depth in place of cameras, of the other domain, held out
            of each domain.
        height, width: of the recordings; picture: (height, width) of what is learned and made.
        frames: of a clip; window: of what is learned and made, 24 k + 1.
    """

    height: int
    width: int
    picture: tuple[int, int]
    frames: int
    window: int
    train: int
    depth: int
    other: int
    held: int
    codec: Codec
    codec_rooms: int
    model: dict[str, object]
    batch: int
    lr: float
    student_lr: float
    shift: float
    steps: dict[str, int]
    sampling_steps: int
    held_out: int = 8
    together: int = 1
    """Commands that run at the same time on one device."""
    stride: int = 8
    loaders: int = 0
    """Processes that read clips, of each training."""
    encoders: int = 0
    """Processes that encode the rooms, and a quarter as many for the other domain; 0: the command's own."""


SIZES = {
    "tiny": Size(
        height=192, width=320, picture=(96, 160), frames=65, window=49, train=4, depth=2, other=4, held=2,
        codec=Codec(channels=48, kept=(12, 12, 12, 24), decoder=448), codec_rooms=2,
        model={"depth": 4, "width": 48, "heads": 2, "latent_channels": 48, "text_width": 16},
        batch=1, lr=1e-3, student_lr=1e-3, shift=3.0, sampling_steps=3, held_out=1, stride=16,
        steps={"stage1": 3, "stage2": 3, "stage3": 4, "stage4": 3, "lora": 3, "ode": 3, "consistency": 3, "forced": 5},
    ),
    "small": Size(
        height=192, width=320, picture=(192, 320), frames=73, window=49, train=1600, depth=24, other=240, held=24,
        codec=Codec(), codec_rooms=96,
        model={"depth": 8, "width": 320, "heads": 8, "latent_channels": 64, "text_width": 16, "ffn_ratio": 2.5},
        batch=64, lr=1e-3, student_lr=2e-4, shift=3.0, sampling_steps=20, together=4, loaders=1, encoders=8,
        stride=12, held_out=24,
        steps={"stage1": 200, "stage2": 200, "stage3": 1500, "stage4": 300, "lora": 300, "ode": 200,
               "consistency": 60, "forced": 80},
    ),
}  # fmt: skip


def recordings(size: Size) -> dict[str, list[Rooms]]:
    """Rooms to train on, the same of the other domain, and both held out."""

    def rooms(name: str, clips: int, seed: int, frames: int, path: dict[str, Any]) -> Rooms:
        return Rooms(
            name=name, clips=clips, frames=frames, height=size.height, width=size.width, seed=seed, path=path
        )

    return {
        "rooms": [rooms("rooms", size.train, 1, size.frames, ROOMS)],
        "depth": [rooms("depth", size.depth, 5, size.frames, ROOMS)],
        "other": [rooms("other", size.other, 2, size.frames, OTHER)],
        "held": [
            rooms("near", size.held, 3, size.window, ROOMS),
            rooms("far", size.held, 4, size.window, OTHER),
        ],
    }
