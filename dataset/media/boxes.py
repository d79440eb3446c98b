"""Tables of MP4 files, judged before FFmpeg unfolds them: a few bytes there may promise a hundred million samples, for
each of which it sets aside memory.

Format: ISO/IEC 14496-12 (boxes; `stsz`, `stts`, `ctts`, `stsc`, `stco`, `elst`, `trun`); the QuickTime File Format for
headers that are compressed (`cmov`) or moved (`hoov`, `free`). What FFmpeg takes for a box of boxes is what counts, so
that nothing is hidden from here in one that no encoder would write.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_HEADERS = frozenset((b"moov", b"hoov", b"free", b"moof"))
"""Boxes that a header may be in; the second and the third where it was moved, which its own first box tells."""
_WITHIN = frozenset(
    (
        b"trak",
        b"mdia",
        b"minf",
        b"stbl",
        b"traf",
        b"mvex",
        b"edts",
        b"dinf",
        b"udta",
        b"tref",
        b"wave",
        b"sinf",
    )
) | frozenset((b"schi", b"ilst", b"meta"))
"""Boxes of boxes in them, by FFmpeg."""
_DEPTH = 12
"""FFmpeg looks ten deep."""
_MOST_A_BYTE = 8
"""Samples a byte. Sound of old QuickTime files counts up to eight at its lowest rates, pictures less than one. Each
takes some seventy bytes of memory, so that a megabyte takes half a gigabyte at most."""
_SAMPLES_AT_ONCE = 160
"""FFmpeg takes so many samples of plain sound, `soun` whose samples last one tick each, as one at least: those of a
frame where the header says that a frame has 160 or more, else about a thousand."""
_NO_SOUND = frozenset((b"vide", b"subp", b"clcp"))
_FREE_EDITS = 2
"""Edits of a track, each of which may show all of its samples again: an empty one and the stretch that is shown."""
_MOST_HEADER_BYTES = 64 * 2**20
"""Of a compressed header: ten hours of video have a few megabytes."""


class _Impossible(Exception):
    """Says what is."""


@dataclass
class _Track:
    """What the tables of a track promise.

    Attributes:
        samples: by table. edits: entries of its list of edits. chunks: there are. runs: (N, 3) entries of `stsc`.
        handlers: what it says that it holds. even: whether each of its samples takes one tick.
    """

    samples: Counter[bytes] = field(default_factory=Counter)
    edits: int = 0
    chunks: int = 0
    handlers: set[bytes] = field(default_factory=set)
    even: bool = True
    runs: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), np.int64))

    def count(self, kind: bytes, number: int) -> None:
        self.samples[kind] = max(self.samples[kind], number)

    def end(self) -> None:
        """Count the samples of its chunks."""
        self.count(b"stsc", self._in_chunks(1))

    def _in_chunks(self, at_once: int) -> int:
        """Samples of its chunks, or groups of so many: first chunk and samples of each, until the next entry."""
        if not len(self.runs):
            return 0
        following = np.append(self.runs[1:, 0], max(self.chunks + 1, int(self.runs[-1, 0])))
        each = np.maximum(following - self.runs[:, 0], 0)
        return int(np.minimum(each * -(-self.runs[:, 1] // at_once), 1 << 40).sum())

    def shown_at_once(self) -> int:
        """Most that an edit shows: samples, but of sound that is not compressed FFmpeg makes one of many."""
        plain = self.even and b"soun" in self.handlers and not self.handlers & _NO_SOUND
        return self._in_chunks(_SAMPLES_AT_ONCE) if plain else max(self.samples.values(), default=0)


def impossible_table(path: Path) -> str:
    """Which tables of an MP4 file promise more samples than its bytes can hold; empty if none do, and for every other
    file. Raises OSError where it cannot be read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            with suppress(struct.error):  # cut: FFmpeg says so
                _Walk(size).through(file, 0, size, 0, None)
        except _Impossible as error:
            return f"{error}, and the file has {size} bytes"
    return ""


