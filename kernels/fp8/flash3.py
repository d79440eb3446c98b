"""Attention in e4m3 by flash-attn-3, which is built from its sources; taken instead of cuDNN where it is installed.

Its Hopper kernels read queries, keys and values as `round_heads` leaves them and write bfloat16, so that the output is
not rounded to e4m3 as cuDNN's is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..backend import installed_version
from .reference import Rounded

PACKAGE = "flash_attn_3"


def flash3_version() -> str | None:
    """Of the installed package; None: it is not there."""
    return installed_version(PACKAGE)


def has_flash3(device: torch.device | str, head_size: int) -> bool:
    """Whether it attends on a device: a Hopper GPU, the package there, heads of 16, 32, ... channels."""
    device = torch.device(device)
    if device.type != "cuda" or head_size % 16 or torch.cuda.get_device_capability(device)[0] != 9:
        return False
    return flash3_version() is not None


def flash3_attend(q: Rounded, k: Rounded, v: Rounded, scale: float, size: int, *, out: Tensor) -> None:
    """Attention of rounded numbers, scaled back, into out (H, N, size), tokens before heads in memory.

    A NaN in any input reaches the output: it is in the scales.

    Args:
        q, k, v: values of at least `size` channels, those beyond it zero.
        size: channels of a head.
    Raises:
        ValueError: the package does not load.
    """
    heads = q.values.shape[0]
    with torch.cuda.device(q.values.device):
        found = load_flash3()(
            *(x.values[..., :size].transpose(0, 1)[None] for x in (q, k, v)),
            softmax_scale=scale,
            q_descale=(1 / q.scale).expand(heads).contiguous()[None],
            k_descale=(1 / k.scale).expand(heads).contiguous()[None],
            v_descale=(1 / v.scale).contiguous()[None],
        )
        found = found[0] if isinstance(found, tuple) else found
        torch.add(found[0], v.mean[:, :size], out=out.transpose(0, 1))


@cache
def load_flash3() -> Callable[..., Tensor | tuple[Tensor, ...]]:
    """Its function that attends.

    Raises:
        ValueError: the package does not load; what to do.
    """
    try:
        return importlib.import_module("flash_attn_interface").flash_attn_func
    except Exception as error:
        raise ValueError(
            f"{PACKAGE} {flash3_version()} does not load ({type(error).__name__}: {error}): build it for this torch, "
            "or uninstall it, and cuDNN attends in fp8"
        ) from error
