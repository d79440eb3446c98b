"""What the refiner is trained to do: bring the world model's latents, deep in noise, to those of the true video.

Inference begins at x_1 = (1 - s_0) z + s_0 n, with the world model's latents z, and ends at the true ones x_0. The way
between is straight: at noise level s, x = (1 - a) x_0 + a x_1 with a = s / s_0, and the network's velocity is held
against (x_1 - x_0) / s_0. So noise levels above s_0 are never seen ("truncated").

Source: the public SANA-WM refiner training code (`compute_refiner_flow_matching_loss`,
`compute_teacher_forcing_fm_loss`, `ShiftedLogitNormalTimestepSampler`); checked against it in
tests/train/test_refining.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..dataset.strict import Finite
from ..model.refiner import SIGMAS, Refiner, RefinerOptions
from ..model.samplers import Text

_FEWEST, _MOST = 1024, 4096
"""Tokens between which the mean of the levels' normal numbers rises."""
_MEANS = (0.95, 2.05)
_LOW, _HIGH = -2.5758, 3.0902
"""Spreads at the 0.5th and the 99.9th percentile of a normal number."""
_LEAST_SIGMA = 1e-6


class RefinerConfig(Finite):
    """How the refiner is trained; defaults are those of the released training code."""

    start_sigma: Annotated[float, Field(gt=0, le=1)] = SIGMAS[0]
    """Noise level at which inference begins."""
    logit_std: Annotated[float, Field(gt=0)] = 1.0
    uniform: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of clips whose level is drawn evenly."""
    least: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    """Of a level, as a share of `start_sigma`."""
    frames: Literal["together", "blocks"] = "blocks"
    """`together`: all frames at once, as the bidirectional release refines. `blocks`: one block of the clip, drawn
    anew each time, that sees the true frames before it (teacher forcing), as the streaming release refines."""
    block_frames: Annotated[int, Field(gt=0)] = 3
    window_frames: Annotated[int, Field(gt=0)] = 11
    """See `model.refiner.RefinerOptions`."""
    merged: bool = False
    """Beside the LoRA, write a whole refiner with the LoRA merged in (as large as the one it starts from)."""

    def options(self, frames_per_second: float) -> RefinerOptions:
        """How the network is asked."""
        return RefinerOptions(
            sigmas=tuple(s for s in (self.start_sigma, *SIGMAS[1:]) if s <= self.start_sigma),
            block_frames=self.block_frames if self.frames == "blocks" else None,
            window_frames=self.window_frames,
            frames_per_second=frames_per_second,
        )


@dataclass(frozen=True)
class RefinerDraws:
    """All that is random in a step.

    Attributes:
        level: (B,) noise levels as shares of `start_sigma`.
        block: (B,) which block of a clip is refined.
        noise: (B, C, T, H, W) float32.
    """

    level: Tensor
    block: Tensor
    noise: Tensor


def refiner_levels(
    config: RefinerConfig, tokens: int, *, normal: Tensor, even: Tensor, chance: Tensor
) -> Tensor:
    """Noise levels as shares of `start_sigma`: logit-normal, more noise for longer clips, stretched over the range.

    Args:
        tokens: of the frames that are refined.
        normal, even, chance: (B,) a normal number and two even ones each.
    """
    share = (min(max(tokens, _FEWEST), _MOST) - _FEWEST) / (_MOST - _FEWEST)
    mean = _MEANS[0] + share * (_MEANS[1] - _MEANS[0])

    def edge(spreads: float) -> float:
        return 1 / (1 + math.exp(-(mean + spreads * config.logit_std)))

    low, high = edge(_LOW), edge(_HIGH)
    level = (torch.sigmoid(normal * config.logit_std + mean) - low) / (high - low)
    level = torch.where(level >= config.least, level, 2 * config.least - level).clamp(0, 1)  # mirrored
    uniform = config.least + (1 - config.least) * even
    return torch.where(chance > config.uniform, level, uniform)


def draw_by_seed(config: RefinerConfig, latents: Tensor, seeds: Sequence[int], *, sink: int) -> RefinerDraws:
    """Draws of every clip by a seed of its own.

    Args:
        sink: first frames that are not refined.
    """
    drawn = []
    for clip, seed in zip(latents, seeds, strict=True):
        generator = torch.Generator(latents.device).manual_seed(seed)
        count = num_blocks(config, clip.shape[1], sink=sink)
        block = torch.randint(count, (1,), generator=generator, device=latents.device)
        frames = clip.shape[1] - sink if count == 1 else config.block_frames
        normal = torch.randn(1, generator=generator, device=latents.device)
        even, chance = torch.rand(2, 1, generator=generator, device=latents.device)
        tokens = frames * clip.shape[2] * clip.shape[3]
        level = refiner_levels(config, tokens, normal=normal, even=even, chance=chance)
        noise = torch.randn(1, *clip.shape, generator=generator, device=latents.device)
        drawn.append(RefinerDraws(level, block, noise))
    return RefinerDraws(*(torch.cat([getattr(d, f.name) for d in drawn]) for f in fields(RefinerDraws)))


def num_blocks(config: RefinerConfig, frames: int, *, sink: int) -> int:
    """Blocks of a clip, the last of which may be shorter."""
    return 1 if config.frames == "together" else -(-(frames - sink) // config.block_frames)


Velocity = Callable[[Tensor, Tensor], Tensor]
"""(noisy latents, (B,) noise levels) -> velocity."""


def truncated_loss(
    network: Velocity, clean: Tensor, start: Tensor, noise: Tensor, level: Tensor, *, start_sigma: float
) -> Tensor:
    """Mean squared error of the velocity on the way from the true latents to where inference begins.

    Args:
        clean, start, noise: (B, C, t, H, W): true latents, the world model's, normal numbers.
        level: (B,) share of `start_sigma`.
    Returns:
        scalar float32.
    """
    clean, start = clean.float(), start.float()
    sigma = (level.float() * start_sigma).clamp(_LEAST_SIGMA, start_sigma)
    end = torch.lerp(start, noise.float(), start_sigma)
    noisy = torch.lerp(clean, end, (sigma / start_sigma)[:, None, None, None, None])
    wanted = (end - clean) / start_sigma
    return (network(noisy, sigma).float() - wanted).square().mean()


def refiner_loss(
    refiner: Refiner, clean: Tensor, start: Tensor, text: Text, config: RefinerConfig, draws: RefinerDraws
) -> Tensor:
    """Loss of pairs of latents, clip after clip: mean over the frames that are refined, then over clips.

    Args:
        clean, start: (B, C, T, H, W) of the true video and of the world model; the sink is taken from `clean`.
        text: (B, L, C) of the refiner's text encoder.
    Raises:
        ValueError: a clip has no frames beside the sink.
    """
    sink = refiner.options.sink_frames
    frames = clean.shape[2]
    if frames <= sink:
        raise ValueError(f"clips of {frames} latent frames: the refiner's sink takes {sink}")
    losses = []
    for i in range(len(clean)):
        first, end = sink, frames
        if config.frames == "blocks":
            first = sink + int(draws.block[i]) * config.block_frames
            end = min(frames, first + config.block_frames)
        words = Text(text.states[i : i + 1], None if text.mask is None else text.mask[i : i + 1])
        before = clean[i : i + 1, :, :first]

        def network(noisy: Tensor, sigma: Tensor, words: Text = words, before: Tensor = before) -> Tensor:
            return refiner.velocity(noisy, float(sigma), words, before=before)

        part = (slice(i, i + 1), slice(None), slice(first, end))
        losses.append(
            truncated_loss(
                network,
                clean[part],
                start[part],
                draws.noise[part],
                draws.level[i : i + 1],
                start_sigma=config.start_sigma,
            )
        )
    return torch.stack(losses).mean()
