"""Depth that the source ships, read from files; its cameras are read in `given/cameras.py`.

Depth of source frame `i` is the file that `depth_pattern` names with `frame` = i; a clip frame finds its file through
`frames.timing.frame_index`. A map covers exactly the colour image, at any resolution.

The unit of the sequence is the metre where the source declares it (`depth_units_per_metre`), else the stored
number itself: nothing is guessed here, and the scale stage has to find what a unit is worth.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...dataset.arrays import F32, I64, FloatArray
from ...dataset.cameras.intrinsics import pixel_centres, resize_intrinsics, z_depth_from_ray_distance
from ...dataset.formats.time_lists import read_time_list
from ...dataset.formats.trajectories import associate
from ...dataset.media.orientation import UPRIGHT, Orientation
from ...dataset.names import fill_pattern
from ..frames.base import ClipFrames
from ..frames.images import source_numbers
from ..given.cameras import check_count, given_intrinsics
from ..given.depth_files import read_depth_file
from ..given.pixels import shape_belongs_to, turn_of_given
from ..sources.clip import ClipRef, ClipRejection, DepthKind, printable
from .base import AnchorFrame, DepthMaps, KnownAnchors, KnownGeometry, SequenceGeometryResult
from .config import GivenConfig

MAX_MISSING = 0.5
"""Share of a clip's frames that may lack their depth file."""
LISTED_WITHIN_S = 0.02
"""Largest distance in time of an image and its map, where maps are listed by time (as TUM's own association)."""
MAX_ASPECT_MISMATCH = 0.03
"""Largest relative difference between the aspect ratios of depth and colour: more means another field of view."""


class GivenGeometrySource:
    """Sequence geometry read from the files named in `clip.given`.

    Args:
        config: trust in the depth.
    """

    name = "given"

    def __init__(self, config: GivenConfig | None = None) -> None:
        self.config = config or GivenConfig()

    def start(self, clip: ClipRef, frames: ClipFrames) -> KnownGeometry:
        """See `read`."""
        return KnownGeometry(self.read(clip, frames))

    def read(self, clip: ClipRef, frames: ClipFrames) -> SequenceGeometryResult:
        """Check that everything named is there and fits the video; depth itself is read later, map by map.

        Raises:
            ClipRejection: `depth_missing` (none is named), `depth_frame_count_mismatch`, `depth_unreadable`,
                `depth_size_changed`, `depth_aspect_mismatch`, `depth_not_finite`, `depth_all_invalid`,
                `ray_distance_without_intrinsics`, `given_units_disagree`, `given_orientation_unknown`, and for
                distances along rays what `given_intrinsics` finds wrong.
        """
        given = clip.given
        if given.depth_pattern is None and given.depth_list_path is None:
            raise ClipRejection(
                "depth_missing",
                f"clip {clip.clip_id}: the source names no depth files; give depth_pattern in the index, or use the"
                " recipe estimate",
            )
        intrinsics = given_intrinsics(clip, frames) if given.depth_kind == "ray_distance" else None
        if given.depth_kind == "ray_distance" and intrinsics is None:
            raise ClipRejection(
                "ray_distance_without_intrinsics",
                f"clip {clip.clip_id}: distances along rays become z-depth only through intrinsics; give"
                " intrinsics_path",
            )
        units = given.depth_units_per_metre
        if units is None and given.metres_per_unit is not None:
            units = 1 / given.metres_per_unit
        if given.poses_metric and units is None:
            raise ClipRejection(
                "given_units_disagree",
                f"clip {clip.clip_id}: depth is of unknown unit but poses are in metres; give depth_units_per_metre, or"
                " leave poses_metric out to have the scale estimated",
            )
        pattern, listed = str(given.depth_list_path or given.depth_pattern), None
        if given.depth_list_path is None:
            missing = _missing_files(clip, pattern, frames)
        else:
            listed = _listed_files(clip, given.depth_list_path, frames)
            missing = _without_file(clip, listed.keys(), source_numbers(clip, frames), pattern)
        depth = GivenDepth(
            clip_id=clip.clip_id,
            pattern=pattern,
            listed=listed,
            frame_index=source_numbers(clip, frames),
            image_size=(frames.height, frames.width),
            units_per_metre=units or 1.0,
            invalid_value=given.depth_invalid_value,
            kind=given.depth_kind,
            intrinsics=intrinsics,
            missing=missing,
            view=given.depth_view or 1.0,
        ).turned(clip, frames)
        depth.require_any_valid()

        return SequenceGeometryResult(
            depth=depth,
            depth_sigma_log=self.config.depth_sigma_log,
            metres_per_unit=1.0 if units is not None else None,
        )


