"""LoRA files, merged into a network once and for all, through peft.

A file may come from peft (with `adapter_config.json` beside it), from diffusers' trainers or from others that keep
`lora_down`, `lora_up` and `alpha`. Every tensor of it must find its layer: one that does not is an error that names it.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .checkpoint import own_name
from .network import WorldModel
from .refiner import SOUND, Refiner
from .released import import_peft
from .seals import check_digests
from .weight_files import opened_safetensors

_PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", "model.", "module.", "dit.")
"""What trainers put in front of a network's own names, in any order and number."""

_HALF = re.compile(
    r"(?P<layer>.+)\.(?:lora_(?P<letter>A|B)(?:\.[^.]+)?\.weight|lora_(?P<word>down|up)\.weight|(?P<alpha>alpha))"
)


@dataclass(frozen=True)
class LoraReport:
    """What was merged; goes into the run's record.

    Attributes:
        path: the file.
        layers: number of layers that it changed.
        ranks: all of its ranks.
        scale: how strongly it was merged.
        skipped: tensors for parts that the network does not have here (the refiner's sound).
    """

    path: str
    layers: int
    ranks: tuple[int, ...]
    scale: float
    skipped: int


@dataclass(frozen=True)
class _Layer:
    """One layer's pair of matrices, and what their product is multiplied by."""

    down: Tensor
    up: Tensor
    factor: float

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


def parse_lora(text: str) -> tuple[Path, float]:
    """File and scale of `FILE` or `FILE=SCALE`.

    Raises:
        ValueError: the scale is no finite number.
    """
    path, separator, number = text.rpartition("=")
    if not separator or Path(text).exists():
        return Path(text), 1.0
    try:
        scale = float(number)
    except ValueError:
        scale = math.nan
    if not path or not math.isfinite(scale):
        raise ValueError(f"LoRA {text!r}: give FILE or FILE=SCALE, the scale a finite number")
    return Path(path), scale


def merge_lora(part: WorldModel | Refiner, path: Path | str, *, scale: float = 1.0) -> LoraReport:
    """Add a LoRA to the weights of the world model or the refiner.

    Args:
        part: changed in place; on whatever device it is.
        path: a safetensors file, or a folder with `adapter_model.safetensors`.
        scale: of its effect; 1 as trained.
    Returns:
        what was merged.
    Raises:
        FileNotFoundError, ValueError: the file is missing, damaged, or for another network; the message names tensors.
        ModuleNotFoundError: peft is not installed.
    """
    if not math.isfinite(scale):
        raise ValueError(f"LoRA scale {scale}: give a finite number")
    file = _find(Path(path))
    if isinstance(part, Refiner):
        module, rename, left_out = part.transformer, str, SOUND
    else:
        module, rename, left_out = part, own_name, ()
    layers, skipped = _read(file, module, rename, left_out)
    groups: dict[tuple[int, float], dict[str, _Layer]] = defaultdict(dict)
    for name, layer in layers.items():
        groups[layer.rank, layer.factor][name] = layer
    for (rank, factor), members in groups.items():
        _merge(module, members, rank=rank, factor=factor * scale, origin=str(file))
    ranks = tuple(sorted({layer.rank for layer in layers.values()}))
    return LoraReport(str(path), len(layers), ranks, scale, skipped)


def look_at_lora(path: Path | str) -> None:
    """Whether a file can be a LoRA, by its header: said before networks of gigabytes are loaded.

    Raises:
        FileNotFoundError, ValueError: it is missing, damaged or something else.
    """
    file = _find(Path(path))
    with opened_safetensors(file) as opened:
        names = list(opened.keys())
    if not any(_HALF.fullmatch(name) for name in names):
        shown = ", ".join(names[:3]) or "nothing"
        raise ValueError(f"{file} holds no LoRA: it has {shown}")


def _find(path: Path) -> Path:
    if path.is_dir():
        found = path / "adapter_model.safetensors"
        if not found.is_file():
            raise FileNotFoundError(f"{path} holds no adapter_model.safetensors: name the LoRA's file")
        return found
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such LoRA file")
    return path


def _read(
    file: Path, module: nn.Module, rename: Callable[[str], str], left_out: Sequence[str]
) -> tuple[dict[str, _Layer], int]:
    """Pairs of matrices by the name of their layer, and how many tensors were for parts that are not here."""
    with opened_safetensors(file) as opened:
        stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata() or {}
    check_digests(file, stored, metadata)
    settings = _settings(file, metadata)
    modules = dict(module.named_modules())
    halves: dict[str, dict[str, Tensor]] = defaultdict(dict)
    unknown, skipped = [], 0
    for name, tensor in stored.items():
        match = _HALF.fullmatch(name)
        layer = None if match is None else _layer_name(match["layer"], modules, rename)
        if match is not None and layer is None and set(match["layer"].split(".")) & set(left_out):
            skipped += 1
        elif match is None or layer is None:
            unknown.append(name)
        else:
            half = "alpha" if match["alpha"] else {"A": "down", "B": "up"}.get(match["letter"], match["word"])
            halves[layer][half] = tensor
    if unknown:
        shown = ", ".join(unknown[:6]) + (f" and {len(unknown) - 6} more" if len(unknown) > 6 else "")
        raise ValueError(f"{file} is no LoRA for this {type(module).__name__}: it has no layer for {shown}")
    if not halves:
        raise ValueError(f"{file} holds no LoRA")
    layers = {name: _layer(file, name, half, settings) for name, half in halves.items()}
    for name, layer in layers.items():
        _check_fit(file, name, layer, modules[name])
    return layers, skipped


