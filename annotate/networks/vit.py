"""The transformer block that both networks share, and the DINOv2 encoder built from it.

Shapes in names: B images, L tokens, D width, H heads, E = 64 head width. Sources of the architecture: DINOv2
(arXiv 2304.07193) and the public inference code of Pi3X and MoGe-2, whose parameter names are kept.

The residual stream stays in float32 and every matrix product runs in the type of its weight, which is what
autocast does, without casting weights anew in each call: `cast_linears` rounds them once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .fused.op import add_norm, has_attention_kernel, own_attention

PATCH = 14
HEAD_WIDTH = 64
PositionRule = Literal["size_antialiased", "scale_plus_tenth"]
Attend = Callable[["Attention", Tensor], Tensor]


class LayerScale(nn.Module):
    """One learned factor per channel (parameter `gamma`), applied where the branch joins the stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 0.01))


class Attention(nn.Module):
    """Parameters of self-attention: one `qkv` matrix, `proj`, and optionally LayerNorms over each head of q and k."""

    def __init__(self, width: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = width // HEAD_WIDTH
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        # eps 1e-5 (the default) here, 1e-6 in the norms of the block: both as in the released network.
        self.q_norm = nn.LayerNorm(HEAD_WIDTH) if qk_norm else None
        self.k_norm = nn.LayerNorm(HEAD_WIDTH) if qk_norm else None
        self._score_bound: float | None = None

    @property
    def score_bound(self) -> float | None:
        """Largest possible |q . k| / sqrt(E) after qk-norm, or None without it; computed once from the weights.

        A normalised head has length at most sqrt(E), so ||q|| <= sqrt(E) max|weight| + ||bias||; rotations keep
        lengths. With a bound the softmax needs no running maximum.
        """
        if self.q_norm is None or self.k_norm is None:
            return None
        if self._score_bound is None:
            lengths = [
                float(norm.weight.detach().abs().max()) * HEAD_WIDTH**0.5 + float(norm.bias.detach().norm())
                for norm in (self.q_norm, self.k_norm)
            ]
            self._score_bound = lengths[0] * lengths[1] / HEAD_WIDTH**0.5
        return self._score_bound

    def split(self, x_BLD: Tensor) -> Tensor:
        """(B, L, 3, H, E) view of the qkv product."""
        B, L, _ = x_BLD.shape
        return linear(self.qkv, x_BLD).view(B, L, 3, self.num_heads, HEAD_WIDTH)


class Mlp(nn.Module):
    """Width to 4x width and back, with exact GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.fc2, linear_gelu(self.fc1, x))


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """`layer(x)` in the type of the layer's weight."""
    return F.linear(x.to(layer.weight.dtype), layer.weight, layer.bias)


def linear_gelu(layer: nn.Linear, x: Tensor) -> Tensor:
    """`gelu(layer(x))` in the type of the layer's weight.

    With half types on CUDA the activation is the product's epilogue: no pass of its own, and one rounding less. That
    epilogue is GELU's tanh form, at most 5e-4 from the exact one; together with the rounding that is saved the
    result is nearer to float32 than the two steps are (measured: 1.7e-3 against 2.6e-3 relative in bfloat16, 2.9e-4
    against 3.2e-4 in float16).
    """
    if not (x.is_cuda and layer.weight.dtype in (torch.bfloat16, torch.float16)):
        return F.gelu(linear(layer, x))
    flat = x.to(layer.weight.dtype).reshape(-1, x.shape[-1])
    out = torch.ops.aten._addmm_activation(layer.bias, flat, layer.weight.t(), use_gelu=True)
    return out.view(*x.shape[:-1], -1)


def attention(q_BLHE: Tensor, k_BLHE: Tensor, v_BLHE: Tensor, *, direct: bool = False) -> Tensor:
    """(B, L, H * E) softmax attention without mask.

    Args:
        q_BLHE, k_BLHE, v_BLHE: queries, keys, values.
        direct: q carries `fused.DIRECT_FACTOR` and `fused.takes_direct` held.

    On Hopper our own kernel is used for half types (benchmarks/networks_speed.py has it beside cuDNN's and the
    flash kernel); elsewhere cuDNN's is asked for first.
    """
    if has_attention_kernel(q_BLHE):
        return own_attention(q_BLHE, k_BLHE, v_BLHE, direct=direct)
    assert not direct
    q, k, v = (x.transpose(1, 2) for x in (q_BLHE, k_BLHE, v_BLHE))
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
        with sdpa_kernel(order, set_priority=True):
            out = F.scaled_dot_product_attention(q, k, v)
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).reshape(q_BLHE.shape[0], q_BLHE.shape[1], -1)


def plain_attend(attn: Attention, x_BLD: Tensor) -> Tensor:
    """Attention without any position rule (the encoders)."""
    q, k, v = attn.split(x_BLD).unbind(2)
    return attention(q, k, v)


class Block(nn.Module):
    """Pre-norm transformer block whose two branches join the stream one step late.

    The branch that leaves a block is added by the next block together with that block's first LayerNorm: one pass
    over the stream instead of three. `finish` adds the last one.
    """

    def __init__(self, width: int, *, qk_norm: bool = False, layer_scale: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, qk_norm=qk_norm)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)
        self.ls1 = LayerScale(width) if layer_scale else None
        self.ls2 = LayerScale(width) if layer_scale else None

    def forward(self, x: Tensor, pending: Pending, attend: Attend) -> tuple[Tensor, Pending]:
        """One block.

        Args:
            x: (B, L, D) float32 stream; may be overwritten.
            pending: what the previous block left to add, or None.
            attend: attention with this network's position rule, (B, L, D) normalised input to (B, L, D).
        Returns:
            The stream and the branch still to be added.
        """
        dtype = self.attn.qkv.weight.dtype
        x, h = add_norm(x, pending, self.norm1, dtype)
        branch = linear(self.attn.proj, attend(self.attn, h))
        x, h = add_norm(x, (branch, self.ls1.gamma if self.ls1 is not None else None), self.norm2, dtype)
        return x, (self.mlp(h), self.ls2.gamma if self.ls2 is not None else None)


