"""What `learns_cameras.py` learns from: sizes, clips, the linear autoencoder of their pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from learns_scenes import Clips, random_clips
from theodolite.model.conditioning import TEMPORAL_STRIDE, condition_cameras
from theodolite.model.config import WorldModelConfig
from theodolite.model.context import Cameras
from torch import Tensor

Control = Literal["both", "ucpe", "plucker", "none"]
PATCH = 8
"""Pixels of a token's side. The conditioning module counts 32 pixels a token, so it is told of pictures four times as
large."""
TEXT_TOKENS, TEXT_WIDTH = 4, 32
HELD_OUT_SEED = 1_000_003


@dataclass(frozen=True)
class Size:
    height: int
    width: int
    pictures: int
    channels: int
    model_width: int
    depth: int
    heads: int
    ffn_ratio: float
    batch: int
    clips: int
    held_out: int
    lr: float
    shift: float
    """Of the noise levels. Released 9.95, for frames of 880 tokens; noise that hides a frame of 96 tokens is less."""

    def config(self) -> WorldModelConfig:
        return WorldModelConfig(
            depth=self.depth,
            width=self.model_width,
            heads=self.heads,
            latent_channels=self.channels,
            text_width=TEXT_WIDTH,
            text_tokens=TEXT_TOKENS,
            ffn_ratio=self.ffn_ratio,
            softmax_bfloat16=False,
        )


SIZES = {
    "small": Size(64, 96, 5, 48, 320, 8, 8, 2.5, 64, 65536, 192, 1e-3, 3.0),
    "toy": Size(32, 48, 3, 24, 96, 4, 4, 2.0, 32, 2048, 32, 2e-3, 3.0),
}


class PatchCodec:
    """A linear autoencoder: principal components of patches, each scaled to the root of its spread."""

    def __init__(self, pictures: Tensor, channels: int) -> None:
        patches = self._patches(pictures * 2 - 1).flatten(0, 2).float()
        self.mean = patches.mean(dim=0)
        covariance = torch.cov((patches - self.mean).T)
        value, vector = torch.linalg.eigh(covariance.double())
        value, vector = value.flip(0)[:channels].float(), vector.flip(1)[:, :channels].float()
        scale = value.clamp_min(1e-8).pow(-0.25)
        scale = scale / (value * scale.square()).mean().sqrt()  # latents of variance one in the mean
        self.encoder, self.decoder = vector * scale, (vector / scale).T

    @staticmethod
    def _patches(pictures: Tensor) -> Tensor:
        """(..., 3, H, W) -> (..., h, w, 192), leading axes flattened to one."""
        return F.pixel_unshuffle(pictures.flatten(0, -4), PATCH).permute(0, 2, 3, 1)

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, T, 3, H, W) in 0..1 -> (B, C, T, h, w)."""
        latents = (self._patches(pictures * 2 - 1) - self.mean) @ self.encoder
        return latents.unflatten(0, pictures.shape[:2]).permute(0, 4, 1, 2, 3)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, T, h, w) -> (B, T, 3, H, W) in 0..1."""
        patches = latents.float().permute(0, 2, 3, 4, 1) @ self.decoder + self.mean
        pictures = F.pixel_shuffle(patches.flatten(0, 1).permute(0, 3, 1, 2), PATCH)
        return ((pictures + 1) / 2).clamp(0, 1).unflatten(0, patches.shape[:2])


def conditions(size: Size, camera_to_world: Tensor, intrinsics_px: Tensor) -> Cameras:
    """Cameras as the network takes them; patches of 8 pixels are told as 32."""
    factor = 32 // PATCH
    return condition_cameras(
        camera_to_world, intrinsics_px * factor, height=size.height * factor, width=size.width * factor
    )


def clips_of(size: Size, generator: torch.Generator, batch: int) -> Clips:
    return random_clips(
        generator,
        batch,
        num_pictures=size.pictures,
        stride=TEMPORAL_STRIDE,
        height=size.height,
        width=size.width,
    )


@dataclass(frozen=True)
class HeldOut:
    """Clips that no training saw, and what is asked for on them."""

    clips: Clips
    asked: Cameras
    shuffled: Cameras
    """Paths of other clips, under each clip's own lens."""

    @property
    def truth(self) -> Tensor:
        """(B, T, 4, 4) paths of the pictures, relative to the first frame."""
        poses = self.clips.camera_to_world
        return torch.linalg.inv(poses[:, :1]) @ poses[:, ::TEMPORAL_STRIDE]

    @property
    def others(self) -> Tensor:
        """The paths of `shuffled`."""
        return self.truth.roll(1, dims=0)


def held_out_clips(size: Size, device: torch.device) -> HeldOut:
    clips = clips_of(size, torch.Generator(device=device).manual_seed(HELD_OUT_SEED), size.held_out)
    other = clips.camera_to_world.roll(1, dims=0)
    return HeldOut(
        clips,
        conditions(size, clips.camera_to_world, clips.intrinsics_px),
        conditions(size, other, clips.intrinsics_px),
    )
