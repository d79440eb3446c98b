"""Folders of images: which files are frames, in which order, and their pixels as viewers show them."""

from __future__ import annotations

import re
import struct
from collections import Counter, defaultdict
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .media import MediaError
from .orientation import UPRIGHT, Orientation

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".nef", ".arw", ".exr", ".gif", ".jp2")
"""Pictures that nothing here reads; a folder of them alone says so."""
_SAME_SUFFIX = {".jpeg": ".jpg", ".tiff": ".tif"}
_NUMBER = re.compile(r"\d+(?:\.\d+)*")
_MOST_SERIES = 8
"""A second number in the names with at most so many values, which share the other number, tells cameras or kinds
apart and no time."""
_ORIENTATION_TAG = 274


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
    at = f"clip {clip_id}: {folder}"
    if not folder.is_dir():
        raise MediaError("unreadable_video", f"{at}: no such folder of images")
    paths = images_in(folder)
    if pattern is not None:
        chosen = [p for p in paths if _matches(p.name, pattern)]
        if not chosen:
            listed = ", ".join(_kinds(paths)) or "no image"
            raise MediaError(
                "unreadable_video", f"{at}: no image matches media_pattern {pattern!r}; it holds {listed}"
            )
        return tuple(chosen)
    if not paths:
        raise MediaError(
            "unreadable_video", f"{at}: holds no image ({', '.join(IMAGE_SUFFIXES)}){_what_else(folder)}"
        )
    kinds = _kinds(paths)
    if len(kinds) > 1:
        listed = ", ".join(f"{glob!r} ({count})" for glob, count in list(kinds.items())[:4])
        more = f" and {len(kinds) - 4} more" if len(kinds) > 4 else ""
        raise MediaError(
            "mixed_images",
            f"{at}: holds images of several kinds: {listed}{more}; name those that are frames as media_pattern, e.g."
            f" media_pattern: {next(iter(kinds))!r}",
        )
    return tuple(paths)


def images_in(folder: Path) -> list[Path]:
    """All images of a folder in natural order, of whatever kind; hidden files are none."""
    return sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")),
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
    counts = Counter(forms.values())
    if len(counts) == len(names):
        return {f"*{s}": n for s, n in Counter(suffix.values()).most_common(1)} if names else {}
    found: Counter[str] = Counter()
    for form, count in counts.items():
        alike = [name for name in names if forms[name] == form]
        found.update(_series(form, alike) or {_glob(form): count})
    return dict(found.most_common())


def _series(form: str, names: list[str]) -> dict[str, int]:
    """Globs of the series that one form with two numbers holds (cam0_0001, cam1_0001, ...); empty if it is one."""
    if form.count("#") != 2:
        return {}
    pairs = [_NUMBER.findall(name.removesuffix(Path(name).suffix)) for name in names]
    for at in (0, 1):
        others: defaultdict[str, set[str]] = defaultdict(set)
        for pair in pairs:
            others[pair[at]].add(pair[1 - at])
        sizes = sorted(others.values(), key=len)
        if 2 <= len(sizes) <= _MOST_SERIES and len(sizes[-2]) > 1:
            shared = len(sizes[-1] & sizes[-2])
            if 2 * shared > len(sizes[-2]):
                before, between, after = form.split("#")
                return {
                    _glob(
                        f"{before}{value}{between}#{after}"
                        if at == 0
                        else f"{before}#{between}{value}{after}"
                    ): len(of)
                    for value, of in others.items()
                }
    return {}


def _glob(form: str) -> str:
    return re.sub(r"([\[?*])", r"[\1]", form).replace("#", "*[0-9]")


def _what_else(folder: Path) -> str:
    """What there is instead of images, for the message."""
    entries = sorted(folder.iterdir())
    unread = Counter(s for p in entries if (s := p.suffix.lower()) in _UNREAD_SUFFIXES)
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
        MediaError: `unreadable_image`.
    """
    import cv2

    try:
        data = path.read_bytes()
    except OSError as error:
        raise MediaError("unreadable_image", f"clip {clip_id}: {path}: {error.strerror or error}") from error
    orientation, tag, whole = _look_at(data)
    if tag is not None and data[:2] in (b"II", b"MM"):
        # OpenCV turns TIFF half-way: mirrors always, quarter turns never. Here it is told that there is none.
        place, order = tag
        data = data[:place] + struct.pack(f"{order}H", 1) + data[place + 2 :]
    bgr = None
    if data and whole:
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None:
        found = "no readable image" if whole else "ends before its picture does"
        raise MediaError("unreadable_image", f"clip {clip_id}: {path}: {found}")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False), orientation


def image_orientation(path: Path) -> Orientation:
    """How an image file asks to be shown; upright if it cannot be read or says nothing."""
    try:
        return _look_at(path.read_bytes())[0]
    except OSError:
        return UPRIGHT


_Tag = tuple[int, str]
"""Place of the orientation's two bytes in the file, and their order as `struct` names it."""


def _look_at(data: bytes) -> tuple[Orientation, _Tag | None, bool]:
    """Orientation of an image file, its tag if there is one, and False if the file was cut."""
    tag: _Tag | None = None
    whole = True
    try:
        if data[:2] == b"\xff\xd8":
            tag, whole = _jpeg_tag(data)
        elif data[:8] == b"\x89PNG\r\n\x1a\n":
            tag, whole = _png_tag(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            tag = _webp_tag(data)
        elif data[:4] in (b"II*\0", b"MM\0*"):
            tag = _tiff_tag(data, 0)
        value = 1 if tag is None else struct.unpack_from(f"{tag[1]}H", data, tag[0])[0]
    except struct.error:  # damaged metadata say nothing
        return UPRIGHT, None, whole
    return Orientation.of_exif(value), tag, whole


def _tiff_tag(data: bytes, start: int) -> _Tag | None:
    """The orientation in the first directory of the TIFF structure at `start`."""
    order = {b"II": "<", b"MM": ">"}.get(data[start : start + 2])
    if order is None:
        return None
    (directory,) = struct.unpack_from(f"{order}I", data, start + 4)
    (count,) = struct.unpack_from(f"{order}H", data, start + directory)
    for i in range(count):
        at = start + directory + 2 + 12 * i
        tag, kind = struct.unpack_from(f"{order}HH", data, at)
        if tag == _ORIENTATION_TAG:
            # A SHORT, as the standard has it; some write a LONG.
            return at + 8 + (2 if kind == 4 and order == ">" else 0), order
    return None


def _jpeg_tag(data: bytes) -> tuple[_Tag | None, bool]:
    found, at = None, 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # filling
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if found is None and data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            found = _tiff_tag(data, at + 10)
        at += 2 + length
    # Within the coded picture the end marker cannot occur: without one the picture was cut.
    return found, data.rfind(b"\xff\xd9") > at


def _png_tag(data: bytes) -> tuple[_Tag | None, bool]:
    found, at = None, 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            found = _tiff_tag(data, at + 8)
        if kind == b"IEND":
            return found, True
        at += 12 + length
    return found, False


def _webp_tag(data: bytes) -> _Tag | None:
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"EXIF":
            start = at + 8
            return _tiff_tag(data, start + 6 if data[start : start + 6] == b"Exif\0\0" else start)
        at += 8 + length + length % 2
    return None
