"""The eight ways in which stored pixels can be shown, and what each does to images, intrinsics and poses.

Phones store what the sensor gave and add how it is to be turned: videos a display matrix, photographs an EXIF tag.
Players and viewers apply both, mirrors included (front cameras write them), and so does everything here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

Array = TypeVar("Array", bound=NDArray[Any])

_LARGEST_TILT = math.sin(math.radians(1.0))
"""FFmpeg's players take a matrix within a degree of a quarter turn for one."""


@dataclass(frozen=True)
class Orientation:
    """Where stored pixel axes point when shown; x right, y down.

    A stored pixel p = (column, row) is shown at A p, plus the size where an axis is reversed.

    Attributes:
        xx, xy, yx, yy: the rows of A; each row and each column holds one +1 or -1 and one 0.
    """

    xx: int = 1
    xy: int = 0
    yx: int = 0
    yy: int = 1

    def __post_init__(self) -> None:
        if (abs(self.xx), abs(self.xy)) != (abs(self.yy), abs(self.yx)) or abs(self.xx) + abs(self.xy) != 1:
            raise ValueError(f"{self.xx, self.xy, self.yx, self.yy} is neither a quarter turn nor a mirror")

    @staticmethod
    def of_display_matrix(matrix: Sequence[int]) -> Orientation:
        """Orientation of a display matrix.

        Args:
            matrix: nine numbers a b u c d v x y w; (p, q) is shown at (a p + c q, b p + d q) up to scale and place.
        Raises:
            ValueError: it turns by no multiple of 90 degrees, shears, or is a perspective.
        Source: ISO/IEC 14496-12, 6.2.2; FFmpeg's libavutil/display.h.
        """
        a, b, u, c, d, v, _x, _y, _w = matrix
        if not any((a, b, c, d)):
            return UPRIGHT  # players take an empty matrix for none
        # A scale is no turn: anamorphic files state their pixel aspect by one, and FFmpeg passes it on as such.
        first, second = math.hypot(a, b), math.hypot(c, d)
        if first and second and not (u or v):
            entries = (a / first, c / second, b / first, d / second)
            nearest = [round(x) for x in entries]
            off = max(abs(x - n) for x, n in zip(entries, nearest, strict=True))
            if off < _LARGEST_TILT and nearest[0] * nearest[3] != nearest[1] * nearest[2]:
                return Orientation(*nearest)
        shown = ", ".join(f"{x / 65536:g}" for x in (a, b, c, d))
        raise ValueError(
            f"its display matrix ({shown}) is no multiple of a quarter turn, with or without a mirror"
        )

    @staticmethod
    def of_exif(value: int) -> Orientation:
        """Orientation of the EXIF or TIFF tag 274; values that the standard does not know show as 1, as in viewers."""
        return _OF_EXIF.get(value, UPRIGHT)

    @property
    def swaps_sides(self) -> bool:
        """True if width becomes height."""
        return self.xx == 0

    @property
    def mirrors(self) -> bool:
        """True if left and right change hands."""
        return self.xx * self.yy - self.xy * self.yx < 0

    def __bool__(self) -> bool:
        """True if anything is to be done."""
        return self != UPRIGHT

    def __str__(self) -> str:
        return _NAMES[self]

    def show(self, image: Array) -> Array:
        """Stored (H, W, ...) pixels as they are shown, contiguous."""
        if self.swaps_sides:
            image = image.swapaxes(0, 1)
        rows, columns = -1 if self.yx + self.yy < 0 else 1, -1 if self.xx + self.xy < 0 else 1
        return cast(Array, np.ascontiguousarray(image[::rows, ::columns]))

    def shown_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) as shown of stored pixels of `size`; the same the other way round."""
        height, width = size
        return (width, height) if self.swaps_sides else (height, width)

    def show_intrinsics(self, intrinsics: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float64]:
        """(..., 3, 3) intrinsics of the pixels as shown.

        Args:
            intrinsics: (..., 3, 3) of stored pixels, whose centres lie at +0.5.
            size: (height, width) of the stored pixels.
        """
        height, width = self.shown_size(size)
        pixels = self._axes()
        pixels[:2, 2] = width * (self.xx + self.xy < 0), height * (self.yx + self.yy < 0)
        return pixels @ np.asarray(intrinsics, np.float64) @ self._axes().T

    def show_poses(self, camera_to_world: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., 4, 4) camera-to-world, OpenCV axes, of the cameras that see the pixels as shown.

        A turn turns the camera about its viewing axis. Of a mirrored picture no camera in the same world is the
        source: the world is mirrored along. Both are T -> D T D^-1, up to the world's own frame.
        """
        axes = np.eye(4)
        axes[:3, :3] = self._axes()
        return axes @ np.asarray(camera_to_world, np.float64) @ axes.T

    def _axes(self) -> NDArray[np.float64]:
        return np.array([[self.xx, self.xy, 0], [self.yx, self.yy, 0], [0, 0, 1]], np.float64)


UPRIGHT = Orientation()
_OF_EXIF = {
    1: UPRIGHT,
    2: Orientation(-1, 0, 0, 1),
    3: Orientation(-1, 0, 0, -1),
    4: Orientation(1, 0, 0, -1),
    5: Orientation(0, 1, 1, 0),
    6: Orientation(0, -1, 1, 0),
    7: Orientation(0, -1, -1, 0),
    8: Orientation(0, 1, -1, 0),
}
ORIENTATIONS = tuple(_OF_EXIF.values())
"""All eight, in the order of their EXIF values 1 to 8."""
_NAMES = {
    UPRIGHT: "shown as stored",
    _OF_EXIF[2]: "mirrored left to right",
    _OF_EXIF[3]: "turned by 180 degrees",
    _OF_EXIF[4]: "mirrored top to bottom",
    _OF_EXIF[5]: "turned by 90 degrees counter-clockwise and mirrored top to bottom",
    _OF_EXIF[6]: "turned by 90 degrees clockwise",
    _OF_EXIF[7]: "turned by 90 degrees clockwise and mirrored top to bottom",
    _OF_EXIF[8]: "turned by 90 degrees counter-clockwise",
}
