"""Encoded clips: latents, text states and cameras of windows of clips, as a trainer reads them.

A folder holds `encoded.json` (what encoded it, and how), `empty_caption.safetensors`, and `shards/*.safetensors`, each
with some windows and their descriptions in its header. A shard appears whole or not at all; what is encoded is what the
shards hold. Tensors are mapped: one window, or some of its frames, is read without the rest of its shard.

    <id>.latents          (T, C, h, w) bfloat16, normalised as the world model takes them; frames first, so that a
                          rank's share of them is one stretch of the file
    <id>.text, <id>.mask  (L, C) bfloat16 hidden states of the caption, (L,) which of them are tokens
    <id>.camera_to_world  (F, 4, 4) float32 metres, relative to the window's first video frame; absent without cameras
    <id>.intrinsics       (F, 4) float32 fx, fy, cx, cy in pixels of the encoded picture
    <id>.start            (T, C, h, w) bfloat16 what a world model made of the window's image, caption and cameras: what
                          the refiner is trained to begin with; text is the refiner's then (`theodolite pairs`)
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from torch import Tensor

from .inputs import InputError, read_json
from .names import check_name
from .outputs import refuse_other_outputs
from .store import write_atomically
from .strict import Strict, error_lines

FORMAT = "theodolite encoded clips"
VERSION = 1
_LONGEST_HEADER = 1 << 28
_MOST_OPEN = 64
"""Shards that stay mapped: files are limited, often to 1024 a process."""


class Encoding(Strict):
    """How clips were encoded: the same for all windows of a folder, and what a trainer has to know of it."""

    format: str = FORMAT
    version: int = VERSION
    height: int
    width: int
    """Of the encoded picture, px."""
    fit: str
    """`cover`: resized and cut in the middle; `squeeze`: resized to the size, whatever its shape."""
    fps: float
    undistort: bool = False
    """Pictures are those that the rows' pinhole cameras would have taken."""
    temporal_stride: int
    spatial_stride: int
    latent_channels: int
    text_width: int
    text_tokens: int
    autoencoder: str
    """Name and digest of what encoded the pictures."""
    text_encoder: str
    stand_in: bool
    """Random numbers stood in for a network, or rows of stand-in networks were taken: nothing to publish."""
    weight_licences: tuple[str, ...] = ()
    world_model: str | None = None
    """Name and digest of what made `start`; null: there is none."""


class Window(Strict):
    """One encoded window of a clip."""

    id: str
    """`<clip id>_w<first frame>`."""
    clip_id: str
    first_frame: int
    """Clip frame with which it begins."""
    num_frames: int
    """Video frames, 8 k + 1."""
    caption: str
    cameras: bool
    data_licence: str
    cover: dict[str, Any] = Field(default_factory=dict)
    """How the picture was resized and cut (`picture.Cover`)."""
    stand_in: bool = False
    source: str = ""
    """Of its row; empty in folders of earlier versions."""
    cameras_digest: str = ""
    """Of what its row says of cameras and lens; empty without cameras and in folders of earlier versions."""


@dataclass(frozen=True, eq=False)
class EncodedClip:
    """A window, or some of its latent frames.

    Attributes:
        window: which one.
        latents: (C, t, h, w) bfloat16.
        text, text_mask: (L, C) and (L,).
        camera_to_world: (F, 4, 4) of all video frames, relative to the first; None: without cameras.
        intrinsics_px: (F, 4).
        start: (C, t, h, w) bfloat16, of pairs for the refiner.
    """

    window: Window
    latents: Tensor
    text: Tensor
    text_mask: Tensor
    camera_to_world: Tensor | None = None
    intrinsics_px: Tensor | None = None
    start: Tensor | None = None


def window_id(clip_id: str, first_frame: int) -> str:
    """Name of a window: the clip's id shortened where it would be too long."""
    return check_name(f"{clip_id[:110]}_w{first_frame:06d}")


MARKER = "encoded.json"
"""What makes a folder one of encoded clips."""


