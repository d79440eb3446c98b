"""From noise to latents: the released schedules, each step written out.

Latent frame 0 is the encoded image: its time is 0 at every step and it is never changed. The network is told whole
times, x_t = (1 - s) x_0 + s n with s = t / 1000, and its velocity is n - x_0, so a step goes x -= (s - s') v.

Source: NVlabs/Sana (`flow_euler_ltx`, `chunk_flow_euler`, `self_forcing`) and the flow matching Euler scheduler of
diffusers that they use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .config import chunk_ranges, chunk_starts
from .context import Cameras, Geometry
from .graphs import ChunkGraph
from .network import WorldModel

Progress = Callable[[int, int], None]
"""Called after each network step with the number of steps done and of all steps."""

STUDENT_TIMES = (1000.0, 960.0, 889.0, 727.0, 0.0)
"""Times of the released four-step student."""


@dataclass(frozen=True)
class Text:
    """Hidden states of a prompt.

    Attributes:
        states: (B, L, C).
        mask: (B, L) True where a token is real; None: all are.
    """

    states: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: uncond + scale (cond - uncond).

    Attributes:
        empty: what stands for no prompt.
        scale: 1 asks the network once a step.
        first, last: only between these shares of the steps is guidance used; the released schedule uses it everywhere.
        batched: ask for both answers in one call of the network, which needs more memory; else one after the other.
    """

    empty: Text
    scale: float = 5.0
    first: float = 0.0
    last: float = 1.0
    batched: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last <= 1:
            raise ValueError(
                f"guidance from {self.first} to {self.last} of the steps: give 0 <= first <= last <= 1"
            )

    def active(self, step: int, steps: int) -> bool:
        return self.scale != 1 and self.first * steps <= step < self.last * steps


@dataclass(frozen=True, kw_only=True)
class ChunkSchedule:
    """How the chunk-causal teacher goes from noise to latents.

    Attributes:
        steps, shift: of every chunk, as in `sample_bidirectional`.
        starts: first frames of chunks; None: `chunk_starts`.
        interval: share of the steps after which the next chunk sets out; None: 1 / number of chunks, as released.
    """

    steps: int = 60
    shift: float = 9.8
    starts: tuple[int, ...] | None = None
    interval: float | None = None


@dataclass(frozen=True, kw_only=True)
class StudentSchedule:
    """How the distilled student goes from noise to latents.

    Attributes:
        times: from 1000 down to 0, taken as they are.
        chunk: latent frames of a chunk.
        window_chunks, sink_chunks: what softmax blocks read (`WorldModel.start_stream`); released: the first chunk and
            the one before ("two cached blocks with sink").
    """

    times: tuple[float, ...] = STUDENT_TIMES
    chunk: int = 3
    window_chunks: int | None = 1
    sink_chunks: int = 1


def flow_sigmas(steps: int, shift: float) -> NDArray[np.float32]:
    """(steps + 1,) noise levels from 1 down to 0.

    shift(s) = k s / (1 + (k - 1) s) is applied to both ends of the range and then to all levels, so that it acts
    twice at the low end, as in the released schedule. In float32, since the network cuts the times to whole numbers.

    Raises:
        ValueError: fewer than one step, or a shift that is not positive.
    """
    if steps < 1 or not shift > 0:
        raise ValueError(f"{steps} steps with shift {shift}: give at least one step and a positive shift")
    least = np.float32(1) / np.float32(1000)  # lowest level of training
    least = np.float32(shift) * least / (1 + np.float32(shift - 1) * least)
    sigmas = np.linspace(1000.0, float(least) * 1000, steps) / 1000
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    return np.append(sigmas.astype(np.float32), np.float32(0))


def noise_latents(
    model: WorldModel, image_latent: Tensor, frames: int, generator: torch.Generator | None
) -> Tensor:
    """(B, C, frames, H, W) noise in the type of the weights, with the image as frame 0.

    Args:
        image_latent: (B, C, 1, H, W) of the first frame.
        frames: latent frames.
        generator: on the device of the latents.
    """
    if image_latent.ndim != 5 or image_latent.shape[2] != 1:
        raise ValueError(f"the image's latent is {tuple(image_latent.shape)}; give (B, C, 1, H, W)")
    b, c, _, h, w = image_latent.shape
    dtype = model.final_layer.linear.weight.dtype
    latents = torch.randn(b, c, frames, h, w, dtype=dtype, device=image_latent.device, generator=generator)
    latents[:, :, :1] = image_latent.to(dtype)
    return latents


