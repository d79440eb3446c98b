"""What the world model is trained to do: tell noise from video at any noise level, frame by frame.

x_t = (1 - s) x_0 + s n, and the network's velocity is held against n - x_0. Noise levels come from a table of 1000
indices, s = shift(i / 1000) with index 0 exactly clean; the network is told trunc(1000 s). Bidirectional clips have
one index, chunk-causal ones an index a chunk. Most clips are conditioned on their image: frame 0 is clean and leaves
the loss. Nothing here knows of optimisers, devices or parallelism.

Source: SANA-WM (arXiv 2605.15178) and the public NVlabs/Sana training code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..dataset.strict import Finite
from ..model.config import chunk_ranges, chunk_starts
from ..model.context import Cameras
from ..model.frame_parallel import FrameShare
from ..model.network import WorldModel
from ..model.samplers import Text

NUM_LEVELS = 1000
"""Noise levels of the training table."""

Probability = Annotated[float, Field(ge=0, le=1)]


class ChunkTimes(Finite):
    """How the noise levels of a chunk-causal clip's chunks belong together; shares of clips, 1 in sum.

    Where levels rise along the clip, all non-decreasing sequences through the anchor are equally likely, and the
    anchor's own level is drawn like that of a bidirectional clip.
    """

    size: Annotated[int, Field(gt=0)] = 3
    """Latent frames of a chunk; the first holds one more."""
    same: Probability = 0.1
    """One level for all chunks."""
    through_random: Probability = 0.4
    """Levels rise along the clip; the anchor is any chunk."""
    through_last: Probability = 0.4
    """Levels rise along the clip; the anchor is the last chunk."""
    clean_prefix: Probability = 0.1
    """Like `through_last`, then one or more chunks at the start are made clean (never all)."""

    @model_validator(mode="after")
    def _shares_sum(self) -> ChunkTimes:
        total = sum(self.shares)
        if abs(total - 1) > 1e-6:
            raise ValueError(
                f"same + through_random + through_last + clean_prefix = {total:g}; they must sum to 1"
            )
        return self

    @property
    def shares(self) -> tuple[float, float, float, float]:
        return self.same, self.through_random, self.through_last, self.clean_prefix


class ObjectiveConfig(Finite):
    """The training objective; defaults are those of the released bidirectional recipe."""

    shift: Annotated[float, Field(gt=0)] = 9.95
    """k of shift(s) = k s / (1 + (k - 1) s); more is noisier."""
    logit_mean: float = 0.0
    logit_std: Annotated[float, Field(gt=0)] = 1.0
    """Indices are floor(1000 sigmoid(z)) of normal z."""
    image_condition_probability: Probability = 0.9
    """Share of clips whose frame 0 is given."""
    caption_dropout: Probability = 0.1
    """Share of clips whose caption is replaced by the embedding that stands for none."""
    chunks: ChunkTimes | None = None
    """Chunk-causal training with an index a chunk; null: bidirectional, one index a clip."""


@dataclass(frozen=True)
class Batch:
    """Clips to learn from.

    Attributes:
        latents: (B, C, T, H, W) clean, as the autoencoder gives them.
        text: hidden states of the captions, (B, L, C).
        cameras: of each latent frame; None: neither camera branch nor ray map runs.
        valid: (B, T) True where a frame counts; None: all do. Padding is False.
        trajectory: (B, K, C, T, H, W) the teacher's way from noise to these latents, at the student's K times; of
            `ode_init` alone.
        start: (B, C, T, H, W) what a world model made of the clips; of the refiner's training alone.
    """

    latents: Tensor
    text: Text
    cameras: Cameras | None = None
    valid: Tensor | None = None
    trajectory: Tensor | None = None
    start: Tensor | None = None


@dataclass(frozen=True)
class Draws:
    """All that is random in a step.

    Attributes:
        index: (B, T) noise level of each frame, 0 clean to 999.
        conditioned: (B,) True where frame 0 is given (its index is 0).
        captionless: (B,) True where the caption is dropped.
        noise: (B, C, T, H, W) float32.
    """

    index: Tensor
    conditioned: Tensor
    captionless: Tensor
    noise: Tensor


def noise_levels(shift: float, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """(1000,) float32 noise levels, and the whole times (int64) that the network is told for them."""
    plain = torch.arange(NUM_LEVELS, dtype=torch.float64, device=device) / NUM_LEVELS
    sigma = shift * plain / (1 + (shift - 1) * plain)
    return sigma.float(), (NUM_LEVELS * sigma).long()


Generators = torch.Generator | Sequence[torch.Generator] | None
"""One for all clips, one for each of them, or torch's own."""


