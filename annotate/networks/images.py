"""Images on their way to a network: to its device and to its size."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_OVERSHOOT = 0.25
"""By which values may leave [0, 1]: what sharp edges get from resampling."""


def check_values(images: Tensor) -> None:
    """Raise ValueError unless images hold uint8, or floating numbers in [0, 1]; on a GPU the host waits for those."""
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise ValueError(f"images hold {images.dtype}; give uint8, or floating numbers in [0, 1]")
    low, high = (float(x) for x in images.aminmax())
    if not (low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT):
        raise ValueError(
            f"images hold values from {low:g} to {high:g}; give uint8, or floating numbers in [0, 1]"
        )


@cache
def _lanczos(size: int, to: int, device: torch.device) -> Tensor:
    """(to, size) weights of a Lanczos-3 reduction: the window widens with the factor, so nothing aliases."""
    scale = max(1.0, size / to)
    centre = (torch.arange(to, dtype=torch.float64) + 0.5) * (size / to)
    x = (torch.arange(size, dtype=torch.float64) + 0.5 - centre[:, None]) / scale
    weight = torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0.0)
    return (weight / weight.sum(1, keepdim=True)).float().to(device)


def resize_lanczos(image: Tensor, height: int, width: int) -> Tensor:
    """(3, H, W) uint8 to (3, height, width) uint8, columns first, each pass rounded to 8 bits, as PIL's LANCZOS."""
    out = image
    if out.shape[2] != width:
        out = (out.float() @ _lanczos(out.shape[2], width, image.device).T).round().clamp(0, 255)
    if out.shape[1] != height:
        out = (_lanczos(out.shape[1], height, image.device) @ out.float()).round().clamp(0, 255)
    return out.to(torch.uint8)


def upload(rgb: NDArray[np.uint8], device: torch.device, size: tuple[int, int] | None) -> Tensor:
    """(H, W, 3) uint8 RGB on the CPU to (3, h, w) uint8 on `device`, through pinned memory where there is a GPU."""
    image = torch.from_numpy(np.ascontiguousarray(rgb))
    if device.type == "cuda":
        image = image.pin_memory().to(device, non_blocking=True)
    image = image.permute(2, 0, 1)
    return image.contiguous() if size is None else resize_lanczos(image, *size)
