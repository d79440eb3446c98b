"""Convolutional parts: view-plane channels, residual blocks, Pi3X's conv head and MoGe-2's conv stack.

Channels that hold only pixel positions are the same for every image, so products with them are taken once per
call at batch size one and added, instead of being concatenated to every feature map.
"""

# torch types attributes of modules as Tensor | Module; which one it is, the parity tests show.
# pyright: reportIndexIssue=false, reportArgumentType=false, reportOperatorIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportAttributeAccessIssue=false
from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fused.op import add, norm_relu_pad, relu_product, resize_pad


def view_plane(width: int, height: int, aspect: float, like: Tensor) -> Tensor:
    """Pixel centres over the image diagonal, (1, 2, height, width): u to the right, v down.

    Args:
        width, height: size of the map.
        aspect: width / height of the *image*, whatever the map's size.
        like: gives type and device.
    """
    span_u = aspect / (1 + aspect**2) ** 0.5
    span_v = 1 / (1 + aspect**2) ** 0.5
    u = torch.linspace(-1, 1, width, device=like.device) * (span_u * (width - 1) / width)
    v = torch.linspace(-1, 1, height, device=like.device) * (span_v * (height - 1) / height)
    grid_u, grid_v = torch.meshgrid(u, v, indexing="xy")
    plane = torch.stack([grid_u, grid_v])[None].to(like.dtype)
    return plane.contiguous(memory_format=torch.channels_last)


def pad_border(x: Tensor, before: Tensor | None = None) -> Tensor:
    """x plus `before` (C,), then one pixel of repeated border on each side."""
    return norm_relu_pad(x, 0, None, None, relu=False, pad=True, before=before)


def conv(layer: nn.Conv2d, x: Tensor, *, bias: bool = True) -> Tensor:
    """3x3 (on an already padded map) or 1x1 convolution in the type of `x`.

    cuDNN's convolution adds its bias in a pass of its own; where another pass follows anyway, `bias=False` leaves
    the bias to that one.
    """
    weight = layer.weight.to(x.dtype).contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, layer.bias.to(x.dtype) if bias and layer.bias is not None else None)


def transposed(layer: nn.ConvTranspose2d, x: Tensor, plane: Tensor | None = None) -> Tensor:
    """2x2 stride-2 transposed convolution of concat(x, plane) *without bias*, in the type of `x`."""
    channels = x.shape[1]
    weight = layer.weight.to(x.dtype)
    out = F.conv_transpose2d(x, weight[:channels], stride=2)
    if plane is not None:
        out = add(out, F.conv_transpose2d(plane, weight[channels:], stride=2), None)
    return out


