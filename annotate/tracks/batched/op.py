"""Lucas-Kanade by the kernel where there is a GPU, by its plain twin elsewhere."""

from __future__ import annotations

from torch import Tensor

from .images import Images
from .kernels import kernels_for
from .reference import Found
from .reference import follow as follow_reference


def follow(
    images: Images,
    pair: tuple[Tensor, Tensor],
    xy: Tensor,
    guess: Tensor,
    *,
    levels: tuple[int, int],
    radius: int,
) -> Found:
    """See `reference.follow`."""
    kernels = kernels_for(xy)
    if kernels is not None:
        return kernels.follow(images, pair, xy, guess, levels=levels, radius=radius)
    return follow_reference(images, pair, xy, guess, levels=levels, radius=radius)
