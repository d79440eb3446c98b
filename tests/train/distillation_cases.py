"""What the toy network is asked with, where the released code's answers are recorded and where they are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from theodolite.model.context import Cameras
from theodolite.model.samplers import Text
from theodolite.train.objective import Batch
from theodolite.train.student import Conditions
from torch import Tensor

from .toy_network import CHANNELS, TEXT, Toy

HEIGHT, WIDTH = 2, 3
FORCING = {"whole": (8, 11), "whole_later": (8, 14), "windowed": (15, 12)}
"""Case: latent frames, seed of the draws. Exits differ between the first two."""
LOOSE = (21, 22, 23)
"""Seeds of the draws of ODE regression."""
SIZES = {"ode": 8}


@dataclass(frozen=True)
class Inputs:
    """Of one clip, as both code bases take them."""

    video: Tensor
    conditions: Tensor
    plucker: Tensor
    y: Tensor
    mask: Tensor
    other: Tensor
    other_mask: Tensor
    trajectory: Tensor

    @property
    def image(self) -> Tensor:
        return self.video[:, :, :1]

    @property
    def cameras(self) -> Cameras:
        return Cameras(
            self.conditions[..., :16].unflatten(-1, (4, 4)), self.conditions[..., 16:], self.plucker
        )

    @property
    def text(self) -> Text:
        return Text(self.y[:, 0], self.mask[:, 0, 0].bool())

    @property
    def negative(self) -> Text:
        return Text(self.other[:, 0], self.other_mask[:, 0, 0].bool())

    @property
    def asked(self) -> Conditions:
        return Conditions(self.image, self.text, self.cameras)

    @property
    def batch(self) -> Batch:
        return Batch(self.video, self.text, self.cameras, None, self.trajectory)


def inputs(frames: int) -> Inputs:
    """Random, the same at every call."""
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    video = drawn(1, CHANNELS, frames, HEIGHT, WIDTH)
    trajectory = drawn(1, 5, CHANNELS, frames, HEIGHT, WIDTH)
    trajectory[:, :, :, 0] = video[:, None, :, 0]
    mask = torch.ones(1, 1, 1, 5)
    mask[..., 3:] = 0
    other_mask = torch.ones(1, 1, 1, 5)
    other_mask[..., 2:] = 0
    return Inputs(
        video, drawn(1, frames, 20), drawn(1, 48, frames, HEIGHT, WIDTH), drawn(1, 1, 5, TEXT), mask,
        drawn(1, 1, 5, TEXT), other_mask, trajectory,
    )  # fmt: skip


def toys() -> dict[str, Any]:
    """Student, fake and real score: toys in the place of networks."""
    return {role: Toy(seed) for seed, role in enumerate(("student", "fake", "real"))}


def levels_and_noise(case: str) -> tuple[Tensor, Tensor]:
    """Indices (1, T) of one clip, one a clip or one a chunk, frame 0 clean; noise."""
    frames = SIZES["ode"]
    index = torch.tensor([[0, *([630] * (frames - 1))]])
    if case == "chunks":
        index = torch.tensor([[0, 112, 112, 112, 845, 845, 845, 845]])
    generator = torch.Generator().manual_seed(6)
    return index, torch.randn(1, CHANNELS, frames, HEIGHT, WIDTH, generator=generator)
