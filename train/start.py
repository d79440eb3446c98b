"""Weights that a training starts from: initial ones, those of a file, or those of an earlier stage that grow.

Growing is one rule: a tensor that both stages have in one shape is copied, everything else starts at its initial value
(`network.initialise`) or is left out, and all of it is told. So the schedule's steps are:

    cumulative linear attention -> frame-wise GDN   queries, keys, values, norms, cross attention and feed-forward are
                                                    copied; gates start open, key convolutions as identity
    GDN in all blocks -> hybrid                     every fourth block loses its convolutions, the rest is copied
    another autoencoder                             the two layers that touch latents start anew, of another shape or
                                                    (`latents`) of the same
    no cameras -> cameras                           camera branches are copies of the main one, behind a projection of
                                                    zeros; the Plücker map is embedded by zeros: the network says what
                                                    it said before
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..dataset.weights import CHAINS, locate
from ..model.blocks import Block
from ..model.checkpoint import Layout, load_world_model, read_config, read_tensors, told_options
from ..model.config import UNSHAPED, WorldModelConfig
from ..model.context import Operators
from ..model.network import WorldModel
from ..model.released import import_peft
from ..model.start import initialise, start_camera_from_main
from ..model.weight_files import AUTOENCODER, STAGE, told_by
from .low_rank import compute_low_rank
from .recipe import LORA_PARTS, LoraConfig, TrainRecipe

_NULL_CAPTION = "y_embedder.y_embedding"


@dataclass(frozen=True)
class Started:
    """The network, ready to train.

    Attributes:
        model: float32, on the CPU.
        copied, fresh, left_out: names of tensors that came from the weights, started anew, were not taken over.
        origin: where the weights came from, in words.
    """

    model: WorldModel
    copied: tuple[str, ...]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]
    origin: str

    def summary(self) -> str:
        text = f"{self.origin}: {len(self.copied)} tensors copied"
        if self.fresh:
            text += f", {len(self.fresh)} start anew ({_some(self.fresh)})"
        if self.left_out:
            text += f", {len(self.left_out)} left out ({_some(self.left_out)})"
        return text


def _some(names: tuple[str, ...]) -> str:
    kinds = list(dict.fromkeys(".".join(p for p in name.split(".") if not p.isdigit()) for name in names))
    return ", ".join(kinds[:6]) + (", ..." if len(kinds) > 6 else "")


def weights_path(weights: str) -> Path:
    """The file of `start.weights`.

    Raises:
        ValueError: a release that there is not, or that is not on this machine; a file that is not there.
    """
    if weights.startswith("released/"):
        mode = weights.removeprefix("released/")
        if mode not in CHAINS:
            raise ValueError(f"start.weights {weights}: use released/ with one of {', '.join(CHAINS)}")
        return locate(CHAINS[mode]["world_model"])
    path = Path(weights)
    if not path.exists():
        raise ValueError(
            f"start.weights {weights}: no such file or folder; name the weights of the stage before with --set "
            "start.weights=FILE"
        )
    return path


_STARTS: dict[str, tuple[str, ...]] = {
    "flow_matching": ("bidirectional", "chunk-causal"),
    "ode_init": ("chunk-causal", "distilled"),
    "consistency_init": ("chunk-causal", "distilled"),
    "self_forcing": ("chunk-causal", "distilled"),
    "teacher": ("chunk-causal",),
    "real score": ("bidirectional",),
    "fake score": ("bidirectional", "fake-score"),
    "world model": ("bidirectional",),
    "world model in chunks": ("chunk-causal", "distilled"),
}
"""What may begin an objective, or stand in for a network beside it."""


def stage_of(weights: str) -> str | None:
    """What weights can do, by the name of their release or as their file says; None: nothing tells."""
    if weights.startswith("released/"):
        return weights.removeprefix("released/")
    return told_by(Path(weights)).get(STAGE)


def autoencoder_of(weights: str) -> str | None:
    """Whose latents weights were trained on, as their file says; None: nothing tells."""
    return told_by(Path(weights)).get(AUTOENCODER)


def check_latents(weights: str, use: str, autoencoder: str) -> None:
    """Raise ValueError where a network's file says that it knows other latents than the clips'."""
    told = autoencoder_of(weights)
    if told not in (None, autoencoder):
        raise ValueError(
            f"{weights}: was trained on latents of {told}, the clips have those of {autoencoder}: it cannot be their "
            f"{use}"
        )


def check_use(weights: str, use: str) -> None:
    """Weights must be of a stage that fits their use.

    Raises:
        ValueError: they say that they are not.
    """
    stage = stage_of(weights)
    if stage is not None and stage not in _STARTS[use]:
        raise ValueError(f"{weights}: are {stage} weights; {use} takes {' or '.join(_STARTS[use])} ones")


def load_beside(weights: str, use: str, config: WorldModelConfig) -> WorldModel:
    """A network that stands beside the trained one: a teacher or a score, of the same sizes.

    Args:
        weights: file, folder or release. use: a key of the uses that `check_use` knows.
    Raises:
        ValueError, FileNotFoundError: missing, damaged, of another stage or size.
    """
    path = weights_path(weights)
    check_use(weights, use)
    # Options of which the file says nothing are the student's.
    model, layout = load_world_model(path, dtype=torch.float32, options=_options(config))
    differences = _differences(model.config, layout, config, "the student's")
    if differences:
        raise ValueError(f"{path}: does not fit beside the student as its {use}: {'; '.join(differences)}")
    return model


def start_model(recipe: TrainRecipe, *, operators: Operators | None = None) -> Started:
    """The network of a recipe with its first weights.

    Raises:
        ValueError, FileNotFoundError: the weights are missing, damaged, or of another stage than the recipe says.
    """
    if recipe.start.weights is not None:
        weights_path(recipe.start.weights)
        check_use(recipe.start.weights, recipe.objective)
    if recipe.start.weights is None:
        assert recipe.model is not None
        model = _initial(recipe.model, recipe.seed, operators)
        started = Started(model, (), tuple(model.state_dict()), (), "initial values")
    elif recipe.start.grow:
        assert recipe.model is not None
        path = weights_path(recipe.start.weights)
        tensors, _ = read_tensors(path)
        started = grow(
            tensors,
            recipe.model,
            seed=recipe.seed,
            operators=operators,
            origin=str(path),
            latents=recipe.start.latents == "anew",
        )
    else:
        path = weights_path(recipe.start.weights)
        options = None if recipe.model is None else _options(recipe.model)
        model, layout = load_world_model(path, options=options, operators=operators, dtype=torch.float32)
        check_sizes(model.config, layout, recipe, path)
        missing = () if layout.has_null_caption else (_NULL_CAPTION,)
        names = tuple(n for n in model.state_dict() if n not in missing)
        started = Started(model, names, missing, (), str(path))
    if recipe.start.cameras == "from_main":
        with torch.no_grad():
            _silence_cameras(started.model)
            start_camera_from_main(started.model)
    if recipe.data.cameras == "plucker":
        for block in started.model.blocks:
            assert isinstance(block, Block)
            block.attn.out_proj_cam.requires_grad_(False)
            nn.init.zeros_(block.attn.out_proj_cam.weight)
            nn.init.zeros_(block.attn.out_proj_cam.bias)
    started.model.train()
    return started


def _initial(config: WorldModelConfig, seed: int, operators: Operators | None) -> WorldModel:
    model = WorldModel(config, operators)
    initialise(model, torch.Generator().manual_seed(seed))
    return model


_SIZES = (
    "depth",
    "width",
    "heads",
    "softmax_every",
    "latent_channels",
    "text_width",
    "text_tokens",
    "ffn_width",
    "conv_taps",
    "plucker_channels",
    "time_frequencies",
)
"""What shapes tell of a network."""


def _options(config: WorldModelConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in UNSHAPED}


def _differences(found: WorldModelConfig, layout: Layout, wanted: WorldModelConfig, whose: str) -> list[str]:
    """What a file's network has otherwise than is wanted: sizes, and options that the file names."""
    theirs = {name: getattr(found, name) for name in _SIZES} | told_options(layout, "weights")
    return [
        f"{name} {value!r}, {whose} {getattr(wanted, name)!r}"
        for name, value in theirs.items()
        if value != getattr(wanted, name)
    ]


