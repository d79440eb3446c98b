"""Output gate in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor


def output_gate_reference(main: Tensor, camera: Tensor | None, gate: Tensor) -> Tensor:
    """(main + camera) * SiLU(gate), computed in float32 (float64 if given), in the dtype of main."""
    dtype = torch.promote_types(main.dtype, torch.float32)
    total = main.to(dtype) if camera is None else main.to(dtype) + camera.to(dtype)
    return (total * torch.nn.functional.silu(gate.to(dtype))).to(main.dtype)
