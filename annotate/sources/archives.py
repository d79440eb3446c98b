"""Unpacking the archives of a release into the tree that its reader expects, each in one pass.

Archives are read from their first byte to their last, whatever the order of their members: tar, tar.gz, zip (Zip64 as
well) and zips that were split into parts, which are read as if they were one file. Members go where the layout says, so
that prefixes that change between releases do not matter. Nothing outside the root is ever written, links and devices
are never made, and a member that cannot be had costs its own clip: `.unpacked/<archive>.jsonl` says why, and the row of
the clip will. That file is written last and whole: an archive that has one is done.
"""

from __future__ import annotations

import ctypes
import errno
import gzip
import io
import json
import lzma
import os
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from glob import escape as glob_escape
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from ...dataset.inputs import PlainTarInfo
from ...dataset.random_access import RandomAccess
from ...dataset.reasons import ReasonCode
from ...dataset.store import sync_folder, write_atomically
from .tree import Layout, Place, inside
from .unpacked import LEDGERS

_CHUNK = 1 << 20
_READ = 256 << 10
_MAX_RATIO = 200
"""Bytes out of one byte of archive beyond which a large member is a bomb: video and depth hardly shrink at all."""
_BOMB_FROM = 256 << 20
"""... from this size on; small files of zeros are no danger."""
_NAME_ERRORS = frozenset(
    {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}
)
"""A member's name clashes with what is there, or is none that this disk takes."""
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What unpacking may write."""

    max_member_bytes: int = 64 << 30
    free_bytes: int = 1 << 30
    """Left free on the disk."""
    take: Callable[[int], bool] | None = None
    """Is told how much is about to be written and says whether there is room for it; null: there is."""


_FLUSHED_TOGETHER = 512
"""Files that are put on the disk together; their names are what of them stays in memory."""


class NoRoom(Exception):
    """Unpacking stopped because `Limits.take` said so; the archive is not done."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One member of an archive, as it was dealt with.

    Attributes:
        name: in the archive.
        place: below the root, or None where its name leads nowhere safe.
        size: bytes written.
        reason, detail: why nothing was written; None if it was.
    """

    name: str
    place: str | None
    size: int = 0
    reason: ReasonCode | None = None
    detail: str = ""


@dataclass(kw_only=True)
class Unpacked:
    """What came of one archive: counts, members that were not written, and files that may not be on the disk yet."""

    archive: str
    written: int = 0
    bytes: int = 0
    left_out: int = 0
    problems: list[Member]
    damage: str | None = None
    unflushed: list[Path] = field(default_factory=list)


def find_archives(root: Path, layout: Layout) -> list[Path]:
    """Archives of a layout below a root, in the order of their names; of a split one its first part."""
    found = {path for glob in layout.archives for path in root.glob(glob) if path.is_file()}
    return sorted(found)


def archive_parts(archive: Path) -> list[Path]:
    """The files that an archive consists of: itself, or of `<name>.part_aa` all parts in order."""
    stem, split, _ = archive.name.partition(".part_")
    return sorted(archive.parent.glob(f"{glob_escape(stem)}.part_*")) if split else [archive]


def ledger_path(root: Path, archive: Path) -> Path:
    """The file that says what came of an archive; there only once it is done."""
    name = archive.relative_to(root).as_posix().replace("%", "%25").replace("/", "%2F")
    return root / LEDGERS / f"{name}.jsonl"


def unpack(archive: Path, root: Path, place: Place, limits: Limits | None = None) -> Unpacked:
    """Unpack one archive below a root, and say in its ledger that it is done.

    Members that are there already in their full size are written anew: an interrupted run leaves no mark on them.

    Args:
        archive: below `root`; of a split one the first part.
        place: of the layout.
    Raises:
        OSError: the disk cannot be written.
        NoRoom: no more may be written.
    """
    result = Unpacked(archive=archive.relative_to(root).as_posix(), problems=[])
    relative = PurePosixPath(result.archive)
    try:
        with _Parts(archive) as stream:
            members = _zip_members(stream) if ".zip" in archive.name else _tar_members(stream)
            for name, size, content in members:
                _take(result, name, size, content, root, place(relative, name), limits or Limits(), stream)
    except _BROKEN as error:
        result.damage = f"{archive}: damaged or incomplete ({error or type(error).__name__})"
    _flush(result)
    lines = [{"archive": result.archive, "written": result.written, "damage": result.damage}]
    lines += [
        {"member": m.name, "place": m.place, "reason": m.reason, "detail": m.detail} for m in result.problems
    ]
    path = ledger_path(root, archive)
    path.parent.mkdir(exist_ok=True)
    # A damaged archive is not done: fetched again, it is unpacked again. Its clips must still say what became of them.
    damaged = path.with_suffix(".damaged.jsonl")
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    write_atomically(path if result.damage is None else damaged, text)
    if result.damage is None:
        damaged.unlink(missing_ok=True)
    return result


def _take(
    result: Unpacked,
    name: str,
    size: int | None,
    content: IO[bytes] | None,
    root: Path,
    place: PurePosixPath | None,
    limits: Limits,
    stream: _Parts,
) -> None:
    """Write one member, or say why not. What breaks the archive itself is passed on, after it has been said here."""
    if place is None:
        result.left_out += 1
        return
    target = inside(root, place.as_posix())
    unsafe = ".." in PurePosixPath(name.replace("\\", "/")).parts or name.startswith(("/", "\\"))
    fallback = inside(root, PurePosixPath(result.archive).parent.joinpath(place.name).as_posix())
    where = target if target is not None and not unsafe else fallback
    shown = None if where is None else where.relative_to(root).as_posix()

    def refuse(reason: ReasonCode, detail: str) -> None:
        result.problems.append(
            Member(
                name=name, place=shown, reason=reason, detail=f"{result.archive}: member {name!r} {detail}"
            )
        )

    if unsafe or target is None or _through_link(root, target.parent):
        refuse("archive_member_unsafe", "leads out of the folder")
        return
    if content is None:
        refuse("archive_member_unsafe", "is a link or a device, no file")
        return
    if too_large := _too_large(size or 0, result.bytes, limits, stream.size, shutil.disk_usage(root).free):
        refuse("archive_member_too_large", too_large)
        return
    before = stream.taken
    try:
        written, too_large = _write(content, target, size, limits, lambda: stream.taken - before)
        if too_large:
            refuse("archive_member_too_large", too_large)
        elif size is not None and written != size:
            refuse("archive_damaged", f"ends after {written} of {size} bytes")
        else:
            result.written, result.bytes = result.written + 1, result.bytes + written
            result.unflushed.append(target)
            if len(result.unflushed) >= _FLUSHED_TOGETHER:
                _flush(result)
    except _BROKEN as error:
        refuse("archive_damaged", f"cannot be read to its end ({error or type(error).__name__})")
        if not isinstance(error, zipfile.BadZipFile | zlib.error) or ".zip" not in result.archive:
            raise  # of a tar nothing that comes later can be found
    except OSError as error:
        if error.errno not in _NAME_ERRORS:
            raise
        refuse("archive_member_unsafe", f"cannot have its name here ({error.strerror})")


def _too_large(size: int, written: int, limits: Limits, archive_bytes: int, free: int) -> str:
    """Why a member of a size is not written after `written` bytes of others; empty if nothing speaks against it."""
    if size > limits.max_member_bytes:
        return f"has {size} bytes, at most {limits.max_member_bytes} are allowed"
    # Members may lie over each other: each is small, and there is no end of them.
    if written + size > max(_BOMB_FROM, _MAX_RATIO * archive_bytes):
        return f"brings the archive to {written + size} bytes, over {_MAX_RATIO} times its size"
    if size > free - limits.free_bytes:
        return f"has {size} bytes, more than the disk has room for"
    return ""


def _write(
    content: IO[bytes], target: Path, size: int | None, limits: Limits, taken: Callable[[], int]
) -> tuple[int, str]:
    """Write a member to its place if all of it comes; bytes that came, and what is too large about it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    try:
        written, too_large = _copy(content, temporary, limits, taken)
        if not too_large and size in (None, written):
            temporary.replace(target)
        return written, too_large
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _through_link(root: Path, folder: Path) -> bool:
    """Whether a folder on the way is a link, which could lead anywhere."""
    while folder != root:
        if folder.is_symlink():
            return True
        folder = folder.parent
    return False


