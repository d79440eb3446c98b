"""Parts of the chain that compute next to nothing, beside a tiny world model with real weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from theodolite.dataset.cameras.intrinsics import intrinsics_matrix
from theodolite.dataset.cameras.paths import named_path
from theodolite.model.generation import GenerationRequest, Generator
from theodolite.model.samplers import Text
from theodolite.model.sampling import Mode, Sampling
from torch import Tensor

from .cases import TINY, tiny_model

HEIGHT, WIDTH = 64, 96


class Pixels:
    """An autoencoder whose latents are means of squares and whose frames are its latents."""

    latent_channels, temporal_stride, spatial_stride, is_causal, stand_in = (
        TINY.latent_channels,
        8,
        32,
        True,
        True,
    )

    def __init__(self) -> None:
        self.decoded: list[int] = []

    def encode_image(self, image: Tensor) -> Tensor:
        small = torch.nn.functional.avg_pool2d(image, 32)
        return small.repeat(3, 1, 1)[None, : self.latent_channels, None]

    def _frames(self, latents: Tensor, count: int) -> Tensor:
        self.decoded.append(latents.shape[2])
        video = latents[0, :3].float().repeat_interleave(8, 1)[:, -count:]
        return video.repeat_interleave(32, 2).repeat_interleave(32, 3)

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        for start in range(0, latents.shape[2], 4):
            part = latents[:, :, start : start + 4]
            yield self._frames(part, 8 * part.shape[2] - (7 if start == 0 else 0))

    def latents_needed(self, frames: int) -> list[int]:
        return [min(frames, start + 4) for start in range(0, frames, 4)]

    def start_stream(self) -> Any:
        first = True
        whole = self

        class Stream:
            def add(self, latents: Tensor) -> Tensor:
                nonlocal first
                count = 8 * latents.shape[2] - (7 if first else 0)
                first = False
                return whole._frames(latents, count)

        return Stream()


class Words:
    """A text encoder of random numbers that depend on the text."""

    stand_in = True

    def __init__(self) -> None:
        self.asked: list[tuple[str, bool]] = []

    def count_tokens(self, prompt: str, *, instruction: bool = True) -> tuple[int, int]:
        return len(prompt.split()), 50

    def encode(self, prompt: str, *, instruction: bool = True) -> Text:
        self.asked.append((prompt, instruction))
        generator = torch.Generator().manual_seed(sum(prompt.encode()))
        states = torch.randn(1, TINY.text_tokens, TINY.text_width, generator=generator)
        return Text(states, torch.ones(1, TINY.text_tokens, dtype=torch.bool))


class Halver:
    """A refiner that halves latents, in blocks of three behind a sink of one."""

    stand_in = True

    def refine(self, latents: Tensor, text: Text, *, seed: int, progress: Any = None) -> Tensor:
        if progress is not None:
            progress(1, 1)
        return latents / 2

    def start_stream(self, text: Text, *, seed: int) -> Any:
        class Stream:
            waiting: Tensor | None = None

            def add(self, latents: Tensor) -> Tensor:
                self.waiting = latents if self.waiting is None else torch.cat([self.waiting, latents], 2)
                ready = self.waiting.shape[2] // 4 * 4
                done, self.waiting = self.waiting[:, :, :ready], self.waiting[:, :, ready:]
                return done / 2

            def finish(self) -> Tensor:
                assert self.waiting is not None
                return self.waiting / 2

        return Stream()


class House:
    """A residence that notes who came."""

    policy = "none"

    def __init__(self) -> None:
        self.guests: list[str] = []

    @contextmanager
    def on(self, *parts: Any) -> Iterator[None]:
        self.guests += [type(part).__name__ for part in parts]
        yield


def generator(**changes: Any) -> Generator:
    parts: dict[str, Any] = dict(refiner=Halver(), refiner_text_encoder=Words())
    model = tiny_model(TINY.model_copy(update={"depth": 2, "softmax_every": 2}))  # one block of each kind
    return Generator(model, Pixels(), Words(), **{**parts, **changes})


def request(mode: Mode = "distilled", frames: int = 49, **changes: Any) -> GenerationRequest:
    """A short video; options of the sampling among the changes."""
    schedule: dict[str, Any] = {} if mode == "distilled" else {"steps": 3}
    schedule |= {k: changes.pop(k) for k in list(changes) if k in Sampling.model_fields}
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    k = np.asarray(intrinsics_matrix(np.tile([80.0, 80.0], (frames, 1)), np.tile([48.0, 32.0], (frames, 1))))
    values: dict[str, Any] = dict(
        image=image,
        prompt="a street in the rain",
        camera_to_world=named_path("fly-through", frames, size_m=1.0),
        intrinsics_px=k,
        sampling=Sampling.published(mode, **schedule),
    )
    return GenerationRequest(**{**values, **changes})
