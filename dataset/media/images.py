"""Folders of images: which files are frames, in which order, and their pixels as viewers show them."""

from __future__ import annotations

import re
import struct
from collections import Counter, defaultdict
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..inputs import InputError, read_bytes
from ..limits import too_many_pixels
from . import suffixes
from .errors import MediaError
from .orientation import UPRIGHT, Orientation

_SAME_SUFFIX = {".jpeg": ".jpg", ".tiff": ".tif"}
_NUMBER = re.compile(r"\d+(?:\.\d+)*")
_MOST_SERIES = 8
"""A second number in the names with at most so many values, which share the other number, tells cameras or kinds
apart and no time."""
_ORIENTATION_TAG = 274
_MOST_LISTED = 24
"""Kinds of images that a message names; more are a folder of anything."""
_NO_PICTURES = re.compile(
    r"depth|disp|mask|seg|label|instance|semantic|normal|conf|flow|alpha|thumb", re.IGNORECASE
)
"""In names of what lies beside pictures."""


def list_images(clip_id: str, folder: Path, pattern: str | None = None) -> tuple[Path, ...]:
    """Images of a folder that are the clip's frames, in natural order (2 before 10); hidden files are no images.

    Args:
        clip_id: for messages.
        folder: looked at without its sub-folders.
        pattern: glob that the names match, upper and lower case alike; None: all images, which must be of one kind.
    Raises:
        MediaError: `unreadable_video` (no folder, or no image in it), `mixed_images` (names of several kinds, such as
            colour and depth, and no pattern that chooses).
    """
    named = f"clip {clip_id}: {folder}"
    if not folder.is_dir():
        raise MediaError("unreadable_video", f"{named}: no such folder of images")
    paths = images_in(folder)
    if pattern is not None:
        chosen = [p for p in paths if _matches(p.name, pattern)]
        if not chosen:
            listed = ", ".join(_kinds(paths)) or "no image"
            raise MediaError(
                "unreadable_video", f"{named}: no image matches media_pattern {pattern!r}; it holds {listed}"
            )
        return tuple(chosen)
    if not paths:
        raise MediaError(
            "unreadable_video", f"{named}: holds no image ({', '.join(suffixes.IMAGES)}){_what_else(folder)}"
        )
    kinds = _kinds(paths)
    if len(kinds) > 1:
        listed = ", ".join(f"{glob!r} ({count})" for glob, count in list(kinds.items())[:_MOST_LISTED])
        more = f" and {len(kinds) - _MOST_LISTED} more" if len(kinds) > _MOST_LISTED else ""
        raise MediaError(
            "mixed_images",
            f"{named}: holds images of several kinds: {listed}{more}; name those that are frames as media_pattern, e.g."
            f" media_pattern: {_likeliest(kinds, paths)!r}",
        )
    return tuple(paths)


def _likeliest(kinds: dict[str, int], paths: list[Path]) -> str:
    """Of several kinds that with the pictures, as far as names and headers tell; of equals the first."""
    most = max(kinds.values())

    def rank(glob: str) -> tuple[bool, bool, int]:
        if 2 * kinds[glob] < most:  # a cover or an overview
            return True, True, 2
        first = next(p for p in paths if _matches(p.name, glob))
        return False, _NO_PICTURES.search(glob) is not None, _unlike_pictures(first)

    return min(kinds, key=rank)


def _unlike_pictures(path: Path) -> int:
    """How little an image's header looks like a picture's: 0 colour or unknown, 1 one channel of 8 bits (a mask, or a
    grey camera), 2 one of 16 (depth)."""
    with suppress(OSError), path.open("rb") as file:
        head = file.read(26)
        if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 26:
            bits, colour = head[24], head[25]
            return 0 if colour not in (0, 3) else 2 if bits == 16 else 1
    return 0


def images_in(folder: Path) -> list[Path]:
    """All images of a folder in natural order, of whatever kind; hidden files are none."""
    return sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in suffixes.IMAGES and not p.name.startswith(".")),
        key=natural_key,
    )


def natural_key(path: Path) -> tuple[tuple[int, str | int], ...]:
    """Sort key under which frame 2 comes before frame 10, whether or not the numbers are padded."""
    parts = re.split(r"(\d+)", path.name)
    return tuple((1, int(p)) if p.isdecimal() else (0, p) for p in parts)


def _normal_name(name: str) -> str:
    lower = name.lower()
    suffix = Path(lower).suffix
    return lower.removesuffix(suffix) + _SAME_SUFFIX.get(suffix, suffix)


def _matches(name: str, pattern: str) -> bool:
    return any(fnmatchcase(n, pattern.lower()) for n in (name.lower(), _normal_name(name)))


