"""Weights of the world model in every layout in which they are released, read strictly and written back as they were.

Released tensors are known by name: those of the network, and `pos_embed`, a table that no released model reads. Any
other tensor, a missing one or one of another shape is an error that names it.
"""

from __future__ import annotations

import copy
import json
import math
import re
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .config import UNSHAPED, WorldModelConfig
from .context import Operators
from .network import WorldModel
from .seals import DIGESTS, check_digests, digests_of
from .weight_files import OPTIONS, disk_errors, first_line, load_torch, opened_safetensors

_DIFFUSERS = {"t_embedder.linear_1.": "t_embedder.mlp.0.", "t_embedder.linear_2.": "t_embedder.mlp.2."}
"""What diffusers calls otherwise; it leaves out `pos_embed` and `y_embedder.y_embedding`."""

_WRAPPERS = ("state_dict", "generator", "state_dict_ema", "model", "module")
"""Keys under which training checkpoints keep the weights, in the order in which they are looked for."""

_PREFIXES = ("model.", "module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What wrappers of modules put in front of names, in any order and number."""

_UNREAD = ("pos_embed",)
_OPTIONAL = ("y_embedder.y_embedding",)


@dataclass(frozen=True)
class Layout:
    """How a file holds the weights; enough to write the same file again.

    Attributes:
        file: kind of file.
        names: (name in the file, name in the network) in the file's order; unread tensors have the same name twice.
        wrapper: key of the dictionary that holds them, or None.
        unread: tensors of the file that the network does not have.
        dtypes: of each tensor in the file, by name in the file.
        content: what a torch file holds, weights included (mapped from it, not in memory); a copy with other weights
            is written, so that dictionaries keep their kind and what lies beside the weights (step, schedule).
        root: name of the folder inside a torch file.
        metadata: of a safetensors file.
    """

    file: Literal["torch", "safetensors"]
    names: tuple[tuple[str, str], ...]
    wrapper: str | None = None
    unread: Mapping[str, Tensor] = field(default_factory=dict)
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    content: Any = field(default=None, repr=False)
    root: str = "archive"
    metadata: Mapping[str, str] | None = None

    @property
    def has_null_caption(self) -> bool:
        """Whether the file brings the caption that stands for a dropped one; diffusers' files do not."""
        return any(own in _OPTIONAL for _, own in self.names)


def released_layout(model: WorldModel) -> Layout:
    """A bare torch file as released, for weights that came from no file."""
    names = tuple((k, k) for k in model.state_dict())
    return Layout(file="torch", names=names)


def read_config(shapes: Mapping[str, Iterable[int]], *, origin: str) -> WorldModelConfig:
    """Sizes of the network that a state dict (name -> shape) belongs to.

    Raises:
        ValueError: if it is no world model's.
    """
    found = {k: tuple(v) for k, v in shapes.items()}
    if any(".lora_" in name for name in found):
        raise ValueError(
            f"{origin}: is a LoRA, which changes weights that lie elsewhere: name those that it was trained from "
            "(theodolite generate takes it beside them, as --lora)"
        )
    try:
        blocks = {int(m[1]) for k in found if (m := re.match(r"blocks\.(\d+)\.", k))}
        if not blocks:
            raise KeyError("blocks.0")
        depth = max(blocks) + 1
        width, latent = found["x_embedder.proj.weight"][:2]
        softmax = [i for i in range(depth) if f"blocks.{i}.attn.conv_k.weight" not in found]
        sizes: dict[str, Any] = dict(
            depth=depth,
            width=width,
            heads=found["blocks.0.attn.A_log"][0],
            softmax_every=softmax[0] + 1 if softmax else depth + 1,
            latent_channels=latent,
            text_width=found["y_embedder.y_proj.fc1.weight"][1],
            text_tokens=found.get("y_embedder.y_embedding", (300,))[0],
            ffn_ratio=_ratio(found["blocks.0.mlp.point_conv.conv.weight"][1], width),
            conv_taps=next((found[k][2] for k in found if k.endswith("attn.conv_k.weight")), 4),
            plucker_channels=found["plucker_embedder.proj.weight"][1],
            time_frequencies=found["t_embedder.mlp.0.weight"][1],
        )
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"{origin} holds no weights of the world model: {error if not isinstance(error, KeyError) else ''}"
            f"{f'tensor {error} is missing' if isinstance(error, KeyError) else ''}"
        ) from None
    return WorldModelConfig(**sizes)