@dataclass(frozen=True, kw_only=True)
class GivenDepth:
    """Depth maps in files, one per source frame; the `DepthMaps` of `geometry/base.py`.

    Attributes:
        clip_id: for messages.
        pattern: path with a `{frame}` field; of listed files the list.
        listed: files by source frame, where a list names them.
        frame_index: (F,) number of every clip frame's file, which is its source frame.
        image_size: (height, width) of the stored colour image.
        units_per_metre: stored value of one metre (of one inverse metre for disparity); 1.0 keeps stored units.
        invalid_value: stored value that means "no measurement". Always mean it: NaN, values below zero, depth zero,
            infinite disparity, the largest value of unsigned integers, infinite float16.
        kind: what the stored number is; `omniworld` as in `omniworld_depth`.
        intrinsics: (F, 3, 3) of the image, in pixels of `image_size`; needed for ray distances only.
        missing: source frames that have no file: they carry no depth.
        orientation: how the maps of the files are turned to cover the image as it is shown.
        view: field of view of the maps over that of the image, about the same centre.
    """

    clip_id: str
    pattern: str
    frame_index: NDArray[np.int64]
    image_size: tuple[int, int]
    units_per_metre: float
    invalid_value: float
    kind: DepthKind = "z"
    intrinsics: FloatArray | None = None
    missing: frozenset[int] = frozenset()
    orientation: Orientation = UPRIGHT
    view: float = 1.0
    listed: Mapping[int, Path] | None = None

    def __len__(self) -> int:
        return len(self.frame_index)

    def turned(self, clip: ClipRef, frames: ClipFrames) -> GivenDepth:
        """The same maps, turned along where the clip's media is and they belong to its pixels as stored.

        Raises:
            ClipRejection: `given_orientation_unknown`.
        """
        if not frames.orientation:
            return self
        found = shape_belongs_to(self._first_size, frames)
        return replace(self, orientation=turn_of_given(clip, frames, f"depth {self.pattern}", found))

    def path(self, frame: int) -> Path:
        """File of clip frame `frame`."""
        if self.listed is not None:
            return self.listed[int(self.frame_index[frame])]
        pattern = Path(self.pattern)
        return pattern.with_name(fill_pattern(pattern.name, frame=int(self.frame_index[frame])))

    def read(self, frame: int) -> F32 | None:
        """(h, w) float32 z-depth of clip frame `frame`; NaN where invalid, +inf where stored as +inf (sky); None where
        the source has no file for it.

        Raises:
            ClipRejection: `depth_unreadable`, `depth_size_changed` (against the clip's first frame),
                `depth_aspect_mismatch`, `depth_not_finite` (the file holds nothing but NaN or infinity).
        """
        if int(self.frame_index[frame]) in self.missing:
            return None
        path = self.path(frame)
        stored = read_depth_file(path, clip_id=self.clip_id)
        first = self._first_size
        if stored.shape != first:
            raise ClipRejection(
                "depth_size_changed",
                f"clip {self.clip_id}: {path} is {stored.shape[1]}x{stored.shape[0]}, the clip's first map is"
                f" {first[1]}x{first[0]}",
            )
        stored = self.orientation.show(stored)
        height, width = stored.shape
        mismatch = width * self.image_size[0] / (height * self.image_size[1]) - 1
        if abs(mismatch) > MAX_ASPECT_MISMATCH:
            turned = (
                abs(height * self.image_size[0] / (width * self.image_size[1]) - 1) <= MAX_ASPECT_MISMATCH
            )
            raise ClipRejection(
                "depth_aspect_mismatch",
                f"clip {self.clip_id}: {path} is {width}x{height}, the image {self.image_size[1]}x"
                f"{self.image_size[0]}: depth must cover exactly the image"
                + (", and would if it were turned by 90 degrees or transposed" if turned else ""),
            )
        if not np.isfinite(stored).any():
            raise ClipRejection(
                "depth_not_finite",
                f"clip {self.clip_id}: {path}: all {stored.size} values are NaN or infinite",
            )
        z = self._to_z(stored, frame)
        return z if self.view == 1 else _as_image_sees(z, self.view)

    @cached_property
    def _first_size(self) -> tuple[int, ...]:
        first = next(i for i, f in enumerate(self.frame_index) if int(f) not in self.missing)
        return read_depth_file(self.path(first), clip_id=self.clip_id).shape

    def _to_z(self, stored: NDArray, frame: int) -> F32:
        invalid = np.isnan(stored) | (stored == self.invalid_value)
        if stored.dtype == np.float16:
            invalid |= np.isinf(
                stored
            )  # 65504 is the largest: what lies beyond has overflowed, and is no sky
        if self.kind == "omniworld":
            depth = omniworld_depth(stored) / self.units_per_metre
        elif self.kind == "disparity":
            invalid |= (stored < 0) | np.isinf(stored)
            with np.errstate(divide="ignore"):
                depth = self.units_per_metre / stored.astype(np.float64)
        else:
            invalid |= stored <= 0
            if stored.dtype.kind == "u":
                invalid |= stored == np.iinfo(stored.dtype).max  # all bits set: out of range, or no return
            depth = stored / np.float64(self.units_per_metre)
        if self.kind == "ray_distance":
            assert self.intrinsics is not None, "checked by GivenGeometrySource.read"
            height, width = stored.shape
            intrinsics = resize_intrinsics(
                self.intrinsics[frame], from_size=self.image_size, to_size=(height, width)
            )
            # A map of another field of view sees along the rays of its own camera.
            middle = np.array([width / 2, height / 2])
            pixels = (pixel_centres(height, width).reshape(-1, 2) - middle) * self.view + middle
            depth = z_depth_from_ray_distance(depth.reshape(-1), intrinsics, pixels).reshape(height, width)
        return np.where(invalid, np.nan, depth).astype(np.float32)

    def require_any_valid(self) -> None:
        """Read until a frame has a valid depth.

        Raises:
            ClipRejection: `depth_all_invalid` if none has, or what `read` finds wrong on the way.
        """
        for frame in range(len(self)):
            depth = self.read(frame)
            if depth is not None and np.isfinite(depth).any():
                return
        raise ClipRejection(
            "depth_all_invalid",
            f"clip {self.clip_id}: not one valid value in {len(self)} maps ({self.path(0)} to"
            f" {self.path(len(self) - 1)}); invalid are NaN, values <= 0 and {self.invalid_value:g}",
        )


