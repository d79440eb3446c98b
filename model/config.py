"""Sizes and options of the world model; one frozen record names a whole network."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..dataset.strict import Strict

Positive = Annotated[int, Field(gt=0)]


class WorldModelConfig(Strict):
    """The world model of SANA-WM; defaults are the released 2.66 B network at 720p.

    Bidirectional, chunk-causal and streaming use share every weight; which one runs is an argument of the call.
    """

    depth: Positive = 20
    width: Positive = 2240
    """Channels of a token."""
    heads: Positive = 20
    softmax_every: Positive = 4
    """Every n-th block attends by softmax (the last of each group of n), the others by frame-wise Gated DeltaNet."""
    latent_channels: Positive = 128
    text_width: Positive = 2304
    """Channels of the text encoder's hidden states."""
    text_tokens: Positive = 300
    ffn_ratio: Annotated[float, Field(gt=0)] = 3.0
    """Hidden channels of the feed-forward network after its gate, over `width`."""
    conv_taps: Positive = 4
    """Taps of the short convolutions of the keys along time."""
    plucker_channels: Positive = 48
    """Six per video frame, eight video frames a latent frame."""
    time_frequencies: Annotated[int, Field(gt=0, multiple_of=2)] = 256
    """Size of the sine table of diffusion times."""
    camera_rms_cap: Literal["none", "softmax", "all"] = "none"
    """In which blocks the ray transform may not raise the RMS of a token's query, key or value. Released code had the
    cap in softmax blocks at first and dropped it later; diffusers has it in all."""
    camera_softmax_scale: Annotated[float, Field(gt=0)] | None = None
    """Scale of the camera branch's logits in softmax blocks; null: head size^-0.5. Before July 2026: 128^-0.5."""
    softmax_scale: Annotated[float, Field(gt=0)] | None = None
    """Scale of the main branch's logits in softmax blocks; null: head size^-0.5."""
    softmax_bfloat16: bool = True
    """Round float32 queries, keys and values to bfloat16 for softmax attention over video tokens, as released code
    does. Without effect on bfloat16 activations."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> WorldModelConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        if self.head_size % 8:
            raise ValueError(
                f"width / heads = {self.head_size}: the ray transform works on groups of four in half a head, "
                "so the head size must be a multiple of 8"
            )
        return self

    @property
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def ffn_width(self) -> int:
        """Hidden channels of the feed-forward network behind its gate."""
        return int(self.width * self.ffn_ratio)

    def is_softmax(self, block: int) -> bool:
        """Whether block number `block` attends by softmax."""
        return block % self.softmax_every == self.softmax_every - 1


UNSHAPED = ("camera_rms_cap", "camera_softmax_scale", "softmax_scale", "softmax_bfloat16")
"""Options that no tensor's shape tells: an export says those that are not the default."""


def chunk_starts(frames: int, size: int = 3) -> tuple[int, ...]:
    """First latent frames of the chunks of a clip: the first chunk holds one frame more, a short rest joins the last.

    Args:
        frames: latent frames of the clip.
        size: frames of a chunk.
    Returns:
        for example (0, 4, 7, 10) for 13 frames. `size + 1` frames or fewer are one chunk.
    Source: `first_chunk_plus_one` of NVlabs/Sana; 121 frames are 40 chunks.
    """
    if frames < 1 or size < 1:
        raise ValueError(f"{frames} frames in chunks of {size}: both must be at least 1")
    return (0, *range(size + 1, frames - size + 1, size))


def chunk_ranges(frames: int, starts: tuple[int, ...] | None) -> list[tuple[int, int]]:
    """[first, end) of every chunk.

    Raises:
        ValueError: if the starts do not rise from 0 within the clip.
    """
    edges = (*(starts or (0,)), frames)
    if edges[0] != 0 or any(b <= a for a, b in itertools.pairwise(edges)):
        raise ValueError(f"chunk starts {starts} must rise strictly from 0 and lie within {frames} frames")
    return list(itertools.pairwise(edges))
