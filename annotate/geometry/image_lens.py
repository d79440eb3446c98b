"""Focal length of a single image by the networks that annotate clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ..networks.focal import sample_points, solve_samples
from ..networks.images import upload
from ..sources.clip import ClipRejection
from .base import Provenance
from .config import MoGe2Config, Pi3XConfig
from .moge2 import moge2_network
from .pi3x import pi3x_network
from .window_maps import fit_focal

LensNetwork = Literal["moge-2", "pi3x"]


@dataclass(frozen=True, kw_only=True)
class ImageLens:
    """What a network says of an image's lens.

    Attributes:
        focal_px: of square pixels, with the principal point in the middle.
        provenance: of the network.
    """

    focal_px: float
    provenance: Provenance


def estimate_lens(
    rgb: NDArray[np.uint8],
    *,
    network: LensNetwork | str = "moge-2",
    weights: Literal["released", "stand_in"] = "released",
    size: Literal["released", "tiny"] = "released",
    device: str = "auto",
) -> ImageLens:
    """Focal length of an image.

    Args:
        rgb: (H, W, 3) uint8.
        network: moge-2 (one image is what it is made for) or pi3x (as the released inference code does).
        weights, size, device: as in recipes (`annotate.geometry`).
    Raises:
        ValueError: an unknown network, weights that are absent, or no focal length in the answer.
    """
    if network not in get_args(LensNetwork):
        raise ValueError(
            f"network {network!r}: the lens is estimated by {' or '.join(get_args(LensNetwork))}"
        )
    height, width = rgb.shape[:2]
    ask = _by_moge2 if network == "moge-2" else _by_pi3x
    try:
        focal, found = ask(rgb, weights, size, device)
    except ClipRejection as rejection:
        raise ValueError(f"{network} gives no focal length for this image: {rejection.detail}") from None
    if not (np.isfinite(focal) and focal > 0):
        raise ValueError(
            f"{network} gives no focal length for this image of {width}x{height}; give --intrinsics"
        )
    return ImageLens(focal_px=float(focal), provenance=found.provenance)


def _by_moge2(rgb: NDArray[np.uint8], weights: Literal["released", "stand_in"], size, device: str):
    found = moge2_network(MoGe2Config(), weights=weights, size=size, device=device)
    with torch.inference_mode():
        raw = found.predict(upload(rgb, found.device, None)[None], [0])
        samples, used, plane = sample_points(raw.points, raw.valid)
        focal, _ = solve_samples(samples.cpu(), used.cpu(), plane.cpu())
    return float(focal[0]) * float(np.hypot(*rgb.shape[:2])) / 2, found


def _by_pi3x(rgb: NDArray[np.uint8], weights: Literal["released", "stand_in"], size, device: str):
    height, width = rgb.shape[:2]
    found = pi3x_network(Pi3XConfig(), weights=weights, size=size, device=device)
    with torch.inference_mode():
        image = upload(rgb, found.device, found.input_size(height, width))
        window = found.predict(image[None], np.zeros(1, np.int64))
        both = fit_focal(window.points.float(), window.confidence.float(), height=height, width=width)[0]
    return float(both.prod().sqrt()), found
