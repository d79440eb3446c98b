"""`theodolite pairs`: encoded clips in, what the refiner is trained on out; resumed by itself, killed at any moment.

The world model makes each window anew from its first frame, caption and cameras; its latents are written beside the
true ones, with the text states of the refiner's own encoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ..annotate.networks.device import choose_device
from ..annotate.run.cluster import raise_if_interrupted, signals_as_interrupt
from ..dataset.commit import hold_folder
from ..dataset.encoded import (
    MARKER,
    EncodedClip,
    EncodedDataset,
    Encoding,
    begin,
    check_same,
    check_windows,
    encoded_windows,
    open_encoded,
    write_shard,
)
from ..dataset.outputs import refuse_other_outputs
from ..dataset.store import TEMPORARY
from ..dataset.strict import Finite
from ..dataset.weights import CHAINS, WEIGHTS, file_digest, locate
from ..model.checkpoint import load_world_model
from ..model.config import chunk_starts
from ..model.network import WorldModel
from ..model.parts import TINY
from ..model.samplers import (
    ChunkSchedule,
    Guidance,
    Text,
    noise_latents,
    sample_bidirectional,
    sample_chunk_causal,
)
from ..model.text import RefinerTextEncoder, load_refiner_text_encoder, tiny_refiner_text_encoder
from ..train.feed import Control, make_batch
from ..train.order import seed_of
from ..train.start import check_latents, check_use
from .command import Say

NOTHING = "."
"""Prompt of a window without a caption: the refiner's encoder takes no empty one."""


class PairOptions(Finite):
    """How the world model is asked."""

    chunk: Annotated[int, Field(gt=0)] | None = None
    """Latent frames of a chunk of a chunk-causal model; null: bidirectional."""
    steps: Annotated[int, Field(gt=0)] = 60
    shift: Annotated[float, Field(gt=0)] = 9.8
    guidance: Annotated[float, Field(ge=0)] = 5.0
    cameras: Control = "both"
    seed: Annotated[int, Field(ge=0)] = 0
    allow_stand_in: bool = False
    """Also of clips that stand-in networks annotated or encoded."""


@dataclass(frozen=True, kw_only=True)
class PairJob:
    """What makes pairs.

    Attributes:
        data: folders of encoded clips; out: of pairs.
        weights: the world model's file, `released/MODE` or `stand_in`.
        refiner: folder with `text_encoder` and `connectors`, `released` or `stand_in`.
        per_shard: windows of a file: what a killed run has to do again at most.
    """

    data: tuple[Path, ...]
    out: Path
    options: PairOptions
    weights: str
    refiner: str = "released"
    device: str = "auto"
    per_shard: int = 4


