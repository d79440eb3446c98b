"""Modules of diffusers from the files in which they are released, read strictly and mapped instead of copied."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from .seals import check_digests
from .weight_files import opened_safetensors

_HINT = "pip install theodolite[generate]"

Kind = TypeVar("Kind", bound=nn.Module)


def import_diffusers(name: str) -> ModuleType:
    """A module of diffusers.

    Raises:
        ModuleNotFoundError: diffusers, or a recent enough one, is not installed; the message says what brings it.
    """
    return _import(f"diffusers.{name}", "diffusers>=0.42")


def import_transformers() -> ModuleType:
    """transformers; raises as `import_diffusers`."""
    return _import("transformers", "transformers>=5")


def import_peft() -> ModuleType:
    """peft; raises as `import_diffusers`."""
    return _import("peft", "peft>=0.17")


def _import(name: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{what} is needed here ({error}): {_HINT}", name=error.name) from error


def load_module(
    kind: type[Kind],
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    leave_out: Sequence[str] = (),
    renamed: Mapping[str, str] | None = None,
    finite: bool = False,
) -> Kind:
    """A module of diffusers from a folder with `config.json` and safetensors; strict, with mapped weights.

    Weights that are stored in `dtype` are not copied: they stay mapped until they are used or moved.

    Args:
        kind: diffusers' class.
        folder: as released.
        dtype: of the floating-point weights; None: as stored.
        leave_out: submodules and parameters, by their last name, that are neither built nor read, whatever they hold
            ("audio_attn1" in any block).
        renamed: settings that the file calls otherwise than `kind`: name in the file, name of the argument
            (empty: it says nothing of the weights).
        finite: look for NaN and inf, which reads every weight.
    Raises:
        FileNotFoundError: the folder, its configuration or a shard is missing.
        ValueError: a file is damaged or does not hold this module; the message names file and tensors.
    """
    config = read_config(folder)
    for theirs, ours in (renamed or {}).items():
        value = config.pop(theirs, None)
        if value is not None and ours:
            config[ours] = value
    with torch.device("meta"):
        module = cast(Any, kind).from_config(config)
    drop_parts(module, leave_out)
    tensors = read_safetensors(folder)
    skipped = set(leave_out)
    wanted = {name: tensor for name, tensor in tensors.items() if not skipped & set(name.split("."))}
    if finite and (broken := [k for k, v in wanted.items() if not bool(v.isfinite().all())]):
        raise ValueError(f"{folder} is damaged: {', '.join(broken[:8])} holds NaN or inf")
    assign(module, wanted, dtype=dtype, origin=str(folder))
    return module.eval()


def drop_parts(module: nn.Module, names: Sequence[str]) -> None:
    """Take submodules and parameters of these names out, at whatever depth."""
    wanted = set(names)
    for owner in list(module.modules()):
        for name in [n for n, _ in owner.named_children() if n in wanted]:
            delattr(owner, name)
        for name in [n for n, _ in owner.named_parameters(recurse=False) if n in wanted]:
            delattr(owner, name)


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a released folder.

    Raises:
        FileNotFoundError, ValueError: it is missing or no JSON object.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: give the folder of a released module")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no JSON object")
    return config


def safetensors_files(folder: Path) -> list[Path]:
    """The file, or the shards, that hold a folder's weights.

    Raises:
        FileNotFoundError, ValueError: there are none, several, or a shard is missing.
    """
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise ValueError(f"{folder} holds {len(indices)} indices of safetensors: keep one")
    if not indices:
        found = sorted(folder.glob("*.safetensors"))
        if len(found) != 1:
            raise FileNotFoundError(
                f"{folder} holds {len(found)} safetensors files and no index; one is needed"
            )
        return found
    try:
        names = sorted(set(json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"{indices[0]} is no index of safetensors shards: {error}") from error
    files = [folder / str(name) for name in names]
    for file in files:
        if file.parent != folder or not file.is_file():
            raise FileNotFoundError(f"{indices[0]} names {file.name!r}, which does not lie beside it")
    return files


def read_safetensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, mapped.

    Raises:
        FileNotFoundError, ValueError: as `safetensors_files`, or a file is damaged.
    """
    tensors: dict[str, Tensor] = {}
    for file in safetensors_files(folder):
        with opened_safetensors(file) as opened:
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            check_digests(file, found, opened.metadata())
        tensors |= found
    return tensors


def assign(
    module: nn.Module, tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None, origin: str
) -> None:
    """Make these tensors the module's parameters and buffers, none too few and none too many.

    Raises:
        ValueError: names or shapes differ; the message names them.
    """
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    problems = [f"missing {name} {shape}" for name, shape in own.items() if name not in tensors]
    problems += [f"unknown {name} {tuple(v.shape)}" for name, v in tensors.items() if name not in own]
    problems += [
        f"{name} is {tuple(v.shape)}, expected {own[name]}"
        for name, v in tensors.items()
        if name in own and tuple(v.shape) != own[name]
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"{origin} does not fit {type(module).__name__}: {shown}")
    if dtype is not None:
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    module.load_state_dict(dict(tensors), strict=True, assign=True)
    module.requires_grad_(False)
