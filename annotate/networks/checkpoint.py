"""State dicts: strict loading, and stand-in weights that can never pass for released ones."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .moge2 import MoGe2, MoGe2Size
from .pi3x import CONDITION_PREFIXES, Pi3X


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
    own = network.state_dict()
    given = {k: v for k, v in tensors.items() if not k.startswith(tuple(ignore)) or k in own}
    problems = [f"missing {k} {tuple(own[k].shape)}" for k in sorted(own.keys() - given.keys())]
    problems += [f"unexpected {k} {tuple(given[k].shape)}" for k in sorted(given.keys() - own.keys())]
    problems += [
        f"{k} has shape {tuple(given[k].shape)}, expected {tuple(own[k].shape)}"
        for k in sorted(own.keys() & given.keys())
        if given[k].shape != own[k].shape
    ]
    problems += [
        f"{k} holds NaN or inf" for k in sorted(own.keys() & given.keys()) if not given[k].isfinite().all()
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"{origin} does not fit {type(network).__name__}: {shown}")
    network.load_state_dict(given)


def load_pi3x(path: Path, *, conditioning: bool = False) -> Pi3X:
    """Pi3X from a `.safetensors` file of the released layout; without conditioning those tensors are not read."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        skip = () if conditioning else CONDITION_PREFIXES
        tensors = {k: file.get_tensor(k) for k in file.keys() if not k.startswith(skip)}  # noqa: SIM118
    with torch.device("meta"):
        network = Pi3X(conditioning=conditioning)
    network.to_empty(device="cpu")
    load_strict(network, tensors, origin=str(path))
    return network


def load_moge2(path: Path) -> MoGe2:
    """MoGe-2 from a released `model.pt`; sizes are read from the file."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(stored, dict) or not {"model", "model_config"} <= stored.keys():
        raise ValueError(f"{path} is no MoGe-2 checkpoint: it must hold 'model' and 'model_config'")
    network = MoGe2(MoGe2Size.from_checkpoint(stored["model_config"]))
    load_strict(network, stored["model"], origin=str(path), ignore=("refiner.",))
    return network


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


def layout_digest(network: nn.Module) -> str:
    """SHA-256 over the sorted lines `name shape` of the state dict: one line to pin a whole layout."""
    lines = (f"{k} {'x'.join(map(str, v.shape))}" for k, v in sorted(network.state_dict().items()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
