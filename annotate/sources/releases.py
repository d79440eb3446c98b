"""Public video sets as they unpack: which files make a clip, and what of their geometry goes with it.

Each set has a file of its own, with a reader that walks its tree and names the files of every clip. What is missing or
damaged shows when the clip is annotated, as a row with its reason. How their cameras are to be read is in
dataset/formats/shipped.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

from . import (
    dl3dv,
    dl3dv_gs,
    influx,
    kitti,
    miradata,
    omniworld,
    sana_wm,
    sekai,
    sintel,
    spatialvid,
    time_listed,
)
from .clip import ClipRef
from .entries import ReleaseLayout
from .tree import Layout, Release

LAYOUTS: Mapping[ReleaseLayout, Layout] = {
    "spatialvid-hq": spatialvid.LAYOUT,
    "dl3dv": dl3dv.VIDEO,
    "dl3dv-colmap": dl3dv.COLMAP,
    "dl3dv-stills": dl3dv.STILLS,
    "dl3dv-gs": dl3dv_gs.LAYOUT,
    "omniworld-game": omniworld.SPLITS,
    "omniworld-game-windows": omniworld.WINDOWS,
    "sekai-game": sekai.GAME,
    "sekai-walking": sekai.WALKING,
    "miradata": miradata.LAYOUT,
    "sana-wm": sana_wm.LAYOUT,
    "tum-rgbd": time_listed.TUM,
    "tum-dynamics": time_listed.TUM_DYNAMICS,
    "eth3d-slam": time_listed.ETH3D,
    "sintel-final": sintel.FINAL,
    "sintel-clean": sintel.CLEAN,
    "kitti-odometry": kitti.LAYOUT,
    "influx-real": influx.LAYOUT,
}


def release_clips(layout: ReleaseLayout, release: Release) -> Iterator[ClipRef]:
    """Clips of an unpacked release, one at a time, in an order that depends on names only.

    Raises:
        ValueError: no clip below the root, or a metadata file that cannot be read.
    """
    if not release.root.is_dir():
        raise ValueError(f"{release.root}: no such folder (source.root)")
    clips = LAYOUTS[layout].read(release)
    first = next(clips, None)
    if first is None:
        how = "archives are unpacked by theodolite unpack" if LAYOUTS[layout].archives else ""
        raise ValueError(
            f"{release.root}: holds no clip in the layout {layout} (source.root, source.layout)"
            + "".join(f"; {text}" for text in (how, _packed(release.root)) if text)
        )
    return chain([first], clips)


_PACKED = re.compile(r"\.(zip|tgz|tar|tar\.\w+|7z|rar|z\d\d|zip\.\w+|part\w+)$", re.IGNORECASE)
_PART = re.compile(r"\.(z\d\d|(zip|7z|rar|tar|tgz|gz)\.\w+|part\w+)$", re.IGNORECASE)


def _packed(root: Path) -> str:
    """What to say of archives that lie where their content should."""
    found = sorted(p.name for p in root.iterdir() if p.is_file() and _PACKED.search(p.name))
    if not found:
        return ""
    parts = [
        name
        for name in found
        if _PART.search(name) and not name.lower().endswith((".tar.gz", ".tar.xz", ".tar.bz2"))
    ]
    if parts:
        return (
            f"it holds parts of a split archive, {parts[0]} and so on: join them (cat, zip -s 0), then unpack"
        )
    return f"it holds {len(found)} archives, e.g. {found[0]}: unpack them first"
