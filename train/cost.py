"""What a step costs: floating-point operations by counting, memory by parts, and the share of a device's peak."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..kernels import visible_frames
from ..model.blocks import TRAINED_HIDDEN_TOKENS
from ..model.config import WorldModelConfig, chunk_starts

if TYPE_CHECKING:
    from .recipe import LoraConfig, TrainRecipe

PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 5090": 210e12,
}
"""Dense bfloat16 products a second, by a part of the device's name, as its maker states them."""


def peak_flops(device_name: str) -> float | None:
    """Of a device by its name; None: not known."""
    return next((value for name, value in PEAK_FLOPS.items() if name in device_name), None)


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """What the network is given of a clip.

    Attributes:
        frames, height, width: latent frames, and tokens of a frame.
        cameras: whether the camera branch runs.
        chunk: latent frames of a chunk; None: bidirectional.
    """

    frames: int
    height: int
    width: int
    cameras: bool = True
    chunk: int | None = None

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width


def forward_flops(config: WorldModelConfig, clip: ClipShape) -> float:
    """Operations of one forward pass: products of matrices and attention; norms and gates are left out."""
    c, d, n, s = config.width, config.head_size, clip.tokens, clip.height * clip.width
    branches = 2 if clip.cameras else 1
    ffn = config.ffn_width
    linear = (
        5 * c * c + 2 * c * c + 3 * c * ffn + 3 * c * c
    )  # attention and gate, text, feed-forward, over time
    linear += 4 * c * c if clip.cameras else 0
    text = 2 * c * c * config.text_tokens / n + 2 * config.text_tokens * c
    starts = None if clip.chunk is None else chunk_starts(clip.frames, clip.chunk)
    pairs = sum(
        (end - first) * sum(b - a for a, b in runs)
        for (first, end), runs in visible_frames(clip.frames, starts)
    )
    softmax = 2 * pairs * s * s * c / n * branches
    recurrent = 3 * d * c * branches + d * c
    num_softmax = sum(config.is_softmax(i) for i in range(config.depth))
    depthwise = 9 * 2 * ffn
    blocks = config.depth * (linear + text + depthwise)
    attention = num_softmax * softmax + (config.depth - num_softmax) * recurrent
    ends = config.latent_channels * c * 2
    return 2.0 * n * (blocks + attention + ends)


def step_flops(config: WorldModelConfig, clip: ClipShape) -> float:
    """Forward and backward pass of one clip; what is computed again is no work that counts."""
    return 3 * forward_flops(config, clip)


def distillation_flops(recipe: TrainRecipe, config: WorldModelConfig, clip: ClipShape) -> float:
    """Operations of a step that makes the student, on average over its exits and over steps with and without the
    student's own update; a call of a chunk counts as its share of a chunk-causal pass.

    Args:
        clip: of the student's frames; its chunk is not read.
    """
    student = recipe.student
    assert student is not None
    causal = forward_flops(config, replace(clip, chunk=student.chunk))
    if recipe.ode_init is not None:
        return 3 * causal
    if recipe.consistency_init is not None:
        guided = 2 if recipe.consistency_init.guidance != 1 else 1
        return causal * ((3 + 1) + 2 + 2 * guided)  # each also remembers the clean clip
    assert recipe.self_forcing is not None
    whole = forward_flops(config, replace(clip, chunk=None))
    calls = (len(student.times) - 1 + 1) / 2 + 1  # up to the exit, and one that remembers
    fake = calls * causal + 3 * whole
    generator = (calls + 2) * causal + 3 * whole  # three judgements without a backward pass
    return fake + generator / recipe.self_forcing.generator_every


def num_parameters(config: WorldModelConfig) -> int:
    """Of a network of these sizes."""
    import torch

    from ..model.network import WorldModel

    with torch.device("meta"):
        return sum(p.numel() for p in WorldModel(config).parameters())


def lora_parameters(config: WorldModelConfig, lora: LoraConfig) -> int:
    """Of a LoRA's two halves in all its layers."""
    import torch

    from ..model.network import WorldModel
    from .start import lora_layers

    with torch.device("meta"):
        layers = lora_layers(WorldModel(config), lora)
    return sum(lora.rank * (m.weight.shape[0] + m.weight.shape[1]) for m in layers.values())


