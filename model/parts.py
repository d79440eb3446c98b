"""The chain's parts from files as they are released, or as stand-ins of random numbers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..dataset.weights import CHAINS, locate
from ..kernels.attention import AttentionPrecision
from . import precision
from .autoencoder import load_autoencoder, tiny_autoencoder
from .checkpoint import load_world_model
from .config import WorldModelConfig
from .context import Operators
from .generation import Generator
from .lora import merge_lora, parse_lora
from .network import WorldModel
from .precision import DEFAULT_SCOPES, Scope, check_precision, set_precision
from .refiner import RefinerOptions, load_refiner, tiny_refiner
from .residence import Offload, Residence
from .sampling import Mode
from .stand_ins import (
    full_autoencoder,
    full_refiner,
    full_refiner_text_encoder,
    full_text_encoder,
    full_world_model,
)
from .text import (
    load_refiner_text_encoder,
    load_text_encoder,
    tiny_refiner_text_encoder,
    tiny_text_encoder,
)

Precision = Literal["float32", "bf16", "fp8", "nvfp4", "int8-weights", "fp8-weights"]


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """In which numbers the world model computes.

    Attributes:
        precision: float32, bfloat16, or a low precision of what `scopes` names, with bfloat16 for the rest. The parts
            beside the world model are float32 or bfloat16.
        scopes, attention: see `precision.set_precision`.
    """

    precision: Precision = "bf16"
    scopes: tuple[Scope, ...] = DEFAULT_SCOPES
    attention: AttentionPrecision = "input"

    @property
    def dtype(self) -> torch.dtype:
        """Of everything that is not converted."""
        return torch.float32 if self.precision == "float32" else torch.bfloat16

    def check(self, device: torch.device | str) -> None:
        """Refuse what cannot run on a device; before weights are loaded.

        Raises:
            ValueError: with what to do.
        """
        check_precision(self._converted, device=device, attention=self.attention, scopes=self.scopes)

    @property
    def on_device(self) -> bool:
        """Whether weights are converted where they compute; those of eight bits that only save memory are not."""
        return self.attention != "input" or self.precision in ("fp8", "nvfp4")

    def convert(self, model: WorldModel) -> dict[str, object]:
        """Convert a model on its device; what was changed."""
        if self._converted == "bf16" and self.attention == "input":
            return {"precision": self.precision, "attention": self.attention}
        report = set_precision(model, self._converted, scopes=self.scopes, attention=self.attention)
        return {**report.record(), "precision": self.precision}

    @property
    def _converted(self) -> precision.Precision:
        return "bf16" if self.precision == "float32" else self.precision


TINY = WorldModelConfig(depth=4, width=48, heads=2, latent_channels=8, text_width=16)
"""A world model that a laptop runs."""
_BLOCKS = RefinerOptions(block_frames=3)
"""As the streaming release refines."""


@dataclass(frozen=True, kw_only=True)
class Loras:
    """LoRA files that are merged, in their order; each `FILE` or `FILE=SCALE` (`lora.parse_lora`)."""

    world_model: tuple[str, ...] = ()
    refiner: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PartFiles:
    """Where each part lies.

    Attributes:
        world_model: file, or diffusers' folder.
        autoencoder, text_encoder: folders.
        instruction: the release's config.yaml, which has the text before prompts; None: diffusers' copy.
        refiner, refiner_text_encoder, connectors: folders; None: no refiner.
    """

    world_model: Path
    autoencoder: Path
    text_encoder: Path
    instruction: Path | None = None
    refiner: Path | None = None
    refiner_text_encoder: Path | None = None
    connectors: Path | None = None

    def named(self) -> dict[str, Path]:
        """Paths by part, those that are None left out."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: path for name, path in found.items() if path is not None}


_WORLD_MODEL = (
    "dit/*.safetensors",
    "sana_dit/*.pt",
    "sana_dit/*.safetensors",
    "dit/*.pt",
    "transformer",
    "*.pt",
)
_AUTOENCODER = {"distilled": ("ltx2_causal_vae", "causal_vae", "vae")}
_TEXT_ENCODER = ("gemma-2-2b-it", "text_encoder")


def find_parts(folder: Path, *, mode: Mode, refine: bool) -> PartFiles:
    """The parts of a folder that is laid out as a release.

    Raises:
        ValueError: naming the parts that are not there, and where they were looked for.
    """
    folder = Path(folder)
    missing: list[str] = []

    def find(part: str, patterns: Sequence[str]) -> Path:
        for pattern in patterns:
            found = sorted(folder.glob(pattern))
            if len(found) > 1:
                raise ValueError(
                    f"{folder}: {len(found)} files {pattern}: name the world model's with --weights"
                )
            if found:
                return found[0]
        missing.append(f"{part} ({', '.join(patterns)})")
        return folder

    config = folder / "config.yaml"
    parts = PartFiles(
        world_model=find("world model", _WORLD_MODEL),
        autoencoder=find("autoencoder", _AUTOENCODER.get(mode, ("vae",))),
        text_encoder=find("text encoder", _TEXT_ENCODER),
        instruction=config if config.is_file() else None,
    )
    if refine:
        parts = replace(
            parts,
            refiner=find("refiner", ("refiner/transformer", "refiner_diffusers/transformer")),
            connectors=find("connectors", ("refiner/connectors", "refiner_diffusers/connectors")),
            refiner_text_encoder=find("refiner's text encoder", ("refiner/text_encoder", "gemma3_12b")),
        )
    if missing:
        raise ValueError(f"{folder} lacks parts of the release: {'; '.join(missing)}")
    return parts