def told_options(layout: Layout, origin: str) -> dict[str, Any]:
    """Options with which an export of ours was trained, where they are not the default.

    Raises:
        ValueError: they are damaged.
    """
    text = (layout.metadata or {}).get(OPTIONS, "{}")
    try:
        found = json.loads(text)
        unknown = found.keys() - set(UNSHAPED)
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{origin}: its {OPTIONS} are no JSON: {first_line(error)}") from error
    if unknown:
        raise ValueError(
            f"{origin}: its {OPTIONS} have {', '.join(sorted(unknown))}, which are not known here"
        )
    return found


def _ratio(hidden: int, width: int) -> float:
    """The `ffn_ratio` that gives `hidden` back: a quotient that was rounded down would give one channel less."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def load_world_model(
    path: Path | str,
    *,
    options: Mapping[str, Any] | None = None,
    operators: Operators | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> tuple[WorldModel, Layout]:
    """The network of a released or exported file, every tensor in its place.

    Args:
        path: a `.safetensors`, `.pt` or `.pth` file, a diffusers folder, or its `.index.json`.
        options: of `WorldModelConfig`, those that no shape tells (`camera_rms_cap`, softmax scales); null: as the file
            says, else the defaults.
        operators: implementations of the operators.
        dtype: of the network; None: as stored.
        device: where the network goes.
    Returns:
        the network in evaluation mode, and how the file was laid out.
    Raises:
        ValueError: the file is damaged, incomplete or another network's; the message names file and tensors.
        FileNotFoundError: there is no such file.
    """
    tensors, layout = read_tensors(Path(path))
    config = read_config({k: v.shape for k, v in tensors.items()}, origin=str(path))
    given = told_options(layout, str(path)) if options is None else options
    config = WorldModelConfig(**{**config.model_dump(), **given})
    with torch.device("meta"):
        model = WorldModel(config, operators)
    _check_fit(model, tensors, origin=str(path))
    wanted = dict(tensors)
    for name in _OPTIONAL:
        if name not in wanted:
            wanted[name] = torch.zeros(model.state_dict()[name].shape)
    if dtype is not None:
        wanted = {k: v.to(dtype) for k, v in wanted.items()}
    model.load_state_dict({k: v.to(device) for k, v in wanted.items()}, strict=True, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in _frozen(model))
    return model.eval(), layout


def _frozen(model: WorldModel) -> set[str]:
    """Parameters that released files hold and no released model reads."""
    names = {name for name, _ in model.raymap_embedder.named_parameters(prefix="raymap_embedder")}
    gates = ("beta_proj.weight", "beta_proj.bias", "gate_proj.weight", "gate_proj.bias", "A_log", "dt_bias")
    for i in range(model.config.depth):
        if model.config.is_softmax(i):
            names |= {f"blocks.{i}.attn.{gate}" for gate in gates}
    return names


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Layout]:
    """Tensors of a file by the network's names, and its layout; torch files are mapped, not read.

    Raises:
        ValueError, FileNotFoundError: as `load_world_model`.
    """
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.name.endswith(".index.json"):
        return _named(_read_sharded(path), Layout(file="safetensors", names=()), origin=str(path))
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    stored = load_torch(path)
    wrapper, weights = None, stored
    if isinstance(stored, dict) and not _is_state_dict(stored):
        wrapper = next((k for k in _WRAPPERS if _is_state_dict(stored.get(k))), None)
        weights = stored.get(wrapper)
    if not isinstance(weights, dict) or not _is_state_dict(weights):
        raise ValueError(f"{path} holds no state dict, neither bare nor under {', '.join(_WRAPPERS)}")
    layout = Layout(file="torch", names=(), wrapper=wrapper, content=stored, root=_root(path))
    return _named(weights, layout, origin=str(path))


def _root(path: Path) -> str:
    """Folder inside a torch file; torch takes the name under which the file was first written."""
    if not zipfile.is_zipfile(path):
        return "archive"  # of the old kind, which is written as the new one
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()[0].split("/")[0]


def _is_state_dict(found: Any) -> bool:
    return isinstance(found, dict) and bool(found) and all(isinstance(v, Tensor) for v in found.values())


def _in_folder(folder: Path) -> Path:
    for pattern in ("*.safetensors.index.json", "*.safetensors", "*.pt", "*.pth"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            raise ValueError(f"{folder} holds {len(found)} files {pattern}: name one of them")
    if written := sorted((folder / "weights").glob("step-????????.safetensors")):
        raise ValueError(f"{folder}: is a training's folder; name weights of it, the last are {written[-1]}")
    raise FileNotFoundError(f"{folder} holds no .safetensors, .pt or .pth file")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Layout]:
    with opened_safetensors(path) as file:
        stored = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    check_digests(path, stored, metadata)
    return _named(stored, Layout(file="safetensors", names=(), metadata=metadata), origin=str(path))


def _read_sharded(index: Path) -> dict[str, Tensor]:
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{index} is no index of safetensors shards: {first_line(error)}") from error
    stored: dict[str, Tensor] = {}
    for name in shards:
        shard = index.parent / str(name)
        if shard.parent != index.parent or not shard.is_file():
            raise ValueError(f"{index} names {name!r}, which does not lie beside it")
        tensors, layout = _read_safetensors(shard)
        stored |= {file_name: tensors[own] for file_name, own in layout.names if own in tensors}
        stored |= layout.unread
    return stored


def _named(stored: Mapping[str, Tensor], layout: Layout, *, origin: str) -> tuple[dict[str, Tensor], Layout]:
    """Tensors by the network's names; two that come to the same name are an error."""
    tensors: dict[str, Tensor] = {}
    unread: dict[str, Tensor] = {}
    names = []
    for name, tensor in stored.items():
        own = own_name(name)
        if own in tensors or own in unread:
            raise ValueError(f"{origin} holds {own!r} twice, once as {name!r}")
        (unread if own in _UNREAD else tensors)[own] = tensor
        names.append((name, own))
    return tensors, replace(
        layout, names=tuple(names), unread=unread, dtypes={k: v.dtype for k, v in stored.items()}
    )