class _Walk:
    """Goes through the boxes of a file of `size` bytes; what is impossible ends it.

    Attributes:
        promised: samples of all tracks and fragments by table. They share the file's bytes.
    """

    def __init__(self, size: int) -> None:
        self._most = _MOST_A_BYTE * size
        self.promised: Counter[bytes] = Counter()

    def through(self, file: BinaryIO, offset: int, end: int, depth: int, track: _Track | None) -> None:
        """Boxes between two places; `track` is that which they belong to, None outside of headers."""
        while offset + 8 <= end:
            file.seek(offset)
            length, kind = struct.unpack(">I4s", file.read(8))
            start = offset + 8
            if length == 1:
                (length,) = struct.unpack(">Q", file.read(8))
                start += 8
            stop = min(end, offset + length) if length else end
            if stop < start:
                break
            self._box(file, kind, start, stop, depth, track)
            offset = stop

    def _box(
        self, file: BinaryIO, kind: bytes, start: int, stop: int, depth: int, track: _Track | None
    ) -> None:
        if depth >= _DEPTH:
            return
        if kind in (b"free", b"hoov") and file.read(8)[4:] not in (b"mvhd", b"cmov"):
            return
        if kind in _HEADERS or (kind == b"trak" and track is not None):
            track = _Track()
            try:
                self.through(file, start, stop, depth + 1, track)
            finally:  # also of what is cut
                track.end()
                self._add(track)
        elif kind == b"cmov" and track is not None:
            self._unfold(file, start, stop, depth)
        elif kind in _WITHIN and track is not None:
            first = _first_of_meta(file, start, stop) if kind == b"meta" else start
            self.through(file, first, stop, depth + 1, track)
        elif track is not None:
            self._table(file, kind, stop - start, track)

    def _table(self, file: BinaryIO, kind: bytes, length: int, track: _Track) -> None:
        if kind in (b"stsz", b"stz2"):
            track.count(kind, struct.unpack(">III", file.read(12).ljust(12, b"\0"))[2])
        elif kind == b"trun":
            self._promise(kind, struct.unpack(">II", file.read(8))[1])
        elif kind in (b"stts", b"ctts"):
            entries = _entries(file, length, 2)
            track.count(kind, int(entries[:, 0].sum()))
            track.even &= kind == b"ctts" or entries[:, 1].tolist() == [1]
        elif kind == b"hdlr":
            track.handlers.add(file.read(12)[8:])
        elif kind == b"stsc":
            track.runs = _entries(file, length, 3)
        elif kind in (b"stco", b"co64"):
            track.chunks = struct.unpack(">II", file.read(8))[1]
        elif kind == b"elst":
            track.edits = max(track.edits, struct.unpack(">II", file.read(8))[1])

    def _unfold(self, file: BinaryIO, start: int, stop: int, depth: int) -> None:
        """A compressed header: its method (`dcom`), then its length and itself (`cmvd`)."""
        file.seek(start)
        content = file.read(min(stop - start, _MOST_HEADER_BYTES))
        unfolding = zlib.decompressobj()
        try:
            header = unfolding.decompress(content[content.index(b"cmvd") + 8 :], _MOST_HEADER_BYTES)
        except (ValueError, zlib.error):  # none: FFmpeg says so
            return
        if unfolding.unconsumed_tail:
            raise _Impossible(f"its compressed header becomes more than {_MOST_HEADER_BYTES} bytes")
        self.through(io.BytesIO(header), 0, len(header), depth + 1, None)

    def _add(self, track: _Track) -> None:
        for kind, count in track.samples.items():
            self._promise(kind, count)
        most = track.shown_at_once()
        if track.edits > _FREE_EDITS and track.edits * most > self._most:
            raise _Impossible(f"table 'elst' shows {most} samples up to {track.edits} times")

    def _promise(self, kind: bytes, count: int) -> None:
        self.promised[kind] += count
        if self.promised[kind] > self._most:
            raise _Impossible(f"table {kind.decode()!r} promises {self.promised[kind]} samples")


def _first_of_meta(file: BinaryIO, start: int, stop: int) -> int:
    """Where the boxes in a `meta` begin: at its `hdlr`, whatever stands before that, as FFmpeg looks for it."""
    for offset in range(start, stop, _LOOKED_THROUGH):
        file.seek(offset)
        words = np.frombuffer(file.read(min(_LOOKED_THROUGH, stop - offset) // 4 * 4), "S4")
        found = np.flatnonzero(words == b"hdlr")
        if len(found):
            return offset + 4 * int(found[0]) - 4
    return stop


_LOOKED_THROUGH = 2**20


def _entries(file: BinaryIO, length: int, columns: int) -> NDArray[np.int64]:
    """(N, columns) numbers of a table, as many as it says and holds."""
    _, count = struct.unpack(">II", file.read(8))
    content = file.read(max(0, min(count, (length - 8) // (4 * columns))) * 4 * columns)
    held = len(content) // (4 * columns)
    return np.frombuffer(content, ">u4", held * columns).astype(np.int64).reshape(held, columns)
