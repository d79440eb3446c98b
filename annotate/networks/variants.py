"""Which variants of MoGe-2 are published, and on which backbone each stands."""

from __future__ import annotations

from typing import Literal

BACKBONES = {"dinov2_vitl14": (1024, 24), "dinov2_vitb14": (768, 12), "dinov2_vits14": (384, 12)}
Variant = Literal["vitl", "vitl-normal", "vitb-normal", "vits-normal"]