def _check_fit(file: Path, name: str, layer: _Layer, module: nn.Module) -> None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2 or getattr(module, "groups", 1) != 1:
        raise ValueError(f"{file}: {name} is a {type(module).__name__}, which no LoRA can be merged into")
    if layer.down[0].numel() != weight[0].numel() or layer.up.shape[0] != weight.shape[0]:
        raise ValueError(
            f"{file}: layer {name} is {tuple(weight.shape)}, the file has matrices of {tuple(layer.down.shape)} and "
            f"{tuple(layer.up.shape)}"
        )


def _layer_name(name: str, modules: Mapping[str, nn.Module], rename: Callable[[str], str]) -> str | None:
    """The network's name of a layer."""
    while True:
        # Files of checkpoints call some layers otherwise; the rule is made for whole names of tensors.
        own = rename(f"{name}.weight").removesuffix(".weight")
        for candidate in (name, own):
            if candidate in modules:
                return candidate
        shorter = next((name[len(p) :] for p in _PREFIXES if name.startswith(p)), None)
        if shorter is None:
            return None
        name = shorter


def _layer(file: Path, name: str, half: Mapping[str, Tensor], settings: Mapping[str, Any]) -> _Layer:
    missing = {"down", "up"} - half.keys()
    if missing:
        raise ValueError(f"{file}: layer {name} has no {' and no '.join(sorted(missing))} matrix")
    down, up = half["down"], half["up"]
    if down.ndim < 2 or up.ndim != down.ndim or up.shape[1] != down.shape[0]:
        raise ValueError(
            f"{file}: layer {name} has matrices {tuple(down.shape)} and {tuple(up.shape)}, which do not make a product"
        )
    if not bool(down.isfinite().all() and up.isfinite().all()):
        raise ValueError(f"{file}: layer {name} holds NaN or inf")
    rank = down.shape[0]
    if not rank:
        raise ValueError(f"{file}: layer {name} has rank 0")
    try:
        alpha = float(half["alpha"] if "alpha" in half else _of(name, settings, "alpha", rank))
    except (TypeError, ValueError, AttributeError, RuntimeError, re.error) as error:
        raise ValueError(f"{file}: alpha of layer {name} is no number: {error}") from error
    if not math.isfinite(alpha):
        raise ValueError(f"{file}: alpha of layer {name} is {alpha:g}")
    root = math.sqrt(rank) if settings.get("use_rslora") else rank
    return _Layer(down, up, alpha / root)


def _of(name: str, settings: Mapping[str, Any], what: str, default: float) -> float:
    """A number of peft's settings: of the layer if there is one, else of all."""
    for pattern, value in (settings.get(f"{what}_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return value
    found = settings.get(f"lora_{what}")
    return default if found is None else found


def _settings(file: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """peft's settings beside the file, or in what diffusers writes into it; empty: alpha is the rank."""
    beside = file.with_name("adapter_config.json")
    try:
        text = (
            beside.read_text(encoding="utf-8") if beside.is_file() else metadata.get("lora_adapter_metadata")
        )
        if text is None:
            return {}
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: its LoRA settings are no JSON: {error}") from error
    settings = {key.split(".")[-1]: value for key, value in found.items()}
    for name in ("use_dora", "lora_bias"):
        if settings.get(name):
            raise ValueError(f"{file} was trained with {name}, which is not known here")
    return settings


def _merge(module: nn.Module, layers: Mapping[str, _Layer], *, rank: int, factor: float, origin: str) -> None:
    peft = import_peft()
    pattern = "|".join(re.escape(name) for name in layers)
    config = peft.LoraConfig(
        r=rank, lora_alpha=factor * rank, target_modules=f"({pattern})", init_lora_weights=False
    )
    try:
        peft.inject_adapter_in_model(config, module, adapter_name="merged", low_cpu_mem_usage=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{origin}: {str(error).splitlines()[0]}") from error
    try:
        for name, layer in layers.items():
            _give(module.get_submodule(name), layer)
        for name in layers:
            cast(Any, module.get_submodule(name)).merge(safe_merge=True)
    finally:
        for name in layers:
            parent, _, last = name.rpartition(".")
            wrapped = module.get_submodule(name)
            setattr(module.get_submodule(parent), last, cast(Any, wrapped).get_base_layer())
        if hasattr(module, "peft_config"):
            del module.peft_config  # it would say that there are adapters


def _give(wrapped: Any, layer: _Layer) -> None:
    """Put a layer's matrices into peft's wrapper of it, in float32 where the layer is."""
    device = wrapped.get_base_layer().weight.device
    for own, given in ((wrapped.lora_A["merged"], layer.down), (wrapped.lora_B["merged"], layer.up)):
        value = given.to(device, torch.float32).reshape(own.weight.shape)
        own.weight = nn.Parameter(value, requires_grad=False)
