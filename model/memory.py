"""How much GPU memory a video will take, known before anything is loaded.

Weights are counted exactly. What is computed beside them is a number of copies of the largest tensors at work, by
formulas that stand with each stage; `benchmarks/chain.py` measures both. Memory of the CUDA context, of libraries
and of fragments is not counted: leave `SPARE_BYTES` for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import nn

from .conditioning import SPATIAL_STRIDE, TEMPORAL_STRIDE, latent_frames
from .config import WorldModelConfig
from .network import WorldModel
from .precision import DEFAULT_SCOPES, Precision, Scope, planned_bytes
from .residence import Offload

SPARE_BYTES = 1_500_000_000
"""For the CUDA context, workspaces and fragments."""

PARTS = ("text_encoder", "autoencoder", "world_model", "refiner_text_encoder", "refiner")

_WORLD_MODEL_COPIES = 13
"""Of (tokens, width) in bfloat16 at the widest point of a block: the residual, the block's input, queries, keys and
values, the three filled up for cuDNN, and outputs."""
_REFINER_COPIES = 13
"""Of (tokens, width): hidden states, their norm, queries, keys and values, two tables of rotations, and float32 copies
while they are rotated."""
_REFINER_PIECE = 16384
"""Tokens that the refiner's feed-forward network takes at once (`refiner._InPieces`)."""
_DECODER_COPIES = 9
"""Of (channels, frames, height / 4, width / 4) at the decoder's finest level: input, norm, padded input, output of a
convolution and its layout, and the block's residual."""
_DECODER_CHANNELS = 128
_DECODER_CACHE = 0.75
"""Of a streaming decoder's remembered inputs over two frames of its finest level a convolution: 11 convolutions there,
and as many at coarser levels, which together hold less."""
_TEXT_COPIES = 8
"""Of all hidden states of the refiner's language model: as they come, stacked, and normalised in steps."""


