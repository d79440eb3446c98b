"""State dicts: strict loading, and stand-in weights that can never pass for released ones."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...dataset.inputs import what_instead
from .moge2 import MoGe2, MoGe2Size
from .pi3x import CONDITION_PREFIXES, Pi3X
from .variants import Variant


def load_strict(
    network: nn.Module, tensors: Mapping[str, Tensor], *, origin: str, ignore: Collection[str] = ()
) -> None:
    """Copy a state dict into a network; every tensor must find its place.

    Args:
        network: receives the values, in its own types.
        tensors: state dict.
        origin: file or repository, for messages.
        ignore: prefixes of tensors that may be there and are not used.
    Raises:
        ValueError: naming the missing, unexpected or wrong-shaped tensors.
    """
    problems = _misfits(network, {k: tuple(v.shape) for k, v in tensors.items()}, ignore)
    own = network.state_dict()
    given = {k: v for k, v in tensors.items() if not k.startswith(tuple(ignore)) or k in own}
    problems += [
        f"{k} holds NaN or inf" for k in sorted(own.keys() & given.keys()) if not given[k].isfinite().all()
    ]
    _refuse(network, problems, origin)
    network.load_state_dict(given)


def _misfits(network: nn.Module, shapes: Mapping[str, tuple[int, ...]], ignore: Collection[str]) -> list[str]:
    """What keeps tensors of these names and shapes from filling a network."""
    own = network.state_dict()
    given = {k: v for k, v in shapes.items() if not k.startswith(tuple(ignore)) or k in own}
    problems = [f"missing {k} {tuple(own[k].shape)}" for k in sorted(own.keys() - given.keys())]
    problems += [f"unexpected {k} {given[k]}" for k in sorted(given.keys() - own.keys())]
    problems += [
        f"{k} has shape {given[k]}, expected {tuple(own[k].shape)}"
        for k in sorted(own.keys() & given.keys())
        if given[k] != tuple(own[k].shape)
    ]
    return problems


def _refuse(network: nn.Module, problems: list[str], origin: str) -> None:
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"{origin} does not fit {type(network).__name__}: {shown}")


def safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a `.safetensors` file, from its header alone.

    Raises:
        ValueError: naming the file and what is wrong with it: no such format, or shorter than its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length) if 2 <= length <= size - 8 else b""
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        shapes = {name: tuple(int(n) for n in entry["shape"]) for name, entry in header.items()}
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ValueError(f"{path} is no safetensors file{_what_else(path)}") from None
    if size != end:
        what = "truncated" if size < end else "longer than its header says"
        raise ValueError(f"{path} is {what}: {size} bytes, of {end}; fetch it again")
    return shapes


def _what_else(path: Path) -> str:
    return what_instead(path) or ", or it is damaged"


def check_pi3x(path: Path) -> None:
    """Make sure by its header that a file holds Pi3X; reads no tensor.

    Raises:
        ValueError: as `safetensors_shapes`, or naming the tensors that do not fit.
    """
    shapes = {k: v for k, v in safetensors_shapes(path).items() if not k.startswith(CONDITION_PREFIXES)}
    with torch.device("meta"):
        network = Pi3X(conditioning=False)
    _refuse(network, _misfits(network, shapes, ()), str(path))


def check_moge2(path: Path, variant: Variant) -> None:
    """Make sure that a file holds the MoGe-2 network that is asked for; its tensors are mapped, not read.

    Raises:
        ValueError: as `load_moge2`, or it holds another variant.
    """
    stored = _read_moge2(path, mapped=True)
    size = _moge2_size(path, stored)
    wanted = MoGe2Size.released(variant)
    for what in ("width", "depth", "heads"):
        found, expected = (
            [h for h, _ in s.heads] if what == "heads" else getattr(s, what) for s in (size, wanted)
        )
        if found != expected:
            raise ValueError(f"{path} is not MoGe-2 {variant}: {what} {found}, expected {expected}")
    with torch.device("meta"):
        network = MoGe2(size)
    shapes = {k: tuple(v.shape) for k, v in stored["model"].items()}
    _refuse(network, _misfits(network, shapes, ("refiner.",)), str(path))


def _read_moge2(path: Path, *, mapped: bool) -> dict[str, Any]:
    try:
        # Files of before 2020 are no ZIP archives and cannot be mapped.
        mapped = mapped and zipfile.is_zipfile(path)
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (
        RuntimeError,
        OSError,
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
    ) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is no checkpoint{_what_else(path)} ({reason})") from None
    if not isinstance(stored, dict) or not {"model", "model_config"} <= stored.keys():
        raise ValueError(f"{path} is no MoGe-2 checkpoint: it must hold 'model' and 'model_config'")
    model, config = stored["model"], stored["model_config"]
    if not isinstance(model, Mapping) or not all(isinstance(v, Tensor) for v in model.values()):
        raise ValueError(f"{path} is no MoGe-2 checkpoint: its 'model' is no table of tensors")
    if not isinstance(config, Mapping):
        raise ValueError(f"{path} is no MoGe-2 checkpoint: its 'model_config' is no table")
    return stored


def _moge2_size(path: Path, stored: Mapping[str, Any]) -> MoGe2Size:
    """Sizes that a checkpoint states of its network.

    Raises:
        ValueError: naming the file and what it lacks, or has that this network does not.
    """
    try:
        return MoGe2Size.from_checkpoint(stored["model_config"])
    except ValueError as error:
        raise ValueError(f"{path} is no MoGe-2 checkpoint of a known kind: {error}") from None
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else "does not state its sizes"
        raise ValueError(f"{path} is no MoGe-2 checkpoint of a known kind: model_config {what}") from None


def load_pi3x(path: Path, *, conditioning: bool = False) -> Pi3X:
    """Pi3X from a `.safetensors` file of the released layout; without conditioning those tensors are not read.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    from safetensors import safe_open

    safetensors_shapes(path)
    with safe_open(path, framework="pt") as file:
        skip = () if conditioning else CONDITION_PREFIXES
        tensors = {k: file.get_tensor(k) for k in file.keys() if not k.startswith(skip)}  # noqa: SIM118
    with torch.device("meta"):
        network = Pi3X(conditioning=conditioning)
    network.to_empty(device="cpu")
    load_strict(network, tensors, origin=str(path))
    return network