def check_sizes(found: WorldModelConfig, layout: Layout, recipe: TrainRecipe, path: Path) -> None:
    """Weights must be those of the network that the recipe names, if it names one.

    Raises:
        ValueError: they are not; names every difference.
    """
    if recipe.model is None:
        return
    if differences := _differences(found, layout, recipe.model, "the recipe"):
        raise ValueError(
            f"{path}: are weights of another stage or size: {'; '.join(differences)} (start.grow: true takes over what "
            "fits)"
        )


def grow(
    tensors: Mapping[str, Tensor],
    config: WorldModelConfig,
    *,
    seed: int = 0,
    operators: Operators | None = None,
    origin: str = "weights",
    latents: bool = False,
) -> Started:
    """A network of `config` that takes over what it can.

    Args:
        tensors: of an earlier stage, by the network's names.
        latents: start the layers that touch latents anew even where their shapes fit: another autoencoder of as many
            channels.
    Raises:
        ValueError: the weights are of a shallower or otherwise wide network: nothing of it would fit.
    """
    model = _initial(config, seed, operators)
    own = model.state_dict()
    depth = 1 + max((int(k.split(".")[1]) for k in tensors if k.startswith("blocks.")), default=-1)
    if depth != config.depth:
        raise ValueError(
            f"{origin}: holds {depth} blocks, the recipe's model {config.depth}; stages share their depth"
        )
    touching = ("x_embedder.", "final_layer.linear.")
    copied, odd = [], []
    for name, tensor in tensors.items():
        if name not in own or (latents and name.startswith(touching)):
            continue
        if tensor.shape == own[name].shape:
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"{origin}: {name} holds NaN or infinity")
            own[name].copy_(tensor)
            copied.append(name)
        elif not name.startswith((*touching, _NULL_CAPTION)):
            odd.append(f"{name} {tuple(tensor.shape)} against {tuple(own[name].shape)}")
    if odd:
        raise ValueError(f"{origin}: is of another width, which does not grow: {'; '.join(odd[:4])}")
    _check_kept(tensors, config, origin)
    fresh = tuple(name for name in own if name not in copied)
    left_out = tuple(name for name in tensors if name not in own)
    return Started(model, tuple(copied), fresh, left_out, origin)


