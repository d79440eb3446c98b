"""Distribution matching: a student whose own roll-outs are judged by two bidirectional networks.

The real score knows what videos of the data look like, the fake score what the student's look like: it is trained on
roll-outs all the while. Where the two disagree about a noised roll-out is the direction in which the student's samples
become likelier; that difference, scaled per clip, is its gradient.

Source: DMD (arXiv 2311.18828) and self-forcing (arXiv 2506.08009) as the public NVlabs/Sana code trains SANA-WM's
student: one time a clip, frame 0 clean and out of the loss, guidance cond + g (cond - uncond) of the real score alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor

from ..dataset.strict import Finite
from ..model.frame_parallel import FrameShare
from ..model.network import WorldModel
from ..model.samplers import Text
from .objective import NUM_LEVELS, mean_of_counting
from .student import Conditions


class SelfForcingConfig(Finite):
    """How the student's roll-outs are judged; defaults are the released recipe's."""

    real: str = "released/bidirectional"
    """Weights of the real score: a bidirectional network, which stays as it is."""
    fake: str | None = None
    """Weights with which the fake score begins; null: those of the real one. A longer roll-out continues the fake score
    of the shorter one: `weights/step-N-fake.safetensors`."""
    generator_every: Annotated[int, Field(gt=0)] = 5
    """The fake score learns at every step, the student at every so many."""
    shift: Annotated[float, Field(gt=0)] = 10.0
    """Of the times at which roll-outs are judged."""
    lowest: Annotated[float, Field(gt=0, lt=1000)] = 20.0
    highest: Annotated[float, Field(gt=0, lt=1000)] = 980.0
    """Times are brought between these."""
    guidance: Annotated[float, Field(ge=0)] = 3.0
    """g of the real score's cond + g (cond - uncond)."""
    negative: str | None = None
    """A safetensors file with `states` (L, C) and `mask` (L,) of the caption that the guidance leads away from; null:
    the data's empty caption. The released recipe used a list of what videos should not show."""
    fake_lr: Annotated[float, Field(gt=0)] = 2e-6
    """Of the fake score; its other settings are the optimiser's."""

    @model_validator(mode="after")
    def _bounds(self) -> SelfForcingConfig:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest:g} is not below highest {self.highest:g}")
        return self


@dataclass(frozen=True)
class ScoreDraws:
    """With what a roll-out is noised to be judged.

    Attributes:
        time: (B,) 0..1000, not whole.
        noise: (B, C, T, H, W).
    """

    time: Tensor
    noise: Tensor


def shifted_time(config: SelfForcingConfig, index: Tensor) -> Tensor:
    """Time of an index 0..999, shifted and brought between the bounds."""
    plain = index.float() / NUM_LEVELS
    time = config.shift * plain / (1 + (config.shift - 1) * plain) * 1000
    return time.clamp(config.lowest, config.highest)


def draw_score(config: SelfForcingConfig, shape: torch.Size, generator: torch.Generator) -> ScoreDraws:
    """One time a clip, uniform before the shift, and noise."""
    device = generator.device
    index = torch.randint(NUM_LEVELS, shape[:1], generator=generator, device=device)
    return ScoreDraws(shifted_time(config, index), torch.randn(shape, generator=generator, device=device))


@dataclass(frozen=True)
class Judged:
    """A noised roll-out, of which this rank looks at its frames.

    Attributes:
        noisy: (B, C, t, H, W); times: (B, t).
        frames: of the clip.
        share: where frames are spread over ranks.
    """

    noisy: Tensor
    times: Tensor
    frames: int
    share: FrameShare | None

    @property
    def part(self) -> slice:
        return slice(None) if self.share is None else self.share.frames

    @property
    def sigma(self) -> Tensor:
        return (self.times / 1000)[:, None, :, None, None]

    def velocity(self, model: WorldModel, asked: Conditions) -> Tensor:
        """What a bidirectional network says of it."""
        cameras = None if asked.cameras is None else asked.cameras.of_frames(self.part)
        text = asked.text
        return model(
            self.noisy, self.times, text.states, text_mask=text.mask, cameras=cameras, share=self.share
        ).float()

    def clean(self, model: WorldModel, asked: Conditions) -> Tensor:
        """Its estimate of the clean latents."""
        return self.noisy - self.sigma * self.velocity(model, asked)

    def mean(self, error: Tensor) -> Tensor:
        """Of an error (B, C, t, H, W) over all frames but the given one: this rank's part."""
        counting = torch.ones(len(error), self.frames, dtype=torch.bool, device=error.device)
        counting[:, 0] = False
        return mean_of_counting(error.mean(dim=(1, 3, 4)), counting, self.part)


def noised(video: Tensor, draws: ScoreDraws, share: FrameShare | None) -> Judged:
    """A roll-out at the drawn time, frame 0 clean."""
    frames = video.shape[2]
    times = draws.time[:, None].repeat(1, frames)
    times[:, 0] = 0
    noisy = torch.lerp(video, draws.noise.to(video.dtype), (times / 1000)[:, None, :, None, None])
    part = slice(None) if share is None else share.frames
    return Judged(noisy[:, :, part].detach(), times[:, part], frames, share)


def generator_loss(
    video: Tensor,
    asked: Conditions,
    negative: Text,
    scores: tuple[WorldModel, WorldModel],
    config: SelfForcingConfig,
    draws: ScoreDraws,
    share: FrameShare | None = None,
) -> Tensor:
    """A loss whose gradient at the roll-out is the normalised difference of the scores (over the number of values).

    Args:
        video: (B, C, T, H, W) of `roll_out`, with its graph.
        negative: the caption without which the real score is asked as well.
        scores: fake and real.
        share: this rank judges its frames of the clip; losses of the ranks sum up to the clip's.
    Returns:
        scalar; not finite where a score is not.
    """
    fake, real = scores
    judged = noised(video, draws, share)
    mine = video[:, :, judged.part]
    with torch.no_grad():
        of_fake = judged.clean(fake, asked)
        of_real = judged.clean(real, asked)
        without = judged.clean(real, asked.told(negative))
        of_real = of_real + config.guidance * (of_real - without)
        gradient = (of_fake - of_real) / _mean_distance(mine - of_real, judged)
    return 0.5 * judged.mean((mine - (mine - gradient).detach()).square())


def _mean_distance(difference: Tensor, judged: Judged) -> Tensor:
    """Mean of |difference| over all of a clip, frame 0 included, (B, 1, 1, 1, 1)."""
    total = difference.abs().sum(dim=(1, 2, 3, 4))
    share = judged.share
    if share is not None and len(share.counts) > 1:
        dist.all_reduce(total, group=share.group)
    count = judged.frames * difference[0, :, 0].numel()
    return (total / count).clamp_min(1e-6)[:, None, None, None, None]


def fake_score_loss(
    fake: WorldModel, video: Tensor, asked: Conditions, draws: ScoreDraws, share: FrameShare | None = None
) -> Tensor:
    """Flow matching on a roll-out: what keeps the fake score on the student's videos.

    Args:
        video: (B, C, T, H, W) of `roll_out`, without a graph.
    Returns:
        scalar, this rank's part.
    """
    judged = noised(video, draws, share)
    part = judged.part
    target = draws.noise[:, :, part] - video[:, :, part]
    return judged.mean((judged.velocity(fake, asked) - target).square())
