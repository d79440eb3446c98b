"""From a clip's request to arrays: image, camera path and lens, read, checked and fitted to the model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...dataset.camera_files.request import (
    Limits,
    PathFigures,
    check_fov,
    lens_of_picture,
    path_figures,
    prepare_path,
    read_lens,
)
from ...dataset.camera_files.requested import CameraPath, Reading, read_camera_path
from ...dataset.cameras.intrinsics import intrinsics_matrix
from ...dataset.cameras.paths import FPS
from ...dataset.media.errors import MediaError
from ...dataset.media.images import read_image
from ...dataset.media.picture import Cover, cover
from ...model.generation import GenerationRequest
from .options import ClipRequest, GenerateOptions

LONGEST_PROMPT = 20_000
"""Characters; what the text encoder sees is counted in tokens once it is loaded."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """One clip, ready for the model.

    Attributes:
        clip, options: as asked for, the clip's own values among the options.
        request: for the model.
        path: that is followed, with the file's notes.
        figures: of the path.
        cover: how the image was cut.
        image_sha256: of the file.
        fov_deg: least and largest horizontal field of view.
        lens: where the intrinsics come from.
        lens_weights: label and licence of the network that estimated them, if one did.
        stand_in: a path or a lens of stand-in weights.
        notes: what had to be decided.
    """

    clip: ClipRequest
    options: GenerateOptions
    request: GenerationRequest
    path: CameraPath
    figures: PathFigures
    cover: Cover
    image_sha256: str
    fov_deg: tuple[float, float]
    lens: str
    lens_weights: tuple[str, str] | None
    stand_in: bool
    notes: tuple[str, ...]


def prepare(clip: ClipRequest, run: GenerateOptions) -> Prepared:
    """Read and check everything about a clip; loads no network but one that estimates the lens.

    Raises:
        ValueError: naming what is wrong and what to do.
    """
    options = clip.options(run)
    sampling = options.sampling()
    prompt, negative = _prompt(clip.prompt), _as_text(options.negative_prompt, "negative prompt")
    image, digest = _image(clip.image)
    try:
        cut = cover(image.shape[:2], options.picture)
    except ValueError as error:
        raise ValueError(f"{clip.image}: {error}") from None
    reading = Reading(
        fps=options.fps, metres_per_unit=options.metres_per_unit, seconds=_named_seconds(options)
    )
    limits = Limits(max_speed_m_s=options.max_speed_m_s, max_turn_deg_s=options.max_turn_deg_s)
    path = _with_given_lens(read_camera_path(clip.camera, reading), image, options)
    seconds = _named_seconds(options) if path.form == "named path" else options.seconds
    path = prepare_path(path, seconds=seconds, multiple=sampling.chunk_frames, limits=limits)
    lens = _lens(image, path, options)
    intrinsics = cut.apply_to_intrinsics(lens.intrinsics_px)
    try:
        fov = check_fov(intrinsics, height=options.picture[0], width=options.picture[1])
    except ValueError as error:
        raise ValueError(f"{error} (intrinsics: {lens.origin})") from None
    return Prepared(
        clip=clip,
        options=options,
        request=GenerationRequest(
            image=cut.apply(image),
            prompt=prompt,
            camera_to_world=path.camera_to_world,
            intrinsics_px=intrinsics,
            sampling=sampling,
            seed=options.seed,
            refine=options.refine,
            refiner_seed=options.refiner_seed,
            negative_prompt=negative,
        ),
        path=path,
        figures=path_figures(path),
        cover=cut,
        image_sha256=digest,
        fov_deg=fov,
        lens=lens.origin,
        lens_weights=lens.weights,
        stand_in=path.stand_in or lens.stand_in,
        notes=(*path.notes, *_note_on_length(options, path), *_notes_on_image(cut)),
    )


def _with_given_lens(path: CameraPath, image: np.ndarray, options: GenerateOptions) -> CameraPath:
    """The path with the lens of an option, one a pose before it is brought to the model's rate."""
    text = options.intrinsics
    if text is None or text.partition("=")[0] == "estimate":
        return path
    height, width = image.shape[:2]
    given = read_lens(text, height=height, width=width, num_frames=len(path))
    return replace(path, intrinsics_px=given, height=height, width=width)