def _drawn(
    make: Callable[..., Tensor], shape: Sequence[int], device: torch.device, given: Generators
) -> Tensor:
    """Random numbers for a batch, of one generator or each clip's of its own: all that is done clip by clip."""
    if given is None or isinstance(given, torch.Generator):
        return make(tuple(shape), generator=given, device=device)
    return torch.cat([make((1, *shape[1:]), generator=one, device=device) for one in given])


def draw(config: ObjectiveConfig, batch: Batch, generator: Generators = None) -> Draws:
    """Draw noise and levels for a batch.

    Args:
        generator: on the device of the latents.
    Raises:
        ValueError: a clip of one frame that is conditioned on its image, since nothing is left to learn.
    """
    b, _, frames = batch.latents.shape[:3]
    device = batch.latents.device
    if frames < 2 and config.image_condition_probability > 0:
        raise ValueError("a clip of one latent frame, conditioned on its image, leaves nothing to learn")

    def chance(probability: float) -> Tensor:
        return _drawn(torch.rand, (b,), device, generator) < probability

    anchor = _logit_normal(config, b, device, generator)
    if config.chunks is None:
        index = anchor[:, None].repeat(1, frames)
    else:
        ranges = chunk_ranges(frames, chunk_starts(frames, config.chunks.size))
        levels = draw_chunk_levels(config.chunks, anchor, len(ranges), generator)
        sizes = torch.tensor([end - first for first, end in ranges], device=device)
        index = levels.repeat_interleave(sizes, dim=1, output_size=frames)
    conditioned = chance(config.image_condition_probability)
    index[:, 0] = torch.where(conditioned, 0, index[:, 0])
    return Draws(
        index=index,
        conditioned=conditioned,
        captionless=chance(config.caption_dropout),
        noise=_drawn(torch.randn, batch.latents.shape, device, generator),
    )


def _logit_normal(config: ObjectiveConfig, count: int, device: torch.device, generator: Generators) -> Tensor:
    """(count,) indices; sigmoid rounds to 1 far out, so the last index takes what lies there."""
    z = _drawn(torch.randn, (count,), device, generator) * config.logit_std + config.logit_mean
    return (NUM_LEVELS * torch.sigmoid(z)).long().clamp_max(NUM_LEVELS - 1)


def draw_chunk_levels(
    config: ChunkTimes, anchor: Tensor, num_chunks: int, generator: Generators = None
) -> Tensor:
    """Noise level of every chunk, of the four kinds of `ChunkTimes`.

    Args:
        anchor: (B,) levels to pass through.
    Returns:
        (B, num_chunks) indices.
    """
    b, device = len(anchor), anchor.device
    edges = torch.tensor(config.shares, dtype=torch.float64, device=device).cumsum(0)[:-1].float()
    kind = torch.bucketize(_drawn(torch.rand, (b,), device, generator), edges, right=True)
    place = _drawn(partial(torch.randint, num_chunks), (b,), device, generator)
    place = torch.where(kind == 1, place, num_chunks - 1)
    levels = rising_levels(anchor, place, num_chunks, generator)
    levels = torch.where((kind == 0)[:, None], anchor[:, None], levels)
    if num_chunks > 1:
        clean = _drawn(partial(torch.randint, 1, num_chunks), (b,), device, generator)
        prefix = torch.arange(num_chunks, device=device) < clean[:, None]
        levels = torch.where(prefix & (kind == 3)[:, None], 0, levels)
    return levels


def rising_levels(
    anchor: Tensor,
    place: Tensor,
    num_chunks: int,
    generator: Generators = None,
    *,
    num_levels: int = NUM_LEVELS,
) -> Tensor:
    """Non-decreasing sequences of levels through an anchor, all of them equally likely.

    m values in order, repeats allowed, out of N levels are m different numbers out of N + m - 1 once the j-th is
    lowered by j; those are drawn by ranking random keys. So no table of counts is needed.

    Args:
        anchor: (B,) level at the anchor, 0 to num_levels - 1.
        place: (B,) which chunk is the anchor.
    Returns:
        (B, num_chunks) indices.
    """
    before = _multisets(place, anchor + 1, num_chunks - 1, num_levels, generator)
    after = _multisets(num_chunks - 1 - place, num_levels - anchor, num_chunks - 1, num_levels, generator)
    together = torch.cat([before, anchor[:, None], anchor[:, None] + after], dim=1)
    step = torch.arange(num_chunks, device=anchor.device) - place[:, None]
    # Left of the anchor the first values of `before`, right of it the first ones of `after`.
    source = torch.where(step < 0, step + place[:, None], num_chunks - 1 + step)
    return together.gather(1, source)


