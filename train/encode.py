"""From rows with cameras and their pictures to encoded windows (`dataset.encoded`): what a trainer reads.

A window is cut from a clip, its pictures are brought to the model's size and encoded, its caption goes through the text
encoder, and its cameras are made relative to its own first frame. The intrinsics follow the picture: every resize and
cut is recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..dataset.cameras.intrinsics import intrinsics_matrix, split_intrinsics
from ..dataset.cameras.paths import FPS
from ..dataset.cameras.transforms import relative_to_first
from ..dataset.encoded import EncodedClip, Encoding, Window, all_finite, window_id
from ..dataset.media.picture import Cover, cover
from ..dataset.media.undistort import ClipPictures
from ..dataset.rows import Row
from ..dataset.strict import Finite
from ..dataset.weights import CHAINS, WEIGHTS, file_digest, locate
from ..model.autoencoder import VideoAutoencoder, load_autoencoder, tiny_autoencoder
from ..model.conditioning import latent_frames
from ..model.parts import TINY, find_encoders
from ..model.text import TextEncoder, load_text_encoder, tiny_text_encoder

_FPS_TOLERANCE = 0.01


class EncodeOptions(Finite):
    """What is encoded of a dataset, and how."""

    height: Annotated[int, Field(ge=32, multiple_of=32)] = 704
    width: Annotated[int, Field(ge=32, multiple_of=32)] = 1280
    fit: Literal["cover", "squeeze"] = "cover"
    """`cover`: resize and cut the middle; `squeeze`: resize to the size, whatever the picture's shape."""
    frames: Annotated[int, Field(ge=9)] = 961
    """Video frames of a window, 8 k + 1."""
    stride: Annotated[int, Field(ge=1)] | None = None
    """From one window to the next; null: as long as a window is, so that none overlap."""
    shortest: Annotated[int, Field(ge=9)] | None = None
    """Also take what is left at the end of a clip, and shorter clips, from so many frames on (8 k + 1 of them)."""
    cameras: Literal["required", "none"] = "required"
    """`none`: encode pictures and captions alone, for the stages that are trained without cameras."""
    caption: str | None = None
    """Key of the caption; null: the row's first one."""
    missing_caption: Literal["error", "empty"] = "error"
    """`empty`: clips without one get the caption that says nothing."""
    fps: Annotated[float, Field(gt=0)] = FPS
    """Rate that rows must have, within 1 %."""
    undistort: bool = False
    """Pictures are those that the row's pinhole cameras would have taken; else they are bent as they are, under the
    cameras of a pinhole."""
    allow_rejected: bool = False
    """Also encode clips that the gates rejected, where they have cameras."""
    allow_stand_in: bool = False
    """Also encode rows made with stand-in networks: to try the system, never to train for real."""

    @model_validator(mode="after")
    def _whole_latents(self) -> EncodeOptions:
        latent_frames(self.frames)
        if self.shortest is not None and self.shortest > self.frames:
            raise ValueError(f"shortest {self.shortest} is more than frames {self.frames}")
        return self


class Refused(ValueError):
    """A clip that is not encoded, and why."""


def windows_of(row: Row, options: EncodeOptions) -> list[Window]:
    """The windows that a row gives.

    Raises:
        Refused: it may not be encoded as it is; says why and which option would change that.
    """
    cameras, given = options.cameras == "required", row
    _check_row(row, options)
    try:
        row = ClipPictures(row, ".", undistort=options.undistort).row
    except ValueError as error:
        raise Refused(str(error)) from None
    starts = []
    stride = options.stride or options.frames
    least = options.shortest or options.frames
    for first in range(0, row.num_frames, stride):
        count = min(options.frames, row.num_frames - first)
        count -= (count - 1) % 8
        if count >= least:
            starts.append((first, count))
    if not starts:
        advice = " (--set shortest=9 takes shorter ones)" if least > 9 else ""
        raise Refused(f"clip {row.clip_id}: {row.num_frames} frames, a window has {least}{advice}")
    captions = row.captions or {}
    caption = captions.get(options.caption, "") if options.caption else next(iter(captions.values()), "")
    if not caption.strip() and options.missing_caption == "error":
        wanted = f"caption {options.caption!r}" if options.caption else "caption"
        raise Refused(f"clip {row.clip_id}: has no {wanted} (--set missing_caption=empty encodes it without)")
    try:
        cut = picture_cut((row.height, row.width), options)
    except Refused as why:
        raise Refused(f"clip {row.clip_id}: {why}") from None
    return [
        Window(
            id=window_id(row.clip_id, first),
            clip_id=row.clip_id,
            first_frame=first,
            num_frames=count,
            caption=caption,
            cameras=cameras,
            data_licence=row.data_licence,
            cover=_described(cut),
            stand_in=row.stand_in,
            source=row.source,
            cameras_digest=_cameras_digest(given, first, count) if cameras else "",
        )
        for first, count in starts
    ]


