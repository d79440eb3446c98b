"""The steps in plain torch: they define what the kernels compute."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def add_norm_reference(
    x: Tensor, pending: tuple[Tensor, Tensor | None] | None, norm: nn.LayerNorm, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Twin of `add_norm` in plain torch; does not overwrite `x`."""
    if pending is not None:
        branch, gamma = pending
        x = x + (branch.float() if gamma is None else branch.float() * gamma.float())
    return x, F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(dtype)


def rope_table(h: int, w: int, num_special: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cosines and sines of the 2-D rotary embedding for the tokens of one frame.

    Head dims 0..31 turn with the row, 32..63 with the column; within each half, dims d and d + 16 form a pair with
    frequency 100^(-d / 16). Special tokens have position (0, 0), patch (r, c) has (r + 1, c + 1).

    The *angles* are rounded to `dtype` before the cosine is taken: the published network was trained and run so,
    and in bfloat16 the rounded angles differ from exact ones by up to 0.06 in the cosine.

    Returns:
        (num_special + h * w, 2, 64) float32: cosine, then sine with the sign of the pair's first half negative.
    """
    frequency = 1.0 / (100.0 ** (torch.arange(0, 32, 2, device=device).float() / 32))
    rows = torch.arange(1, h + 1, device=device).repeat_interleave(w)
    columns = torch.arange(1, w + 1, device=device).repeat(h)
    position = torch.stack([rows, columns], dim=1)
    position = torch.cat([position.new_zeros(num_special, 2), position]).float()
    angle = (position[:, :, None] * frequency).to(dtype)
    # The table itself is rounded like the angles: that is what indexing a table of `dtype` gives.
    cosine, sine = angle.cos().float(), angle.sin().float()
    cosine = torch.cat([cosine, cosine], dim=2).flatten(1)
    sine = torch.cat([-sine, sine], dim=2).flatten(1)
    return torch.stack([cosine, sine], dim=1).contiguous()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotary embedding in plain torch.

    Args:
        x: (B, L, H, 64) with L a multiple of the table's length n: token l has position l mod n.
        table: (n, 2, 64) from `rope_table`.
    """
    B, L, H, E = x.shape
    n = table.shape[0]
    xf = x.float().reshape(B, L // n, n, H, E)
    swapped = xf.unflatten(-1, (2, 2, 16)).flip(-2).flatten(-3)
    out = xf * table[:, 0][:, None] + swapped * table[:, 1][:, None]
    return out.reshape(B, L, H, E).to(x.dtype)


def rotate_qk_reference(
    qkv: Tensor,
    table: Tensor,
    q_norm: nn.LayerNorm | None,
    k_norm: nn.LayerNorm | None,
    *,
    q_factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Twin of `rotate_qk` in plain torch."""
    q, k = qkv[:, :, 0], qkv[:, :, 1]
    if q_norm is not None and k_norm is not None:
        q = F.layer_norm(q.float(), (64,), q_norm.weight, q_norm.bias, q_norm.eps).to(qkv.dtype)
        k = F.layer_norm(k.float(), (64,), k_norm.weight, k_norm.bias, k_norm.eps).to(qkv.dtype)
    q = rotate(q.float(), table) * q_factor
    return q.to(qkv.dtype), rotate(k, table)


def norm_relu_pad_reference(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    relu: bool,
    pad: bool,
    before: Tensor | None = None,
) -> Tensor:
    """Twin of `norm_relu_pad` in plain torch."""
    dtype = x.dtype
    if before is not None:
        x = x + before.to(dtype)[:, None, None]
    if num_groups:
        x = F.group_norm(
            x.float(),
            num_groups,
            weight.float() if weight is not None else None,
            bias.float() if bias is not None else None,
            1e-5,
        )
    x = F.relu(x) if relu else x
    return F.pad(x, (1, 1, 1, 1), mode="replicate").to(dtype) if pad else x.to(dtype)


def resize_pad_reference(x: Tensor, height: int, width: int) -> Tensor:
    """Twin of `resize_pad` in plain torch."""
    x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    return F.pad(x, (1, 1, 1, 1), mode="replicate")


def relu_product_reference(
    x: Tensor, other: Tensor, bias: Tensor, weight: Tensor, out_bias: Tensor
) -> Tensor:
    """Twin of `relu_product` in plain torch."""
    x = F.relu(x.float() + other.float() + bias.float()[:, None, None])
    return F.linear(x.permute(0, 2, 3, 1), weight, out_bias)
