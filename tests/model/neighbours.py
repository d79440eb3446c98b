"""Tiny neighbours of the world model with weights that are the same everywhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

REFINER_SIZES: dict[str, Any] = dict(in_channels=8, out_channels=8, caption_channels=16)
VAE_STRIDES: dict[str, Any] = dict(spatial_compression_ratio=32, temporal_compression_ratio=8)
"""What the released configuration of the video autoencoder says and diffusers does not find out by itself."""


def fill(module: nn.Module, seed: int = 0) -> Any:
    """Give a module weights under which every part speaks, drawn in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in sorted(module.state_dict().items()):
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("latents_std"):
            noise = 1 + 0.3 * noise.tanh()
        elif "norm" in name and noise.ndim == 1:
            noise = 1 + 0.2 * noise
        elif noise.ndim < 2:
            noise = 0.2 * noise
        else:
            noise = noise / max(1, noise[0].numel()) ** 0.5
        value.copy_(noise)
    return module.eval()


def refiner_inputs(frames: int = 8, tokens: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents (1, 8, frames, 2, 3), hidden states (1, tokens, 16) of a prompt, and which of them count."""
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(1, 8, frames, 2, 3, generator=generator)
    states = torch.randn(1, tokens, 16, generator=generator)
    mask = torch.ones(1, tokens, dtype=torch.bool)
    mask[:, -2:] = False
    return latents, states, mask


def decoder_inputs(frames: int = 5) -> torch.Tensor:
    """(1, 8, frames, 2, 3) normalised latents."""
    return torch.randn(1, 8, frames, 2, 3, generator=torch.Generator().manual_seed(6))