def memory_rows(
    config: WorldModelConfig,
    clip: ClipShape,
    *,
    ranks: int,
    context: int,
    recompute: str,
    lora: LoraConfig | None,
    number_bytes: int = 2,
) -> list[tuple[str, float]]:
    """(what, GB) on one GPU over float32 weights, by torch's allocator at the widest point of a step: in the last
    block's feed-forward network, as its backward pass begins.

    Args:
        clip: all that a rank has at once: frames of several clips count together.
        ranks: that weights, gradients and optimiser are spread over.
        number_bytes: of a number of the computation: 2 of bfloat16, 4 of float32.
    """
    parameters = float(num_parameters(config))
    tokens = clip.tokens / context
    row = tokens * config.width * number_bytes
    kind = {2: "bfloat16", 4: "float32"}[number_bytes]
    branches = 2 if clip.cameras else 1
    num_softmax = sum(config.is_softmax(i) for i in range(config.depth))
    if lora is None:
        rows = [
            ("weights, gradients and AdamW, float32", 16 * parameters / ranks),
            (f"weights of two blocks and the ends, {kind}", number_bytes * parameters * 3 / config.depth),
        ]
    else:
        rows = [
            (f"weights, {kind}", number_bytes * parameters),
            ("LoRA: weights, gradients and AdamW, float32", 16.0 * lora_parameters(config, lora)),
        ]
    rows.append(("inputs of blocks, and what the last one gives", row * (config.depth + 1)))
    kept = _KEPT if lora is None else _KEPT_BESIDE_LORA
    if recompute == "nothing":
        rows.append(("kept by all blocks", kept * row * config.depth))
        rows.append(("gradients in one block", _GRADIENTS * row))
    elif recompute == "blocks_in_parts":
        part = tokens / max(1, math.ceil(tokens / TRAINED_HIDDEN_TOKENS)) / tokens
        rows.append(("one block but for its hidden layer", (kept - _KEPT_HIDDEN + 3) * row))
        rows.append(("a part of its hidden layer, with gradients", (_KEPT_HIDDEN + _GRADIENTS) * row * part))
    else:
        rows.append(("kept by one block, with gradients", (kept + _GRADIENTS) * row))
    if recompute in ("all_but_softmax", "all_but_attention"):
        # The block at work, the last one first, keeps its own.
        rows.append(("kept outputs of softmax attention", row * branches * max(0, num_softmax - 1)))
    if recompute == "all_but_attention":
        states = 5 * clip.frames / context * config.heads * config.head_size**2 * number_bytes
        rows.append(("kept recurrences", (row + states) * branches * (config.depth - num_softmax)))
    return [(what, size / 1e9) for what, size in rows]


def distillation_memory(
    recipe: TrainRecipe, config: WorldModelConfig, clip: ClipShape, *, ranks: int
) -> list[tuple[str, float]]:
    """(what, GB) on one GPU beside `memory_rows` of the network that is trained: further networks, and what the student
    remembers of a roll-out until its backward pass.

    Args:
        clip: of the student's frames.
    """
    student = recipe.student
    assert student is not None
    weights = float(num_parameters(config))
    rows: list[tuple[str, float]] = []
    if recipe.consistency_init is not None:
        rows.append(("the student's average, float32", 4 * weights / ranks))
        rows.append(("teacher, bfloat16", 2 * weights / ranks))
    if recipe.self_forcing is not None:
        rows.append(("fake score: weights, gradients and AdamW, float32", 16 * weights / ranks))
        rows.append(("real score, bfloat16", 2 * weights / ranks))
    if recipe.ode_init is None:
        branches = 2 if clip.cameras else 1
        row = recipe.data.batch * clip.tokens * config.width * 2
        num_softmax = sum(config.is_softmax(i) for i in range(config.depth))
        state = (
            config.heads
            * config.head_size**2
            * 4
            * branches
            * (config.depth - num_softmax)
            * recipe.data.batch
        )
        rows.append(("caches of a roll-out", 2 * row * branches * num_softmax + state * len(student.starts)))
    return [(what, size / 1e9) for what, size in rows]


def disk_bytes(recipe: TrainRecipe, config: WorldModelConfig) -> tuple[float, float]:
    """Of a checkpoint (weights, AdamW, averages; beside a LoRA its own alone), and of what is exported at the end."""
    whole = float(num_parameters(config))
    learned = whole if recipe.lora is None else lora_parameters(config, recipe.lora)
    averages = (recipe.ema is not None) + (recipe.consistency_init is not None)
    networks = 1 + (recipe.self_forcing is not None)
    exported = networks + (recipe.ema is not None)
    return 4 * learned * (3 * networks + averages), 4 * learned * exported


_KEPT, _KEPT_BESIDE_LORA = 36, 33
"""Token tensors of one width that a block keeps for its backward pass: queries, keys and values of two branches as they
come, as they are turned and as they are rotated (18), outputs of the branches and gates (5), states, inputs and norms
(4), the hidden layer (9). Beside a LoRA, layers that are frozen need no inputs of their own."""
_KEPT_HIDDEN = 9
"""Of these the hidden layer: six widths before its gate, three behind."""
_GRADIENTS = 12
"""What its backward pass holds beside it: gradients before the gate (6), their convolved taps (6), less what is free by
then. Counted, as the others, by following every tensor of a step at full size; the peaks that were measured (a minute,
all weights) are met within 2 %."""
