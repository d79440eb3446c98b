"""How torch divides a GPU's memory; it reads this once, so a command says it before torch is imported."""

from __future__ import annotations

import os

_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def use_expandable_segments() -> None:
    """Let torch's allocator grow its segments instead of leaving gaps, unless the user has set it up.

    Parts of 25 GB come and go on a card of 24 to 80 GB; what lies in gaps between them is lost for the largest.
    """
    if not any(name in os.environ for name in _NAMES):
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
