"""Output gate in plain torch: the specification."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_tensors


def check_arguments(main: Tensor, camera: Tensor | None, gate: Tensor) -> None:
    """Raise ValueError where something does not fit, as `output_gate` says."""
    for name, x in (("gate", gate), ("camera", camera)):
        if x is not None and x.shape != main.shape:
            raise ValueError(f"{name} is {tuple(x.shape)}; main is {tuple(main.shape)}")
    check_tensors(main, "main", gate=gate, camera=camera)


def output_gate_reference(main: Tensor, camera: Tensor | None, gate: Tensor) -> Tensor:
    """(main + camera) * SiLU(gate), computed in float32 (float64 if given), in the dtype of main."""
    check_arguments(main, camera, gate)
    dtype = torch.promote_types(main.dtype, torch.float32)
    total = main.to(dtype) if camera is None else main.to(dtype) + camera.to(dtype)
    return (total * torch.nn.functional.silu(gate.to(dtype))).to(main.dtype)