def load_moge2(path: Path) -> MoGe2:
    """MoGe-2 from a released `model.pt`; sizes are read from the file.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    stored = _read_moge2(path, mapped=False)
    network = MoGe2(_moge2_size(path, stored))
    load_strict(network, stored["model"], origin=str(path), ignore=("refiner.",))
    return network


STAND_IN = "stand-in:"
"""How labels of weights begin that are random numbers. No clip is accepted with them, whatever its gates say."""


@torch.no_grad()
def fill_stand_in(network: nn.Module, seed: int) -> None:
    """Random weights of useful magnitude, the same for the same seed; rows made with them are stand-ins.

    Products keep their input's magnitude, LayerScale lets every block contribute, norms vary around one.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(network.state_dict().items()):
        if name.endswith(("image_mean", "image_std")):
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("gamma"):
            value = 0.2 + 0.05 * noise
        elif tensor.ndim == 1 and name.endswith("weight"):
            value = 1 + 0.1 * noise
        elif tensor.ndim == 1:
            value = 0.05 * noise
        elif name.endswith(("pos_embed", "token", "tokens", "depth_emb")):
            value = 0.5 * noise
        else:
            value = noise / max(1, tensor[0].numel()) ** 0.5
        tensor.copy_(value)


def stand_in_scene(points: Tensor) -> Tensor:
    """Numbers of a random network as points that a camera could see, so that a machine can be tried to the end.

    Random points have no focal length and no surface, and every clip would end at its scale.

    Args:
        points: (B, H, W, 3).
    Returns:
        (B, H, W, 3) on a smooth surface 2 to 4 units away, under a horizontal field of view of 60 degrees.
    """
    _, h, w, _ = points.shape
    z = points[..., 2].clamp(-100, 100)[:, None]
    coarse = F.adaptive_avg_pool2d(z.float(), (3, 4))
    z = 3 + torch.tanh(F.interpolate(coarse, (h, w), mode="bilinear"))[:, 0, ..., None].to(points.dtype)
    half = math.tan(math.radians(30))
    x = torch.linspace(-half, half, w, dtype=z.dtype, device=z.device)[:, None].expand(h, w, 1)
    y = torch.linspace(-half * h / w, half * h / w, h, dtype=z.dtype, device=z.device)[:, None, None]
    return torch.cat([x * z, y.expand(h, w, 1) * z, z], dim=-1)


def layout_digest(network: nn.Module) -> str:
    """SHA-256 over the sorted lines `name shape` of the state dict: one line to pin a whole layout."""
    lines = (f"{k} {'x'.join(map(str, v.shape))}" for k, v in sorted(network.state_dict().items()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
