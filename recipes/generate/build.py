"""The generator that the options ask for, and what goes into records about its files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ...annotate.networks.device import choose_device
from ...dataset.weights import CHAINS, file_digest, locate, resolve
from ...model import generation
from ...model.context import Operators
from ...model.generation import Generator
from ...model.lora import look_at_lora, parse_lora
from ...model.parts import (
    Loras,
    Numbers,
    PartFiles,
    Precision,
    find_parts,
    load_generator,
    released_parts,
    stand_in_generator,
)
from ...model.precision import DEFAULT_SCOPES
from ...model.weight_files import STAGE, START, told_by
from .options import GenerateOptions


def resolve_precision(options: GenerateOptions, device: str) -> Precision:
    """The precision of the world model on a device; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    if options.precision != "auto":
        return options.precision
    return "bf16" if device.startswith("cuda") else "float32"


def numbers_of(options: GenerateOptions, precision: Precision) -> Numbers:
    """In which numbers the world model computes."""
    return Numbers(
        precision=precision,
        scopes=options.scopes or DEFAULT_SCOPES,
        attention=options.attention_precision,
    )


def check_choices(options: GenerateOptions, device: str) -> Precision:
    """Refuse what cannot run on a device, before anything is loaded; the precision that will run.

    Raises:
        ValueError: with what to do.
    """
    precision = resolve_precision(options, device)
    numbers = numbers_of(options, precision)
    numbers.check(device)
    generation.check_choices(
        options.sampling(), _operators(options), device=device, dtype=numbers.dtype, policy=options.offload
    )
    return precision


def _operators(options: GenerateOptions) -> Operators:
    return Operators(kernels=options.kernels, attention=options.attention)


def locate_parts(options: GenerateOptions) -> PartFiles | None:
    """Where the parts lie; None for stand-ins. Looks, reads no weights.

    Raises:
        ValueError: a part or a LoRA is not there, or a LoRA is something else; the message says what brings it.
    """
    for name, choices in (("--lora", options.lora), ("--refiner-lora", options.refiner_lora)):
        for choice in choices:
            try:
                look_at_lora(parse_lora(choice)[0])
            except (FileNotFoundError, ValueError) as error:
                raise ValueError(f"{name} {choice}: {error}") from None
    if options.stand_in:
        return None
    if options.weights == "released":
        own = {
            "autoencoder": options.autoencoder,
            "text_encoder": options.text_encoder,
            "refiner": options.refiner_folder,
            "refiner_text_encoder": options.refiner_folder,
        }
        without = [part for part, path in own.items() if path is not None]
        return _with_own(released_parts(options.mode, refine=options.refine, without=without), options)
    given = Path(options.weights)
    if not given.exists():
        raise ValueError(
            f"--weights {given}: no such file or folder; give a folder laid out as the release, `released` or "
            "`stand_in`"
        )
    if given.is_dir():
        found = find_parts(given, mode=options.mode, refine=options.refine and options.refiner_folder is None)
    else:
        found = _beside(given, options)
    return _with_own(found, options)


def _beside(world_model: Path, options: GenerateOptions) -> PartFiles:
    """The parts around a world model's file: named by options, or in the release's layout above it."""
    own = (options.autoencoder, options.text_encoder, options.refiner_folder)
    if all(own[:2]) and (own[2] or not options.refine):
        assert options.autoencoder is not None
        assert options.text_encoder is not None
        return PartFiles(
            world_model=world_model, autoencoder=options.autoencoder, text_encoder=options.text_encoder
        )
    for folder in (world_model.parent, world_model.parent.parent):
        try:
            found = find_parts(folder, mode=options.mode, refine=options.refine and own[2] is None)
        except ValueError:
            continue
        return PartFiles(**{**vars(found), "world_model": world_model})
    raise ValueError(
        f"--weights {world_model}: the other parts do not lie around it; name them with --autoencoder, --text-encoder "
        "and --refiner, or --no-refiner"
    )


