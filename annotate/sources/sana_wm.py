"""NVIDIA's SANA-WM training zips, unpacked: clips of 961 frames at 16 fps with their cameras beside the zip.

`<stem>.zip` holds `<key>.mp4` and `<key>.json`; `<stem>_camera.npz` the poses of all, `<stem>_metric_scale_stats.json`
what a unit of them is worth. A clip without a scale has no metres here (their loader takes 1.0), one without a camera
is a failed clip (their loader takes the identity). Source: NVlabs/Sana, docs/sana_wm.md and
sana_wm_zip_latent_data.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ...dataset.inputs import InputError, parse_json, read_text
from .clip import ClipRef, GivenGeometry
from .tree import Layout, Release, positive

log = logging.getLogger(__name__)

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
        if not path.is_file():
            continue
        try:
            text = read_text(path)
            parts = [text] if suffix == ".json" else text.splitlines()
            values = [_object(parse_json(part, path)) for part in parts if part.strip()]
        except (
            InputError
        ) as error:  # one damaged sidecar is no reason to stop at the zips before and after it
            log.warning("%s; its clips have no metres by their source", error)
            continue
        for key, stats in (item for value in values for item in value.items()):
            median = positive(str(stats.get("median"))) if isinstance(stats, dict) else None
            if median is not None:
                found[key] = median
    return found


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _place(archive: PurePosixPath, member: str) -> PurePosixPath | None:
    name = PurePosixPath(member).name
    return PurePosixPath(archive.parent, archive.name.removesuffix(".zip"), name) if name else None


LAYOUT = Layout(read=_read, archives=("*.zip", "data/*/*.zip"), place=_place)