def begin(out: Path, encoding: Encoding, empty_text: tuple[Tensor, Tensor]) -> None:
    """Make a folder for encoded clips, or check that it was made by the same networks and settings.

    Args:
        empty_text: states (L, C) and mask (L,) of the caption that says nothing.
    Raises:
        ValueError: the folder holds clips that were encoded otherwise (names every difference), or what another command
            wrote.
    """
    from safetensors.torch import save

    refuse_other_outputs(out, MARKER)
    (out / "shards").mkdir(parents=True, exist_ok=True)
    marker = out / MARKER
    if marker.is_file():
        check_same(out, {name: getattr(encoding, name) for name in Encoding.model_fields})
        return
    states, mask = empty_text
    content = save({"states": states.bfloat16().cpu().contiguous(), "mask": mask.bool().cpu().contiguous()})
    write_atomically(out / "empty_caption.safetensors", content)
    write_atomically(marker, (encoding.model_dump_json(indent=1) + "\n").encode())


def check_same(out: Path, wanted: Mapping[str, object]) -> None:
    """Check that a folder's clips were encoded as is wanted now.

    Args:
        wanted: some or all fields of `Encoding`.
    Raises:
        ValueError: they were not; names every difference.
    """
    found = read_encoding(out)
    differences = [
        f"{name}: {getattr(found, name)!r} there, {value!r} now"
        for name, value in wanted.items()
        if getattr(found, name) != value
    ]
    if differences:
        raise ValueError(
            f"{out}: holds clips that were encoded otherwise ({'; '.join(differences)}); choose another --out"
        )


