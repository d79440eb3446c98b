"""Tables of MP4 files, judged before FFmpeg unfolds them: a few bytes there may promise a hundred million samples, for
each of which it sets aside memory.

Format: ISO/IEC 14496-12 (boxes; `stsz`, `stts`, `ctts`, `stsc`, `stco`, `trun`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_FIRST = frozenset((b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"uuid"))
"""Boxes that such a file begins with."""
_WITHIN = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"))
"""Boxes of boxes on the way to tables."""
_DEPTH = 8
_MOST_A_BYTE = 8
"""Samples a byte. Sound of old QuickTime files counts up to eight at its lowest rates, pictures less than one. Each
takes some seventy bytes of memory, so that a megabyte takes half a gigabyte at most."""


def impossible_table(path: Path) -> str:
    """Which table of an MP4 file promises more samples than its bytes can hold; empty if none does, and for every other
    file. Raises OSError where it cannot be read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < 16 or file.read(8)[4:] not in _FIRST:
            return ""
        try:
            for kind, count in _counts(file, 0, size, 0):
                if count > _MOST_A_BYTE * size:
                    return f"table {kind.decode()!r} promises {count} samples, and the file has {size} bytes"
        except struct.error:  # cut: FFmpeg says so
            pass
    return ""


def _counts(file: BinaryIO, at: int, end: int, depth: int) -> Iterator[tuple[bytes, int]]:
    """Samples that each table between two places promises."""
    chunks, runs = 0, np.zeros((0, 3), np.int64)
    while at + 8 <= end:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        start = at + 8
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
            start += 8
        stop = min(end, at + length) if length else end
        if stop < start:
            break
        if kind in _WITHIN and depth < _DEPTH:
            yield from _counts(file, start, stop, depth + 1)
        elif kind in (b"stsz", b"trun", b"stz2"):
            # Version and flags, then two numbers, of which the second (of `trun` the first) counts.
            _, first, second = struct.unpack(">III", file.read(12).ljust(12, b"\0"))
            yield kind, first if kind == b"trun" else second
        elif kind in (b"stts", b"ctts"):
            yield kind, int(_table(file, stop - start, 2)[:, 0].sum())
        elif kind == b"stsc":
            runs = _table(file, stop - start, 3)
        elif kind in (b"stco", b"co64"):
            chunks = struct.unpack(">II", file.read(8))[1]
        at = stop
    if len(runs):  # first chunk and samples of each, until the next entry
        following = np.append(runs[1:, 0], max(chunks + 1, int(runs[-1, 0])))
        each = np.maximum(following - runs[:, 0], 0)
        yield b"stsc", int(np.minimum(each * runs[:, 1], 1 << 40).sum())


def _table(file: BinaryIO, length: int, columns: int) -> NDArray[np.int64]:
    """(N, columns) numbers of a table, as many as it says and holds."""
    _, count = struct.unpack(">II", file.read(8))
    content = file.read(min(count, (length - 8) // (4 * columns)) * 4 * columns)
    held = len(content) // (4 * columns)
    return np.frombuffer(content, ">u4", held * columns).astype(np.int64).reshape(held, columns)
