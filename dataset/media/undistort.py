"""Pictures of a clip as its pinhole cameras would have taken them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cameras.intrinsics import pixel_centres
from ..cameras.lenses import bent
from ..rows import Row
from .read import fit, image_paths, iterate_frames, read_frames

_BORDER = 65
"""Points of each side of a picture that tell whether the lens shows it: between them the lens bends by nothing."""
_HALVINGS = 16
_LENSES = 64
"""Of a lens that zooms, so many focal lengths are asked for what they show, the shortest and the longest among them."""


def bends(radial_k1: float | None, radial_k2: float | None, lens_model: str | None) -> bool:
    """Whether a row's lens shows anything else than a pinhole: undistorted pictures are then of their own size."""
    return bool(radial_k1 or radial_k2 or lens_model == "fisheye")


class ClipPictures:
    """The pictures of a clip below a folder, as they are, or as pinhole cameras would have shown them.

    A pinhole picture has the focal length and the principal point that the row states, and its size: its field of view
    is the row's, and of a lens that shows more (a barrel) that is cut off. Where the lens does not show all of it in
    every frame (a pincushion), the sides are moved towards the principal point in proportion until it does, on whole
    pixels and to even sizes: nothing is scaled, and the principal point counts from the new corner.

    Attributes:
        row: the clip with the cameras of these pictures.
        crop: left, top, right, bottom of the pictures in those of the row, pixels.
    """

    def __init__(self, row: Row, media_root: str | Path, *, undistort: bool = False) -> None:
        """Raises ValueError if the clip has no cameras, or its lens shows nothing of the pinhole picture."""
        self._given, self._root = row, media_root
        self._bends = undistort and bends(row.radial_k1, row.radial_k2, row.lens_model)
        self.row, self.crop = row, (0, 0, row.width, row.height)
        # Of the frame before: its lens, and places of its pixels. Few lenses zoom.
        self._map: tuple[NDArray[np.float64], NDArray[np.float32]] | None = None
        if self._bends:
            if len(row.camera_to_world) != row.num_frames:
                raise ValueError(f"clip {row.clip_id}: undistorting needs a camera on every frame")
            self.crop = left, top, right, bottom = self._shown()
            self.row = replace(
                row,
                radial_k1=None,
                radial_k2=None,
                lens_model=None if row.lens_model is None else "radial",
                principal_point_px=row.principal_point_px - np.array([left, top], np.float32),
                width=right - left,
                height=bottom - top,
            )

    @property
    def is_cropped(self) -> bool:
        """Whether the pictures are smaller than the row's."""
        return self.crop != (0, 0, self._given.width, self._given.height)

    def frames(
        self, *, positions: Sequence[int] | None = None, size: tuple[int, int] | None = None
    ) -> Iterator[NDArray[np.uint8]]:
        """RGB frames, as `iterate_frames` gives them; `size` is (height, width), the pictures' own if None."""
        if not self._bends:
            yield from iterate_frames(self._given, self._root, positions=positions, size=size)
            return
        height, width = size or (self.row.height, self.row.width)
        numbers = range(self._given.num_frames) if positions is None else positions
        pictures = iterate_frames(self._given, self._root, positions=positions)
        for i, rgb in zip(numbers, pictures, strict=True):
            yield fit(self._straight(rgb, i), height, width)

    def read(self, *, positions: Sequence[int], size: tuple[int, int]) -> NDArray[np.uint8]:
        """(n, height, width, 3) uint8: some frames at once, as `read_frames` gives them."""
        if not self._bends:
            return read_frames(self._given, self._root, positions=positions, size=size)
        out = np.empty((len(positions), *size, 3), np.uint8)
        for i, rgb in enumerate(self.frames(positions=positions, size=size)):
            out[i] = rgb
        return out

    def files(self) -> tuple[Path | None, ...]:
        """The file of every frame where the media is a folder of images, else None for each."""
        if self._given.media_kind == "images":
            return image_paths(self._given, self._root)
        return (None,) * self._given.num_frames

    @cached_property
    def _lenses(self) -> NDArray[np.float64]:
        """(F, 4) fx, fy, cx, cy."""
        row = self._given
        return np.concatenate([row.focal_px, row.principal_point_px], axis=1).astype(np.float64)

    def _places(self, pixels: NDArray[np.float64], lens: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., 2) where the lens shows what a pinhole shows at `pixels` (..., 2); NaN: nowhere."""
        row = self._given
        rays = (pixels - lens[2:]) / lens[:2]
        seen = bent(rays, row.radial_k1 or 0.0, row.radial_k2 or 0.0, fisheye=row.lens_model == "fisheye")
        return seen * lens[:2] + lens[2:]

    def _straight(self, rgb: NDArray[np.uint8], frame: int) -> NDArray[np.uint8]:
        import cv2

        lens = self._lenses[frame]
        if self._map is None or not np.array_equal(self._map[0], lens):
            places = self._places(pixel_centres(self.row.height, self.row.width) + self.crop[:2], lens)
            self._map = lens, (places - 0.5).astype(np.float32)  # OpenCV counts from the first pixel's centre
        columns, rows = np.moveaxis(self._map[1], -1, 0)
        out = cv2.remap(rgb, columns, rows, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(out, np.uint8)

    def _shown(self) -> tuple[int, int, int, int]:
        """Sides of the largest pinhole picture about the principal point that the lens shows in every frame.

        The border tells: what lies between the principal point and a place that is seen is seen as well.
        """
        row = self._given
        lenses = np.unique(self._lenses, axis=0)  # sorted by the focal length
        if len(lenses) > _LENSES and not np.ptp(lenses[:, 2:], axis=0).any():
            lenses = lenses[np.linspace(0, len(lenses) - 1, _LENSES).round().astype(int)]
        centre = np.median(self._lenses[:, 2:], axis=0)
        whole = np.array([row.width, row.height], np.float64)

        def sides(share: float) -> tuple[int, int, int, int]:
            low = np.ceil((1 - share) * centre - 1e-9)
            high = np.floor(centre + share * (whole - centre) + 1e-9)
            if share < 1:
                high -= (high - low) % 2
            return int(low[0]), int(low[1]), int(high[0]), int(high[1])

        def is_seen(crop: tuple[int, int, int, int]) -> bool:
            left, top, right, bottom = crop
            if min(right - left, bottom - top) < 2:
                return False
            x, y = (
                np.linspace(left + 0.5, right - 0.5, _BORDER),
                np.linspace(top + 0.5, bottom - 0.5, _BORDER),
            )
            border = [(x, 0 * x + y[0]), (x, 0 * x + y[-1]), (0 * y + x[0], y), (0 * y + x[-1], y)]
            pixels = np.concatenate([np.stack(side, axis=1) for side in border])
            places = (self._places(pixels, lens) for lens in lenses)
            return all(((p >= 0) & (p <= whole)).all() for p in places)  # NaN is neither

        if is_seen(sides(1.0)):
            return sides(1.0)
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if is_seen(sides(middle)) else (low, middle)
        if not is_seen(sides(low)):
            raise ValueError(
                f"clip {row.clip_id}: its lens shows nothing of the picture that a pinhole would take"
            )
        return sides(low)
