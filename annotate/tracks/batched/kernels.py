"""Where kernels run instead of their plain twins."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from torch import Tensor


@cache
def _kernels() -> ModuleType | None:
    """The Triton kernels, or None where Triton is not installed."""
    try:
        from . import triton_kernels
    except ImportError:
        return None
    return triton_kernels


def kernels_for(x: Tensor) -> ModuleType | None:
    """The kernels if `x` lies where they run."""
    return _kernels() if x.is_cuda else None