def find_encoders(folder: Path) -> tuple[Path, Path, Path | None]:
    """Autoencoder, text encoder, and the file with the instruction if it is there, of a folder laid out as a release.

    Raises:
        ValueError: one of them is not there.
    """
    found = []
    for part, names in (("autoencoder", ("vae",)), ("text encoder", _TEXT_ENCODER)):
        place = next((folder / name for name in names if (folder / name).is_dir()), None)
        if place is None:
            raise ValueError(f"{folder} lacks the {part}: no folder {' or '.join(names)} in it")
        found.append(place)
    config = folder / "config.yaml"
    return found[0], found[1], config if config.is_file() else None


def released_parts(mode: Mode, *, refine: bool, without: Collection[str] = ()) -> PartFiles:
    """The pinned files of a mode in the hub's cache, which `theodolite weights pull MODE` fills. Looks, reads nothing.

    Args:
        without: parts that come from elsewhere; their paths are the current folder.
    Raises:
        ValueError: naming what is not there, and the command that brings it.
    """
    chain = CHAINS[mode]
    found: dict[str, Path] = {}
    missing = []
    for part, name in chain.items():
        if part in without or (part.startswith("refiner") and not refine):
            continue
        try:
            found[part] = locate(name)
        except ValueError:
            missing.append(name)
    if missing:
        raise ValueError(
            f"weights {', '.join(missing)} are not on this machine; run: theodolite weights pull {mode} (or bring them "
            "and give --weights FOLDER; --weights stand_in --size tiny runs without)"
        )
    refiner = found.get("refiner")
    config = (
        found["world_model"].parent.parent / "config.yaml" if "world_model" in found else Path("config.yaml")
    )
    return PartFiles(
        world_model=found.get("world_model", Path()),
        autoencoder=found.get("autoencoder", Path()),
        text_encoder=found.get("text_encoder", Path()),
        instruction=config if config.is_file() else None,
        refiner=None if refiner is None else refiner / "transformer",
        connectors=None if refiner is None else refiner / "connectors",
        refiner_text_encoder=found.get("refiner_text_encoder"),
    )


def load_generator(
    weights: PartFiles | Path | str = "released",
    *,
    mode: Mode,
    device: torch.device | str,
    refine: bool = True,
    numbers: Numbers | None = None,
    offload: Offload = "none",
    operators: Operators | None = None,
    loras: Loras | None = None,
) -> Generator:
    """The chain from files.

    Args:
        weights: `released` (pinned files in the hub's cache), a folder laid out as a release, `stand_in` (tiny parts of
            random numbers), or where each part lies.
        mode: which weights, and how the refiner works.
        refine: load the refiner.
        device: where parts compute; they are read into the machine's memory and brought there by a `Residence`.
        numbers: in which the world model computes; None: bfloat16.
        offload: where parts live while they are idle.
        operators: implementations of the world model's operators.
        loras: merged into weights before anything is converted.
    Raises:
        ValueError, FileNotFoundError: a file is missing, damaged or another network's, or the precision cannot run.
        ModuleNotFoundError: diffusers, transformers, or for LoRA files peft is not installed.
    """
    if weights == "stand_in":
        return stand_in_generator(
            mode=mode,
            device=device,
            numbers=numbers,
            offload=offload,
            refine=refine,
            operators=operators,
            loras=loras,
        )
    if isinstance(weights, PartFiles):
        files = weights
    elif weights == "released":
        files = released_parts(mode, refine=refine)
    else:
        files = find_parts(Path(weights), mode=mode, refine=refine)
    numbers = numbers or Numbers()
    numbers.check(device)
    dtype = numbers.dtype
    model, _ = load_world_model(files.world_model, operators=operators, dtype=dtype)
    autoencoder = load_autoencoder(files.autoencoder, dtype=dtype)
    text = load_text_encoder(files.text_encoder, instruction=files.instruction, dtype=dtype)
    refiner = refiner_text = None
    if files.refiner is not None:
        if files.refiner_text_encoder is None or files.connectors is None:
            raise ValueError("a refiner needs its text encoder and connectors")
        refiner = load_refiner(files.refiner, options=_refiner_options(mode), dtype=dtype)
        refiner_text = load_refiner_text_encoder(files.refiner_text_encoder, files.connectors, dtype=dtype)
    return _assembled(
        (model, autoencoder, text, refiner, refiner_text),
        device=device,
        numbers=numbers,
        offload=offload,
        loras=loras,
    )


