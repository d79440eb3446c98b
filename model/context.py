"""What the blocks of a pass share: cameras, rays and positions, and what a stream keeps from chunk to chunk."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import (
    State,
)
from ..kernels.attention import AttentionBackend, AttentionPrecision
from ..kernels.backend import Backend
from .frame_parallel import FrameShare


@dataclass(frozen=True)
class Operators:
    """Which implementation of each operator runs; "auto" is the fastest that the device has."""

    kernels: Backend = "auto"
    """Gated DeltaNet, short convolutions and output gates."""
    attention: AttentionBackend = "auto"
    attention_precision: AttentionPrecision = "input"
    """Of softmax attention over video tokens; "fp8" is for inference on Hopper GPUs and newer."""


@dataclass(frozen=True)
class Cameras:
    """Camera of each latent frame (the one of video frame 8 i).

    Attributes:
        camera_to_world: (B, T, 4, 4) OpenCV axes, metres, relative to the clip's first frame.
        intrinsics: (B, T, 4) fx, fy, cx, cy in units of tokens (pixels / 32).
        plucker: (B, 48, T, H, W) rays of eight video frames (`conditioning.plucker_map`); None: no map is added.
    """

    camera_to_world: Tensor
    intrinsics: Tensor
    plucker: Tensor | None = None

    def of_frames(self, frames: slice) -> Cameras:
        """Those of some latent frames."""
        rays = None if self.plucker is None else self.plucker[:, :, frames]
        return Cameras(self.camera_to_world[:, frames], self.intrinsics[:, frames], rays)


@dataclass(frozen=True)
class RayMap:
    """A ray map and the linear map that embeds it, kept apart.

    A block projects what was embedded, one linear map after another: it multiplies the two sets of weights instead of
    the tokens, for 48 channels in place of all.

    Attributes:
        tokens: (B, T, S, P) channels of each token, a one, zeros.
        embedding: (C, P) weights, the bias, zeros.
    """

    tokens: Tensor
    embedding: Tensor

    def through(self, layer: nn.Module) -> Tensor:
        """layer(embedded tokens), (B, T, S, C)."""
        if type(layer) is not nn.Linear:  # adapters and layers in fewer bits have no plain weight
            return layer(F.linear(self.tokens, self.embedding))
        return F.linear(self.tokens, layer.weight @ self.embedding, layer.bias)


@dataclass(frozen=True)
class Geometry:
    """What the network derives from a clip's cameras and shape alone (`WorldModel.geometry`).

    Attributes:
        rope: (2, T, S, D/2) rotation of whole heads, (2, T, S, D/4) of half heads in `camera_rope`.
        rays: (B, T, S, 3, 4) world-to-ray transforms; None: the camera branch does not run.
        plucker: ray map before it is embedded; None: nothing is added.
    """

    rope: Tensor
    camera_rope: Tensor
    rays: Tensor | None
    plucker: RayMap | None


@dataclass
class BlockCache:
    """What a block remembers of the chunks before the current one; sizes do not grow with the clip but where softmax
    keeps its whole history.

    Attributes:
        gdn, camera_gdn: forward states of the two branches.
        conv, camera_conv: (B, taps - 1, S, C) last inputs of the keys' short convolutions.
        ffn: (B, 1, S, C) last frame before the temporal convolution.
        chunks: keys and values of softmax blocks by chunk, after rotation and ray transform.
    """

    gdn: State | None = None
    camera_gdn: State | None = None
    conv: Tensor | None = None
    camera_conv: Tensor | None = None
    ffn: Tensor | None = None
    chunks: list[ChunkKeys] = field(default_factory=list)


@dataclass(frozen=True)
class ChunkKeys:
    """Keys and values of one chunk, (B, heads, tokens, D) each; `camera_*` of the camera branch, if it ran."""

    key: Tensor
    value: Tensor
    camera_key: Tensor | None = None
    camera_value: Tensor | None = None


@dataclass
class StreamCache:
    """The state of a clip that is generated chunk by chunk.

    Attributes:
        window_chunks: chunks before the current one that softmax blocks read; None: all of them.
        sink_chunks: first chunks that they read in any case.
        next_frame: absolute latent frame with which the next chunk starts.
        blocks: one entry a block.
    """

    window_chunks: int | None
    sink_chunks: int
    blocks: list[BlockCache]
    next_frame: int = 0

    def snapshot(self) -> StreamCache:
        """The caches as they are now, the tensors themselves: what is remembered later does not change them. For calls
        whose gradient is taken after the stream went on, where blocks may be computed again."""
        return replace(self, blocks=[replace(block, chunks=list(block.chunks)) for block in self.blocks])

    @property
    def num_bytes(self) -> int:
        """Bytes held by all caches."""
        return sum(t.numel() * t.element_size() for block in self.blocks for t in _tensors(block))


def _tensors(block: BlockCache) -> list[Tensor]:
    states = [s for s in (block.gdn, block.camera_gdn) if s is not None]
    found = [t for s in states for t in (s.kv, s.z)]
    found += [block.conv, block.camera_conv, block.ffn]
    found += [t for c in block.chunks for t in (c.key, c.value, c.camera_key, c.camera_value)]
    return [t for t in found if t is not None]


@dataclass(frozen=True)
class Context:
    """What all blocks of one call share.

    Attributes:
        height, width: token grid of a frame.
        rope: (2, T, S, D/2) rotation of whole heads, (2, T, S, D/4) of half heads in `camera_rope`.
        rays: (B, T, S, 3, 4) world-to-ray transforms; None: the camera branch does not run.
        plucker: ray map, which all blocks read; None: nothing is added.
        text: (B, L, C), with `text_mask` (B, L) True where a token is real, or None.
        starts: first frames of chunks for chunk-causal runs; None: bidirectional.
        inner: (T, 1, 1) zero on the first frames of all chunks but the first, one elsewhere; None: a single chunk.
        stream: True where a cache is read: everything before the chunk comes from it.
        save: whether the cache is written.
        share: where the clip's frames are spread over ranks; `starts` and `inner` then are this rank's, `clip_starts`
            the clip's.
    """

    height: int
    width: int
    rope: Tensor
    camera_rope: Tensor
    rays: Tensor | None
    plucker: RayMap | None
    text: Tensor
    text_mask: Tensor | None
    starts: tuple[int, ...] | None
    inner: Tensor | None
    stream: StreamCache | None
    save: bool
    share: FrameShare | None = None
    clip_starts: tuple[int, ...] | None = None