def run_pairs(job: PairJob, *, limit: int | None = None, say: Say = lambda text: None) -> tuple[str, int]:
    """Make the pairs that are not there yet.

    Returns:
        summary, and 0.
    Raises:
        ValueError: nothing was made: clips or networks do not fit, or `out` holds others.
        OSError: the disk is full; whole shards are kept.
    """
    data = open_encoded(*job.data)
    if data.encoding.stand_in and not job.options.allow_stand_in:
        raise ValueError(
            f"{job.data[0]}: stand-in networks annotated or encoded these clips (--set allow_stand_in=true)"
        )
    if data.encoding.world_model is not None:
        raise ValueError(f"{job.data[0]}: these are pairs already; give the encoded clips")
    if job.options.cameras != "none" and not all(w.cameras for w in data.windows):
        raise ValueError(f"{job.data[0]}: some windows have no cameras (--set cameras=none)")
    refuse_other_outputs(job.out, MARKER)
    device = choose_device(job.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with hold_folder(job.out), ExitStack() as stack:
        name, path = _weights(job.weights)
        if (job.out / MARKER).is_file():  # before networks are loaded, which takes minutes
            check_same(job.out, _known(data, name, job))
            check_windows(job.out, encoded_windows(job.out), data.windows)
        _check_use(job, data)
        text = _text_encoder(job.refiner, device, dtype)
        model = _world_model(path, data, dtype).to(device)
        encoding = _encoding(data, text, name, job)
        empty = text.encode(NOTHING)
        begin(job.out, encoding, (empty.states[0], _mask(empty)))
        for stale in (job.out / "shards").glob(f"{TEMPORARY}*"):
            stale.unlink()
        have = encoded_windows(job.out)
        left = [i for i, w in enumerate(data.windows) if w.id not in have][:limit]
        stack.enter_context(signals_as_interrupt())
        done = 0
        for first in range(0, len(left), job.per_shard):
            made = [_pair(data, i, model, text, job.options) for i in left[first : first + job.per_shard]]
            write_shard(job.out, made)
            done += len(made)
            say(f"{done}/{len(left)} pairs")
            raise_if_interrupted()
    return f"{job.out}: {done} pairs made, {len(have)} were there", 0


@contextmanager
def _named(window: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"window {window}: {error}") from error


def _check_use(job: PairJob, data: EncodedDataset) -> None:
    """The world model must know the clips' latents, and be asked as it was trained.

    Raises:
        ValueError: its file says otherwise.
    """
    use = "world model" if job.options.chunk is None else "world model in chunks"
    check_use(job.weights, use)
    check_latents(job.weights, use, data.encoding.autoencoder)


def _weights(weights: str) -> tuple[str, Path | None]:
    """What the world model is called in what it makes, and where its weights lie; None: it is a stand-in.

    Raises:
        ValueError: no such weights.
    """
    if weights == "stand_in":
        return "stand-in world model, seed 0", None
    if weights.startswith("released/"):
        mode = weights.removeprefix("released/")
        if mode not in CHAINS:
            raise ValueError(f"--weights {weights}: use released/ with one of {', '.join(CHAINS)}")
        path = locate(CHAINS[mode]["world_model"])
    else:
        path = Path(weights)
        if not path.exists():
            raise ValueError(f"--weights {weights}: no such file")
    digest = file_digest(path)[:16] if path.is_file() else "folder"
    return f"{path.name} {digest}", path


def _world_model(path: Path | None, data: EncodedDataset, dtype: torch.dtype) -> WorldModel:
    if path is None:
        torch.manual_seed(0)
        model = WorldModel(TINY.model_copy(update={"text_tokens": data.encoding.text_tokens}))
        return model.requires_grad_(False).eval().to(dtype)
    model, _ = load_world_model(path, dtype=dtype)
    e, c = data.encoding, model.config
    if (e.latent_channels, e.text_width) != (c.latent_channels, c.text_width):
        raise ValueError(
            f"{path}: takes latents of {c.latent_channels} channels and text of {c.text_width}, the clips have "
            f"{e.latent_channels} and {e.text_width}"
        )
    return model.requires_grad_(False).eval()


def _text_encoder(refiner: str, device: torch.device, dtype: torch.dtype) -> RefinerTextEncoder:
    if refiner == "stand_in":
        return tiny_refiner_text_encoder(tokens=128).to(device, dtype)
    if refiner == "released":
        chain = CHAINS["distilled"]
        language, connectors = locate(chain["refiner_text_encoder"]), locate(chain["refiner"]) / "connectors"
    else:
        language, connectors = Path(refiner) / "text_encoder", Path(refiner) / "connectors"
    return load_refiner_text_encoder(language, connectors, device=device, dtype=dtype).to(device)


def _encoding(data: EncodedDataset, text: RefinerTextEncoder, model: str, job: PairJob) -> Encoding:
    states = text.encode(NOTHING).states
    licences = list(data.encoding.weight_licences)
    if job.refiner == "released":
        licences.append(WEIGHTS[CHAINS["distilled"]["refiner_text_encoder"]].licence)
    return data.encoding.model_copy(
        update={
            "text_width": states.shape[2],
            "text_tokens": states.shape[1],
            "stand_in": data.encoding.stand_in or text.stand_in or job.weights == "stand_in",
            "weight_licences": tuple(dict.fromkeys(licences)),
            **_told(model, job),
        }
    )


def _told(model: str, job: PairJob) -> dict[str, str]:
    """Fields of an `Encoding` that say which networks make pairs, and how they are asked."""
    asked = job.options.model_dump(exclude={"allow_stand_in"})
    settings = ", ".join(f"{k} {v}" for k, v in asked.items())
    return {
        "text_encoder": f"of the refiner, {Path(job.refiner).name}",
        "world_model": f"{model} ({settings})",
    }


def _known(data: EncodedDataset, model: str, job: PairJob) -> dict[str, object]:
    """Fields of what `_encoding` returns that are known before networks are loaded."""
    loaded = ("text_width", "text_tokens", "stand_in", "weight_licences")
    of_clips = {name: getattr(data.encoding, name) for name in Encoding.model_fields if name not in loaded}
    return {**of_clips, **_told(model, job)}


def _mask(text: Text) -> Tensor:
    shape = text.states.shape[:2]
    return (torch.ones(shape, dtype=torch.bool) if text.mask is None else text.mask.bool().cpu())[0]


@torch.no_grad()
def _pair(
    data: EncodedDataset, index: int, model: WorldModel, text: RefinerTextEncoder, options: PairOptions
) -> EncodedClip:
    """A window with what the world model makes of it."""
    clip = data.read(index)
    weight = model.final_layer.linear.weight
    batch = make_batch([clip], data.encoding, options.cameras)
    device, dtype = weight.device, weight.dtype

    def words(states: Tensor, mask: Tensor | None) -> Text:
        return Text(states.to(device, dtype), None if mask is None else mask.to(device))

    cameras = batch.cameras
    if cameras is not None:
        plucker = None if cameras.plucker is None else cameras.plucker.to(device, dtype)
        cameras = type(cameras)(cameras.camera_to_world.to(device), cameras.intrinsics.to(device), plucker)
    image = batch.latents[:, :, :1].to(device)
    noise = torch.Generator(device).manual_seed(seed_of(options.seed, index))
    frames = batch.latents.shape[2]
    guidance = None
    if options.guidance != 1:
        states, mask = data.empty_caption()
        guidance = Guidance(empty=words(states[None], mask[None]), scale=options.guidance)
    steps: dict[str, Any] = dict(steps=options.steps, shift=options.shift)
    common: dict[str, Any] = dict(cameras=cameras, guidance=guidance)
    with _named(clip.window.id):
        start = noise_latents(model, image, frames, noise)
        asked = words(batch.text.states, batch.text.mask)
        if options.chunk is None:
            made = sample_bidirectional(model, start, asked, **steps, **common)
        else:
            schedule = ChunkSchedule(**steps, starts=chunk_starts(frames, options.chunk))
            made = sample_chunk_causal(model, start, asked, schedule=schedule, **common)
        told = text.encode(clip.window.caption.strip() or NOTHING, overlong="cut")
    return replace(clip, start=made[0], text=told.states[0], text_mask=_mask(told))