@dataclass(frozen=True)
class PartSize:
    """Weights of a part.

    Attributes:
        values: number of weights.
        block_values: those in blocks that can come one after another; 0: none.
        largest_block: weights of the largest such block.
        bytes_per_value: of a weight on the device.
    """

    values: int
    block_values: int = 0
    largest_block: int = 0
    bytes_per_value: float = 2.0

    @property
    def num_bytes(self) -> int:
        return round(self.values * self.bytes_per_value)

    def on_device(self, offload: Offload, resident_bytes: int = 0) -> int:
        """Bytes on the device while the part works."""
        if offload != "blocks" or not self.block_values:
            return self.num_bytes
        block = round(self.largest_block * self.bytes_per_value)
        blocks = round(self.block_values * self.bytes_per_value)
        rest = self.num_bytes - blocks
        staying = min(blocks, resident_bytes // block * block if block else 0)
        return rest + min(blocks, staying + 2 * block)


RELEASED_SIZES: Mapping[str, PartSize] = {
    "text_encoder": PartSize(2_614_341_888, 2_024_515_584, 77_865_984),
    "autoencoder": PartSize(1_222_479_857),
    "world_model": PartSize(2_661_800_448),
    "refiner_text_encoder": PartSize(12_843_038_976, 10_759_151_616, 224_148_992),
    "refiner": PartSize(13_041_520_768, 12_889_423_872, 268_529_664),
}
"""Of the released networks in bfloat16, without what is never read (sound, pictures)."""


def measured_size(part: nn.Module) -> PartSize:
    """Size of a module that is there, weights or only their shapes (`meta`)."""

    def count(module: nn.Module) -> int:
        return sum({id(p): p.numel() for p in (*module.parameters(), *module.buffers())}.values())

    blocks = list(cast(Any, part).streamed_blocks()) if hasattr(part, "streamed_blocks") else []
    sizes = [count(b) for b in blocks]
    first = next(part.parameters())
    return PartSize(count(part), sum(sizes), max(sizes, default=0), float(first.element_size()))


@dataclass(frozen=True)
class VideoShape:
    """What memory depends on.

    Attributes:
        num_frames: 8 k + 1 video frames.
        height, width: in pixels.
        mode: how it is made; distilled: in chunks, with caches between them.
        refine: whether the refiner runs.
        refiner_block_frames: latent frames that it takes at once; None: all of them.
        refiner_window_frames: latent frames of keys that a block sees, sink included.
        window_chunks, sink_chunks, chunk_frames: of the distilled world model.
        guidance_batched: whether guidance's two passes run as one.
        tile_px: side of the decoder's tiles in the picture; None: whole pictures.
    """

    num_frames: int
    height: int = 704
    width: int = 1280
    mode: Literal["bidirectional", "chunk-causal", "distilled"] = "bidirectional"
    refine: bool = True
    refiner_block_frames: int | None = None
    refiner_window_frames: int = 11
    window_chunks: int = 1
    sink_chunks: int = 1
    chunk_frames: int = 3
    guidance_batched: bool = False
    tile_px: int | None = 512

    @property
    def latent_frames(self) -> int:
        return latent_frames(self.num_frames)

    @property
    def tokens_per_frame(self) -> int:
        return (self.height // SPATIAL_STRIDE) * (self.width // SPATIAL_STRIDE)


@dataclass(frozen=True)
class Stage:
    """One step of the chain.

    Attributes:
        name: as the run's record names it.
        parts: that are at work together.
        working_bytes: beside weights, while it runs.
        kept_bytes: of it that stay for its next turn (caches of a stream).
    """

    name: str
    parts: tuple[str, ...]
    working_bytes: int
    kept_bytes: int = 0


@dataclass(frozen=True)
class Networks:
    """Sizes that activations depend on; defaults are the released networks.

    Attributes:
        world_model: configuration.
        refiner_width, refiner_layers, refiner_text_width: of LTX-2's transformer and what it reads.
        text_layers, text_width, text_tokens: of the refiner's language model.
    """

    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    refiner_width: int = 4096
    refiner_layers: int = 48
    text_layers: int = 48
    text_width: int = 3840
    text_tokens: int = 1024


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of a chain, stage by stage.

    Attributes:
        shape: of the video.
        offload: who is on the device when (`residence.Offload`).
        sizes: of the parts.
        stages: in order.
        resident_bytes: of blocks that stay, with `blocks`.
        converted_on_device: whether the world model comes in bfloat16 and is converted there.
    """

    shape: VideoShape
    offload: Offload
    sizes: Mapping[str, PartSize]
    stages: tuple[Stage, ...]
    resident_bytes: int = 0
    converted_on_device: bool = False

    def weights_bytes(self, stage: Stage) -> int:
        """Weights on the device during a stage."""
        if self.offload != "none":
            return sum(self.sizes[p].on_device(self.offload, self.resident_bytes) for p in stage.parts)
        so_far = self.stages[: self.stages.index(stage) + 1]
        if self.shape.mode == "distilled":  # chunk by chunk, so all of them have been at work
            so_far = self.stages if stage.kept_bytes else so_far
        return sum(self.sizes[p].num_bytes for p in {p for s in so_far for p in s.parts})

    def stage_bytes(self, stage: Stage) -> int:
        """All of a stage, caches of the others included."""
        streaming = [s for s in self.stages if s.kept_bytes and s is not stage]
        others = sum(s.kept_bytes for s in streaming) if stage.kept_bytes else 0
        return self.weights_bytes(stage) + stage.working_bytes + stage.kept_bytes + others

    @property
    def peak(self) -> tuple[str, int]:
        """The stage with the most memory, and its bytes."""
        worst = max(self.stages, key=self.stage_bytes)
        return worst.name, self.stage_bytes(worst)

    @property
    def peak_bytes(self) -> int:
        return self.peak[1]

    def fits(self, budget_bytes: int) -> bool:
        """Whether it fits into so many bytes of GPU memory, with `SPARE_BYTES` left."""
        return self.peak_bytes + SPARE_BYTES <= budget_bytes

    def rows(self) -> list[dict[str, str]]:
        """The plan as a table, in GB."""
        return [
            {
                "stage": stage.name,
                "parts": ", ".join(stage.parts),
                "weights": _gb(self.weights_bytes(stage)),
                "at work": _gb(stage.working_bytes),
                "caches": _gb(stage.kept_bytes),
                "all": _gb(self.stage_bytes(stage)),
            }
            for stage in self.stages
        ]


def converted_size(
    config: WorldModelConfig, precision: Precision, *, scopes: Sequence[Scope] = DEFAULT_SCOPES
) -> PartSize:
    """Size of the world model after `precision.set_precision`; what it never touches is bfloat16."""
    values = RELEASED_SIZES["world_model"].values
    if config != WorldModelConfig():
        with torch.device("meta"):
            values = measured_size(WorldModel(config)).values
    return PartSize(values, bytes_per_value=planned_bytes(config, precision, scopes=scopes) / values)


def plan_memory(
    shape: VideoShape,
    offload: Offload,
    *,
    sizes: Mapping[str, PartSize] | None = None,
    networks: Networks | None = None,
    resident_bytes: int = 0,
    converted_on_device: bool = False,
) -> MemoryPlan:
    """Memory of a chain before anything is loaded.

    Args:
        sizes: of the parts by name (`PARTS`); None: the released ones in bfloat16.
        networks: what activations depend on.
        resident_bytes: weights of blocks that stay on the device, with `blocks`, of each part.
        converted_on_device: the world model is loaded in bfloat16 and converted on the device (`Numbers.on_device`).
    Raises:
        ValueError: on another policy, a length that is not 8 k + 1, or a part without a size.
    """
    if offload not in get_args(Offload):
        raise ValueError(f"offload {offload!r}: use {', '.join(get_args(Offload))}")
    sizes = RELEASED_SIZES if sizes is None else sizes
    networks = networks or Networks()
    stages = []
    if converted_on_device and "world_model" in sizes:
        wide = 2 * sizes["world_model"].values
        stages.append(Stage("converting", ("world_model",), max(0, wide - sizes["world_model"].num_bytes)))
    stages += [
        Stage("text", ("text_encoder",), 200_000_000),
        Stage("image", ("autoencoder",), _encoding(shape)),
    ]
    if shape.refine:
        stages.append(Stage("refiner text", ("refiner_text_encoder",), _refiner_text(networks)))
    stages.append(_denoising(shape, networks))
    if shape.refine:
        stages.append(_refining(shape, networks))
    stages.append(_decoding(shape))
    missing = sorted({p for s in stages for p in s.parts} - sizes.keys())
    if missing:
        raise ValueError(f"no size is given for {', '.join(missing)}")
    return MemoryPlan(shape, offload, sizes, tuple(stages), resident_bytes, converted_on_device)


def _denoising(shape: VideoShape, networks: Networks) -> Stage:
    config = networks.world_model
    frame = shape.tokens_per_frame * config.width * 2
    plucker = shape.latent_frames * shape.tokens_per_frame * config.plucker_channels * 2
    latents = 4 * shape.latent_frames * shape.tokens_per_frame * config.latent_channels * 2
    if shape.mode != "distilled":
        passes = 2 if shape.guidance_batched else 1
        working = _WORLD_MODEL_COPIES * shape.latent_frames * frame * passes
        return Stage("denoising", ("world_model",), working + plucker + latents)
    chunk = shape.chunk_frames + 1  # the first one takes the remainder
    softmax = sum(config.is_softmax(i) for i in range(config.depth))
    held = shape.sink_chunks * chunk + shape.window_chunks * shape.chunk_frames
    states = (config.depth - softmax) * 2 * config.width * config.head_size * 4
    # Keys and values of both branches; inputs of two short convolutions; the last frame of each temporal one.
    caches = (
        softmax * 4 * held + (config.depth - softmax) * 2 * (config.conv_taps - 1) + config.depth
    ) * frame + states
    return Stage(
        "denoising", ("world_model",), (_WORLD_MODEL_COPIES + 4) * chunk * frame, caches + plucker + latents
    )


def _refining(shape: VideoShape, networks: Networks) -> Stage:
    width, layers = networks.refiner_width, networks.refiner_layers
    frame = shape.tokens_per_frame * width * 2
    text = networks.text_tokens * width * 2
    sink = 2 * layers * (frame + text)  # and keys and values of the prompt
    block = shape.refiner_block_frames
    at_once = shape.latent_frames - 1 if block is None else min(block, shape.latent_frames - 1)
    middle = 3 * min(_REFINER_PIECE, at_once * shape.tokens_per_frame) * 4 * width * 2
    # Attention, or the feed-forward network beside its input, norm, result and the block's residual.
    working = max(_REFINER_COPIES * at_once * frame, 4 * at_once * frame + middle) + 4 * text
    if block is None:
        return Stage("refining", ("refiner",), working + sink)
    history = 2 * layers * (shape.refiner_window_frames - 1) * frame
    captured = 2 * layers * at_once * frame
    return Stage("refining", ("refiner",), working + captured + 12 * frame, sink + history)


def _encoding(shape: VideoShape) -> int:
    side = shape.tile_px or max(shape.height, shape.width)
    pixels = min(side, shape.height) * min(side, shape.width)
    return 12 * (pixels // 16) * 256 * 2


def _decoding(shape: VideoShape) -> Stage:
    picture = shape.height * shape.width
    if shape.mode == "distilled":
        frames = TEMPORAL_STRIDE * shape.chunk_frames + 1
        level = picture // 16 * _DECODER_CHANNELS * 2
        cache = round(_DECODER_CACHE * 22 * 2 * level)
        working = round(_DECODER_COPIES * frames * level) + 6 * frames * picture
        return Stage("decoding", ("autoencoder",), working, cache)
    side = shape.tile_px or max(shape.height, shape.width)
    tile = min(side, shape.height) * min(side, shape.width)
    frames = min(shape.num_frames, 97)
    working = round(_DECODER_COPIES * frames * (tile // 16) * _DECODER_CHANNELS * 2)
    # Decoded tiles in bfloat16: the one before, and rows of tiles of the picture before they are joined.
    return Stage("decoding", ("autoencoder",), working + 2 * 3 * 2 * frames * picture)


def _refiner_text(networks: Networks) -> int:
    states = networks.text_tokens * networks.text_width * (networks.text_layers + 1) * 2
    return _TEXT_COPIES * states


def room_for_blocks(plan: MemoryPlan, budget_bytes: int) -> int:
    """Weights of blocks that may stay on the device with `blocks`, so that the plan still fits.

    Blocks stay while their part works. What every stage with such a part leaves free of the budget may be used.
    """
    if plan.offload != "blocks":
        return 0
    bare = replace(plan, resident_bytes=0)
    streamed = [s for s in bare.stages if any(bare.sizes[p].block_values for p in s.parts)]
    free = [budget_bytes - SPARE_BYTES - bare.stage_bytes(s) for s in streamed]
    return max(0, min(free, default=0))


def check_memory(plan: MemoryPlan, budget_bytes: int, *, networks: Networks | None = None) -> None:
    """Refuse a plan that the device has no room for, with what would fit.

    Args:
        budget_bytes: of GPU memory that may be used.
        networks: as for `plan_memory`.
    Raises:
        ValueError: naming the stage that is too large, and other ways that fit.
    """
    if plan.fits(budget_bytes):
        return
    stage, needed = plan.peak
    options = alternatives(plan, budget_bytes, networks=networks)
    would = (
        "; ".join(options)
        if options
        else "nothing of this size does: make the picture smaller, or use a larger GPU"
    )
    raise ValueError(
        f"too little GPU memory: {_gb(needed + SPARE_BYTES)} GB are needed while {stage} runs "
        f"(--offload {plan.offload}, {plan.shape.num_frames} frames), {_gb(budget_bytes)} GB may be used. "
        f"What would fit: {would}"
    )


def alternatives(plan: MemoryPlan, budget_bytes: int, *, networks: Networks | None = None) -> list[str]:
    """Ways of making about the same that fit, the nearest first, in words of the command."""
    found = []
    shape = plan.shape

    def fits(offload: Offload, other: VideoShape) -> MemoryPlan | None:
        try:
            planned = plan_memory(
                other,
                offload,
                sizes=plan.sizes,
                networks=networks,
                converted_on_device=plan.converted_on_device,
            )
        except ValueError:
            return None
        return planned if planned.fits(budget_bytes) else None

    later: Sequence[Offload] = get_args(Offload)
    later = later[later.index(plan.offload) :]
    for offload in later[1:]:
        if planned := fits(offload, shape):
            found.append(f"--offload {offload} ({_gb(planned.peak_bytes + SPARE_BYTES)} GB)")
            break
    last = later[-1]
    if shape.refine and not found and (planned := fits(last, replace(shape, refine=False))):
        found.append(f"--offload {last} --no-refiner ({_gb(planned.peak_bytes + SPARE_BYTES)} GB)")
    shorter = _longest(shape, lambda other: fits(plan.offload, other) is not None)
    if shorter is not None:
        found.append(f"--seconds {(shorter - 1) / 16:g} with --offload {plan.offload}")
    elif not found and (shorter := _longest(shape, lambda other: fits(last, other) is not None)) is not None:
        found.append(f"--seconds {(shorter - 1) / 16:g} with --offload {last}")
    return found


def _longest(shape: VideoShape, fits: Any) -> int | None:
    """Most frames below the shape's that fit; memory grows with the length."""
    step = TEMPORAL_STRIDE * (shape.chunk_frames if shape.mode == "distilled" else 1)
    low, high = 0, (shape.num_frames - 1) // step - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if fits(replace(shape, num_frames=step * middle + 1)) else (low, middle - 1)
        )
    return step * low + 1 if low >= 1 and fits(replace(shape, num_frames=step * low + 1)) else None


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f}"
