"""What a recipe says of its source, and what an index says of a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ...dataset.formats.shipped import CamerasFormat
from ...dataset.limits import MAX_NAME_LENGTH
from ...dataset.names import NAME_PATTERN
from ...dataset.strict import Strict
from ...dataset.words import MediaKind
from .clip import LEAST_FPS, MOST_FPS, DepthKind
from .windows import Windows

ReleaseLayout = Literal[
    "spatialvid-hq",
    "dl3dv",
    "dl3dv-colmap",
    "dl3dv-stills",
    "dl3dv-gs",
    "omniworld-game",
    "omniworld-game-windows",
    "sekai-game",
    "sekai-walking",
    "miradata",
    "sana-wm",
    "tum-rgbd",
    "tum-dynamics",
    "eth3d-slam",
    "sintel-final",
    "sintel-clean",
    "kitti-odometry",
    "influx-real",
]

Name = Annotated[str, Field(pattern=f"^{NAME_PATTERN}$", max_length=MAX_NAME_LENGTH)]


class VideosSource(Strict):
    """Every video below a folder is a clip; nothing else is known of it."""

    kind: Literal["videos"]
    name: Name
    """Name of the source: the Parquet partition."""
    root: Path
    """Folder that is searched, sub-folders included."""
    windows: Windows | None = None
    """How videos are cut into clips of one length; null: each is one clip."""
    data_licence: str = "unknown"
    data_redistributable: bool = False


class IndexSource(Strict):
    """Clips listed in a file."""

    kind: Literal["index"]
    name: Name
    """Name of the source: the Parquet partition."""
    index: Path
    """`.yaml`/`.json`: `clips`, a list of entries, and optionally `defaults` for all; `.csv`: a row an entry."""
    root: Path | None = None
    """Folder that paths in the index are relative to; null: the folder of the index."""


class ReleaseSource(Strict):
    """A public video set, unpacked, with the geometry that it ships."""

    kind: Literal["release"]
    name: Name
    """Name of the source: the Parquet partition."""
    layout: ReleaseLayout
    """Whose tree it is; what makes a clip is described in the file of each set in annotate/sources."""
    root: Path
    """Folder that holds the tree, at any depth."""
    metadata: Path | None = None
    """CSV of the release, for layouts that need one; null: at its own place below the root, if it is there."""
    windows: Windows | None = None
    """How media are cut into clips of one length; null: each is one clip."""
    only: tuple[str, ...] | None = None
    """Globs of the clip ids that are wanted; null: all. Changes which rows there are and none of them, so it is left
    out of the recipe's hash."""
    data_licence: str = "unknown"
    data_redistributable: bool = False


Source = VideosSource | IndexSource | ReleaseSource
SourceConfig = Annotated[Source, Field(discriminator="kind")]


class IndexEntry(Strict):
    """One clip of an index: the fields of `ClipRef` and `GivenGeometry`, paths relative to the source's root.

    What is said of given geometry counts in the modes `given_depth` and `given_pose`; mode `estimate` looks at the
    media alone, and at `intrinsics_path` if there is one.
    """

    clip_id: Name
    media_path: str
    media_kind: MediaKind | None = None
    """Null: `images` if the path is a folder, else `video`."""
    media_pattern: str | None = None
    """Glob of the names that are frames, where a folder of images holds others, too (`*.color.png`)."""
    original_id: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    source_fps: Annotated[float, Field(ge=LEAST_FPS, le=MOST_FPS)] | None = None
    caption: Annotated[str, Field(min_length=1, max_length=20_000)] | None = None
    """What the clip shows: the row's caption `given`, which `theodolite encode` takes."""
    depth_pattern: str | None = None
    depth_list_path: str | None = None
    """Instead of the pattern: `time path` a line (TUM's `depth.txt`), for images that are named by their times."""
    depth_units_per_metre: Annotated[float, Field(gt=0)] | None = None
    depth_invalid_value: float = 0.0
    depth_kind: DepthKind = "z"
    depth_view: Annotated[float, Field(gt=0.2, lt=5)] | None = None
    """Field of view that the maps show over that of the images, about the same centre: for depth from a camera of its
    own that is not registered to the colour (focal length of the colour camera over that of the depth camera). 1: they
    are registered. Null: where the images show clearly that it is another one, it is found."""
    anchor_depth_pattern: str | None = None
    anchor_units_per_metre: Annotated[float, Field(gt=0)] | None = None
    camera_to_world_path: str | None = None
    poses_metric: bool = False
    intrinsics_path: str | None = None
    focal: Literal["held", "prior"] = "held"
    """What is done with given intrinsics: they are held and judged; or (`prior`, in every mode) a focal length within
    a few per cent of theirs is expected, one for the clip or one a frame, and images and depth decide."""
    given_pixels: Literal["shown", "stored"] | None = None
    """Of media that is shown turned or mirrored: the pixels that depth and cameras are for."""
    cameras_path: str | None = None
    cameras_format: CamerasFormat | None = None
    cameras_key: str | None = None
    stills_path: str | None = None
    metres_per_unit: Annotated[float, Field(gt=0)] | None = None
    data_licence: str = "unknown"
    data_redistributable: bool = False
    truth_camera_to_world_path: str | None = None
    truth_intrinsics_path: str | None = None
    render_seed: int | None = None

    @model_validator(mode="after")
    def _one_meaning(self) -> IndexEntry:
        if (self.cameras_path is None) != (self.cameras_format is None):
            raise ValueError("cameras_path and cameras_format go together")
        if self.cameras_path is not None and (self.camera_to_world_path or self.intrinsics_path):
            raise ValueError("cameras_path replaces camera_to_world_path and intrinsics_path")
        if self.focal == "prior" and self.cameras_path is None and self.intrinsics_path is None:
            raise ValueError("focal: prior says what intrinsics_path is for, and there is none")
        start_s = self.start_s or 0.0
        if not (start_s >= 0 and (self.end_s is None or self.end_s > start_s)):
            raise ValueError(
                f"start_s ({start_s:g}) and end_s ({self.end_s}) are no window: seconds after the media's first frame,"
                " the end behind the start"
            )
        if self.depth_list_path is not None and self.depth_pattern is not None:
            raise ValueError("depth_list_path replaces depth_pattern")
        if self.metres_per_unit is not None and (self.poses_metric or self.depth_units_per_metre is not None):
            raise ValueError(
                "metres_per_unit is for depth and poses in the same unit; it replaces poses_metric and"
                " depth_units_per_metre"
            )
        return self


def media_root(source: Source) -> Path:
    """Folder that the media pointers of this source's rows are relative to."""
    root = source.root or source.index.parent if isinstance(source, IndexSource) else source.root
    return root.resolve()