def _cameras_digest(row: Row, first: int, count: int) -> str:
    """Of a row's cameras in a window, as they are stored: what comes of them may differ in a last digit elsewhere."""
    part = slice(first, first + count)
    numbers = (row.camera_to_world[part], row.focal_px[part], row.principal_point_px[part])
    digest = hashlib.sha256(f"{row.lens_model} {row.radial_k1} {row.radial_k2}".encode())
    for array in numbers:
        digest.update(np.ascontiguousarray(array, np.float64).tobytes())
    return digest.hexdigest()[:16]


def _check_row(row: Row, options: EncodeOptions) -> None:
    who = f"clip {row.clip_id}"
    if row.stand_in and not options.allow_stand_in:
        raise Refused(
            f"{who}: was made with stand-in networks (--set allow_stand_in=true encodes it all the same)"
        )
    if row.num_frames == 0:
        raise Refused(f"{who}: has no frames ({', '.join(row.reasons) or row.verdict})")
    if row.fps is None or abs(row.fps / options.fps - 1) > _FPS_TOLERANCE:
        raise Refused(
            f"{who}: is {row.fps or 0:g} frames/s, the model is trained at {options.fps:g}: annotate it at that rate"
        )
    if options.cameras == "none":
        return
    if row.verdict != "accepted" and not options.allow_rejected:
        raise Refused(
            f"{who}: was rejected ({', '.join(row.reasons)}); --set allow_rejected=true encodes it all the same"
        )
    if not len(row.camera_to_world):
        raise Refused(f"{who}: has no cameras (--set cameras=none encodes pictures and captions alone)")
    if row.lens_model == "fisheye" and not options.undistort:
        raise Refused(
            f"{who}: is seen through a fisheye (--set undistort=true makes its pictures a pinhole's)"
        )
    if row.scale_model == "none":
        raise Refused(f"{who}: its cameras are not in metres (no scale was found)")


def bent_share(row: Row) -> float:
    """How far a row's lens moves what it shows in the corners of the picture, over the picture's diagonal, at most."""
    k1, k2 = row.radial_k1 or 0.0, row.radial_k2 or 0.0
    if not (k1 or k2) or not len(row.focal_px):
        return 0.0
    corners = np.array([[x, y] for x in (0, row.width) for y in (0, row.height)])
    rays = (corners - row.principal_point_px[:, None]) / row.focal_px[:, None]
    squared = (rays**2).sum(-1, keepdims=True)
    moved_px = np.linalg.norm(rays * squared * (k1 + k2 * squared) * row.focal_px[:, None], axis=-1)
    return float(moved_px.max()) / float(np.hypot(row.width, row.height))


def picture_cut(source: tuple[int, int], options: EncodeOptions) -> Cover:
    """How a clip's picture (height, width) becomes the model's.

    Raises:
        Refused: too little of it would be left.
    """
    target = (options.height, options.width)
    if options.fit == "squeeze":
        return Cover(source=source, resized=target, target=target, top=0, left=0)
    try:
        return cover(source, target)
    except ValueError as error:
        raise Refused(f"{error} (--set fit=squeeze keeps all of it)") from None


def _described(cut: Cover) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(cut).items()}


@dataclass(frozen=True)
class Encoders:
    """The two networks that encode.

    Attributes:
        autoencoder, text: on their device.
        names: of both, with digest.
        licences: of their weights.
    """

    autoencoder: VideoAutoencoder
    text: TextEncoder
    names: tuple[str, str]
    licences: tuple[str, ...]

    @property
    def stand_in(self) -> bool:
        return self.autoencoder.stand_in or self.text.stand_in

    def encoding(self, options: EncodeOptions, *, stand_in_rows: bool) -> Encoding:
        """What a folder of these encoders and options says of itself."""
        return Encoding(
            height=options.height,
            width=options.width,
            fit=options.fit,
            fps=options.fps,
            undistort=options.undistort,
            temporal_stride=self.autoencoder.temporal_stride,
            spatial_stride=self.autoencoder.spatial_stride,
            latent_channels=self.autoencoder.latent_channels,
            text_width=self.text.width,
            text_tokens=self.text.tokens,
            autoencoder=self.names[0],
            text_encoder=self.names[1],
            stand_in=self.stand_in or stand_in_rows,
            weight_licences=self.licences,
        )

    def empty_text(self) -> tuple[Tensor, Tensor]:
        """States and mask of the caption that says nothing."""
        found = self.text.encode("", instruction=False)
        assert found.mask is not None
        return found.states[0], found.mask[0]


