"""Teacher-forced causal consistency: a few-step start that needs no recorded trajectories.

Every chunk of a real clip is noised and seen after the clean chunks before it. The teacher takes one small step towards
the data; the student must say of the noisier chunk what its own average says of the less noisy one. At the last level
the less noisy chunk is the clean one, which anchors the rest.

Source: causal consistency distillation (Causal Forcing, arXiv 2602.02214); noise levels are drawn by chunk here, since
chunks see clean ones alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..dataset.strict import Finite
from ..model.config import chunk_ranges
from ..model.context import StreamCache
from ..model.network import WorldModel
from ..model.samplers import Text
from .objective import Batch, mean_of_counting
from .student import Conditions, StudentConfig, call_chunk, remember, with_image


class ConsistencyConfig(Finite):
    """How the student is held against its own average."""

    teacher: str | None = None
    """Weights of the chunk-causal teacher; null: those that the student starts from."""
    levels: Annotated[int, Field(gt=1)] = 48
    """Of the teacher's steps from noise to data."""
    shift: Annotated[float, Field(gt=0)] = 9.8
    guidance: Annotated[float, Field(ge=0)] = 5.0
    """Of the teacher, uncond + g (cond - uncond); 1: it is asked once."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Of the student's average that it is held against."""


@dataclass(frozen=True)
class ConsistencyDraws:
    """All that is random in a step.

    Attributes:
        level: (B, chunks) 0 (the noisiest) to levels - 1.
        noise: (B, C, T, H, W).
    """

    level: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Networks:
    """The three that meet in a step: the student learns, the other two do not."""

    student: WorldModel
    average: WorldModel
    teacher: WorldModel


def level_times(config: ConsistencyConfig, device: torch.device | str = "cpu") -> Tensor:
    """(levels + 1,) times from 1000 to 0, evenly spaced before the shift."""
    plain = torch.linspace(1, 0, config.levels + 1, dtype=torch.float64, device=device)
    return (1000 * config.shift * plain / (1 + (config.shift - 1) * plain)).float()


def draw_consistency(
    config: ConsistencyConfig, student: StudentConfig, shape: torch.Size, generator: torch.Generator
) -> ConsistencyDraws:
    """A level for each chunk of every clip, all equally likely, and noise."""
    device, chunks = generator.device, len(student.starts)
    return ConsistencyDraws(
        torch.randint(config.levels, (shape[0], chunks), generator=generator, device=device),
        torch.randn(shape, generator=generator, device=device),
    )


def consistency_loss(
    networks: Networks,
    batch: Batch,
    empty: Text,
    config: ConsistencyConfig,
    student: StudentConfig,
    draws: ConsistencyDraws,
) -> Tensor:
    """Mean squared distance of two clean estimates, over all frames but the given one.

    Args:
        batch: clips of `student.frames` latent frames.
        empty: what stands for no caption.
    """
    latents = batch.latents.float()
    asked = Conditions.of(batch, student.frames)
    empties = asked.told(empty)
    guided = config.guidance != 1
    # Softmax blocks read what they will read when the student generates; the teacher reads everything.
    own, average = (
        _Stream(
            model,
            asked,
            model.start_stream(window_chunks=student.window_chunks, sink_chunks=student.sink_chunks),
        )
        for model in (networks.student, networks.average)
    )
    teachers = [
        _Stream(networks.teacher, told, networks.teacher.start_stream())
        for told in ((asked, empties) if guided else (asked,))
    ]
    times = level_times(config, latents.device)
    errors = []
    for number, (first, end) in enumerate(chunk_ranges(student.frames, student.starts)):
        clean = latents[:, :, first:end]
        now, ahead = (
            _frame_times(times[draws.level[:, number] + step], end - first, first) for step in (0, 1)
        )
        noisy = torch.lerp(clean, draws.noise[:, :, first:end], _sigma(now))
        with torch.no_grad():
            velocity = teachers[0].velocity(noisy, now, first)
            if guided:
                free = teachers[1].velocity(noisy, now, first)
                velocity = free + config.guidance * (velocity - free)
            nearer = with_image(noisy - (_sigma(now) - _sigma(ahead)) * velocity, asked, first)
            target = nearer - _sigma(ahead) * average.velocity(nearer, ahead, first)
        estimate = noisy - _sigma(now) * own.velocity(noisy, now, first)
        errors.append((estimate - target).square().mean(dim=(1, 3, 4)))
        for stream in (own, average, *teachers):
            remember(stream.model, clean, stream.asked, stream.cache, first=first)
    counting = torch.ones(len(latents), student.frames, dtype=torch.bool, device=latents.device)
    counting[:, 0] = False
    return mean_of_counting(torch.cat(errors, dim=1), counting, slice(None))


@dataclass(frozen=True)
class _Stream:
    """A network that has seen the clean chunks before the current one."""

    model: WorldModel
    asked: Conditions
    cache: StreamCache

    def velocity(self, x: Tensor, times: Tensor, first: int) -> Tensor:
        return call_chunk(self.model, x, times, self.asked, self.cache.snapshot(), first=first)


def _frame_times(times: Tensor, frames: int, first: int) -> Tensor:
    """(B,) -> (B, t); frame 0 of the clip is clean."""
    found = times[:, None].repeat(1, frames)
    if first == 0:
        found[:, 0] = 0
    return found


def _sigma(times: Tensor) -> Tensor:
    return (times / 1000)[:, None, :, None, None]