def _multisets(count: Tensor, levels: Tensor, most: int, num_levels: int, generator: Generators) -> Tensor:
    """(B, most): in the first `count` places a random multiset of 0..levels - 1 in order."""
    width = num_levels + most
    keys = _drawn(torch.rand, (len(count), width), count.device, generator)
    allowed = torch.arange(width, device=count.device) < (levels + count - 1)[:, None]
    chosen = keys.masked_fill(~allowed, -1.0).topk(most, dim=1).indices
    place = torch.arange(most, device=count.device)
    chosen = chosen.masked_fill(place >= count[:, None], width + most).sort(dim=1).values
    return chosen - place


def flow_matching_loss(
    model: WorldModel, batch: Batch, config: ObjectiveConfig, draws: Draws, share: FrameShare | None = None
) -> Tensor:
    """Mean squared error of the velocity: per clip over the frames that count, then over clips.

    Frame 0 of conditioned clips and frames that are not valid do not count; chunks that are clean by their level do, as
    in the released code.

    Args:
        share: batch and draws are of whole clips, of which this rank computes its frames; the losses of all ranks that
            share a clip sum up to the clip's.
    Returns:
        scalar float32.
    Raises:
        ValueError: where a clip has no frame that counts, or shapes do not fit.
    """
    frames = batch.latents.shape[2]
    part = slice(None) if share is None else share.frames
    latents, noise = batch.latents[:, :, part].float(), draws.noise[:, :, part]
    sigmas, times = noise_levels(config.shift, latents.device)
    sigma = sigmas[draws.index[:, part]][:, None, :, None, None]
    noisy = torch.lerp(latents, noise, sigma)
    states = _captions(model, batch.text.states, draws.captionless)
    starts = None if config.chunks is None else chunk_starts(frames, config.chunks.size)
    velocity = model(
        noisy,
        times[draws.index[:, part]],
        states,
        text_mask=batch.text.mask,
        cameras=None if batch.cameras is None else batch.cameras.of_frames(part),
        chunk_starts=starts,
        share=share,
    )
    error = (velocity.float() - (noise - latents)).square().mean(dim=(1, 3, 4))
    return mean_of_counting(error, _counting(batch, draws), part)


def _captions(model: WorldModel, states: Tensor, captionless: Tensor) -> Tensor:
    """Text with dropped captions replaced; their masks stay, as in the released code."""
    empty = model.y_embedder.y_embedding
    if states.shape[1] > len(empty):
        raise ValueError(f"captions of {states.shape[1]} tokens; the network holds {len(empty)}")
    return torch.where(captionless[:, None, None], empty[: states.shape[1]].to(states.dtype), states)


def _counting(batch: Batch, draws: Draws) -> Tensor:
    """(B, T) True where a frame enters the loss."""
    counting = torch.ones_like(draws.index, dtype=torch.bool)
    counting[:, 0] = ~draws.conditioned
    return counting if batch.valid is None else counting & batch.valid


def mean_of_counting(error: Tensor, counting: Tensor, part: slice) -> Tensor:
    """error (B, t) of the clip's frames `part`: mean over counting frames (B, T) of each clip, then over clips."""
    number = counting.sum(dim=1)
    if not error.is_cuda and bool((number == 0).any()):  # asking a GPU would make the host wait
        raise ValueError(f"clip {int((number == 0).nonzero()[0])} of the batch has no frame that counts")
    return (torch.where(counting[:, part], error, 0.0).sum(dim=1) / number).mean()


def draw_by_seed(config: ObjectiveConfig, batch: Batch, seeds: Sequence[int]) -> Draws:
    """`draw`, each clip's by a seed of its own: whatever batch, rank or step it comes in, its draws are the same."""
    if len(seeds) != len(batch.latents):
        raise ValueError(f"{len(seeds)} seeds for {len(batch.latents)} clips")
    return draw(config, batch, [torch.Generator(batch.latents.device).manual_seed(seed) for seed in seeds])


def training_loss(
    model: WorldModel, batch: Batch, config: ObjectiveConfig, generator: torch.Generator | None = None
) -> Tensor:
    """One step of the objective: batch in, loss out.

    Args:
        model: in training; sharded, compiled or wrapped as its user likes.
        generator: on the device of the latents.
    Returns:
        scalar float32 with its graph.
    """
    return flow_matching_loss(model, batch, config, draw(config, batch, generator))