def stand_in_generator(
    *,
    mode: Mode,
    device: torch.device | str = "cpu",
    numbers: Numbers | None = None,
    offload: Offload = "none",
    refine: bool = True,
    size: Literal["tiny", "full"] = "tiny",
    operators: Operators | None = None,
    loras: Loras | None = None,
) -> Generator:
    """The chain with parts of random numbers, whose videos show nothing.

    Args:
        size: tiny parts run anywhere; full ones have the released sizes, to time a machine and its memory.
        operators: implementations of the world model's operators.
    Raises:
        ValueError: the precision cannot run.
        ModuleNotFoundError: diffusers or transformers is not installed.
    """
    numbers = numbers or Numbers(precision="float32" if size == "tiny" else "bf16")
    numbers.check(device)
    make = _tiny_parts if size == "tiny" else _full_parts
    # Full weights are drawn where they stay.
    home = device if offload == "none" else "cpu"
    return _assembled(
        make(mode, home, numbers.dtype, refine, operators),
        device=device,
        numbers=numbers,
        offload=offload,
        stand_in=True,
        loras=loras,
    )


_Parts = tuple[WorldModel, Any, Any, Any, Any]
"""World model, autoencoder, text encoder, refiner and its text encoder."""


def _tiny_parts(
    mode: Mode, home: torch.device | str, dtype: torch.dtype, refine: bool, operators: Operators | None
) -> _Parts:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = WorldModel(TINY, operators)
    refiner = refiner_text = None
    if refine:
        refiner = tiny_refiner(latent_channels=TINY.latent_channels, options=_refiner_options(mode)).to(dtype)
        refiner_text = tiny_refiner_text_encoder().to(dtype)
    return (
        model.requires_grad_(False).eval().to(dtype),
        tiny_autoencoder(latent_channels=TINY.latent_channels, causal=mode == "distilled").to(dtype),
        tiny_text_encoder(width=TINY.text_width, tokens=TINY.text_tokens).to(dtype),
        refiner,
        refiner_text,
    )


def _full_parts(
    mode: Mode, home: torch.device | str, dtype: torch.dtype, refine: bool, operators: Operators | None
) -> _Parts:
    return (
        full_world_model(home, dtype, operators),
        full_autoencoder(home, dtype, causal=mode == "distilled"),
        full_text_encoder(home, dtype),
        full_refiner(home, dtype, options=_refiner_options(mode)) if refine else None,
        full_refiner_text_encoder(home, dtype) if refine else None,
    )


def _refiner_options(mode: Mode) -> RefinerOptions:
    return _BLOCKS if mode == "distilled" else RefinerOptions()


def _assembled(
    made: _Parts,
    *,
    device: torch.device | str,
    numbers: Numbers,
    offload: Offload,
    stand_in: bool = False,
    loras: Loras | None = None,
) -> Generator:
    model, autoencoder, text, refiner, refiner_text = made
    loras = loras or Loras()
    if loras.refiner and refiner is None:
        raise ValueError(f"{loras.refiner[0]} is a LoRA of the refiner, which is not loaded")
    merged = [_merged(model, choice) for choice in loras.world_model]
    merged_refiner = [_merged(refiner, choice) for choice in loras.refiner]
    described = _described(model) | {"loras": merged}
    if numbers.on_device:
        model.to(device)
    described |= {"numbers": numbers.convert(model), "stand_in": stand_in}
    if offload != "none":
        model.to("cpu")  # it comes and goes with the others
    parts = {
        "world_model": described,
        "autoencoder": _described(autoencoder),
        "text_encoder": _described(text),
    }
    if refiner is not None:
        parts |= {
            "refiner": _described(refiner) | {"loras": merged_refiner},
            "refiner_text_encoder": _described(refiner_text),
        }
    return Generator(
        model,
        autoencoder,
        text,
        refiner=refiner,
        refiner_text_encoder=refiner_text,
        residence=Residence(offload, device),
        parts=parts,
        device=device,
    )


def _merged(part: Any, choice: str) -> dict[str, Any]:
    path, scale = parse_lora(choice)
    return asdict(merge_lora(part, path, scale=scale))


def _described(part: nn.Module) -> dict[str, Any]:
    tensors = [*part.parameters(), *part.buffers()]
    return {
        "class": type(part).__name__,
        "parameters": sum(p.numel() for p in part.parameters()),
        "bytes": sum(t.numel() * t.element_size() for t in tensors),
        "dtype": str(next(part.parameters()).dtype).removeprefix("torch."),
        "stand_in": bool(getattr(part, "stand_in", False)),
    }
