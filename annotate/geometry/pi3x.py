"""Sequence geometry by Pi3X: windows of keyframes through the network, joined by `annotate/geometry/windows.py`.

Facts of the network that matter here: frames of a window are interchangeable and its world frame is arbitrary; its
metric factor is one guess per window, so windows differ in unit; intrinsics are not predicted but fitted to the rays.
Images are reduced with width and height scaled separately to multiples of 14, so focal lengths come back per axis.
Sources: Pi3 (arXiv 2507.13347) and its public inference code.
"""

from __future__ import annotations

import logging
import threading
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...dataset.weights import resolve
from ..frames.base import ClipFrames
from ..networks.checkpoint import STAND_IN, fill_stand_in, load_pi3x, stand_in_scene
from ..networks.device import choose_device
from ..networks.pi3x import NotFinite, Pi3X, Pi3XSize
from ..sources.clip import ClipRef, ClipRejection
from .base import Provenance
from .config import KeyframesConfig, Pi3XConfig
from .window_maps import RawWindow
from .windows import KeyframeStream

log = logging.getLogger(__name__)

TINY = Pi3XSize(width=128, encoder_depth=1, decoder_depth=2, head_depth=1, camera_width=64)
"""A stand-in that is quick on any machine; its answers mean nothing."""
TINY_PIXELS = 20_000
"""... and so are its images small."""
OUTPUTS = ("local_points", "conf", "camera_poses")


def image_size(height: int, width: int, max_pixels: int) -> tuple[int, int]:
    """(h, w) of the network's input for frames of (height, width): multiples of 14, at most `max_pixels`.

    Source: the rule of the public inference code; small frames are enlarged.
    """
    scale = (max_pixels / (width * height)) ** 0.5
    columns, rows = round(width * scale / 14), round(height * scale / 14)
    while 196 * columns * rows > max_pixels:
        if columns / max(rows, 1) > width / height:
            columns -= 1
        else:
            rows -= 1
    return 14 * max(1, rows), 14 * max(1, columns)


class Pi3XNetwork:
    """The network as `window_maps.WindowNetwork`; one per process and device (see `pi3x_network`)."""

    name = "Pi3X"

    def __init__(
        self,
        network: Pi3X,
        device: torch.device,
        *,
        max_pixels: int,
        provenance: Provenance,
    ) -> None:
        self.device, self.provenance = device, provenance
        self.max_pixels = max_pixels
        if device.type == "cuda":
            network.to_half()
        self.network = network.to(device)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """See `image_size`."""
        return image_size(height, width, self.max_pixels)

    def predict(self, images: Tensor, frame: NDArray[np.int64]) -> RawWindow:
        """One window; (N, 3, h, w) uint8 in, see `RawWindow`.

        Raises:
            ClipRejection: `geometry_not_finite` if the network's output leaves every number format.
        """
        try:
            try:
                found = self.network(images[None], outputs=OUTPUTS)
            except NotFinite:
                if self.network.head_dtype != torch.float16:
                    raise
                # Half the speed of two convolution heads for ever is better than a hole in one clip.
                self.network.head_dtype = torch.float32
                found = self.network(images[None], outputs=OUTPUTS)
                log.warning(
                    "Pi3X: a dense head overflowed float16; its convolutions run in float32 from here on"
                )
        except NotFinite as error:
            raise ClipRejection(
                "geometry_not_finite", f"clip frames {frame[0]} to {frame[-1]}: {error}"
            ) from None
        points = found["local_points"][0]
        return RawWindow(
            camera_to_world=found["camera_poses"][0],
            points=stand_in_scene(points) if self.provenance.stand_in else points,
            confidence=found["conf"][0, ..., 0].sigmoid(),
        )


_building = threading.Lock()


def pi3x_network(
    config: Pi3XConfig,
    *,
    weights: Literal["released", "stand_in"],
    size: Literal["released", "tiny"],
    device: str,
) -> Pi3XNetwork:
    """The network of this process for a configuration; loaded on the first call.

    Raises:
        ValueError: the weights are absent, damaged, or do not fit.
    """
    with _building:
        return _load(config.model_dump_json(), weights, size, str(choose_device(device)))


@cache
def _load(config_json: str, weights: str, size: str, device: str) -> Pi3XNetwork:
    config = Pi3XConfig.model_validate_json(config_json)
    if weights == "stand_in":
        network = Pi3X(TINY if size == "tiny" else Pi3XSize(), conditioning=False)
        fill_stand_in(network, 0)
        provenance = Provenance((f"{STAND_IN}pi3x-{size}",), ("random numbers",), stand_in=True)
    else:
        found = resolve("pi3x", path=config.path, revision=config.revision, sha256=config.sha256)
        network = load_pi3x(found.path)
        provenance = Provenance((found.label,), (found.licence,))
    return Pi3XNetwork(
        network,
        torch.device(device),
        max_pixels=min(config.max_pixels, TINY_PIXELS)
        if provenance.stand_in and size == "tiny"
        else config.max_pixels,
        provenance=provenance,
    )


class Pi3XGeometry:
    """`SequenceGeometry` of recipes with `sequence: pi3x`."""

    name = "pi3x"

    def __init__(self, network: Pi3XNetwork, config: KeyframesConfig) -> None:
        self.network, self.config = network, config

    def start(self, clip: ClipRef, frames: ClipFrames) -> KeyframeStream:
        """Begin with a clip."""
        return KeyframeStream(self.network, self.config, clip, frames)