def check_windows(out: Path, there: Mapping[str, tuple[Path, Window]], wanted: Iterable[Window]) -> None:
    """Make sure that windows that are there under their ids are those that are wanted: one of another length, caption
    or camera path would be taken for it.

    Args:
        there: `encoded_windows` of the folder.
    Raises:
        ValueError: some are not; names what differs in the first ones.
    """
    differences = {}
    for window in wanted:
        if window.id in there:
            before, now = there[window.id][1].model_dump(), window.model_dump()
            odd = [
                k for k, v in before.items() if v != now[k] and v not in ("", {})
            ]  # empty in earlier versions
            if odd:
                said = (f"{k} {_short(before[k])} there, {_short(now[k])} now" for k in odd)
                differences[window.id] = ", ".join(said)
    if differences:
        name, why = next(iter(differences.items()))
        raise ValueError(
            f"{out}: holds {len(differences)} windows that are otherwise now ({name}: {why}); give another folder"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_encoding(folder: Path) -> Encoding:
    """What `encoded.json` says.

    Raises:
        ValueError: there is none, or it is damaged or of another version.
    """
    marker = folder / MARKER
    if not marker.is_file():
        raise ValueError(
            f"{folder}: holds no encoded clips (no encoded.json): theodolite encode DATASET --out {folder}, or for the"
            f" refiner's training theodolite pairs ENCODED --out {folder}"
        )
    content = read_json(marker)
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
        raise ValueError(f"{marker}: is no {FORMAT!r} of version {VERSION}")
    try:
        return Encoding(**content)
    except ValidationError as error:
        raise ValueError(f"{marker}: {'; '.join(error_lines(error))}") from None


def write_shard(out: Path, clips: Sequence[EncodedClip]) -> Path:
    """Write some windows as one shard, all or nothing; its name follows from their ids.

    Raises:
        ValueError: no window, one twice, or latents that are not finite.
        OSError: the disk is full; nothing remains.
    """
    from safetensors.torch import save

    ids = [clip.window.id for clip in clips]
    if not ids or len(set(ids)) != len(ids):
        raise ValueError(f"{out}: a shard needs windows, each once; got {ids[:5]}")
    tensors: dict[str, Tensor] = {}
    for clip in clips:
        if not all(all_finite(x) for x in (clip.latents, clip.start) if x is not None):
            raise ValueError(f"window {clip.window.id}: its latents are not finite")
        parts = {
            "latents": clip.latents.bfloat16().permute(1, 0, 2, 3),
            "text": clip.text.bfloat16(),
            "mask": clip.text_mask.bool(),
            "camera_to_world": None if clip.camera_to_world is None else clip.camera_to_world.float(),
            "intrinsics": None if clip.intrinsics_px is None else clip.intrinsics_px.float(),
            "start": None if clip.start is None else clip.start.bfloat16().permute(1, 0, 2, 3),
        }
        tensors |= {f"{clip.window.id}.{k}": v.cpu().contiguous() for k, v in parts.items() if v is not None}
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
    path = out / "shards" / f"shard-{digest}.safetensors"
    described = json.dumps([clip.window.model_dump(mode="json") for clip in clips])
    write_atomically(path, save(tensors, metadata={"windows": described}))
    return path


def encoded_windows(folder: Path) -> dict[str, tuple[Path, Window]]:
    """Every window that is encoded, by id, in order of shards and then of windows; reads headers only.

    Raises:
        ValueError: a shard is damaged, or a window is in two of them.
    """
    shards = sorted((folder / "shards").glob("shard-*.safetensors"))
    found: dict[str, tuple[Path, Window]] = {}
    with ThreadPoolExecutor(8) as pool:
        for shard, windows in zip(shards, pool.map(_windows_of, shards), strict=True):
            for window in windows:
                if window.id in found:
                    other = found[window.id][0].name
                    raise ValueError(
                        f"{folder}: window {window.id} is in {other} and in {shard.name}; remove one"
                    )
                found[window.id] = (shard, window)
    return found


def _windows_of(shard: Path) -> list[Window]:
    try:
        with shard.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError(f"its header has {length} bytes")
            header = json.loads(stream.read(length))
        size = max(
            (end for k, v in header.items() if k != "__metadata__" for end in v["data_offsets"]), default=0
        )
        if shard.stat().st_size != 8 + length + size:
            raise ValueError(f"it has {shard.stat().st_size} bytes, the header says {8 + length + size}")
        return [Window(**window) for window in json.loads(header["__metadata__"]["windows"])]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(
            f"{shard}: is no intact shard of encoded clips ({type(error).__name__}: {str(error)[:200]}); remove it; "
            "theodolite encode makes its windows again"
        ) from None


def all_finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite, by the smallest and the largest: a tenth of the time of asking each."""
    if not x.numel():
        return True
    lowest, highest = x.aminmax()
    return bool(lowest.isfinite()) and bool(highest.isfinite())


@dataclass
class EncodedDataset:
    """Encoded clips of one or several folders, sorted by id: the same order on every rank.

    Attributes:
        folders: where they lie; all encoded alike.
        encoding: how.
        windows: what there is.
    """

    folders: tuple[Path, ...]
    encoding: Encoding
    windows: tuple[Window, ...]
    _shards: Mapping[str, Path] = field(repr=False)
    _open: OrderedDict[Path, Any] = field(default_factory=OrderedDict, repr=False)

    def __len__(self) -> int:
        return len(self.windows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def empty_caption(self) -> tuple[Tensor, Tensor]:
        """States (L, C) and mask (L,) of the caption that says nothing."""
        from safetensors.torch import load_file

        path = self.folders[0] / "empty_caption.safetensors"
        try:
            found = load_file(path)
            return found["states"], found["mask"]
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read ({error})") from None
        except Exception as error:
            raise ValueError(f"{path}: is no intact safetensors file ({str(error)[:200]})") from error

    def latent_frames(self, index: int) -> int:
        """Latent frames of a window."""
        return (self.windows[index].num_frames - 1) // self.encoding.temporal_stride + 1

    def read(self, index: int, frames: slice | None = None) -> EncodedClip:
        """A window by number; of its latents only `frames`, the rest whole.

        Raises:
            ValueError: naming the window and its shard: a damaged or missing shard, values that are not finite, shapes
                that are not those of the folder.
        """
        window = self.windows[index]
        shard = self._shards[window.id]
        try:
            opened = self._opened(shard)
            part = frames or slice(None)
            latents = opened.get_slice(f"{window.id}.latents")[part]
            start = None
            if self.encoding.world_model is not None:
                start = opened.get_slice(f"{window.id}.start")[part].permute(1, 0, 2, 3)
            get = opened.get_tensor
            text, mask = get(f"{window.id}.text"), get(f"{window.id}.mask")
            cameras = (
                [get(f"{window.id}.{k}") for k in ("camera_to_world", "intrinsics")]
                if window.cameras
                else None
            )
        except Exception as error:  # safetensors' own kind of error has no base but Exception
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"window {window.id}: {shard} cannot be read: {first[:200]}") from error
        self._check(window, latents, text, cameras, whole=frames is None)
        latents = latents.permute(1, 0, 2, 3)
        if start is not None and (start.shape != latents.shape or not all_finite(start)):
            raise ValueError(
                f"window {window.id} of {shard}: start {tuple(start.shape)} is not finite or not like the latents"
            )
        pose, lens = cameras or (None, None)
        return EncodedClip(window, latents, text, mask, pose, lens, start)

    def _opened(self, shard: Path) -> Any:
        from safetensors import safe_open

        opened = self._open.pop(shard, None)
        if opened is None:
            opened = safe_open(shard, framework="pt")
        self._open[shard] = opened
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)
        return opened

    def _check(
        self, window: Window, latents: Tensor, text: Tensor, cameras: list[Tensor] | None, *, whole: bool
    ) -> None:
        e = self.encoding
        count = (window.num_frames - 1) // e.temporal_stride + 1
        shape = (e.latent_channels, e.height // e.spatial_stride, e.width // e.spatial_stride)
        problems = []
        if tuple(latents.shape[1:]) != shape or (whole and latents.shape[0] != count):
            problems.append(f"latents {tuple(latents.shape)}, expected {(count, *shape)}")
        if tuple(text.shape) != (e.text_tokens, e.text_width):
            problems.append(f"text {tuple(text.shape)}, expected {(e.text_tokens, e.text_width)}")
        if cameras and [tuple(c.shape) for c in cameras] != [
            (window.num_frames, 4, 4),
            (window.num_frames, 4),
        ]:
            problems.append(f"cameras {[tuple(c.shape) for c in cameras]} for {window.num_frames} frames")
        named = {"latents": latents, "text": text}
        named |= dict(zip(("camera_to_world", "intrinsics"), cameras or (), strict=False))
        problems += [f"{name} hold NaN or infinity" for name, x in named.items() if not all_finite(x)]
        if problems:
            raise ValueError(f"window {window.id} of {self._shards[window.id]}: {'; '.join(problems)}")


def open_encoded(*folders: str | Path) -> EncodedDataset:
    """Encoded clips of folders that were encoded alike; reads headers only.

    Raises:
        ValueError: a folder holds none, is damaged, or was encoded otherwise than the first (another autoencoder, size,
            rate or text encoder); a window is there twice.
    """
    if not folders:
        raise ValueError("no folder of encoded clips is named")
    paths = tuple(Path(folder) for folder in folders)
    encodings = [read_encoding(path) for path in paths]
    for path, other in zip(paths[1:], encodings[1:], strict=True):
        differences = [
            f"{name} {getattr(other, name)!r} against {getattr(encodings[0], name)!r}"
            for name in Encoding.model_fields
            if name not in ("stand_in", "weight_licences", "fit")
            and getattr(other, name) != getattr(encodings[0], name)
        ]
        if differences:
            raise ValueError(f"{path} and {paths[0]} were encoded otherwise: {'; '.join(differences)}")
    found: dict[str, tuple[Path, Window]] = {}
    for path in paths:
        mine = encoded_windows(path)
        if twice := next((name for name in mine if name in found), None):
            raise ValueError(f"{path}: window {twice} is in {found[twice][0].parent.parent} as well")
        found |= mine
    if not found:
        raise ValueError(f"{', '.join(map(str, paths))}: no clip is encoded yet")
    names = sorted(found)
    licences = {licence: None for e in encodings for licence in e.weight_licences}
    encoding = encodings[0].model_copy(
        update={"stand_in": any(e.stand_in for e in encodings), "weight_licences": tuple(licences)}
    )
    return EncodedDataset(paths, encoding, tuple(found[n][1] for n in names), {n: found[n][0] for n in names})