class ResidualConv(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))); the norms are absent in MoGe-2."""

    def __init__(self, channels: int, *, times_hidden: int = 1, norm: bool = False) -> None:
        super().__init__()
        hidden = times_hidden * channels
        self.layers = nn.Sequential(
            nn.GroupNorm(1, channels) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(channels, hidden, 3),
            nn.GroupNorm(hidden // 32, hidden) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        before: Tensor | None = None
        for index in (0, 3):
            norm, layer = self.layers[index], self.layers[index + 2]
            assert isinstance(layer, nn.Conv2d)
            groups, weight, bias = 0, None, None
            if isinstance(norm, nn.GroupNorm):
                groups, weight, bias = norm.num_groups, norm.weight, norm.bias
            y = norm_relu_pad(y, groups, weight, bias, relu=True, pad=True, before=before)
            y = conv(layer, y, bias=False)
            before = layer.bias
        return add(y, x, before)


class ConvHead(nn.Module):
    """Pi3X's dense head: 2x upsampling three times, resize to 14 pixels a patch, one branch per output.

    Args:
        out_channels: channels of each branch, (2, 1) for points and (1,) for confidence.
        width: channels of the input tokens.
        stages: channels after each upsampling.
    """

    def __init__(
        self, out_channels: Sequence[int], width: int = 1024, stages: Sequence[int] = (256, 128, 64)
    ) -> None:
        super().__init__()
        self.upsample_blocks = nn.ModuleList()
        for c_in, c_out in zip((width, *stages[:-1]), stages, strict=True):
            up = nn.Sequential(nn.ConvTranspose2d(c_in + 2, c_out, 2, stride=2), nn.Conv2d(c_out, c_out, 3))
            blocks = (ResidualConv(c_out, times_hidden=2, norm=True) for _ in range(2))
            self.upsample_blocks.append(nn.Sequential(up, *blocks))
        self.output_block = nn.ModuleList(
            nn.Sequential(nn.Conv2d(stages[-1] + 2, 32, 3), nn.ReLU(), nn.Conv2d(32, c, 1))
            for c in out_channels
        )

    def forward(self, tokens: Tensor, h: int, w: int, dtype: torch.dtype) -> Tensor:
        """Dense maps from patch tokens.

        Args:
            tokens: (B, h * w, width).
            h, w: patch grid.
            dtype: type of the convolutions; the last 1x1 product is always taken in float32.
        Returns:
            (B, 14h, 14w, sum(out_channels)) float32, branches in order.
        """
        aspect = w / h
        # A (B, h*w, C) token array is a channels-last map already; no copy is made.
        x = tokens.to(dtype).unflatten(1, (h, w)).permute(0, 3, 1, 2)
        for stage in self.upsample_blocks:
            assert isinstance(stage, nn.Sequential)
            up = stage[0]
            plane = view_plane(x.shape[-1], x.shape[-2], aspect, x)
            x = conv(up[1], pad_border(transposed(up[0], x, plane), up[0].bias), bias=False)
            x = add(x, None, up[1].bias)
            for block in stage[1:]:
                x = block(x)
        channels = x.shape[1]
        plane = view_plane(14 * w, 14 * h, aspect, x)
        # All branches read the same map: one convolution with their weights stacked.
        first = [branch[0] for branch in self.output_block]
        weight = torch.cat([layer.weight for layer in first]).to(dtype)
        bias = torch.cat([layer.bias for layer in first])
        y = F.conv2d(resize_pad(x, 14 * h, 14 * w), weight[:, :channels])
        other = F.conv2d(pad_border(plane), weight[:, channels:])
        second = torch.block_diag(*(branch[2].weight.flatten(1).float() for branch in self.output_block))
        return relu_product(y, other, bias, second, torch.cat([b[2].bias.float() for b in self.output_block]))


class ConvStack(nn.Module):
    """MoGe-2's five-level decoder, used as neck and as every head.

    Args:
        dim_in: channels entering each level.
        dim_res_blocks: channels inside each level.
        dim_out: channels leaving each level, None for the level's own map.
        num_res_blocks: residual blocks per level.
    """

    def __init__(
        self,
        dim_in: Sequence[int],
        dim_res_blocks: Sequence[int],
        dim_out: Sequence[int | None],
        num_res_blocks: Sequence[int],
    ) -> None:
        super().__init__()
        self.input_blocks = nn.ModuleList(
            nn.Conv2d(a, b, 1) for a, b in zip(dim_in, dim_res_blocks, strict=True)
        )
        self.resamplers = nn.ModuleList()
        last = len(dim_res_blocks) - 2
        for level, (a, b) in enumerate(itertools.pairwise(dim_res_blocks)):
            if level < last:
                self.resamplers.append(
                    nn.Sequential(nn.ConvTranspose2d(a, b, 2, stride=2), nn.Conv2d(b, b, 3))
                )
            else:
                self.resamplers.append(nn.Sequential(nn.Identity(), nn.Conv2d(a, b, 3)))
        self.res_blocks = nn.ModuleList(
            nn.Sequential(*(ResidualConv(c) for _ in range(n)))
            for c, n in zip(dim_res_blocks, num_res_blocks, strict=True)
        )
        self.output_blocks = nn.ModuleList(
            nn.Identity() if b is None else nn.Conv2d(a, b, 1)
            for a, b in zip(dim_res_blocks, dim_out, strict=True)
        )

    def levels(self, features: Sequence[Tensor], plane_only: Tensor | None = None) -> list[Tensor]:
        """Maps of all levels but the last, which is linear in the one before (see `last_maps`).

        Args:
            features: one map per level but the last; one of batch size one is broadcast over the batch.
            plane_only: (1, 2, h, w) channels concatenated to the first level, kept apart (see the module).
        """
        outputs: list[Tensor] = []
        x: Tensor | None = None
        lacking: Tensor | None = None  # bias of the resampler, added together with the entering map
        for level, feature in enumerate(features):
            layer = self.input_blocks[level]
            assert isinstance(layer, nn.Conv2d)
            entering_bias = layer.bias
            if level == 0 and plane_only is not None:
                c = feature.shape[1]
                weight = layer.weight.to(feature.dtype)
                entering = F.conv2d(feature, weight[:, :c])
                entering = add(entering, F.conv2d(plane_only, weight[:, c:]), entering_bias)
            elif x is None:
                entering = conv(layer, feature)
            else:
                entering = conv(layer, feature, bias=False)
                assert lacking is not None
                assert entering_bias is not None
                entering = add(x, entering, lacking + entering_bias)
            x = self.res_blocks[level](entering)
            assert x is not None
            outputs.append(x)
            if level < len(features) - 1:
                up, layer = self.resamplers[level]
                lacking = layer.bias
                x = conv(layer, pad_border(transposed(up, x), up.bias), bias=False)
        return outputs


def last_maps(
    neck: ConvStack, heads: Sequence[ConvStack], level: Tensor, maps: Sequence[Tensor], plane: Tensor
) -> list[Tensor]:
    """What each head gives at the last, largest level.

    That level has no residual blocks, neither in the neck nor in a head: from the level before it everything is a
    bilinear upsampling, a 3x3 convolution and 1x1 products, all linear. So the products are taken on the weights
    and no 32-channel map of the largest size is ever made.

    Args:
        neck, heads: the stacks.
        level: (B, C, H, W) the neck's map of the last level but one.
        maps: that level's map of each head.
        plane: (1, 2, 2H, 2W) view plane of the last level.
    Returns:
        (B, c, 2H, 2W) float32 for each head.
    """
    neck_up, neck_in = neck.resamplers[-1][1], neck.input_blocks[-1]
    through, offsets, own = [], [], []
    for head in heads:
        out, entering, up = head.output_blocks[-1], head.input_blocks[-1], head.resamplers[-1][1]
        out_weight, in_weight = out.weight.float().flatten(1), entering.weight.float().flatten(1)
        own.append(torch.einsum("ao,oiyx->aiyx", out_weight, up.weight.float()))
        joined = out_weight @ in_weight
        through.append(torch.einsum("ao,oiyx->aiyx", joined, neck_up.weight.float()))
        bias = out_weight @ (up.bias + entering.bias).float() + joined @ (neck_up.bias + neck_in.bias).float()
        plane_weight = (joined @ neck_in.weight.float().flatten(1))[:, :, None, None]
        offsets.append(F.conv2d(plane.float(), plane_weight, bias + out.bias.float()))
    shared = upsample_phases(torch.cat(through), level)
    parts = []
    first = 0
    for x, weight, offset in zip(maps, own, offsets, strict=True):
        c = len(weight)
        phases = upsample_phases(weight, x).float() + shared[:, :, :, first : first + c]
        parts.append(interleave(phases) + offset)
        first += c
    return parts


def upsample_phases(weight: Tensor, x: Tensor) -> Tensor:
    """conv3x3(pad(bilinear 2x upsampling of x)) *without bias*, as one convolution at the low resolution.

    Both steps are linear, so the four output phases are four 3x3 convolutions of the padded input; repeating the
    border before upsampling or after it gives the same values.

    Args:
        weight: (O, C, 3, 3) float32.
        x: (B, C, H, W).
    Returns:
        (B, 2, 2, O, H, W) view: row phase, column phase; pixel (2y + p, 2x + q) of the map is [p, q, :, y, x].
    """
    spread = torch.tensor(_SPREAD, device=x.device)
    c_out, c_in = weight.shape[:2]
    merged = torch.einsum("oiyx,pyr,qxs->pqoirs", weight, spread, spread).reshape(4 * c_out, c_in, 3, 3)
    # Tensor cores take output channels in eights.
    merged = F.pad(merged, (0, 0) * 3 + (0, -4 * c_out % 8)).to(x.dtype)
    out = F.conv2d(pad_border(x), merged.contiguous(memory_format=torch.channels_last))
    return out[:, : 4 * c_out].unflatten(1, (2, 2, c_out))


def interleave(phases: Tensor) -> Tensor:
    """(B, 2, 2, O, H, W) phases to (B, O, 2H, 2W)."""
    B, _, _, c, H, W = phases.shape
    return phases.permute(0, 3, 4, 1, 5, 2).reshape(B, c, 2 * H, 2 * W)


def _spread() -> list[list[list[float]]]:
    """Weight of low-resolution neighbour r in tap t of output phase p, indexed [p][t][r]."""
    table = [[[0.0] * 3 for _ in range(3)] for _ in range(2)]
    for phase in range(2):
        for tap in range(3):
            doubled = phase + tap - 1
            near = doubled // 2
            far = near - 1 if doubled % 2 == 0 else near + 1
            table[phase][tap][near + 1] += 0.75
            table[phase][tap][far + 1] += 0.25
    return table


_SPREAD = _spread()
