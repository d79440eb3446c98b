"""Linear maps whose weights, or weights and activations, are kept in fewer bits than bfloat16.

They stand in for `nn.Linear` and for the 1 x 1 convolutions of the network (`precision.set_precision`); none has a
backward pass. `SharedInput` lets several of them read one activation that is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.backend import Backend
from ..kernels.fp8.product import Rows, round_rows, scaled_product
from ..kernels.fp8.reference import E4M3


class _FewBits(nn.Module):
    """Weights whose type means something: moving them is fine, converting them is not."""

    weight_values: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        kinds = self.weight_values.dtype, self.weight_scale.dtype
        moved = fn(torch.empty(0, dtype=kinds[0])).dtype, fn(torch.empty(0, dtype=kinds[1])).dtype
        if moved != kinds:
            raise ValueError(
                f"weights in {kinds[0]} cannot become {moved[0]}: choose the type of a model before set_precision"
            )
        return super()._apply(fn, recurse)


class ScaledLinear(_FewBits):
    """Weights and activations in e4m3, each row (output channel, token) with its own scale; sums in float32.

    Args:
        weight: (N, K); bias: (N,) or None.
        backend: of the rounding.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, backend: Backend = "auto") -> None:
        super().__init__()
        rows = round_rows(weight.detach(), backend=backend)
        self.register_buffer("weight_values", rows.values)
        self.register_buffer("weight_scale", rows.scale)
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.backend: Backend = backend

    def forward(self, x: Tensor) -> Tensor:
        return self.product(round_rows(x, backend=self.backend), x.dtype)

    def write(self, x: Tensor, out: Tensor) -> None:
        """`forward` into a tensor that is there."""
        self.product(round_rows(x, backend=self.backend), x.dtype, out=out)

    def product(self, rows: Rows, dtype: torch.dtype, *, out: Tensor | None = None) -> Tensor:
        """The map of an activation that is rounded already, in the type that it had before."""
        if torch.is_grad_enabled():
            raise ValueError(
                "layers in fp8 have no backward pass: call the network under torch.no_grad(), or train in bf16"
            )
        weight = Rows(self.weight_values, self.weight_scale)
        direct = out is not None and out.dtype == (torch.bfloat16 if out.is_cuda else torch.float32)
        found = scaled_product(rows, weight, self.bias, out=out if direct else None)
        if out is None:
            return found.to(dtype)
        return out if direct else out.copy_(found)


class NarrowWeights(_FewBits):
    """Weights in eight bits with a scale for every output channel, widened for each product: saves memory alone.

    Args:
        weight: (N, K); bias: (N,) or None.
        kind: torch.int8 or torch.float8_e4m3fn.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: torch.dtype) -> None:
        super().__init__()
        weight = weight.detach()
        if kind == E4M3:
            values, scale = round_rows(weight, backend="reference")
        else:
            most = weight.float().abs().amax(-1, keepdim=True)
            scale = torch.where(most == 0, 1.0, most / 127)
            values = (weight.float() / scale).round().to(torch.int8)
        self.register_buffer("weight_values", values)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_values.to(x.dtype) * self.weight_scale.to(x.dtype)
        return F.linear(x, weight, self.bias)


class SharedInput:
    """An activation that several linear maps read: rounded for those in e4m3 at most once, as it is for the others.

    Args:
        x: (..., C); None where only layers in e4m3 read it.
        rows: the same in e4m3, if whatever made it has rounded it already.
        dtype: of what the maps give.
    """

    def __init__(self, x: Tensor | None, rows: Rows | None = None, dtype: torch.dtype | None = None) -> None:
        self._x, self._rows = x, rows
        kind = dtype if x is None else x.dtype
        assert kind is not None
        self.dtype = kind

    @property
    def x(self) -> Tensor:
        assert self._x is not None
        return self._x

    def through(self, layer: nn.Module) -> Tensor:
        """layer(x)."""
        if not isinstance(layer, ScaledLinear):
            return cast(Tensor, layer(self.x))
        if self._rows is None:
            self._rows = round_rows(self.x, backend=layer.backend)
        return layer.product(self._rows, self.dtype)

    def split(self, parts: int) -> list[SharedInput]:
        """(B, T, ...) frames of all clips in so many parts, each (1, frames, ...)."""

        def cut(x: Tensor | None) -> list:
            return [None] * parts if x is None else list(x.flatten(0, 1)[None].tensor_split(parts, dim=1))

        values = cut(None if self._rows is None else self._rows.values)
        scale = cut(None if self._rows is None else self._rows.scale)
        return [
            SharedInput(x, None if v is None else Rows(v, s), self.dtype)
            for x, v, s in zip(cut(self._x), values, scale, strict=True)
        ]