def _copy(content: IO[bytes], temporary: Path, limits: Limits, taken: Callable[[], int]) -> tuple[int, str]:
    """Bytes written, and what is wrong with going on."""
    written = 0
    with temporary.open("wb") as out:
        while chunk := content.read(_CHUNK):
            written += len(chunk)
            if written > limits.max_member_bytes:
                return written, f"goes on beyond {limits.max_member_bytes} bytes"
            if written > _BOMB_FROM and written > _MAX_RATIO * max(1, taken()):
                return written, f"unfolds to more than {_MAX_RATIO} times its size in the archive"
            if limits.take is not None and not limits.take(len(chunk)):
                raise NoRoom
            out.write(chunk)
    return written, ""


def _flush(result: Unpacked) -> None:
    """Put what was written since the last time on the disk, and its names: the ledger will promise that it is there.

    By one call for all, where the system has one: a disk takes milliseconds for each, however small the file.
    """
    if result.unflushed and not _file_system_flushed(result.unflushed[0].parent):
        for path in result.unflushed:
            with path.open("r+b") as stream:
                os.fsync(stream.fileno())
        for folder in {path.parent for path in result.unflushed}:
            sync_folder(folder)
    result.unflushed.clear()


def _file_system_flushed(folder: Path) -> bool:
    """Whether all that was written to the file system of a folder is on its disk now (Linux)."""
    if sys.platform != "linux":
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return ctypes.CDLL(None).syncfs(descriptor) == 0
    except AttributeError:  # a C library without it
        return False
    finally:
        os.close(descriptor)


