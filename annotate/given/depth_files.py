"""One depth map from a file, in whatever format it comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...dataset.formats.sintel import read_dpt
from ...dataset.inputs import Archive, InputError, read_bytes, read_npy
from ...dataset.limits import too_many_pixels
from ...dataset.media.images import decode_image
from ..sources.clip import ClipRejection


def read_depth_file(path: Path, *, clip_id: str) -> NDArray:
    """(h, w) stored numbers of a 16-bit PNG, `.npy`, `.npz` (one array, or the one called `depth`) or Sintel's `.dpt`.

    Raises:
        ClipRejection: `depth_unreadable` with what was found instead.
    """

    def unreadable(found: str) -> ClipRejection:
        return ClipRejection("depth_unreadable", f"clip {clip_id}: {path}: {found}")

    suffix = path.suffix.lower()
    if suffix not in (".png", ".npy", ".npz", ".dpt"):
        raise unreadable(
            f"depth files are .png (16 bits), .npy, .npz or Sintel's .dpt, not {suffix or 'without a suffix'}; convert"
            " others to float .npy"
        )
    try:
        if suffix == ".png":
            depth = decode_image(read_bytes(path), path, as_stored=True)
        elif suffix == ".dpt":
            depth = read_dpt(path)
        else:
            depth = read_npy(path) if suffix == ".npy" else _array_of_archive(path)
    except InputError as error:
        found = str(error).removeprefix(f"{path}: ")
        raise unreadable(found.replace("no readable image", "not a readable PNG")) from error
    if suffix == ".png":
        if depth.ndim != 2 or depth.dtype != np.uint16:
            channels = 1 if depth.ndim == 2 else depth.shape[2]
            raise unreadable(
                f"expected one channel of 16 bits, found {channels} of {8 * depth.itemsize} bits ({depth.shape} of"
                f" {depth.dtype}): pictures of depth (grey of 8 bits, colour scales, palettes) hold no distances; write"
                " the numbers as 16-bit PNG, .npy or .npz"
            )
        return depth
    if depth.ndim == 3 and depth.shape[0] == 1:
        depth = depth[0]
    elif depth.ndim == 3 and depth.shape[2] == 1:
        depth = depth[..., 0]
    if depth.ndim != 2 or depth.size == 0 or depth.dtype.kind not in "fui":
        many = "; write a file for each frame" if depth.ndim == 3 and depth.shape[2] not in (2, 3, 4) else ""
        raise unreadable(f"expected (h, w) numbers, found shape {depth.shape} of {depth.dtype}{many}")
    if why := too_many_pixels(*depth.shape):
        raise unreadable(why)
    return depth


def _array_of_archive(path: Path) -> NDArray:
    with Archive(path, "numpy file") as archive:
        names = archive.arrays
        name = "depth" if "depth" in names else names[0] if len(names) == 1 else None
        if name is None:
            raise InputError(f"{path}: expected one array or one called 'depth', found {names[:10]}")
        return archive.array(name)
