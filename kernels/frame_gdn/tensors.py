"""What the stages of the operator take and give, in the layout that the kernels read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

from .arguments import ScanOptions, Tokens


@dataclass(frozen=True)
class Inputs:
    """One call's tensors and switches; shapes as in `frame_gdn`, tables already in kernel layout."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    """(B, T, H, S), unlike the operator's."""
    decay: Tensor
    q_weight: Tensor | None
    k_weight: Tensor | None
    rope: Tensor | None
    """(2, T, S, pairs); for the Hopper kernels (T, S, D), cosine and sine of a pair side by side."""
    rays: Tensor | None
    keep: Tensor | None
    """(T,) float32; None for a causal scan."""
    normalise: bool
    key_scale: float
    norm_eps: float
    eps: float
    hopper: bool
    """Whether the kernels of `hopper/` run the heavy stages."""

    @property
    def half(self) -> bool:
        return self.k.dtype != torch.float32

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        b, t, s, h, d = self.k.shape
        return b, t, s, h, d

    @property
    def turning(self) -> int:
        """0 not at all, 1 rotation, 2 rays and rotation of half the head."""
        return 0 if self.rope is None else 1 if self.rays is None else 2

    @property
    def both(self) -> bool:
        return self.keep is not None


@lru_cache
def _is_hopper(device: torch.device) -> bool:
    """Whether a device has the instructions and this Triton the language that `hopper/` is written in."""
    found = find_spec("triton.experimental") and find_spec("triton.experimental.gluon")
    return found is not None and torch.cuda.get_device_capability(device)[0] == 9


USE_HOPPER = True
"""Off: Triton kernels everywhere, so that one machine can test and time both."""


def make_inputs(tokens: Tokens, options: ScanOptions, keep: Tensor | None) -> Inputs:
    """Bring small tensors to the layout and type that the kernels read; large ones stay as they are."""
    k, rope, rays, beta, decay = tokens.k, tokens.rope, tokens.rays, tokens.beta, tokens.decay
    q_weight, k_weight = tokens.q_weight, tokens.k_weight
    d = k.shape[-1]
    main = rope is not None and rays is None and options.normalise
    main = main and q_weight is not None and k_weight is not None
    # Tiles are 128 channels wide and need one beyond the head; their rows must be multiples of 16 bytes.
    hopper = main and 64 < d < 128 and d % 8 == 0 and k.dtype == torch.bfloat16 and k.is_cuda
    hopper = bool(hopper) and USE_HOPPER and _is_hopper(k.device)

    def dense(x: Tensor) -> Tensor:
        return x if x.stride(-1) == 1 else x.contiguous()

    if rope is not None:
        rope = rope.to(torch.float16 if k.dtype != torch.float32 else torch.float32)
        rope = rope.permute(1, 2, 3, 0).contiguous().flatten(2) if hopper else rope.contiguous()
    return Inputs(
        q=dense(tokens.q),
        k=dense(k),
        v=dense(tokens.v),
        beta=beta.transpose(2, 3).contiguous(),
        decay=decay.float().contiguous(),
        q_weight=None if q_weight is None else q_weight.float().contiguous(),
        k_weight=None if k_weight is None else k_weight.float().contiguous(),
        rope=rope,
        rays=None if rays is None else rays.float().contiguous(),
        keep=None if keep is None else keep.float().contiguous(),
        normalise=options.normalise,
        key_scale=options.key_scale,
        norm_eps=options.norm_eps,
        eps=options.eps,
        hopper=hopper,
    )


@dataclass(frozen=True)
class Products:
    """Per frame and head: p, u, pz (B, T, H, D, D); uz (B, T, H, D); stretch (B, T, H); k_inv (B, T, S).

    A backward pass needs u only for the camera branch, and uz not at all.
    """

    p: Tensor
    u: Tensor | None
    pz: Tensor | None
    uz: Tensor | None
    stretch: Tensor | None
    k_inv: Tensor | None


@dataclass(frozen=True)
class Ends:
    """States at the ends of a scan, float32: kv, kv_reverse (B, H, R, D), z, z_reverse (B, H, D)."""

    kv: Tensor | None = None
    z: Tensor | None = None
    kv_reverse: Tensor | None = None
    z_reverse: Tensor | None = None


@dataclass(frozen=True)
class Chain:
    """What each frame reads (or the gradients each frame's update receives), and the far ends."""

    kv: Tensor | None
    kv_reverse: Tensor | None
    z: Tensor | None
    z_reverse: Tensor | None
    ends: Ends


@dataclass(frozen=True)
class Readout:
    """out (B, T, S, H, D) in the dtype of v; q_inv (B, T, S) inverse RMS of the queries."""

    out: Tensor
    q_inv: Tensor | None


@dataclass(frozen=True)
class ReadoutGradients:
    """dq (B, T, S, H, D); dweight (H * D); dkv (B, T, H, D, D) and dz (B, T, H, D) of the summed states."""

    dq: Tensor
    dweight: Tensor | None
    dkv: Tensor
    dz: Tensor | None


@dataclass(frozen=True)
class ProductGradients:
    """dk, dv (B, T, S, H, D); dweight (H * D); dbeta (B, T, S, H); ddecay (B, T, H)."""

    dk: Tensor
    dv: Tensor
    dweight: Tensor | None
    dbeta: Tensor
    ddecay: Tensor


@dataclass(frozen=True)
class StepGradients:
    """dp (symmetrised), du (B, T, H, D, D); ddecay, dstretch (B, T, H).

    dpz (B, T, H, D, D, symmetrised) and duz (B, T, H, D) for the Hopper kernels.
    """

    dp: Tensor
    du: Tensor
    ddecay: Tensor
    dstretch: Tensor | None
    dpz: Tensor | None
    duz: Tensor | None