@torch.no_grad()
def sample_bidirectional(
    model: WorldModel,
    latents: Tensor,
    text: Text,
    *,
    guidance: Guidance | None = None,
    cameras: Cameras | None = None,
    steps: int = 60,
    shift: float = 9.8,
    progress: Progress | None = None,
) -> Tensor:
    """All frames at once, each seeing all others.

    Args:
        model: bidirectional weights.
        latents: (B, C, T, H, W) noise with the image as frame 0 (`noise_latents`).
        text: of the prompt; guidance: how strongly it is followed (released: scale 5, empty prompt), None: as it is.
        cameras: of every latent frame.
        steps, shift: of the schedule; released 60 and 9.8, the published benchmark used shift 8.0.
    Returns:
        (B, C, T, H, W) clean latents.
    Raises:
        ValueError: on shapes that do not fit.
    """
    frames = latents.shape[2]
    sigmas = flow_sigmas(steps, shift)
    ask = _Network(model, latents, text, guidance, cameras)
    for i, (now, following) in enumerate(pairwise(sigmas)):
        times, ahead = np.full(frames, now), np.full(frames, following)
        times[0] = ahead[0] = 0
        velocity = ask(latents, times, None, step=i, steps=steps)
        latents = _step(latents, velocity, times, ahead)
        if progress is not None:
            progress(i + 1, steps)
    return latents


@torch.no_grad()
def sample_chunk_causal(
    model: WorldModel,
    latents: Tensor,
    text: Text,
    *,
    guidance: Guidance | None = None,
    cameras: Cameras | None = None,
    schedule: ChunkSchedule = ChunkSchedule(),
    progress: Progress | None = None,
) -> Tensor:
    """The chunk-causal teacher: chunks set out one after another, finished ones stay in the input at time 0.

    Arguments are those of `sample_bidirectional`, but for the schedule.

    Returns:
        (B, C, T, H, W) clean latents.
    """
    found = None
    for _done, found in stream_chunk_causal(  # noqa: B007 - the last one is whole
        model, latents, text, guidance=guidance, cameras=cameras, schedule=schedule, progress=progress
    ):
        pass
    assert found is not None  # a clip has a chunk
    return found