def _tar_members(stream: _Parts) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Members of a tar, plain or gzip, as they come; constant memory, whatever a byte of it unfolds to."""
    gzipped = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    plain = _Gunzipped(fileobj=io.BufferedReader(stream, _READ)) if gzipped else stream
    with tarfile.open(fileobj=cast(Any, plain), mode="r|", bufsize=_READ, tarinfo=PlainTarInfo) as archive:
        for member in archive:
            cast(Any, archive).members = []  # else it remembers all of them
            if member.isdir():
                continue
            yield member.name, member.size, archive.extractfile(member) if member.isreg() else None


class _Gunzipped(gzip.GzipFile):
    """Gives what there is before it complains of what is missing."""

    def read(self, size: int | None = -1) -> bytes:
        return self.read1(-1 if size is None else size)


def _zip_members(stream: _Parts) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Members of a zip in the order in which they lie in it."""
    with zipfile.ZipFile(cast(Any, stream)) as archive:
        for info in sorted(archive.infolist(), key=lambda i: i.header_offset):
            if info.is_dir():
                continue
            kind = (info.external_attr >> 16) & 0o170000
            if kind not in (0, 0o100000):
                yield info.filename, info.file_size, None
                continue
            try:
                content = archive.open(info)
            except (
                zipfile.BadZipFile,
                NotImplementedError,
                RuntimeError,
            ) as error:  # encrypted, unknown method
                content = cast(Any, _Failing(error))
            with content:
                yield info.filename, info.file_size, content


class _Failing(io.RawIOBase):
    """A member that cannot even be opened fails where the others fail: on reading."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def read(self, size: int = -1) -> bytes:
        raise zipfile.BadZipFile(str(self._error))


class _Parts(RandomAccess):
    """The bytes of a file, or of `<name>.part_aa`, `<name>.part_ab`, ... one after the other, without joining them.

    Attributes:
        taken: bytes read so far.
    """

    def __init__(self, first: Path) -> None:
        paths = archive_parts(first)
        sizes = [path.stat().st_size for path in paths]
        self._starts = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        super().__init__(self._starts[-1])
        self.taken, self._files = 0, [path.open("rb") for path in paths]

    def read(self, size: int = -1) -> bytes:
        wanted = self.size - self._at if size is None or size < 0 else size
        pieces = []
        while wanted > 0 and self._at < self.size:
            number = next(i for i in range(len(self._files)) if self._at < self._starts[i + 1])
            file = self._files[number]
            file.seek(self._at - self._starts[number])
            piece = file.read(min(wanted, self._starts[number + 1] - self._at))
            if not piece:
                break
            pieces.append(piece)
            self._at += len(piece)
            self.taken += len(piece)
            wanted -= len(piece)
        return b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()
