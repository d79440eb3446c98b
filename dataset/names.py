"""Names and pointers that come with data: which are taken, and where on this machine they may lead.

A clip id becomes the name of files, and a pointer says where media lie. Both may have been written by strangers, so
there is one rule for each, and every reader and writer asks here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from .limits import MAX_NAME_LENGTH, MAX_PATTERN_WIDTH

NAME_PATTERN = rf"[A-Za-z0-9_-]{{1,{MAX_NAME_LENGTH}}}"
_NAME = re.compile(NAME_PATTERN)
NAME_RULE = f"letters, digits, `_` and `-` only, at most {MAX_NAME_LENGTH}"
_FIELD = re.compile(r"\{(\w+)(?::(0?)(\d{1,3})d)?\}")


def is_name(text: object) -> bool:
    """Whether a text may be a clip id or the name of a source."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def check_name(text: object, what: str = "clip_id") -> str:
    """The text, if it may be a clip id or the name of a source.

    Raises:
        ValueError: it holds other characters, is empty or too long for what is named by it.
    """
    if not is_name(text):
        shown = repr(text)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        raise ValueError(f"clip {shown}: {what} must be {NAME_RULE}")
    return str(text)


def as_name(text: str) -> str:
    """A clip id for what others called `text`, such as a folder: other characters become `_`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:MAX_NAME_LENGTH] or "clip"


def wrong_pointer(pointer: str) -> str:
    """Why a pointer cannot lead to a file below a folder, by its text alone; empty if it can."""
    parts = re.split(r"[/\\]", pointer)
    if not pointer.strip() or "\0" in pointer:
        return "is empty or holds a zero byte"
    if pointer.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", pointer):
        return "is absolute, but pointers are relative to the folder of their media"
    if ".." in parts:
        return "leads upwards (..)"
    return ""


def below(root: str | Path, pointer: str) -> Path:
    """The file or folder that a relative pointer names below `root`; it need not be there.

    Raises:
        ValueError: the pointer is absolute, leads upwards, or a link on its way leads out of `root`. A file that a
            stranger's dataset names is read, shown and published: it must not be any file of this machine.
    """
    why = wrong_pointer(pointer)
    path = Path(root) / pointer
    if not why and os.path.lexists(path):
        inside, found = Path(root).resolve(), path.resolve()
        if not found.is_relative_to(inside):
            why = f"is a link that leads out of {root}; name the folder in which its files really lie"
    if why:
        raise ValueError(f"{pointer[:200]!r} {why}")
    return path


def fill_pattern(pattern: str, **numbers: int) -> str:
    """A file's name from a pattern with fields such as `{frame}` and `{frame:06d}`, and nothing else in braces.

    Patterns come with data, so they are no format strings of Python: those read attributes, and pad to gigabytes.

    Raises:
        ValueError: another field, or another way to write a number.
    """
    rest = _FIELD.sub("", pattern)
    if "{" in rest or "}" in rest:
        raise ValueError(f"pattern {pattern[:200]!r}: fields are {{name}} or {{name:06d}}, with nothing else")

    def number(field: re.Match[str]) -> str:
        name, zero, width = field.groups()
        if name not in numbers:
            known = ", ".join(f"{{{n}}}" for n in numbers)
            raise ValueError(f"pattern {pattern[:200]!r}: no field {{{name}}}; known: {known}")
        if width and int(width) > MAX_PATTERN_WIDTH:
            raise ValueError(
                f"pattern {pattern[:200]!r}: {width} digits, at most {MAX_PATTERN_WIDTH} are written"
            )
        digits = str(numbers[name])
        return digits.rjust(int(width or 0), "0" if zero else " ")

    return _FIELD.sub(number, pattern)