@torch.no_grad()
def stream_chunk_causal(
    model: WorldModel,
    latents: Tensor,
    text: Text,
    *,
    guidance: Guidance | None = None,
    cameras: Cameras | None = None,
    schedule: ChunkSchedule = ChunkSchedule(),
    progress: Progress | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """`sample_chunk_causal`, looked at whenever a chunk is finished.

    Yields:
        the number of latent frames that are clean from the start on, and all of them (B, C, T, H, W): always the same
        tensor, whose other frames still change.
    """
    frames, steps, shift = latents.shape[2], schedule.steps, schedule.shift
    ranges = chunk_ranges(frames, chunk_starts(frames) if schedule.starts is None else schedule.starts)
    interval = 1 / len(ranges) if schedule.interval is None else schedule.interval
    if not interval > 0:
        raise ValueError(f"interval {interval} between chunks must be positive")
    if len(ranges) == 1:
        whole = sample_bidirectional(
            model,
            latents,
            text,
            guidance=guidance,
            cameras=cameras,
            steps=steps,
            shift=shift,
            progress=progress,
        )
        yield frames, whole
        return
    sigmas = flow_sigmas(steps, shift)
    begin = [int(i * interval * steps) for i in range(len(ranges))]
    total = begin[-1] + steps
    latents = latents.clone()
    ask: _Network | None = None
    for step in range(total):
        active = [i for i, first in enumerate(begin) if step >= first]
        end = ranges[active[-1]][1]
        times, ahead = np.zeros(end, np.float32), np.zeros(end, np.float32)
        for i in active:
            level = step - begin[i]
            if level < steps:
                times[slice(*ranges[i])], ahead[slice(*ranges[i])] = sigmas[level], sigmas[level + 1]
        times[0] = ahead[0] = 0
        part = latents[:, :, :end]
        if ask is None or ask.frames != end:
            ask = _Network(
                model, part, text, guidance, None if cameras is None else _frames_of(cameras, 0, end)
            )
        velocity = ask(part, times, tuple(ranges[i][0] for i in active), step=step, steps=total)
        latents[:, :, :end] = _step(part, velocity, times, ahead)
        if progress is not None:
            progress(step + 1, total)
        finished = [ranges[i][1] for i in active if step - begin[i] == steps - 1]
        if finished:
            yield finished[-1], latents


def streaming_ranges(frames: int, size: int = 3) -> list[tuple[int, int]]:
    """[first, end) of the chunks that are generated one after another; the first takes the remainder.

    Raises:
        ValueError: for fewer frames than one chunk.
    """
    if frames < size or size < 1:
        raise ValueError(f"{frames} latent frames make no chunk of {size}")
    first = size + frames % size
    return [(0, first), *((start, start + size) for start in range(first, frames, size))]


@torch.no_grad()
def stream_distilled(
    model: WorldModel,
    latents: Tensor,
    text: Text,
    *,
    cameras: Cameras | None = None,
    schedule: StudentSchedule = StudentSchedule(),
    graphs: bool = False,
    progress: Progress | None = None,
) -> Iterator[Tensor]:
    """The distilled student: a few steps a chunk, then one call at time 0 that remembers it. Arguments that are not
    listed are those of `sample_bidirectional`.

    Args:
        latents: (B, C, T, H, W) noise with the image as frame 0; not changed.
        graphs: record the calls of a chunk once as CUDA graphs and replay them; the host then costs next to nothing.
            Needs a GPU and a window.
    Yields:
        (B, C, t, H, W) clean latents of one chunk after another.
    """
    times, window_chunks, sink_chunks = schedule.times, schedule.window_chunks, schedule.sink_chunks
    if len(times) < 2 or times[-1] != 0 or any(b >= a for a, b in pairwise(times)):
        raise ValueError(f"times {times} must fall strictly and end in 0")
    ranges = streaming_ranges(latents.shape[2], schedule.chunk)
    if graphs and (window_chunks is None or not latents.is_cuda):
        raise ValueError("CUDA graphs need latents on a GPU and caches of constant size: give window_chunks")
    cache = model.start_stream(window_chunks=window_chunks, sink_chunks=sink_chunks)
    graph: ChunkGraph | None = None
    sigmas = np.asarray(times, np.float32) / 1000
    total, done = len(ranges) * len(times), 0

    def call(part: Tensor, now: NDArray, first: int, end: int, *, save: bool) -> Tensor:
        nonlocal done
        seen = None if cameras is None else _frames_of(cameras, first, end)
        if graph is not None:
            velocity = graph(part, _times(now, part), seen, save=save)
        else:
            velocity = model.forward_chunk(
                part, _times(now, part), text.states, cache, text_mask=text.mask, cameras=seen, save=save
            )
        done += 1
        if progress is not None:
            progress(done, total)
        return velocity

    for number, (first, end) in enumerate(ranges):
        part = latents[:, :, first:end]
        if graphs and graph is None and number == sink_chunks + (window_chunks or 0) + 1:
            # From here on every chunk finds caches of the same shape.
            seen = None if cameras is None else _frames_of(cameras, first, end)
            graph = ChunkGraph(model, cache, part, text.states, text.mask, seen)
        for now, following in pairwise(sigmas):
            level, ahead = np.full(end - first, now), np.full(end - first, following)
            if first == 0:
                level[0] = ahead[0] = 0
            part = _step(part, call(part, level, first, end, save=False), level, ahead)
        call(part, np.zeros(end - first, np.float32), first, end, save=True)
        yield part


def _frames_of(cameras: Cameras, first: int, end: int) -> Cameras:
    return Cameras(
        camera_to_world=cameras.camera_to_world[:, first:end],
        intrinsics=cameras.intrinsics[:, first:end],
        plucker=None if cameras.plucker is None else cameras.plucker[:, :, first:end],
    )


def _times(sigma: NDArray, latents: Tensor) -> Tensor:
    """(B, T) times in 0..1000 for noise levels (T,)."""
    times = torch.from_numpy(np.asarray(sigma, np.float32) * np.float32(1000))
    return times.to(latents.device, non_blocking=True).expand(latents.shape[0], -1)


def _step(latents: Tensor, velocity: Tensor, sigma: NDArray, following: NDArray) -> Tensor:
    """One Euler step in float32 with a noise level a frame (T,)."""
    distance = torch.from_numpy(np.asarray(sigma - following, np.float32)).to(
        latents.device, non_blocking=True
    )
    return (latents.float() - distance[:, None, None] * velocity.float()).to(latents.dtype)


class _Network:
    """The velocity of a clip of so many frames, guided or not; what no step changes is computed once."""

    def __init__(
        self,
        model: WorldModel,
        latents: Tensor,
        text: Text,
        guidance: Guidance | None,
        cameras: Cameras | None,
    ) -> None:
        self.model, self.text, self.guidance = model, text, guidance
        self.frames = latents.shape[2]
        # What stands in for the network may know cameras alone.
        self.cameras = model.geometry(latents, cameras) if isinstance(model, WorldModel) else cameras
        self.both: tuple[Text, Cameras | Geometry | None] | None = None
        if guidance is not None and guidance.batched and guidance.scale != 1:
            self.both = _joined(text, guidance.empty), _twice(self.cameras)

    def __call__(
        self, latents: Tensor, sigma: NDArray, starts: tuple[int, ...] | None, *, step: int, steps: int
    ) -> Tensor:
        times = _times(sigma, latents)

        def velocity(prompt: Text, cameras: Cameras | Geometry | None, copies: int = 1) -> Tensor:
            return self.model(
                latents.repeat(copies, 1, 1, 1, 1),
                times.repeat(copies, 1),
                prompt.states,
                text_mask=prompt.mask,
                cameras=cameras,
                chunk_starts=starts,
            )

        guidance = self.guidance
        if guidance is None or not guidance.active(step, steps):
            return velocity(self.text, self.cameras)
        if self.both is not None:
            wanted, free = velocity(*self.both, copies=2).chunk(2)
        else:
            wanted = velocity(self.text, self.cameras)
            free = velocity(guidance.empty, self.cameras)
        return free + guidance.scale * (wanted - free)


def _twice(cameras: Cameras | Geometry | None) -> Cameras | Geometry | None:
    if isinstance(cameras, Geometry):
        rays = cameras.plucker
        return Geometry(
            rope=cameras.rope,
            camera_rope=cameras.camera_rope,
            rays=None if cameras.rays is None else torch.cat([cameras.rays] * 2),
            plucker=None if rays is None else replace(rays, tokens=torch.cat([rays.tokens] * 2)),
        )
    if cameras is None:
        return None
    return Cameras(
        camera_to_world=torch.cat([cameras.camera_to_world] * 2),
        intrinsics=torch.cat([cameras.intrinsics] * 2),
        plucker=None if cameras.plucker is None else torch.cat([cameras.plucker] * 2),
    )


def _joined(text: Text, other: Text) -> Text:
    """Both prompts as one batch; the shorter one is filled up, and the filling masked."""
    length = max(text.states.shape[1], other.states.shape[1])
    if text.mask is None and other.mask is None and text.states.shape[1] == other.states.shape[1]:
        return Text(torch.cat([text.states, other.states]))
    states, masks = [], []
    for one in (text, other):
        b, tokens = one.states.shape[:2]
        mask = (
            torch.ones(b, tokens, dtype=torch.bool, device=one.states.device)
            if one.mask is None
            else one.mask.bool()
        )
        states.append(F.pad(one.states, (0, 0, 0, length - tokens)))
        masks.append(F.pad(mask, (0, length - tokens)))
    return Text(torch.cat(states), torch.cat(masks))
