"""How lenses bend: a ray at the angle t from the axis, r = tan t, is seen at f r s from the principal point.

A radial lens has s = 1 + k1 r^2 + k2 r^4 (Brown 1966), an equidistant fisheye s = t (1 + k1 t^2 + k2 t^4) / r (Kannala
and Brandt 2006, two terms). A lens near a pinhole is a radial one whose terms are so small that they are left to the
bundle: what comes before takes it for a pinhole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LensModel = Literal["near_pinhole", "radial", "fisheye"]
LENS_DOF = 5  # principal point x and y (pixels), log pixel aspect fy / fx, radial k1 and k2
_STEPS = 25
_WIDEST = 1.53
"""Angle in radians beyond which no ray is followed: its point would be 25 times as far off the axis as ahead."""
_FINENESS = 400


@dataclass(frozen=True)
class Lens:
    """A lens to begin with.

    Attributes:
        model: how it bends.
        terms: (5,) principal point off the image's centre (pixels), log pixel aspect, k1, k2; None: zeros.
        off_centre: its principal point may lie well off the centre, as in a picture that was cropped.
    """

    model: LensModel = "near_pinhole"
    terms: Tensor | None = None
    off_centre: bool = False

    @property
    def is_pinhole(self) -> bool:
        """What comes before a bundle takes it for a pinhole in the middle of the picture."""
        return self.model == "near_pinhole" and not self.off_centre

    def start(self) -> Tensor:
        """(5,) terms."""
        return torch.zeros(LENS_DOF, dtype=torch.float64) if self.terms is None else self.terms


NEAR_PINHOLE = Lens()


def bending(model: LensModel, r2: Tensor, k1: Tensor, k2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """s at the squared radii r2, its derivative by r2, and (2, ...) its derivatives by k1 and k2, all of r2's shape."""
    if model != "fisheye":
        r4 = r2 * r2
        return 1 + r2 * (k1 + k2 * r2), k1 + 2 * k2 * r2, torch.stack([r2, r4])
    # Near the axis t / r is 1 - r^2 / 3, to rounding.
    near = r2 < 1e-8
    safe = torch.where(near, torch.ones_like(r2), r2)
    r = safe.sqrt()
    t = torch.atan(r)
    share = torch.where(near, 1 - r2 / 3, t / r)
    share_slope = torch.where(near, torch.full_like(r2, -1 / 3), (1 / (1 + safe) - t / r) / (2 * safe))
    t2 = share * share * r2
    # t^2 by r^2: the angle grows by dr / (1 + r^2).
    t2_slope = torch.where(near, torch.ones_like(r2), t / (r * (1 + safe)))
    polynomial = 1 + t2 * (k1 + k2 * t2)
    slope = share_slope * polynomial + share * (k1 + 2 * k2 * t2) * t2_slope
    return share * polynomial, slope, torch.stack([share * t2, share * t2 * t2])


def straightened(model: LensModel, seen: Tensor, k1: Tensor, k2: Tensor) -> Tensor:
    """(N, 2) = (X/Z, Y/Z) of the rays that a lens shows at `seen` (N, 2), in focal lengths from the principal point.

    Where the lens shows nothing so far out, the ray at the border of what it shows.
    """
    length = seen.norm(dim=1)
    angle = torch.linspace(0, _WIDEST, _FINENESS, dtype=seen.dtype, device=seen.device)
    radius = angle.tan()
    shown = radius * bending(model, radius * radius, k1, k2)[0]
    # Up to the first fold the radius of the image grows with that of the ray.
    falls = torch.nonzero(shown[1:] <= shown[:-1])[:, 0]
    end = int(falls[0]) + 1 if len(falls) else _FINENESS
    wanted = length.clamp_max(float(shown[end - 1]))
    after = torch.searchsorted(shown[:end].contiguous(), wanted.contiguous()).clamp(1, end - 1)
    low, high = angle[after - 1], angle[after]
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        r = middle.tan()
        beyond = r * bending(model, r * r, k1, k2)[0] > wanted
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    found = (0.5 * (low + high)).tan()
    return seen * (found / length.clamp_min(1e-12))[:, None]