def _kinds(paths: list[Path]) -> dict[str, int]:
    """Globs of the kinds of images by their names, with their counts, most first.

    Names of a kind differ in their numbers alone. Names without any common form (no two alike) are one kind: they
    are in alphabetical order on purpose, or by nothing at all.
    """
    names = [_normal_name(p.name) for p in paths]
    suffix = {name: Path(name).suffix for name in names}
    forms = {name: _NUMBER.sub("#", name.removesuffix(suffix[name])) + suffix[name] for name in names}
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[forms[name]].append(name)
    if len(alike) == len(names):
        return {f"*{s}": n for s, n in Counter(suffix.values()).most_common(1)} if names else {}
    found: Counter[str] = Counter()
    for form, same in alike.items():
        found.update(_series(form, same) or {_glob(form): len(same)})
    return dict(found.most_common())


def _series(form: str, names: list[str]) -> dict[str, int]:
    """Globs of the series that one form with two numbers holds (cam0_0001, cam1_0001, ...); empty if it is one."""
    if form.count("#") != 2:
        return {}
    pairs = [_NUMBER.findall(name.removesuffix(Path(name).suffix)) for name in names]
    for side in (0, 1):
        others: defaultdict[str, set[str]] = defaultdict(set)
        for pair in pairs:
            others[pair[side]].add(pair[1 - side])
        sizes = sorted(others.values(), key=len)
        if 2 <= len(sizes) <= _MOST_SERIES and len(sizes[-2]) > 1:
            shared = len(sizes[-1] & sizes[-2])
            if 2 * shared > len(sizes[-2]):
                before, between, after = form.split("#")
                return {
                    _glob(
                        f"{before}{value}{between}#{after}"
                        if side == 0
                        else f"{before}#{between}{value}{after}"
                    ): len(partners)
                    for value, partners in others.items()
                }
    return {}


def _glob(form: str) -> str:
    return re.sub(r"([\[?*])", r"[\1]", form).replace("#", "*[0-9]")


def _what_else(folder: Path) -> str:
    """What there is instead of images, for the message."""
    entries = sorted(folder.iterdir())
    unread = Counter(s for p in entries if (s := p.suffix.lower()) in suffixes.UNREAD_IMAGES)
    if unread:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in unread.most_common())
        return f"; {listed} are not read: convert them"
    inner = [p.name for p in entries if p.is_dir() and not p.name.startswith(".") and images_in(p)]
    return f"; its folder {', '.join(inner[:4])} does: name that one" if inner else ""


# --- pixels --------------------------------------------------------------------------------------


def read_image(clip_id: str, path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of an image file as viewers show it; errors as `load_image`."""
    stored, orientation = load_image(clip_id, path)
    return orientation.show(stored)


def load_image(clip_id: str, path: Path) -> tuple[NDArray[np.uint8], Orientation]:
    """Stored (H, W, 3) uint8 RGB pixels of an image file, and how they are shown.

    Grey becomes three equal channels, 16 bits become 8, transparency is left out.

    Raises:
        MediaError: `unreadable_image`, `image_too_large`.
    """
    import cv2

    try:
        if not path.exists():
            raise InputError(f"{path}: No such file or directory")
        data = read_bytes(path)
        orientation, tag, _ = _look_at(data)
        if tag is not None and data[:2] in (b"II", b"MM"):
            # OpenCV turns TIFF half-way: mirrors always, quarter turns never. Here it is told that there is none.
            place, order = tag
            data = data[:place] + struct.pack(f"{order}H", 1) + data[place + 2 :]
        bgr = decode_image(data, path)
    except ImageSizeError as error:
        raise MediaError("image_too_large", f"clip {clip_id}: {error}") from None
    except InputError as error:
        raise MediaError("unreadable_image", f"clip {clip_id}: {error}") from None
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False), orientation


class ImageSizeError(InputError):
    """An image with more pixels than are read."""


def decode_image(data: bytes, path: str | Path, *, as_stored: bool = False) -> NDArray[np.uint8]:
    """Pixels of an image file as stored, by OpenCV; its size is judged by its header before anything is unfolded,
    and that all of it is there.

    Args:
        path: for messages.
        as_stored: (H, W) or (H, W, C) of whatever depth the file has, for maps; else (H, W, 3) uint8 BGR.
    Raises:
        ImageSizeError: more pixels than are read.
        InputError: no image, or of a kind that is not read.
    """
    import cv2

    size = image_size(data)
    if size is not None and not _look_at(data)[2]:
        # OpenCV makes room for what a part of a PNG says that it holds, up to four gigabytes, and looks for pixels
        # beyond the file's end, where lengths are what memory held.
        raise InputError(f"{path}: ends before its picture does")
    if size is None:
        raise InputError(f"{path}: no readable image (PNG, JPEG, WebP, BMP and TIFF are read)")
    if why := too_many_pixels(*size):
        raise ImageSizeError(f"{path}: {why}")
    flags = cv2.IMREAD_UNCHANGED if as_stored else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise InputError(f"{path}: no readable image ({' '.join(str(error).split())[:200]})") from None
    if found is None or found.shape[:2] != size:
        raise InputError(f"{path}: no readable image")
    return cast(NDArray[np.uint8], found)


def image_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) that the header of a PNG, JPEG, WebP, BMP or TIFF states for the stored pixels; None for
    anything else."""
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            width, height = struct.unpack_from(">II", data, 16)
        elif data[:2] == b"\xff\xd8":
            return _jpeg_size(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data)
        elif data[:2] == b"BM":
            # The oldest header (12 bytes) has numbers of 16 bits; a negative height counts rows from the top.
            old = struct.unpack_from("<I", data, 14)[0] == 12
            width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
        elif data[:4] in (b"II*\0", b"MM\0*"):
            return _tiff_size(data)
        else:
            return None
    except struct.error:
        return None
    return abs(height), abs(width)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    offset = 2
    while offset + 4 <= len(data):
        if data[offset] != 0xFF:  # between segments decoders skip what they do not know
            offset += 1
            continue
        kind = data[offset + 1]
        if kind == 0xFF or kind == 0x01 or 0xD0 <= kind <= 0xD8:
            offset += 1 if kind == 0xFF else 2
            continue
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, offset + 5)
            return height, width
        if kind in (0xD9, 0xDA):
            return None
        offset += 2 + max(2, struct.unpack_from(">H", data, offset + 2)[0])
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (n & 0x3FFF for n in struct.unpack_from("<HH", data, 26))
    else:
        return None
    return height, width


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    """Of the first directory, which is the one that is decoded."""
    order = "<" if data[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, directory)
    sides: dict[int, int] = {}
    for i in range(count):
        entry = directory + 2 + 12 * i
        tag, kind = struct.unpack_from(f"{order}HH", data, entry)
        if tag in (256, 257):
            side = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, entry + 8)[0]
            sides[tag] = max(side, sides.get(tag, 0))
    return (sides[257], sides[256]) if len(sides) == 2 else None