def _with_own(found: PartFiles, options: GenerateOptions) -> PartFiles:
    changes: dict[str, Any] = {}
    if options.autoencoder is not None:
        changes["autoencoder"] = options.autoencoder
    if options.text_encoder is not None:
        changes["text_encoder"] = options.text_encoder
    if options.refiner_folder is not None and options.refine:
        folder = options.refiner_folder
        for part, name in (
            ("refiner", "transformer"),
            ("connectors", "connectors"),
            ("refiner_text_encoder", "text_encoder"),
        ):
            if not (folder / name).is_dir():
                raise ValueError(f"--refiner {folder}: holds no folder {name}")
            changes[part] = folder / name
    parts = PartFiles(**{**vars(found), **changes})
    for part, path in parts.named().items():
        if not path.exists():
            raise ValueError(f"{part.replace('_', ' ')}: {path}: no such file or folder")
    return parts


def notes_on_weights(options: GenerateOptions, files: PartFiles | None) -> tuple[str, ...]:
    """What the exports of a training say of themselves that is not what they are used for here.

    Raises:
        ValueError: weights of a fake score, which tells videos apart and makes none.
    """
    if files is None:
        return ()
    world_model, notes = files.world_model, list[str]()
    stage = told_by(world_model).get(STAGE)
    if stage == "fake-score":
        raise ValueError(
            f"--weights {world_model}: are those of a fake score, which judges a student's videos; the student's lie "
            "beside them, without -fake"
        )
    if stage not in (None, options.mode):
        notes.append(f"{world_model.name} holds {stage} weights, and is sampled as {options.mode} ones are")
    for choice in options.lora:
        path = parse_lora(choice)[0]
        start = told_by(path / "adapter_model.safetensors" if path.is_dir() else path).get(START)
        if start is not None and not (world_model.is_file() and file_digest(world_model) == start):
            notes.append(f"{path.name} was trained on other weights than {world_model.name}")
    return tuple(notes)


def build_generator(options: GenerateOptions, files: PartFiles | None) -> Generator:
    """Load everything.

    Raises:
        ValueError: a file is missing, damaged or another network's, or the precision cannot run here.
    """
    device = str(choose_device(options.device))
    numbers = numbers_of(options, resolve_precision(options, device))
    operators = _operators(options)
    common: dict[str, Any] = dict(
        mode=options.mode,
        device=device,
        numbers=numbers,
        offload=options.offload,
        operators=operators,
        loras=Loras(world_model=options.lora, refiner=options.refiner_lora),
    )
    try:
        if files is None:
            return stand_in_generator(refine=options.refine, size=options.size, **common)
        return load_generator(files, **common)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None


def file_digests(options: GenerateOptions, files: PartFiles | None) -> dict[str, Any]:
    """What each part was read from: SHA-256 and size of every file, remembered from run to run, and name, commit and
    licence of released ones.

    Raises:
        ValueError: a released file has another digest.
    """
    found: dict[str, Any] = {}
    for part, choices in (("lora", options.lora), ("refiner_lora", options.refiner_lora)):
        paths = [parse_lora(choice)[0] for choice in choices]
        if paths:
            found[part] = {"files": [_described(f) for p in paths for f in _weights_in(p)]}
    for part, path in files.named().items() if files is not None else ():
        found[part] = {
            "files": [_described(f) for f in _weights_in(path)],
            "licence": "not known: given by path",
        }
        name = CHAINS[options.mode].get(part)
        if options.weights == "released" and name is not None and locate(name) in (path, path.parent):
            known = resolve(name)
            found[part] |= {"name": known.label, "revision": known.revision, "licence": known.licence}
    return found


def _weights_in(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(
        p for p in path.iterdir() if p.suffix in (".safetensors", ".json", ".pt", ".model") and p.is_file()
    )


def _described(path: Path) -> dict[str, Any]:
    if sys.stderr.isatty() and path.stat().st_size > 2**30:
        sys.stderr.write(f"digest of {path} ...\n")
    told = {"told": said} if (said := told_by(path)) else {}
    return {"file": str(path), "bytes": path.stat().st_size, "sha256": file_digest(path), **told}
