"""The operators of a block between its matrix products in plain torch: the specification."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..frame_gdn.reference import ray_transform, rotate


def _exact(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def modulated_norm_reference(x: Tensor, shift: Tensor, scale: Tensor, *, eps: float = 1e-6) -> Tensor:
    """`modulated_norm` written down plainly; see there."""
    dtype = _exact(x)
    normed = F.layer_norm(x.to(dtype), x.shape[-1:], eps=eps)
    return (normed * (1 + scale.to(dtype)[:, :, None]) + shift.to(dtype)[:, :, None]).to(x.dtype)


def gated_add_reference(x: Tensor, y: Tensor, gate: Tensor, extra: Tensor | None = None) -> Tensor:
    """`gated_add` written down plainly; see there."""
    dtype = _exact(x)
    total = x.to(dtype) + gate.to(dtype)[:, :, None] * y.to(dtype)
    return (total if extra is None else total + extra.to(dtype)).to(x.dtype)


def gated_shift_add_reference(
    x: Tensor, y: Tensor, z: Tensor, gate: Tensor, first: Tensor | None = None, inner: Tensor | None = None
) -> Tensor:
    """`gated_shift_add` written down plainly; see there."""
    dtype = _exact(x)
    past, centre, ahead = z.to(dtype).chunk(3, dim=-1)
    total = y.to(dtype) + centre
    total[:, 1:] += past[:, :-1]
    if first is not None:
        total[:, :1] += first.to(dtype)
    total[:, :-1] += ahead[:, 1:] if inner is None else ahead[:, 1:] * inner[1:].to(dtype)
    return (x.to(dtype) + gate.to(dtype)[:, :, None] * total).to(x.dtype)


def glu_conv_reference(x: Tensor, weight: Tensor, bias: Tensor, *, height: int, width: int) -> Tensor:
    """`glu_conv` written down plainly; see there."""
    y = F.silu(x).flatten(0, 1).unflatten(1, (height, width)).permute(0, 3, 1, 2)
    value, gate = F.conv2d(y, weight, bias, padding=1, groups=y.shape[1]).permute(0, 2, 3, 1).chunk(2, -1)
    return (value * F.silu(gate)).reshape(*x.shape[:-1], -1)


def norm_rotate_reference(
    x: Tensor,
    weight: Tensor | None,
    rope: Tensor,
    *,
    heads: int,
    matrix: Tensor | None = None,
    inverse_rope: bool = False,
    eps: float = 1e-5,
) -> Tensor:
    """`norm_rotate` written down plainly; see there."""
    if weight is not None:
        x = F.rms_norm(x, weight.shape, weight, eps)
    x = x.unflatten(-1, (heads, -1))
    if matrix is None:
        return rotate(x, rope, inverse=inverse_rope)
    return ray_transform(x, matrix, rope, inverse_rope=inverse_rope)