@dataclass(frozen=True)
class SeenByImages:
    """`DepthMaps` of which each shows `view` times the images' field of view, about the same centre, laid onto them."""

    maps: DepthMaps
    view: float

    def __len__(self) -> int:
        return len(self.maps)

    def read(self, frame: int) -> FloatArray | None:
        """As `DepthMaps.read`; NaN where the map shows nothing."""
        z = self.maps.read(frame)
        return None if z is None else _as_image_sees(z, self.view)


def _as_image_sees(z: FloatArray, view: float) -> F32:
    """Map (h, w) that shows `view` times the image's field of view, laid onto the image: NaN where it shows nothing."""
    height, width = z.shape
    row, column = (
        np.floor(((np.arange(n) + 0.5 - n / 2) / view) + n / 2).astype(int) for n in (height, width)
    )
    seen = ((row >= 0) & (row < height))[:, None] & ((column >= 0) & (column < width))[None]
    laid = z[np.clip(row, 0, height - 1)[:, None], np.clip(column, 0, width - 1)[None]]
    return np.where(seen, laid, np.nan).astype(np.float32)


def omniworld_depth(stored: NDArray) -> NDArray[np.float64]:
    """Depth of OmniWorld-Game's 16-bit depth images, in the scene's own unit.

    They hold a game's depth buffer z in [0, 1]: depth is z / (1000 - 999 z) / 0.004; below 0.0015 lies what is too
    near to tell, above 65500 / 65535 the sky. (Not millimetres: read so, everything is a plausible room.)

    Args:
        stored: (h, w) uint16.
    Returns:
        (h, w); NaN where too near, +inf for sky.
    Source: the OmniWorld repository (yangzhou24/OmniWorld), description of its depth maps.
    """
    z = stored.astype(np.float64) / 65535
    depth = z / (1000 - 999 * z) / 0.004
    depth[z < 0.0015] = np.nan
    depth[stored.astype(np.int64) > 65500] = np.inf
    return depth


