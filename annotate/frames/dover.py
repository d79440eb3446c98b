"""DOVER's score of a video's quality (Wu et al., ICCV 2023): its two views of a clip, a network that is given, and the
fused score.

The network's code and weights are not part of this package: either TorchScript, or the authors' package with their
weights. Where their sampler draws offsets at random, also when it tests, the middle is taken here: the same clip has
the same score.
"""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...dataset.arrays import U8

Network = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(n, 3, 32, 224, 224) technical and (1, 3, 32, 224, 224) aesthetic view to the scores of both, of any shape."""

CHUNK_S = 5.0
UNTIL_S = 60.0
"""Scores are means over whole chunks of five seconds of the first minute, as in SANA-WM's lineage."""
_MEAN = torch.tensor([123.675, 116.28, 103.53])
_STD = torch.tensor([58.395, 57.12, 57.375])
_FRAMES, _INTERVAL, _CLIPS = 32, 2, 3
_GRID, _PATCH = 7, 32
_SIDE = _GRID * _PATCH


def fused(technical: float, aesthetic: float) -> float:
    """Score in (0, 1) of both views' raw scores. Source: VQAssessment/DOVER, evaluate_one_video.py."""
    x = 0.6104 * (technical - 0.1107) / 0.07355 + 0.3896 * (aesthetic + 0.08285) / 0.03774
    return 1.0 / (1.0 + math.exp(-max(-700.0, min(700.0, x))))


def chunks(num_frames: int, fps: float) -> list[range]:
    """Clip frames of every whole chunk; all of a clip that is shorter than one."""
    length = max(1, round(CHUNK_S * fps))
    count = min(num_frames // length, round(UNTIL_S / CHUNK_S))
    return [range(i * length, (i + 1) * length) for i in range(count)] or [range(num_frames)]


def technical_frames(num_frames: int) -> list[int]:
    """Positions of the three clips of the technical view, one begins in each third; at the end they start over."""
    third = num_frames // _CLIPS
    spare = max(0, third - _FRAMES * _INTERVAL) // 2
    return [(c * third + spare + f * _INTERVAL) % num_frames for c in range(_CLIPS) for f in range(_FRAMES)]


def aesthetic_frames(num_frames: int) -> list[int]:
    """Positions of the aesthetic view: one in each of 32 stretches."""
    stretch = num_frames // _FRAMES
    spare = max(0, stretch - _INTERVAL) // 2
    return [(f * stretch + spare) % num_frames for f in range(_FRAMES)]


def technical_view(frames: U8) -> Tensor:
    """(3, 3, 32, 224, 224): 7 x 7 patches of full resolution, side by side, of (F, H, W, 3) frames."""
    chosen = torch.from_numpy(np.stack([frames[i] for i in technical_frames(len(frames))]))
    video = chosen.permute(3, 0, 1, 2)  # (3, 96, H, W)
    height, width = video.shape[-2:]
    if min(height, width) < _SIDE:  # as the authors': enlarged until a patch fits everywhere
        factor = _SIDE / min(height, width)
        size = max(_SIDE, round(height * factor)), max(_SIDE, round(width * factor))
        video = torch.nn.functional.interpolate(
            video.transpose(0, 1).float(), size=size, mode="bilinear", align_corners=False
        ).transpose(0, 1)
        height, width = video.shape[-2:]
    rows = [torch.cat([video[..., y, x] for x in _patches(width)], dim=-1) for y in _patches(height)]
    return _normalised(torch.cat(rows, dim=-2).float()).unflatten(1, (_CLIPS, _FRAMES)).transpose(0, 1)


def _patches(size: int) -> list[slice]:
    cell = size // _GRID
    spare = max(0, cell - _PATCH) // 2
    starts = [min(cell * i + spare, size - _PATCH) for i in range(_GRID)]
    return [slice(s, s + _PATCH) for s in starts]


def aesthetic_view(frames: U8) -> Tensor:
    """(1, 3, 32, 224, 224): whole pictures, reduced, of (F, H, W, 3) frames."""
    chosen = torch.from_numpy(np.stack([frames[i] for i in aesthetic_frames(len(frames))]))
    video = chosen.permute(0, 3, 1, 2).float()
    video = torch.nn.functional.interpolate(video, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
    return _normalised(video.transpose(0, 1))[None]


def _normalised(video: Tensor) -> Tensor:
    return (video - _MEAN.view(3, 1, 1, 1)) / _STD.view(3, 1, 1, 1)


def score_chunk(frames: U8, network: Network, device: torch.device) -> float:
    """Fused score of one chunk of (F, H, W, 3) frames.

    Raises:
        ValueError: the network's scores are not finite.
    """
    with torch.inference_mode():
        technical, aesthetic = network(technical_view(frames).to(device), aesthetic_view(frames).to(device))
    scores = [float(s.float().mean()) for s in (technical, aesthetic)]
    if not all(math.isfinite(s) for s in scores):
        raise ValueError(f"DOVER's scores are {scores}")
    return fused(*scores)


def load_network(weights: Path, device: torch.device) -> Network:
    """A network from a file: TorchScript of both views, or the authors' weights for their package.

    Raises:
        ValueError: no such file, neither, or weights without the authors' package.
    """
    if not weights.is_file():
        raise ValueError(f"{weights}: no such file; DOVER's weights are released with VQAssessment/DOVER")
    try:
        scripted = torch.jit.load(str(weights), map_location=device).eval()
        return lambda technical, aesthetic: scripted(technical, aesthetic)
    except RuntimeError:
        pass  # no TorchScript: weights
    try:
        state: Any = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever a foreign file does to the reader
        raise ValueError(
            f"{weights}: neither TorchScript nor weights that load safely ({str(error).splitlines()[0][:200]})"
        ) from None
    try:
        # brought by whoever wants it
        models: Any = importlib.import_module("dover.models")
    except ImportError as error:
        raise ValueError(
            f"{weights}: DOVER's weights need the authors' package ({error}): install VQAssessment/DOVER from its"
            " repository (the package of this name on PyPI is another), or give TorchScript of it"
        ) from None
    model = _build(models)
    try:
        model.load_state_dict(state.get("state_dict", state))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"{weights}: not DOVER's weights ({' '.join(str(error).split())[:200]})") from None
    model = model.to(device).eval()

    def scores(technical: Tensor, aesthetic: Tensor) -> tuple[Tensor, Tensor]:
        # The authors' forward answers in the order of the views that it is given.
        found: Sequence[Tensor] = model({"technical": technical, "aesthetic": aesthetic})
        return found[0], found[1]

    return scores


def _build(models: Any) -> Any:
    """The authors' network without weights. Their code fetches ImageNet's for the aesthetic view, which DOVER's own
    replace at once: not asked for here, so that a machine without the internet has it as well."""
    evaluator: Any = importlib.import_module("dover.models.evaluator")
    with ExitStack() as held:
        held.enter_context(redirect_stdout(io.StringIO()))  # it tells of each of its parts
        original = getattr(evaluator, "convnext_3d_tiny", None)
        if original is not None:
            held.callback(setattr, evaluator, "convnext_3d_tiny", original)
            evaluator.convnext_3d_tiny = lambda pretrained=False, **more: original(pretrained=False, **more)
        return models.DOVER(
            backbone={"technical": {"type": "swin_tiny_grpb"}, "aesthetic": {"type": "conv_tiny"}},
            backbone_preserve_keys="technical,aesthetic",
            divide_head=True,
            vqa_head={"in_channels": 768, "hidden_channels": 64},
        )