def own_name(name: str) -> str:
    """The network's name of a tensor that a file calls `name`."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                name, stripped = name[len(prefix) :], True
    for wrapper in ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod."):
        name = name.replace(wrapper, "")
    for theirs, own in _DIFFUSERS.items():
        if name.startswith(theirs):
            return own + name[len(theirs) :]
    return name


def _check_fit(model: WorldModel, tensors: Mapping[str, Tensor], *, origin: str) -> None:
    own = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    problems = [f"missing {k} {own[k]}" for k in own if k not in tensors and k not in _OPTIONAL]
    problems += [f"unknown {k} {tuple(v.shape)}" for k, v in tensors.items() if k not in own]
    problems += [
        f"{k} is {tuple(v.shape)}, expected {own[k]}"
        for k, v in tensors.items()
        if k in own and tuple(v.shape) != own[k]
    ]
    if not problems:
        problems = [
            f"{k} holds {'NaN or inf' if v.is_floating_point() else v.dtype}"
            for k, v in tensors.items()
            if not v.is_floating_point() or not bool(v.isfinite().all())
        ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"{origin} does not fit the world model: {shown}")


def save_world_model(model: WorldModel, path: Path | str, layout: Layout | None = None) -> None:
    """Write the weights as `layout` has them: names, order, wrapper, types and the tensors that nobody reads.

    The file appears whole or not at all.

    Args:
        model: whose weights are written.
        path: a file; its suffix must be of the layout's kind.
        layout: from `load_world_model`; None: bare, as released.
    Raises:
        ValueError: if the suffix is of the other kind, or the layout lacks tensors of the network.
        OSError: where the file cannot be written (a full disk); an older file of the name stays.
    """
    path = Path(path)
    if model.converted is not None:
        raise ValueError(
            f"{path}: the model was converted to {model.converted}, which no released layout holds; save it before that"
        )
    layout = layout or released_layout(model)
    if (path.suffix == ".safetensors") != (layout.file == "safetensors"):
        raise ValueError(f"{path}: the layout is of a {layout.file} file; use its suffix")
    own = model.state_dict()
    missing = own.keys() - {name for _, name in layout.names} - set(_OPTIONAL)
    if missing:
        raise ValueError(f"{path}: the layout has no place for {', '.join(sorted(missing)[:8])}")
    stored = {
        name: (layout.unread[mine] if mine in layout.unread else own[mine])
        .detach()
        .to("cpu", layout.dtypes.get(name))
        .contiguous()
        for name, mine in layout.names
    }
    with disk_errors(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        partial = Path(folder) / f"{layout.root}.pt"
        if layout.file == "safetensors":
            from safetensors.torch import save_file

            save_file(stored, partial, metadata=_sealing(stored, layout.metadata))
        else:
            torch.save(_with_weights(layout, stored), partial)
        partial.replace(path)


def _sealing(stored: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> dict[str, str] | None:
    """Metadata of a file, of exports of ours with digests of what is in them now; a release stays as it was."""
    if metadata is None or not any(key == DIGESTS or key.startswith("theodolite.") for key in metadata):
        return None if metadata is None else dict(metadata)
    return {**metadata, **digests_of(stored)}


def _with_weights(layout: Layout, stored: dict[str, Tensor]) -> Any:
    """What a torch file holds, with these weights in place of those that it was read with."""
    if layout.content is None:
        return stored
    content = copy.copy(layout.content)
    weights = content if layout.wrapper is None else copy.copy(content[layout.wrapper])
    weights.update(stored)
    if layout.wrapper is not None:
        content[layout.wrapper] = weights
    return content