class GivenAnchor:
    """Metric anchor from files on some source frames (`clip.given.anchor_depth_pattern`)."""

    name = "given"

    def available_frames(self, clip: ClipRef, frames: ClipFrames) -> list[int]:
        """Clip frames for which an anchor file exists."""
        pattern = clip.given.anchor_depth_pattern
        if pattern is None:
            return []
        present = {number for number, _ in _matching_files(clip, pattern)}
        return [i for i, source in enumerate(source_numbers(clip, frames)) if int(source) in present]

    def start(self, clip: ClipRef, frames: ClipFrames, anchor_frames: Sequence[int]) -> KnownAnchors:
        """See `read`."""
        return KnownAnchors(partial(self.read, clip, frames, anchor_frames))

    def read(self, clip: ClipRef, frames: ClipFrames, anchor_frames: Sequence[int]) -> list[AnchorFrame]:
        """Metric depth of the frames with a file nearest to each of `anchor_frames`.

        Raises:
            ClipRejection: `anchor_unit_unknown`, or a file that cannot be read. A map without any valid value is
                no defect here: an estimator may fail on a frame.
        """
        given = clip.given
        if given.anchor_depth_pattern is None:
            return []
        if given.anchor_units_per_metre is None:
            raise ClipRejection(
                "anchor_unit_unknown",
                f"clip {clip.clip_id}: anchor depth {given.anchor_depth_pattern} has no anchor_units_per_metre; an"
                " anchor must be metric",
            )
        depth = GivenDepth(
            clip_id=clip.clip_id,
            pattern=given.anchor_depth_pattern,
            frame_index=source_numbers(clip, frames),
            image_size=(frames.height, frames.width),
            units_per_metre=given.anchor_units_per_metre,
            invalid_value=given.depth_invalid_value,
        )
        available = np.asarray(self.available_frames(clip, frames))
        wanted = np.asarray(anchor_frames)
        if not len(available) or not len(wanted):
            return []
        if frames.orientation:
            first = read_depth_file(depth.path(int(available[0])), clip_id=clip.clip_id)
            found = shape_belongs_to(first.shape, frames)
            turn = turn_of_given(clip, frames, f"depth {depth.pattern}", found)
            depth = replace(depth, orientation=turn)
        anchors = []
        for frame in np.unique(available[np.abs(available[None] - wanted[:, None]).argmin(1)]).tolist():
            stored = depth.orientation.show(read_depth_file(depth.path(frame), clip_id=clip.clip_id))
            anchors.append(AnchorFrame(frame=frame, depth_m=depth._to_z(stored, frame)))
        return anchors


