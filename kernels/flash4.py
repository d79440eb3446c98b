"""Softmax attention by flash-attn-4's Hopper kernels, an extra: heads of 112 channels are computed as they are.

cuDNN's kernels compute 128 channels for such heads. With blocks of 192 queries and 144 keys, attention of the real
size (106,480 tokens, 20 heads of 112, bf16) takes 157 ms on an H200 where cuDNN takes 202
(`benchmarks/kernels_bench.py`); the library's own choice for this head size, 128 and 128, takes 182.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .backend import installed_version

PACKAGE = "flash-attn-4"
TILED_HEADS = range(97, 113)
"""Head sizes for which `_TILE` is given to the library, by measurement at 112; it fits the shared memory of Hopper."""
_TILE: dict[str, Any] = {"tile_mn": (192, 144), "mma_pv_is_rs": False, "intra_wg_overlap": True}


def flash4_refusal(
    device: torch.device | str, dtype: torch.dtype, head_size: int | None = None
) -> str | None:
    """Why flash-attn-4 cannot attend there, with what to do, or None: it can. Costs no memory on the device.

    Args:
        head_size: channels of a head; None: not known yet.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return f"attention by flash4 needs an NVIDIA GPU, not {device}: use auto or reference"
    if torch.cuda.get_device_capability(device)[0] != 9:
        return f"attention by flash4 is for Hopper GPUs, and {torch.cuda.get_device_name(device)} is none: use auto"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"attention by flash4 takes bfloat16 or float16, not {dtype}: use auto"
    if head_size is not None and (head_size > 128 or head_size % 8):
        return f"attention by flash4 takes heads of 8, 16, ... 128 channels, not {head_size}: use auto"
    return _forward()[1]


def flash4_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """Softmax attention of all queries over all keys; no gradient.

    Args:
        q: (B, H, N, D); k, v: (B, H, M, D); bfloat16 or float16, at most 128 channels a head.
        scale: of the logits; None: D^-1/2.
    Returns:
        (B, H, N, D) in the dtype of v, tokens before heads in memory.
    Raises:
        ValueError: where it cannot run (`flash4_refusal`), or gradients are asked for.
    """
    if refusal := flash4_refusal(q.device, q.dtype, q.shape[-1]):
        raise ValueError(refusal)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise ValueError("attention by flash4 is for inference: train with auto")
    forward = _forward()[0]
    assert forward is not None  # nothing was refused
    tile = _TILE if q.shape[-1] in TILED_HEADS else {}
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    with torch.cuda.device(q.device):  # its launches go to the current device
        return forward(*(x.transpose(1, 2) for x in (q, k, v)), softmax_scale=scale, **tile)[0].transpose(
            1, 2
        )


def flash4_version() -> str | None:
    """Of the installed package; None: it is not there."""
    return installed_version(PACKAGE)


@cache
def _forward() -> tuple[Callable[..., tuple[Tensor, ...]] | None, str | None]:
    """The library's forward pass that takes sizes of blocks, or why there is none."""
    version = flash4_version()
    hint = "pip install theodolite[flash4]"
    if version is None:
        return None, f"attention by flash4 needs {PACKAGE}: {hint}"
    try:
        forward = importlib.import_module("flash_attn.cute.interface")._flash_attn_fwd
        missing = {"softmax_scale", *_TILE} - set(inspect.signature(forward).parameters)
    except Exception as error:  # noqa: BLE001  # it loads compilers and CUDA libraries, which fail in ways of their own
        return None, f"{PACKAGE} {version} does not load ({type(error).__name__}: {error}): {hint}"
    if missing:
        return None, f"{PACKAGE} {version} does not know {', '.join(sorted(missing))}: {hint}"
    # Its compiler says so of an argument that this pass leaves empty, at every size; no caller can help it.
    warnings.filterwarnings(
        "ignore", message="Argument aux_data .* cannot be converted", category=UserWarning
    )
    return forward, None