def image_orientation(path: Path) -> Orientation:
    """How an image file asks to be shown; upright if it cannot be read or says nothing."""
    try:
        return _look_at(read_bytes(path))[0]
    except InputError:
        return UPRIGHT


_Tag = tuple[int, str]
"""Place of the orientation's two bytes in the file, and their order as `struct` names it."""


def _look_at(data: bytes) -> tuple[Orientation, _Tag | None, bool]:
    """Orientation of an image file, its tag if there is one, and False if the file was cut."""
    tag: _Tag | None = None
    whole = True
    if data[:2] == b"\xff\xd8":
        tag, whole = _jpeg_tag(data)
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        tag, whole = _png_tag(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        tag = _webp_tag(data)
    elif data[:4] in (b"II*\0", b"MM\0*"):
        tag = _tiff_tag(data, 0)
    value = 1 if tag is None else struct.unpack_from(f"{tag[1]}H", data, tag[0])[0]
    return Orientation.of_exif(value), tag, whole


def _tiff_tag(data: bytes, start: int) -> _Tag | None:
    """The orientation in the first directory of the TIFF structure at `start`; damaged metadata say nothing."""
    order = {b"II": "<", b"MM": ">"}.get(data[start : start + 2])
    if order is None:
        return None
    try:
        (directory,) = struct.unpack_from(f"{order}I", data, start + 4)
        (count,) = struct.unpack_from(f"{order}H", data, start + directory)
        for i in range(count):
            entry = start + directory + 2 + 12 * i
            tag, kind = struct.unpack_from(f"{order}HH8x", data, entry)
            if tag == _ORIENTATION_TAG:
                # A SHORT, as the standard has it; some write a LONG.
                return entry + 8 + (2 if kind == 4 and order == ">" else 0), order
    except struct.error:
        return None
    return None


def _jpeg_tag(data: bytes) -> tuple[_Tag | None, bool]:
    found, offset = None, 2
    while offset + 4 <= len(data) and data[offset] == 0xFF and data[offset + 1] != 0xDA:
        if data[offset + 1] == 0xFF:  # filling
            offset += 1
            continue
        (length,) = struct.unpack_from(">H", data, offset + 2)
        if found is None and data[offset + 1] == 0xE1 and data[offset + 4 : offset + 10] == b"Exif\0\0":
            found = _tiff_tag(data, offset + 10)
        offset += 2 + length
    # Within the coded picture the end marker cannot occur: without one the picture was cut.
    return found, data.rfind(b"\xff\xd9") > offset


def _png_tag(data: bytes) -> tuple[_Tag | None, bool]:
    found, offset, pixels = None, 8, False
    while offset + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        if kind == b"eXIf":
            found = _tiff_tag(data, offset + 8)
        if kind == b"IEND":
            return found, pixels
        pixels |= kind == b"IDAT"
        offset += 12 + length
    return found, False


def _webp_tag(data: bytes) -> _Tag | None:
    offset = 12
    while offset + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, offset)
        if kind == b"EXIF":
            start = offset + 8
            return _tiff_tag(data, start + 6 if data[start : start + 6] == b"Exif\0\0" else start)
        offset += 8 + length + length % 2
    return None