def _matching_files(clip: ClipRef, pattern: str) -> list[tuple[int, Path]]:
    """Files that `pattern` can name, with their frame numbers, in order.

    Raises:
        ClipRejection: `depth_unreadable` if the pattern has no frame field in its file name, or no folder.
    """
    path = Path(pattern)
    field = re.compile(r"\{frame(:[^}]*)?\}")
    parts = field.split(path.name)
    if len(parts) < 3 or field.search(str(path.parent)):
        raise ClipRejection(
            "depth_unreadable",
            f"clip {clip.clip_id}: pattern {pattern} needs one frame field in the file name, such as"
            " {frame:06d}.png",
        )
    try:
        fill_pattern(path.name, frame=0)
    except ValueError as error:
        raise ClipRejection("depth_unreadable", f"clip {clip.clip_id}: {error}") from None
    if not path.parent.is_dir():
        raise ClipRejection("depth_unreadable", f"clip {clip.clip_id}: {path.parent}: no such folder")
    matcher = re.compile(re.escape(parts[0]) + r"(\d+)" + re.escape(parts[2]))
    found = []
    for entry in path.parent.iterdir():
        match = matcher.fullmatch(entry.name)
        if match and entry.name == fill_pattern(path.name, frame=int(match[1])):
            found.append((int(match[1]), entry))
    return sorted(found)


def _missing_files(clip: ClipRef, pattern: str, frames: ClipFrames) -> frozenset[int]:
    """Source frames of the clip that have no depth file. Files are numbered as source frames are, from 0.

    Single files may be missing (a recorder that dropped one). The numbers must still end with the last source frame:
    else the depth belongs to another video, or is counted from 1.

    Raises:
        ClipRejection: `depth_frame_count_mismatch` if the numbers do not end where the frames do, or more than half of
            the clip's frames have no file.
    """
    present = {number for number, _ in _matching_files(clip, pattern)}
    if not present:
        there = next(
            (p.name for p in sorted(Path(pattern).parent.iterdir()) if not p.name.startswith(".")), None
        )
        held = "the folder is empty" if there is None else f"the folder holds others, e.g. {printable(there)}"
        raise ClipRejection(
            "depth_frame_count_mismatch",
            f"clip {clip.clip_id}: no depth file matches {pattern}: {held}",
        )
    wanted = source_numbers(clip, frames)
    count = max(present, default=-1) + 1
    holes = f" ({count - len(present)} of them missing)" if count > len(present) else ""
    if not clip.numbered:  # else names say which belong together
        check_count(clip, "depth_frame_count_mismatch", f"depth files match {pattern}{holes}", count, frames)
    return _without_file(clip, present, wanted, pattern)


def _without_file(clip: ClipRef, present: Collection[int], wanted: I64, pattern: str) -> frozenset[int]:
    """Source frames among the wanted ones that no file is there for; raises as `_missing_files`."""
    missing = frozenset(int(f) for f in wanted if int(f) not in present)
    if len(missing) > MAX_MISSING * len(wanted):
        raise ClipRejection(
            "depth_frame_count_mismatch",
            f"clip {clip.clip_id}: {len(missing)} of the clip's {len(wanted)} frames have no depth file that matches"
            f" {pattern}, the first of them frame {min(missing)}",
        )
    return missing


def _listed_files(clip: ClipRef, path: Path, frames: ClipFrames) -> dict[int, Path]:
    """Depth file of every source frame of the clip that has one: the map nearest in time, `LISTED_WITHIN_S` away at
    most and each used once, of images that are named by their times.

    Raises:
        ClipRejection: `depth_unreadable`: the list, the images' names are no times, or nothing is close.
    """
    wanted = source_numbers(clip, frames)
    try:
        if not frames.image_names:
            raise ValueError("it has no images")
        maps = read_time_list(path)
        times = np.array([float(Path(name).stem) for name in frames.image_names])
        shown = times[frames.timing.frame_index]
        image, place = associate(shown, maps.time_s, max_difference_s=LISTED_WITHIN_S)
    except ValueError as error:
        raise ClipRejection(
            "depth_unreadable",
            f"clip {clip.clip_id}: depth is found by the times in {path}, and those of the images by their names"
            f" ({error})",
        ) from None
    return {int(wanted[i]): path.parent / maps.names[j] for i, j in zip(image, place, strict=True)}