def _named_seconds(options: GenerateOptions) -> float:
    """How long a named path lasts: whole chunks, so that nothing is cut off."""
    multiple = options.sampling().chunk_frames
    wanted = 10.0 if options.seconds is None else options.seconds
    return max(1, round(wanted * FPS / multiple)) * multiple / FPS


def _note_on_length(options: GenerateOptions, path: CameraPath) -> tuple[str, ...]:
    """Videos are whole chunks: what was asked for and is not one."""
    wanted = options.seconds
    if wanted is None or abs(wanted - path.duration_s) < 1e-6:
        return ()
    whole = options.sampling().chunk_frames / FPS
    return (f"{wanted:g} s were asked for, the video lasts {path.duration_s:g} s: a multiple of {whole:g} s",)


def _prompt(text: str) -> str:
    prompt = text.strip()
    if not prompt:
        raise ValueError("the prompt is empty: say what the video shows (--prompt)")
    return _as_text(prompt, "prompt")


def _as_text(words: str, what: str) -> str:
    if len(words) > LONGEST_PROMPT:
        raise ValueError(
            f"the {what} has {len(words)} characters; the model sees some 300 tokens, about 1,200 characters"
        )
    if "\0" in words:
        raise ValueError(f"the {what} holds a null character")
    try:
        words.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the {what} is no text: {error}") from None
    return words


def _image(path: Path) -> tuple[np.ndarray, str]:
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give one image")
    try:
        return read_image("image", path), hashlib.sha256(path.read_bytes()).hexdigest()
    except MediaError as error:
        raise ValueError(str(error).removeprefix("clip image: ")) from None


def _notes_on_image(cut: Cover) -> tuple[str, ...]:
    notes = []
    if cut.kept < 0.9:
        notes.append(f"{100 * (1 - cut.kept):.0f} % of the image is cut off to fit the model's shape")
    if cut.enlarged > 1.5:
        notes.append(f"the image is enlarged {cut.enlarged:.1f} times; a larger one gives a sharper video")
    return tuple(notes)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lens:
    """(F, 3, 3) for the image, where they come from, and the network behind them."""

    intrinsics_px: np.ndarray
    origin: str
    weights: tuple[str, str] | None = None
    stand_in: bool = False


def _lens(image: np.ndarray, path: CameraPath, options: GenerateOptions) -> _Lens:
    height, width = image.shape[:2]
    text = options.intrinsics or ""
    network, equals, which = text.partition("=")
    if network != "estimate":
        try:
            own = lens_of_picture(path, height=height, width=width)
        except ValueError as error:
            given = f"--intrinsics {text}:"
            raise ValueError(str(error).replace(f"camera {path.origin}:", given) if text else error) from None
        if own is not None:
            return _Lens(
                intrinsics_px=own, origin=f"--intrinsics {text}" if text else f"the camera {path.origin}"
            )
        if not options.stand_in:
            raise ValueError(
                f"camera {path.origin} says nothing of the lens: give --intrinsics fov=DEGREES, fx,fy,cx,cy or a .npy "
                "file, or --intrinsics estimate (needs the weights of MoGe-2)"
            )
    return _estimated(image, which if equals else "moge-2", len(path), options)


def _estimated(image: np.ndarray, network: str, frames: int, options: GenerateOptions) -> _Lens:
    from ...annotate.geometry.image_lens import estimate_lens

    found = estimate_lens(
        image,
        network=network,
        weights="stand_in" if options.stand_in else "released",
        size="tiny" if options.size == "tiny" else "released",
        device=options.device,
    )
    (label,), (licence,) = found.provenance.weights, found.provenance.weight_licences
    height, width = image.shape[:2]
    focal, centre = np.full((frames, 2), found.focal_px), np.tile([width / 2, height / 2], (frames, 1))
    return _Lens(
        intrinsics_px=np.asarray(intrinsics_matrix(focal, centre)),
        origin=f"estimated from the image by {label}",
        weights=(label, licence),
        stand_in=found.provenance.stand_in,
    )