Pending = tuple[Tensor, Tensor | None] | None


def finish(x: Tensor, pending: Pending) -> Tensor:
    """The stream with the last branch added."""
    if pending is None:
        return x
    branch, gamma = pending
    return x + (branch if gamma is None else branch * gamma)


class PatchEmbed(nn.Module):
    """14 x 14 patches, rows first: (B, C, 14h, 14w) to (B, h*w, D)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, PATCH, stride=PATCH)

    def forward(self, image: Tensor) -> Tensor:
        # A patch convolution is a matrix product of unfolded patches; cuDNN's convolution is slower at 3 channels.
        B, C, H, W = image.shape
        h, w = H // PATCH, W // PATCH
        patches = image.reshape(B, C, h, PATCH, w, PATCH).permute(0, 2, 4, 1, 3, 5)
        weight = self.proj.weight
        flat = patches.reshape(B, h * w, C * PATCH * PATCH).to(weight.dtype)
        return F.linear(flat, weight.flatten(1), self.proj.bias)


def resample_positions(table: Tensor, h: int, w: int, rule: PositionRule) -> Tensor:
    """Position table for a patch grid of h x w, in float32.

    Args:
        table: (1, 1 + m * m, D); entry 0 belongs to the class token.
        h, w: patch grid.
        rule: `size_antialiased` resamples to the grid (the register version of DINOv2, Pi3X);
            `scale_plus_tenth` samples with the factor (h + 0.1) / m and without antialiasing (the plain version,
            MoGe-2). The tenth changes every feature and must be kept.
    Returns:
        (1, 1 + h * w, D).
    """
    m = round((table.shape[1] - 1) ** 0.5)
    if (h, w) == (m, m):
        return table.float()
    grid = table[:, 1:].float().reshape(1, m, m, -1).permute(0, 3, 1, 2)
    if rule == "size_antialiased":
        grid = F.interpolate(grid, size=(h, w), mode="bicubic", antialias=True, align_corners=False)
    else:
        factor = ((h + 0.1) / m, (w + 0.1) / m)
        grid = F.interpolate(grid, scale_factor=factor, mode="bicubic", antialias=False, align_corners=False)
        assert grid.shape[-2:] == (h, w)
    return torch.cat([table[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)


class VisionTransformer(nn.Module):
    """DINOv2 with patch size 14.

    Args:
        width, depth: 1024, 24 (L); 768, 12 (B); 384, 12 (S).
        num_registers: 4 in the register version, 0 in the plain one.
        channels: input channels.
        mask_token: keep the (unused) parameter because the checkpoint holds it.
    """

    def __init__(
        self, width: int, depth: int, *, num_registers: int, channels: int = 3, mask_token: bool = False
    ) -> None:
        super().__init__()
        self.rule: PositionRule = "size_antialiased" if num_registers else "scale_plus_tenth"
        self._positions: tuple[tuple[object, ...], Tensor] | None = None
        self.num_registers = num_registers
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + 37 * 37, width))
        if num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, num_registers, width))
        if mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = PatchEmbed(channels, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def positions(self, h: int, w: int) -> Tensor:
        """`resample_positions` of this table, kept until the grid or the table changes.

        torch's bicubic kernel uses one thread a pixel and loops over the channels: 5 ms on an H200.
        """
        table = self.pos_embed
        if table.is_inference():  # such tensors do not tell when they change
            return resample_positions(table, h, w, self.rule)
        key = (h, w, table.data_ptr(), table.device, table._version)
        if self._positions is None or self._positions[0] != key:
            self._positions = key, resample_positions(table, h, w, self.rule)
        return self._positions[1]

    def forward(self, image: Tensor, layers: Iterable[int] | None = None) -> list[tuple[Tensor, Tensor]]:
        """Normalised patch and class tokens after chosen blocks.

        Args:
            image: (B, C, 14h, 14w), already normalised.
            layers: 0-based blocks; default the last.
        Returns:
            For each layer, patch tokens (B, h * w, D) and class token (B, D), in the compute type.
        """
        B, _, H, W = image.shape
        wanted = sorted(layers) if layers is not None else [len(self.blocks) - 1]
        dtype = self.patch_embed.proj.weight.dtype
        x = self.patch_embed(image).float()
        x = torch.cat([self.cls_token.float().expand(B, -1, -1), x], dim=1)
        x = x + self.positions(H // PATCH, W // PATCH)
        if self.num_registers:
            registers = self.register_tokens.float().expand(B, -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
        pending: Pending = None
        out = []
        for i, block in enumerate(self.blocks[: wanted[-1] + 1]):
            x, pending = block(x, pending, plain_attend)
            if i in wanted:
                _, tokens = add_norm(x.clone(), pending, self.norm, dtype)
                out.append((tokens[:, 1 + self.num_registers :], tokens[:, 0]))
        return out


def cast_linears(modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Round the weights of all linear layers and patch convolutions in `modules` to `dtype`, in place.

    Norms, LayerScale, tokens and position tables stay in float32.
    """
    for root in modules:
        for module in root.modules():
            if isinstance(module, nn.Linear) or (
                isinstance(module, nn.Conv2d) and module.stride == (PATCH, PATCH)
            ):
                module.to(dtype)
