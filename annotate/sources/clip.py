"""Records that pass between the annotation stages: what a clip is, where its given geometry lies, why it failed.

Nothing here decodes or computes; the stages import this module and never each other's internals.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ... import __version__
from ...dataset.formats.shipped import CamerasFormat
from ...dataset.names import check_name
from ...dataset.reasons import REASONS, ReasonCode
from ...dataset.words import MediaKind, Mode

GRID_FPS: Literal[16] = 16
"""Frames a second of a clip: the rate of the world model (`dataset.cameras.paths.FPS`), which recipes name."""
LEAST_FPS, MOST_FPS = 1e-4, 1000.0
"""Of what a source may say of its own: from a picture in three hours on."""

DepthKind = Literal["z", "ray_distance", "disparity", "omniworld"]


@dataclass(frozen=True, kw_only=True)
class GivenGeometry:
    """Files with geometry that the source ships beside the colour frames; every part is optional.

    Item `i` of depth, poses and intrinsics belongs to *source frame* `i` (0-based index of decoded frames), unless the
    cameras come in a format of their own (`cameras_path`), which says itself which frame each belongs to.
    """

    depth_pattern: str | None = None
    """Path with a `{frame:06d}`-style field: 16-bit PNG, or `.npy` / `.npz` float maps."""
    depth_list_path: Path | None = None
    """Instead of the pattern: text with a line `time path` a map (TUM's `depth.txt`), for images that are named by
    their times; each takes the map nearest in time."""
    depth_units_per_metre: float | None = None
    """Stored depth value of one metre (1000 for millimetres, 5000 for TUM RGB-D). None: unit unknown."""
    depth_invalid_value: float = 0.0
    """Stored value that means "no measurement" (NaN, values up to zero and all bits set never count as depth)."""
    depth_kind: DepthKind = "z"
    depth_view: float | None = None
    """Field of view of the maps over that of the images, as a ratio of tangents, where depth comes from a camera of its
    own beside the colour's (its focal length below: colour over depth, in pixels of one size). 1: registered. None: the
    source does not say, and the images are asked (`checks/depth_view.py`)."""
    anchor_depth_pattern: str | None = None
    """Metric depth on some frames only, as the metric anchor when `depth_pattern` has an unknown unit."""
    anchor_units_per_metre: float | None = None
    camera_to_world_path: Path | None = None
    """TUM text (t x y z qx qy qz qw), KITTI rows or 4x4 rows; OpenCV axes, camera-to-world."""
    poses_metric: bool = False
    """True only if the source declares that the given poses are in metres."""
    intrinsics_path: Path | None = None
    """3x3 text, or CSV with columns fx, fy, cx, cy, a row per source frame; pixels of the source size."""
    cameras_path: Path | None = None
    """Poses and intrinsics in the source's own layout, instead of the two above: see `dataset/formats/shipped.py`."""
    cameras_format: CamerasFormat | None = None
    """Which layout that is."""
    cameras_key: str | None = None
    """Which clip of it, where a file holds the cameras of several."""
    stills_path: Path | None = None
    """Folder of the stills that the cameras belong to, where the media is the video that they were drawn from."""
    pixels: Literal["shown", "stored"] | None = None
    """Where the media asks to be turned or mirrored: whether depth and cameras are for its pixels as players show them
    or as the file stores them. None: taken from their shape, and a rejection where that cannot tell."""
    focal: Literal["held", "prior"] = "held"
    """What is done with given intrinsics: they are held, or only a focal length near theirs is expected."""
    metres_per_unit: float | None = None
    """Metres of one unit of shipped depth and poses alike (OmniWorld's `Metric Scale`). None: unknown."""

    @property
    def any(self) -> bool:
        """True if some file of geometry is named."""
        named = self.depth_pattern, self.depth_list_path, self.anchor_depth_pattern, self.camera_to_world_path
        return any(x is not None for x in (*named, self.intrinsics_path, self.cameras_path))


@dataclass(frozen=True, kw_only=True)
class ClipRef:
    """A clip to annotate: stable identity, media, window, what is given, licence.

    Attributes:
        clip_id: by the rule of `dataset/names.py`; unique in a dataset.
        source: short name of the data source, the Parquet partition (`rgbd`, `spatialvid`, ...).
        original_id: the source's own identifier, unchanged.
        media_kind, media_path: a video file, a folder of images (sorted by name) or the built-in renderer.
        media_pattern: glob of the names that are frames, where a folder of images holds others, too; None = all.
        start_s, end_s: window in seconds after the first frame of the media; None = from the start / to the end.
        media_root: folder of the source; what a row stores as its media is relative to it where possible.
        source_fps: replaces the time stamps of the media; needed for image folders, whose files carry no time.
        numbered: of a folder of images: the number at the end of a name counts frames from 0 at `source_fps`, and
            depth is looked up by it; numbers that are missing are frames that are missing.
        min_frames, max_frames: clip frames below which it is rejected, and after which it ends, beside what the recipe
            says.
        caption: what it shows, if the source says so.
        problem: reason and detail if its media could not even be unpacked.
        truth_camera_to_world_path, truth_intrinsics_path: ground truth for evaluation and reports. The estimator
            never reads them.
    """

    clip_id: str
    source: str
    original_id: str
    media_kind: MediaKind
    media_path: Path
    media_root: Path | None = None
    media_pattern: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    source_fps: float | None = None
    numbered: bool = False
    min_frames: int | None = None
    max_frames: int | None = None
    caption: str | None = None
    problem: tuple[ReasonCode, str] | None = None
    given: GivenGeometry = GivenGeometry()
    data_licence: str = "unknown"
    data_redistributable: bool = False
    truth_camera_to_world_path: Path | None = None
    truth_intrinsics_path: Path | None = None
    render_seed: int | None = None

    def __post_init__(self) -> None:
        check_name(self.clip_id)
        _check_source(self.source)

    @property
    def media(self) -> str:
        """Pointer to the media as rows store it: relative to the source's root, so that no machine's paths leave it."""
        path = self.media_path
        if self.media_root is not None and path.is_relative_to(self.media_root):
            path = path.relative_to(self.media_root)
        return printable(path.as_posix())


def identity(clip: ClipRef, *, mode: Mode, recipe_hash: str) -> dict[str, Any]:
    """Columns of a row that say which clip it is, whose, and what made it."""
    return {
        "clip_id": clip.clip_id,
        "source": clip.source,
        "original_id": clip.original_id,
        "media_kind": clip.media_kind,
        "media": clip.media,
        "captions": None if clip.caption is None else {"given": clip.caption},
        "media_pattern": clip.media_pattern,
        "window_start_s": clip.start_s,
        "window_end_s": clip.end_s,
        "mode": mode,
        "data_licence": clip.data_licence,
        "data_redistributable": clip.data_redistributable,
        "recipe_hash": recipe_hash,
        "package_version": __version__,
    }


def printable(name: str) -> str:
    """A file name as it can be stored and shown: bytes that are no UTF-8 become `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@lru_cache(maxsize=64)
def _check_source(name: str) -> None:
    """Of which all clips of a run have the same one."""
    check_name(name, "source")


class ClipRejection(ValueError):
    """A clip cannot be annotated, for a reason that belongs in its row.

    Args:
        reason: stable code of `dataset/reasons.py`, counted in reports.
        detail: one sentence with the file and the numbers found.
    """

    def __init__(self, reason: ReasonCode, detail: str) -> None:
        assert reason in REASONS, f"{reason!r} is not in dataset/reasons.py"
        super().__init__(f"{reason}: {detail}")
        self.reason: ReasonCode = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[ClipRejection], tuple[ReasonCode, str]]:
        return type(self), (self.reason, self.detail)  # solvers raise it in another process