def load_encoders(
    weights: str, *, device: torch.device | str, dtype: torch.dtype, text_tokens: int | None = None
) -> Encoders:
    """The autoencoder and the text encoder.

    Args:
        weights: `released` (in the hub's cache), a folder laid out as a release, or `stand_in` (tiny, random numbers).
        text_tokens: of a stand-in.
    Raises:
        ValueError, FileNotFoundError: files are missing or damaged; says what brings them.
        ModuleNotFoundError: diffusers or transformers is not installed.
    """
    if weights == "stand_in":
        tokens = text_tokens or TINY.text_tokens
        return Encoders(
            tiny_autoencoder(latent_channels=TINY.latent_channels, causal=False).to(device, dtype),
            tiny_text_encoder(width=TINY.text_width, tokens=tokens).to(device, dtype),
            ("stand-in autoencoder, seed 0", "stand-in text encoder, seed 0"),
            (),
        )
    instruction = None
    licences: tuple[str, ...] = ()
    if weights == "released":
        chain = CHAINS["bidirectional"]
        autoencoder, text = (locate(chain[part]) for part in ("autoencoder", "text_encoder"))
        licences = tuple(WEIGHTS[chain[part]].licence for part in ("autoencoder", "text_encoder"))
    else:
        autoencoder, text, instruction = find_encoders(Path(weights))
    return Encoders(
        load_autoencoder(autoencoder, dtype=dtype).to(device),
        load_text_encoder(text, instruction=instruction, device=device, dtype=dtype),
        (f"{autoencoder.name} {_digest(autoencoder)}", f"{text.name} {_digest(text)}"),
        licences,
    )


def _digest(folder: Path) -> str:
    """Of the weights in a folder: the first 16 digits of the digests' digest."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: holds no .safetensors file")
    return hashlib.sha256("".join(file_digest(file) for file in files).encode()).hexdigest()[:16]


def encode_window(
    row: Row, window: Window, encoders: Encoders, options: EncodeOptions, media_root: Path
) -> EncodedClip:
    """Pictures, caption and cameras of one window through the networks.

    Raises:
        ValueError, OSError: the media cannot be read, or latents come out that are not finite.
    """
    pictures = ClipPictures(row, media_root, undistort=options.undistort)
    row = pictures.row
    cut = picture_cut((row.height, row.width), options)
    autoencoder = encoders.autoencoder
    pixels = torch.empty(3, window.num_frames, options.height, options.width, dtype=autoencoder.dtype)
    positions = range(window.first_frame, window.first_frame + window.num_frames)
    for i, image in enumerate(pictures.frames(positions=positions)):
        pixels[:, i] = torch.from_numpy(cut.apply(image)).permute(2, 0, 1) / 127.5 - 1
    latents = autoencoder.encode(pixels)[0]
    if not all_finite(latents):
        raise ValueError(f"window {window.id}: the autoencoder gave latents that are not finite")
    if window.caption.strip():
        text = encoders.text.encode(window.caption, overlong="cut", name=f"window {window.id}: its caption")
        assert text.mask is not None
        states, mask = text.states[0], text.mask[0]
    else:
        states, mask = encoders.empty_text()
    pose, lens = (None, None) if not window.cameras else cameras_of(row, window, cut)
    return EncodedClip(window, latents, states, mask, pose, lens)


def cameras_of(row: Row, window: Window, cut: Cover) -> tuple[Tensor, Tensor]:
    """(F, 4, 4) poses relative to the window's first frame and (F, 4) intrinsics in px of the cut picture, float32."""
    part = slice(window.first_frame, window.first_frame + window.num_frames)
    poses = relative_to_first(row.camera_to_world[part].astype(np.float64))
    matrix = np.asarray(intrinsics_matrix(row.focal_px[part], row.principal_point_px[part]), dtype=np.float64)
    focal, centre = split_intrinsics(cut.apply_to_intrinsics(matrix))
    return torch.from_numpy(poses).float(), torch.from_numpy(np.concatenate([focal, centre], axis=1)).float()


def grouped(windows: Sequence[Window], size: int) -> Iterator[list[Window]]:
    """Windows in groups of `size`, each a shard."""
    for i in range(0, len(windows), size):
        yield list(windows[i : i + size])


def encode_group(
    windows: Sequence[Window],
    row_of: Callable[[str], Row],
    encoders: Encoders,
    options: EncodeOptions,
    media_root: Path,
) -> tuple[list[EncodedClip], list[tuple[Window, str]]]:
    """Encode windows one after the other; those that fail come back with their reason."""
    done, failed = [], []
    for window in windows:
        try:
            done.append(encode_window(row_of(window.clip_id), window, encoders, options, media_root))
        except (ValueError, OSError) as error:
            failed.append((window, str(error)))
    return done, failed
