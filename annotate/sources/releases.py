"""Public video sets as they unpack: which files make a clip, and what of their geometry goes with it.

Each set has a file of its own, with a reader that walks its tree and names the files of every clip. What is missing or
damaged shows when the clip is annotated, as a row with its reason. How their cameras are to be read is in
dataset/formats/shipped.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

from . import dl3dv, dl3dv_gs, miradata, omniworld, sana_wm, sekai, spatialvid
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
        raise ValueError(
            f"{release.root}: holds no clip in the layout {layout} (source.root, source.layout); archives are unpacked"
            " by theodolite unpack"
        )
    return chain([first], clips)
