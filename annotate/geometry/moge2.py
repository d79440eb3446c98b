"""Metric anchor by MoGe-2: metres on about one frame a second, each frame on its own.

The network gives points up to a shift along z, which follows from the focal length. That is taken from the sequence
geometry where it is known and else pooled over the clip, because the focal length of a single image is biased on long
lenses. So images are seen as they go by, and the shift is solved when the clip is over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...dataset.arrays import FloatArray
from ...dataset.weights import resolve
from ..frames.base import ClipFrames
from ..networks.checkpoint import STAND_IN, fill_stand_in, load_moge2, stand_in_scene
from ..networks.device import choose_device
from ..networks.focal import sample_points, solve_samples
from ..networks.images import upload
from ..networks.lane import lane, next_turn, taken_over, uploading
from ..networks.moge2 import MoGe2, MoGe2Size
from ..sources.clip import ClipRef, ClipRejection
from .base import AnchorFrame, Provenance
from .config import MoGe2Config
from .windows import WINDOWS_IN_FLIGHT


@dataclass(frozen=True, kw_only=True)
class RawImages:
    """What a single-image network says about some frames.

    Attributes:
        points: (B, h, w, 3) float32, known up to a shift along z. valid: (B, h, w) bool, False for sky.
        metric_scale: (B,) metres per unit of (points + shift).
    """

    points: Tensor
    valid: Tensor
    metric_scale: Tensor


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """Of some frames: reduced z (B, h, w) and mask, the samples that focal and shift are solved on, the scale."""

    frame: list[int]
    z: FloatArray
    valid: NDArray[np.bool_]
    samples: Tensor
    used: Tensor
    plane: Tensor
    metric_scale: FloatArray


class ImageNetwork(Protocol):
    """A network that judges images one by one.

    Attributes:
        device: where images are wanted.
        provenance: what goes into the row.
    """

    @property
    def device(self) -> torch.device: ...
    @property
    def provenance(self) -> Provenance: ...

    def predict(self, images: Tensor, frame: Sequence[int]) -> RawImages:
        """Depth of (B, 3, H, W) uint8 images of clip frames `frame`."""
        ...


class MoGe2Network:
    """The network; one per process and device (see `moge2_network`)."""

    def __init__(self, network: MoGe2, device: torch.device, *, level: int, provenance: Provenance) -> None:
        self.device, self.provenance = device, provenance
        low, high = network.size.num_tokens_range
        self.num_tokens = int(low + level / 9 * (high - low))
        if device.type == "cuda":
            network.to_half()
        self.network = network.to(device)

    def predict(self, images: Tensor, frame: Sequence[int]) -> RawImages:
        """(B, 3, H, W) uint8 images of clip frames `frame`."""
        raw = self.network(images, self.num_tokens, normals=False)
        # NaN compares as False, which would make sky of a mask that is no numbers.
        known = raw["mask"].isfinite().flatten(1).all(1)
        return RawImages(
            points=stand_in_scene(raw["points"]) if self.provenance.stand_in else raw["points"],
            valid=raw["mask"] > 0.5,
            metric_scale=torch.where(known, raw["metric_scale"], torch.nan),
        )


_building = threading.Lock()


def moge2_network(
    config: MoGe2Config,
    *,
    weights: Literal["released", "stand_in"],
    size: Literal["released", "tiny"],
    device: str,
) -> MoGe2Network:
    """The network of this process for a configuration; loaded on the first call.

    Raises:
        ValueError: the weights are absent, damaged, or do not fit.
    """
    with _building:
        return _load(config.model_dump_json(), weights, size, str(choose_device(device)))


@cache
def _load(config_json: str, weights: str, size: str, device: str) -> MoGe2Network:
    config = MoGe2Config.model_validate_json(config_json)
    level = config.resolution_level
    if weights == "stand_in":
        sizes = MoGe2Size.tiny() if size == "tiny" else MoGe2Size.released(config.variant)
        network = MoGe2(sizes)
        fill_stand_in(network, 0)
        provenance = Provenance((f"{STAND_IN}moge-2-{size}",), ("random numbers",), stand_in=True)
    else:
        found = resolve(
            f"moge-2-{config.variant}", path=config.path, revision=config.revision, sha256=config.sha256
        )
        network = load_moge2(found.path)
        provenance = Provenance((found.label,), (found.licence,))
    return MoGe2Network(network, torch.device(device), level=level, provenance=provenance)


class MoGe2Anchor:
    """`MetricAnchor` of recipes with `anchor: moge2`."""

    name = "moge2"

    def __init__(self, network: MoGe2Network, config: MoGe2Config) -> None:
        self.network, self.config = network, config

    def start(self, clip: ClipRef, frames: ClipFrames, anchor_frames: Sequence[int]) -> MoGe2Stream:
        """Begin with a clip."""
        return MoGe2Stream(self.network, self.config, clip, frames, anchor_frames)


class MoGe2Stream:
    """Takes a clip's frames one by one and ends with metric depth of some.

    Args:
        network: sees batches of images.
        config: batch and kept size.
        clip: for messages.
        frames: sizes; not iterated here.
        anchor_frames: clip frames to judge.
    """

    watches = True

    def __init__(
        self,
        network: ImageNetwork,
        config: MoGe2Config,
        clip: ClipRef,
        frames: ClipFrames,
        anchor_frames: Sequence[int],
    ) -> None:
        self.network, self.config, self.clip = network, config, clip
        self.provenance = network.provenance
        self.height, self.width = frames.height, frames.width
        self.busy_s = 0.0
        self._turn = next_turn()
        self._wanted = {int(f) for f in anchor_frames}
        self._batch: list[tuple[int, Tensor]] = []
        self._pending: list[Future[_Kept]] = []
        self._room = threading.Semaphore(WINDOWS_IN_FLIGHT)

    def add(self, frame: int, rgb: NDArray[np.uint8]) -> None:
        """Take clip frame `frame`, (height, width, 3) uint8 RGB."""
        if frame not in self._wanted:
            return
        with uploading(self.network.device):
            self._batch.append((frame, upload(rgb, self.network.device, None)))
        if len(self._batch) == self.config.batch:
            self._hand_over()

    def _hand_over(self) -> None:
        for done in [p for p in self._pending if p.done()]:
            done.result()
        self._room.acquire()
        frame = [f for f, _ in self._batch]
        with uploading(self.network.device, wait=True):
            images = torch.stack([image for _, image in self._batch])
        self._batch = []

        def work() -> _Kept:
            start = time.perf_counter()
            try:
                return self._keep(self.network.predict(taken_over(images), frame), frame)
            finally:
                self.busy_s += time.perf_counter() - start
                self._room.release()

        self._pending.append(lane(str(self.network.device)).submit(self._turn, work))

    def _keep(self, raw: RawImages, frame: list[int]) -> _Kept:
        samples, used, plane = sample_points(raw.points, raw.valid)
        # Positions belong to the stored frames, whatever the size of the maps; both cover exactly the image.
        _, h, w, _ = raw.points.shape
        shrink = min(1.0, self.config.kept_side_px / max(h, w))
        device = raw.points.device
        rows, columns = (
            ((torch.arange(n, device=device) + 0.5) * size / n).long()
            for size, n in ((h, max(1, round(h * shrink))), (w, max(1, round(w * shrink))))
        )
        return _Kept(
            frame=frame,
            z=raw.points[:, rows][:, :, columns][..., 2].float().cpu().numpy(),
            valid=raw.valid[:, rows][:, :, columns].cpu().numpy(),
            samples=samples.cpu(),
            used=used.cpu(),
            plane=plane.cpu(),
            metric_scale=raw.metric_scale.float().cpu().numpy(),
        )

    def close(self) -> None:
        """End: nothing that waits is started, and what the network said is let go."""
        for pending in self._pending:
            pending.cancel()
        self._pending.clear()
        self._batch = []

    def finish(self, focal_px: FloatArray | None) -> list[AnchorFrame]:
        """Metric depth of the chosen frames.

        Args:
            focal_px: (F, 2) known focal lengths in pixels of the stored size, NaN rows where unknown. A frame without
                one takes the focal pooled over the clip's frames.
        Returns:
            Frames with at least 16 usable samples and a finite scale; the others are left out.
        Raises:
            ClipRejection: `geometry_not_finite` if the network's answer is no numbers on every frame.
        """
        if self._batch:
            self._hand_over()
        kept = [pending.result() for pending in self._pending]
        if not kept:
            return []
        samples, used, plane = (
            torch.cat([k.samples for k in kept]),
            torch.cat([k.used for k in kept]),
            kept[0].plane,
        )
        frame = [f for k in kept for f in k.frame]
        to_px = float(np.hypot(self.height, self.width)) / 2
        own, _ = solve_samples(samples, used, plane)
        # Square pixels are the network's assumption: of unequal focal lengths it gets the geometric mean.
        known = np.full(len(frame), np.nan)
        if focal_px is not None:
            known = np.sqrt(np.prod(np.asarray(focal_px, np.float64)[frame], axis=1)) / to_px
        focal = torch.as_tensor(known)
        if not np.isfinite(known).all():
            pooled, _ = solve_samples(samples, used, plane, pooled=True)
            focal = torch.where(focal.isfinite(), focal, pooled.double())
        _, shift = solve_samples(samples, used, plane, focal=focal)
        enough = used.sum(1) >= 16
        out = []
        scale = np.concatenate([k.metric_scale for k in kept])
        z, valid = np.concatenate([k.z for k in kept]), np.concatenate([k.valid for k in kept])
        # Depth is infinite where the network sees none: a clip of sky is no failure, numbers that are none are.
        seen = valid.any((1, 2))
        held = (np.isfinite(z) & valid).any((1, 2))
        if (
            not np.isfinite(scale).any()
            or np.isnan(z).all()
            or (seen.any() and not (held & np.isfinite(scale)).any())
        ):
            raise ClipRejection(
                "geometry_not_finite",
                f"clip {self.clip.clip_id}: MoGe-2 gave no finite depth and scale on any of {len(frame)} frames",
            )
        for i, f in enumerate(frame):
            if not (np.isfinite(scale[i]) and bool(enough[i]) and np.isfinite(float(shift[i]))):
                continue
            depth = z[i] + float(shift[i])
            usable = valid[i] & np.isfinite(depth) & (depth > 0)
            out.append(
                AnchorFrame(
                    frame=f,
                    depth_m=np.where(usable, depth * scale[i], np.where(valid[i], np.nan, np.inf)).astype(
                        np.float32
                    ),
                    focal_px=float(own[i]) * to_px,
                )
            )
        return out
