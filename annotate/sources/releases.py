"""Public video sets as they unpack: which files make a clip, and what of their geometry goes with it.

Each reader walks the tree of one release and names the files of every clip; none of them opens a video or trusts a
number in it. What is missing or damaged shows when the clip is annotated, as a row with its reason. Layouts are those
of the sets' own downloads; how their cameras are to be read is in dataset/formats/shipped.py.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..clip import ClipRef, GivenGeometry
from .entries import ReleaseLayout

_DL3DV_IMAGES = ("images_4", "images_2", "images", "images_8")
"""Folders of stills, the wanted size first: 960x540, then larger, then smaller."""


def release_clips(
    layout: ReleaseLayout, root: Path, metadata: Path | None, **common: Any
) -> Iterator[ClipRef]:
    """Clips of an unpacked release, in the order of their paths.

    Args:
        root: folder that holds the release's tree, at any depth.
        metadata: CSV of the release where a layout needs one, null: the release's own place below `root`, if there.
        common: `source`, `media_root`, `data_licence` and `data_redistributable` of every clip.
    Raises:
        ValueError: no clip below `root`, or a metadata file that cannot be read.
    """
    readers: dict[ReleaseLayout, Callable[..., Iterator[ClipRef]]] = {
        "omniworld-game": _omniworld,
        "dl3dv": _dl3dv,
        "dl3dv-stills": _dl3dv_stills,
        "sekai-game": _sekai_game,
        "spatialvid-hq": _spatialvid,
    }
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder (source.root)")
    clips = sorted(readers[layout](root, metadata, **common), key=lambda clip: clip.original_id)
    if not clips:
        raise ValueError(f"{root}: holds no clip in the layout {layout} (source.root, source.layout)")
    return iter(clips)


def _omniworld(root: Path, metadata: Path | None, **common: Any) -> Iterator[ClipRef]:
    """A clip per split: frames of one split share a world, those of two do not.

    Poses and depth become metres by the scene's `Metric Scale`; scenes of older metadata lack it and stay without a
    unit. Colour and annotations may lie together or below `videos/` and `annotations/` as in the download.
    """
    scenes = _table(metadata, root, "metadata/omniworld_game_metadata.csv", key="UID")
    for scene in _folders_with(root, "split_info.json"):
        uid = scene.name
        known = scenes.get(uid, {})
        colour = scene / "color"
        if not colour.is_dir():
            colour = Path(*("videos" if part == "annotations" else part for part in scene.parts)) / "color"
        fps = _positive(known.get("FPS")) or _fps_of(scene / "fps.txt")
        try:
            splits = list(json.loads((scene / "split_info.json").read_text(encoding="utf-8"))["split"])
        except (OSError, ValueError, KeyError, TypeError):
            splits = []
        files = {
            int(m[1]): path
            for path in (scene / "camera").glob("split_*.json")
            if (m := re.fullmatch(r"split_(\d+)\.json", path.name))
        }
        for number, path in sorted(files.items()):
            start_s, end_s = _window(splits[number] if number < len(splits) else None, fps)
            yield ClipRef(
                clip_id=f"{_clean(uid)}_split{number:04d}",
                original_id=path.relative_to(root).as_posix(),
                media_kind="images",
                media_path=colour,
                start_s=start_s,
                end_s=end_s,
                source_fps=fps,
                given=GivenGeometry(
                    depth_pattern=str(scene / "depth" / "{frame:06d}.png"),
                    depth_kind="omniworld",
                    cameras_path=path,
                    cameras_format="omniworld",
                    metres_per_unit=_positive(known.get("Metric Scale")),
                ),
                **common,
            )


def _dl3dv(root: Path, metadata: Path | None, **common: Any) -> Iterator[ClipRef]:
    """A clip per scene: its video, with the cameras of the stills that were drawn from it.

    Videos and stills come from different repositories and may lie in different batches: scenes are matched by hash.
    """
    videos = {_scene_of(folder, root): folder / "video.mp4" for folder in _folders_with(root, "video.mp4")}
    for folder in _folders_with(root, "transforms.json"):
        scene = _scene_of(folder, root)
        yield ClipRef(
            clip_id=_clean(scene),
            original_id=folder.relative_to(root).as_posix(),
            media_kind="video",
            media_path=videos.get(scene, folder / "video.mp4"),
            given=GivenGeometry(
                cameras_path=folder / "transforms.json",
                cameras_format="dl3dv",
                stills_path=_stills_folder(folder),
            ),
            **common,
        )


def _dl3dv_stills(root: Path, metadata: Path | None, **common: Any) -> Iterator[ClipRef]:
    """A clip per scene: its stills and nothing between them, with the cameras of `transforms.json`.

    Stills are spread evenly over the whole video, four or five a second; how many depends on the video's duration,
    which the set's index (`DL3DV-valid.csv`) has. Without it a clip has no time.
    """
    durations = _table(metadata, root, "cache/DL3DV-valid.csv", key="hash")
    for folder in _folders_with(root, "transforms.json"):
        scene, images = _scene_of(folder, root), _stills_folder(folder)
        numbers = [int(m[1]) for p in images.glob("*.*") if (m := re.search(r"(\d+)$", p.stem))]
        duration_s = _positive(durations.get(scene, {}).get("duration"))
        yield ClipRef(
            clip_id=_clean(scene),
            original_id=folder.relative_to(root).as_posix(),
            media_kind="images",
            media_path=images,
            source_fps=max(numbers) / duration_s if duration_s and numbers else None,
            given=GivenGeometry(cameras_path=folder / "transforms.json", cameras_format="dl3dv"),
            **common,
        )


def _scene_of(folder: Path, root: Path) -> str:
    """A scene's hash among the folders above its files; else the folder's name."""
    inside = folder.relative_to(root).parts
    return next((part for part in inside if re.fullmatch(r"[0-9a-f]{64}", part)), folder.name)


def _stills_folder(folder: Path) -> Path:
    return next((folder / name for name in _DL3DV_IMAGES if (folder / name).is_dir()), folder / "images")


def _sekai_game(root: Path, metadata: Path | None, **common: Any) -> Iterator[ClipRef]:
    """A clip per video, with the cameras of the `.npz` of the same name."""
    for path in root.rglob("*.mp4"):
        yield ClipRef(
            clip_id=_clean(path.stem),
            original_id=path.relative_to(root).as_posix(),
            media_kind="video",
            media_path=path,
            given=GivenGeometry(cameras_path=path.with_suffix(".npz"), cameras_format="sekai-game"),
            **common,
        )


def _spatialvid(root: Path, metadata: Path | None, **common: Any) -> Iterator[ClipRef]:
    """A clip per video. Its annotation folder has the same group and name; what stands before them varies."""
    annotations = {
        (folder.parent.name, folder.name): folder
        for name in ("poses.npy", "intrinsics.npy")
        for folder in _folders_with(root, name)
    }
    for path in root.rglob("*.mp4"):
        beside = Path(*("annotations" if part == "videos" else part for part in path.with_suffix("").parts))
        yield ClipRef(
            clip_id=_clean(path.stem),
            original_id=path.relative_to(root).as_posix(),
            media_kind="video",
            media_path=path,
            given=GivenGeometry(
                cameras_path=annotations.get((path.parent.name, path.stem), beside),
                cameras_format="spatialvid",
            ),
            **common,
        )


# --- files ----------------------------------------------------------------------------------------


def _folders_with(root: Path, name: str) -> Iterator[Path]:
    """Folders below `root` that hold a file `name`; not looked into any further, they may hold 10,000 images."""
    for folder, inner, files in os.walk(root, followlinks=True):
        inner.sort()
        if name in files:
            inner.clear()
            yield Path(folder)


def _table(metadata: Path | None, root: Path, place: str, *, key: str) -> dict[str, dict[str, str]]:
    """Rows of a CSV by their key column; empty if none was named and the release's own is not there."""
    path = metadata or root / place
    if metadata is None and not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({error}) (source.metadata)") from None
    if not rows or key not in rows[0]:
        found = ", ".join(rows[0]) if rows else "no row"
        raise ValueError(f"{path}: expected a CSV with the column {key!r}, found {found} (source.metadata)")
    return {row[key].strip(): row for row in rows}


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def _window(frames: Any, fps: float | None) -> tuple[float | None, float | None]:
    """Start and end in seconds of a list of frame numbers. A damaged list has none: reading the cameras says why."""
    if fps is None or not isinstance(frames, list) or not frames:
        return None, None
    if not all(isinstance(frame, int) for frame in (frames[0], frames[-1])):
        return None, None
    return frames[0] / fps, (frames[-1] + 1) / fps


def _fps_of(path: Path) -> float | None:
    """Frame rate in OmniWorld's `fps.txt`, which goes on after the number."""
    try:
        match = re.search(r"FPS:\s*([0-9.]+)", path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return _positive(match[1]) if match else None


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:110]
