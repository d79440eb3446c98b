"""What the operators ask of their arguments before any of them computes.

All checks read shapes, types, devices and Python numbers, never values, so that none makes the host wait for a GPU.
What values do wrong stays visible instead: NaN in any input reaches the output, in the twins and in the kernels.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence

from torch import Tensor


def check_chunk_starts(chunk_starts: Sequence[int] | None, frames: int) -> tuple[int, ...] | None:
    """First frames of chunks as a tuple of integers.

    Raises:
        ValueError: unless they are whole, strictly increasing, and within 0 and `frames` - 1.
    """
    if chunk_starts is None:
        return None
    try:
        starts = tuple(operator.index(start) for start in chunk_starts)
    except TypeError:
        raise ValueError(f"chunk_starts {chunk_starts!r}: give whole frame numbers") from None
    if any(a >= b for a, b in itertools.pairwise(starts)):
        raise ValueError(f"chunk_starts {starts}: first frames of chunks must increase")
    if starts and not (starts[0] >= 0 and starts[-1] < frames):
        raise ValueError(f"chunk_starts {starts}: a clip of {frames} frames has frames 0 to {frames - 1}")
    return starts


def check_tensors(like: Tensor, name: str, **others: Tensor | None) -> None:
    """Raise ValueError unless all tensors hold floating numbers, none is empty, and all lie on one device.

    Args:
        like: the tensor whose device counts.
        name: its name, for messages.
        others: by name; None is left out.
    """
    for what, x in ((name, like), *others.items()):
        if x is None:
            continue
        if not x.is_floating_point():
            raise ValueError(f"{what} holds {x.dtype}; give floating numbers")
        if 0 in x.shape:
            raise ValueError(f"{what} is {tuple(x.shape)}: it holds nothing")
        if x.device != like.device:
            raise ValueError(f"{what} is on {x.device}, {name} on {like.device}")


def check_counts(**counts: int | None) -> None:
    """Raise ValueError unless every number is whole and at least 0; None is left out."""
    for name, value in counts.items():
        if value is None:
            continue
        try:
            whole = operator.index(value)
        except TypeError:
            raise ValueError(f"{name} is {value!r}; give a whole number") from None
        if whole < 0:
            raise ValueError(f"{name} is {value}; it must be at least 0")