def _check_kept(tensors: Mapping[str, Tensor], config: WorldModelConfig, origin: str) -> None:
    """Softmax blocks do not turn into recurrent ones: the schedule goes the other way."""
    try:
        before = read_config({k: v.shape for k, v in tensors.items()}, origin=origin)
    except ValueError:
        return  # of linear attention, which has no gates to tell
    back = [i for i in range(config.depth) if before.is_softmax(i) and not config.is_softmax(i)]
    if back and any(f"blocks.{i}.attn.conv_k.weight" in tensors for i in range(config.depth)):
        raise ValueError(
            f"{origin}: blocks {back} attend by softmax there and by recurrence in the recipe: weights of a later stage"
        )


def _silence_cameras(model: WorldModel) -> None:
    """What reads cameras speaks with zeros."""
    for block in model.blocks:
        assert isinstance(block, Block)
        nn.init.zeros_(block.plucker_proj.bias)
    for part in (
        model.plucker_embedder.proj,
        *(b.attn.out_proj_cam for b in model.blocks if isinstance(b, Block)),
    ):
        nn.init.zeros_(part.weight)
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def use_null_caption(started: Started, states: Tensor) -> None:
    """Let the data's empty caption stand for a dropped one, where the weights bring none.

    Raises:
        ValueError: it is of another shape.
    """
    if _NULL_CAPTION in started.copied:
        return
    target = started.model.y_embedder.y_embedding
    if states.shape != target.shape:
        raise ValueError(
            f"the data's empty caption is {tuple(states.shape)}, the network's {tuple(target.shape)}: encoded by "
            "another text encoder, or for another network"
        )
    target.copy_(states)


def lora_layers(model: WorldModel, config: LoraConfig) -> dict[str, nn.Linear | nn.Conv2d]:
    """Layers that a LoRA changes, by name."""
    endings = tuple(ending for part in config.parts for ending in LORA_PARTS[part])
    return {
        name: module
        for name, module in model.named_modules()
        if re.sub(r"^blocks\.\d+\.", "", name) in endings and isinstance(module, nn.Linear | nn.Conv2d)
    }


def add_lora(model: WorldModel, config: LoraConfig, *, seed: int, dtype: torch.dtype) -> list[str]:
    """Freeze the weights, in `dtype`, and add low-rank float32 ones to the layers that the recipe names.

    Returns:
        names of the layers.
    Raises:
        ModuleNotFoundError: peft is not installed.
    """
    peft = import_peft()
    names = list(lora_layers(model, config))
    model.requires_grad_(False).to(dtype)
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=names, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    compute_low_rank(model)
    return names
