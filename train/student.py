"""The few-step student: its times and chunks, and its roll-out through its own caches as training sees it.

The student generates chunk after chunk. In training every chunk goes from noise to some time of its list, the exit,
where its clean estimate is taken for the chunk; between two times the estimate is noised anew (generation takes Euler
steps there). Only the call at the exit has a gradient: caches are written from what was generated, without one.

Source: self-forcing (arXiv 2506.08009) as the public NVlabs/Sana code trains SANA-WM's student with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..dataset.strict import Finite
from ..model.config import chunk_ranges, chunk_starts
from ..model.context import Cameras, StreamCache
from ..model.network import WorldModel
from ..model.samplers import StudentSchedule, Text
from .objective import Batch

TRAINING_TIMES = (1000.0, 967.0, 908.0, 764.0, 0.0)
"""Times of the released student's training; generation uses others (`model.samplers.STUDENT_TIMES`)."""


class StudentConfig(Finite):
    """How the student goes from noise to video."""

    frames: Annotated[int, Field(gt=1)]
    """Latent frames of every clip; longer ones are cut, shorter ones refused, so that all ranks make the same calls."""
    times: tuple[float, ...] = TRAINING_TIMES
    """From 1000 down to 0; the network is called at all but the last."""
    chunk: Annotated[int, Field(gt=0)] = 3
    """Latent frames of a chunk; the first holds one more, a rest joins the last."""
    window_chunks: Annotated[int, Field(ge=0)] | None = None
    """Chunks before the current one that softmax blocks read; null: all of them."""
    sink_chunks: Annotated[int, Field(ge=0)] = 0
    """First chunks that they read in any case."""

    @model_validator(mode="after")
    def _holds(self) -> StudentConfig:
        t = self.times
        if len(t) < 2 or t[0] != 1000 or t[-1] != 0 or any(b >= a for a, b in pairwise(t)):
            raise ValueError(f"times {list(t)} must fall strictly from 1000 to 0")
        if self.window_chunks is None and self.sink_chunks:
            raise ValueError("sink_chunks: without window_chunks all chunks are read anyway; leave it 0")
        if self.frames <= self.chunk:
            raise ValueError(f"frames {self.frames} hold no chunk of {self.chunk} and the first frame")
        return self

    @property
    def starts(self) -> tuple[int, ...]:
        """First frames of chunks."""
        return chunk_starts(self.frames, self.chunk)

    def schedule(self) -> StudentSchedule:
        """For the sampler, with the times of training."""
        return StudentSchedule(
            times=self.times,
            chunk=self.chunk,
            window_chunks=self.window_chunks,
            sink_chunks=self.sink_chunks,
        )


@dataclass(frozen=True)
class RollOutDraws:
    """All that is random in a roll-out.

    Attributes:
        exit: at which of the student's times chunks are taken, 0 the noisiest; the same for all clips and chunks.
        noise: (exit + 1, B, C, T, H, W) noise of every time up to there.
    """

    exit: int
    noise: Tensor


@dataclass(frozen=True)
class Conditions:
    """What a video is asked for with.

    Attributes:
        image: (B, C, 1, H, W) clean latent of frame 0.
        text: of the captions.
        cameras: of each latent frame.
    """

    image: Tensor
    text: Text
    cameras: Cameras | None = None

    @classmethod
    def of(cls, batch: Batch, frames: int) -> Conditions:
        """Of the first latent frames of clips.

        Raises:
            ValueError: they have fewer.
        """
        cameras = None if batch.cameras is None else batch.cameras.of_frames(slice(frames))
        return cls(batch.latents[:, :, :1].float(), batch.text, cameras)

    def told(self, text: Text) -> Conditions:
        """With another caption."""
        return replace(self, text=text)


def cut(batch: Batch, frames: int) -> Batch:
    """The first latent frames of every clip.

    Raises:
        ValueError: a clip has fewer.
    """
    counted = batch.latents.shape[2] if batch.valid is None else int(batch.valid.sum(dim=1).min())
    if counted < frames:
        raise ValueError(f"a clip has {counted} latent frames, student.frames is {frames}")
    cameras = None if batch.cameras is None else batch.cameras.of_frames(slice(frames))
    trajectory = None if batch.trajectory is None else batch.trajectory[:, :, :, :frames]
    return Batch(batch.latents[:, :, :frames], batch.text, cameras, None, trajectory)


def draw_exit(config: StudentConfig, generator: torch.Generator) -> int:
    """At which time chunks are taken, all equally likely."""
    return int(torch.randint(len(config.times) - 1, (), generator=generator))


def call_chunk(
    model: WorldModel,
    x: Tensor,
    times: Tensor,
    asked: Conditions,
    cache: StreamCache,
    *,
    first: int,
    save: bool = False,
) -> Tensor:
    """Velocity (B, C, t, H, W) in float32 of the chunk that begins at frame `first`."""
    cameras = None if asked.cameras is None else asked.cameras.of_frames(slice(first, first + x.shape[2]))
    text = asked.text
    velocity = model.forward_chunk(
        x, times, text.states, cache, text_mask=text.mask, cameras=cameras, save=save
    )
    return velocity.float()


def remember(model: WorldModel, clean: Tensor, asked: Conditions, cache: StreamCache, *, first: int) -> None:
    """Write a finished chunk into the caches, without a gradient."""
    with torch.no_grad():
        times = clean.new_zeros(clean.shape[0], clean.shape[2])
        call_chunk(model, clean.detach(), times, asked, cache, first=first, save=True)


def clean_estimate(
    model: WorldModel, x: Tensor, time: float, asked: Conditions, cache: StreamCache, *, first: int
) -> Tensor:
    """x - s v of a chunk at one time; frame 0 of the clip is the image."""
    times = x.new_full((x.shape[0], x.shape[2]), time)
    if first == 0:
        times[:, 0] = 0
    velocity = call_chunk(model, x, times, asked, cache, first=first)
    return with_image(x - (times / 1000)[:, None, :, None, None] * velocity, asked, first)


def with_image(x: Tensor, asked: Conditions, first: int) -> Tensor:
    """A chunk with the given image in its place, if it holds frame 0."""
    return torch.cat([asked.image.to(x.dtype), x[:, :, 1:]], dim=2) if first == 0 else x


def roll_out(
    model: WorldModel, asked: Conditions, config: StudentConfig, draws: RollOutDraws, *, gradient: bool
) -> Tensor:
    """What the student makes of an image, a caption and a camera path.

    Args:
        model: the student.
        gradient: through the call at the exit of every chunk; the caches are read as they were then, also where the
            backward pass computes blocks again.
    Returns:
        (B, C, T, H, W) float32, frame 0 the image.
    """
    frames = draws.noise.shape[3]
    cache = model.start_stream(window_chunks=config.window_chunks, sink_chunks=config.sink_chunks)
    chunks = []
    for first, end in chunk_ranges(frames, chunk_starts(frames, config.chunk)):
        clean = draws.noise[0, :, :, first:end]
        for step, time in enumerate(config.times[: draws.exit + 1]):
            noise = draws.noise[step, :, :, first:end]
            x = torch.lerp(clean.detach(), noise, time / 1000) if step else noise
            x = with_image(x, asked, first)
            tracked = gradient and step == draws.exit
            with torch.set_grad_enabled(tracked):
                read = cache.snapshot() if tracked else cache
                clean = clean_estimate(model, x, time, asked, read, first=first)
        remember(model, clean, asked, cache, first=first)
        chunks.append(clean)
    return torch.cat(chunks, dim=2)
