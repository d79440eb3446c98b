"""Pictures of clips for a report, from local media."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ..media.read import iterate_frames, media_path
from ..rows import Row

Thumbnail = Callable[[Row], bytes | None]
"""JPEG bytes of a clip, or None if its media cannot be shown."""
Pictures = Callable[[Row, Sequence[int]], dict[int, bytes]]
"""JPEG bytes by clip frame of those wanted that can be shown."""


def pictures_from_media(root: str | Path = ".", *, width: int = 220) -> Pictures:
    """Pictures of local media at clip frames, as the row counts them; relative media lie below `root`."""

    def read(row: Row, positions: Sequence[int]) -> dict[int, bytes]:
        import cv2

        found: dict[int, bytes] = {}
        size = (max(1, round(row.height * width / row.width)), width)
        try:
            for position, rgb in zip(
                positions, iterate_frames(row, root, positions=positions, size=size), strict=True
            ):
                bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
                ok, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 80])
                if ok:
                    found[position] = jpeg.tobytes()
        except (ValueError, OSError):  # media gone, or shorter than it was: what was read so far is shown
            pass
        return found

    def pictures(row: Row, positions: Sequence[int]) -> dict[int, bytes]:
        if row.width <= 0 or row.media_kind == "rendered" or not _media_there(row, root):
            return {}
        found = read(row, positions)
        for position in positions if len(found) < len(positions) else ():
            if position not in found:  # one missing frame costs itself
                found |= read(row, [position])
        return found

    return pictures


def _media_there(row: Row, root: str | Path) -> bool:
    try:
        return media_path(row, root).exists()
    except ValueError:  # it leads elsewhere: not to be looked at
        return False


def thumbnail_from_media(root: str | Path = ".", *, width: int = 220) -> Thumbnail:
    """Thumbnails of a clip's first frame from local media, upright; relative media lie below `root`."""
    pictures = pictures_from_media(root, width=width)
    return lambda row: pictures(row, [0]).get(0) if row.num_frames else None
