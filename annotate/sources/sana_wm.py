"""NVIDIA's SANA-WM training zips, unpacked: clips of 961 frames at 16 fps with their cameras beside the zip.

`<stem>.zip` holds `<key>.mp4` and `<key>.json`; `<stem>_camera.npz` the poses of all, `<stem>_metric_scale_stats.json`
what a unit of them is worth. A clip without a scale has no metres here (their loader takes 1.0), one without a camera
is a failed clip (their loader takes the identity). Source: NVlabs/Sana, docs/sana_wm.md and
sana_wm_zip_latent_data.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ...dataset.inputs import parse_json, read_text
from .clip import ClipRef, GivenGeometry
from .tree import Layout, Release, positive

SCALES = "_metric_scale_stats"


def _read(release: Release) -> Iterator[ClipRef]:
    """A clip per video of a zip that was unpacked into a folder of its name."""
    for path in release.files((".mp4",)):
        stem = path.parent
        yield from release.cut(
            path.stem,
            media_path=path,
            original_id=release.relative(path),
            media_kind="video",
            given=GivenGeometry(
                cameras_path=stem.with_name(f"{stem.name}_camera.npz"),
                cameras_format="sana-wm",
                cameras_key=path.stem,
                metres_per_unit=_scales(stem).get(path.stem),
            ),
        )


@lru_cache(maxsize=4)
def _scales(stem: Path) -> dict[str, float]:
    """Metres of a unit by key; values that are no scale are left out."""
    found: dict[str, float] = {}
    for suffix in (".json", ".jsonl"):
        path = stem.with_name(f"{stem.name}{SCALES}{suffix}")
        if path.is_file():
            text = read_text(path)
            parts = [text] if suffix == ".json" else text.splitlines()
            for part in filter(str.strip, parts):
                for key, stats in _object(parse_json(part, path)).items():
                    value = positive(str(stats.get("median"))) if isinstance(stats, dict) else None
                    if value is not None:
                        found[key] = value
    return found


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _place(archive: PurePosixPath, member: str) -> PurePosixPath | None:
    name = PurePosixPath(member).name
    return PurePosixPath(archive.parent, archive.name.removesuffix(".zip"), name) if name else None


LAYOUT = Layout(read=_read, archives=("*.zip", "data/*/*.zip"), place=_place)
