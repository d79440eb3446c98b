"""What the readers of releases share: where a release lies, what it lists, and the clips that are cut from its media.

No video is decoded here; the header of one is read only where windows are wanted and no table says how long it is.
Folders are walked and tables are read as the clips are asked for: memory holds the names of one folder, never those of
all clips.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import chain, pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from ...dataset.limits import MAX_NAME_LENGTH
from ...dataset.names import wrong_pointer
from ...dataset.reasons import ReasonCode
from .clip import LEAST_FPS, MOST_FPS, ClipRef, printable
from .windows import Windows, cut_windows

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A stretch of media that a release's own tables list, whether or not it lies here.

    Attributes:
        original_id: as the release names it.
        duration_s, fps: None where the tables do not say.
        url: where it is fetched from, for sets that are lists of addresses.
        place: where a reader looks for what was fetched from there, relative to the root.
    """

    original_id: str
    duration_s: float | None
    fps: float | None = None
    url: str | None = None
    place: str | None = None


@dataclass(frozen=True, kw_only=True)
class Release:
    """Where a release lies, and what of it is wanted.

    Attributes:
        root: folder that holds its tree.
        metadata: its table, where somebody named one.
        windows: how media are cut; None: each is one clip.
        source, data_licence, data_redistributable: of every clip.
    """

    root: Path
    metadata: Path | None = None
    windows: Windows | None = None
    source: str
    data_licence: str = "unknown"
    data_redistributable: bool = False

    @cached_property
    def problems(self) -> dict[str, tuple[ReasonCode, str]]:
        """Path below the root -> why unpacking left nothing usable there."""
        from .unpacked import read_problems

        return read_problems(self.root)

    def cut(
        self,
        clip_id: str,
        *,
        media_path: Path,
        duration_s: float | None = None,
        fps: float | None = None,
        offset_s: float | None = None,
        **clip: Any,
    ) -> Iterator[ClipRef]:
        """Clips of one stretch of media: its windows, or all of it where nobody asks for windows. A stretch that is too
        short for one is still a clip: it is rejected, and its row says so.

        Args:
            clip_id: of the stretch; a window adds its first clip frame where a stretch may have several.
            duration_s, fps: of the stretch, where known.
            offset_s: where it starts in its media; None: at the media's start.
            clip: further fields of `ClipRef`.
        """
        common: dict[str, Any] = {
            "source": self.source,
            "media_root": self.root,
            "data_licence": self.data_licence,
            "data_redistributable": self.data_redistributable,
            "media_path": media_path,
        }
        if "problem" not in clip and self.problems and media_path.is_relative_to(self.root):
            problem = self.problems.get(media_path.relative_to(self.root).as_posix())
            common["problem"] = None if os.path.isfile(media_path) else problem  # unpacked whole another time
        if self.windows is None:
            whole = offset_s is None
            yield ClipRef(
                clip_id=clean(clip_id),
                start_s=offset_s,
                end_s=None if whole or duration_s is None else (offset_s or 0.0) + duration_s,
                **common,
                **clip,
            )
            return
        if duration_s is None and self.windows.most != 1 and os.path.isfile(media_path):
            duration_s, fps = probe(media_path)
            duration_s = None if duration_s is None else duration_s - (offset_s or 0.0)
        offset = offset_s or 0.0
        windows = cut_windows(self.windows, duration_s=duration_s, fps=fps, offset_s=offset)
        first = next(windows, None)
        if first is None:  # too short, which its row will say
            first = next(cut_windows(self.windows, duration_s=None, offset_s=offset))
            if duration_s is not None:
                first = replace(first, end_s=min(first.end_s, offset + duration_s))
        for window in chain([first], windows):
            yield ClipRef(
                clip_id=clean(clip_id) + ("" if self.windows.most == 1 else f"_s{window.start:06d}"),
                start_s=window.start_s,
                end_s=window.end_s,
                min_frames=self.windows.shortest or self.windows.frames,
                max_frames=self.windows.frames,
                **common,
                **clip,
            )

    def files(self, suffixes: tuple[str, ...]) -> Iterator[Path]:
        """Files below the root with one of the suffixes, folder by folder in the order of their names, hidden ones left
        out; then what unpacking could not put there."""
        for folder, inner, names in walk(self.root):
            inner[:] = [name for name in inner if not name.startswith(".")]
            for name in sorted(names):
                if name.lower().endswith(suffixes) and not name.startswith("."):
                    yield Path(folder, name)
        for place in sorted(self.problems):
            path = self.root / place
            if place.lower().endswith(suffixes) and not os.path.isfile(
                path
            ):  # a name too long for the disk is none
                yield path

    def relative(self, path: Path) -> str:
        """Path below the root, as rows store it."""
        return printable(path.relative_to(self.root).as_posix())


_MANY_FILES = 1000
"""A folder with more files holds frames, and no tree below it is looked for."""

Place = Callable[[PurePosixPath, str], PurePosixPath | None]
"""From an archive's path below the root and a member's name to where the member goes below the root; None: nowhere."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One release: how its clips are found.

    Attributes:
        read: clips of an unpacked tree, lazily, in an order that depends on names only.
        listed: media that the release's tables list, from those tables alone; None: it has no table.
        listed_is_bound: windows over what is listed are more than there are clips.
        archives: globs of its archives below the root.
        place: where their members go.
    """

    read: Callable[[Release], Iterator[ClipRef]]
    listed: Callable[[Release], Iterator[Listed]] | None = None
    listed_is_bound: bool = False
    archives: tuple[str, ...] = field(default=())
    place: Place | None = None


# --- files ----------------------------------------------------------------------------------------


def folders_with(root: Path, name: str) -> Iterator[Path]:
    """Folders below `root` that hold a file `name`; not looked into any further, they may hold 10,000 images."""
    for folder, inner, files in walk(root):
        if name in files:
            inner.clear()
            yield Path(folder)


@cache
def warn_once(message: str) -> None:
    """However often a source is read."""
    log.warning(message)


class LinksOut:
    """Counts media whose files lie elsewhere: pointers of rows are followed within the root alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._last = ""
        self._inside: dict[str, bool] = {}
        self._outside: dict[str, None] = {}

    def look(self, media_path: str | Path, *, images: bool = False) -> None:
        """Look at a file, or a folder, below the root; of a folder of `images` at one of its files, too."""
        path = os.fspath(media_path)
        if path == self._last:  # another window of it
            return
        self._last = path
        if not path.startswith(f"{os.fspath(self.root).rstrip(os.sep)}{os.sep}"):
            return
        if self._leads_out(path) or (images and (one := _a_file_of(path)) and self._leads_out(one)):
            self._outside[path] = None

    def _leads_out(self, path: str) -> bool:
        folder = os.path.dirname(path)
        if folder not in self._inside:
            self._inside[folder] = Path(os.path.realpath(folder)).is_relative_to(self.root)
        if os.path.islink(path):  # one that leads nowhere fails its clip
            return os.path.exists(path) and not Path(os.path.realpath(path)).is_relative_to(self.root)
        return not self._inside[folder]

    def tell(self, what: str = "media") -> None:
        """Say of how many, once."""
        if self._outside:
            first = printable(Path(next(iter(self._outside))).relative_to(self.root).as_posix())
            warn_once(
                f"{self.root}: links lead to {len(self._outside)} {what} elsewhere (e.g. {first}): they are annotated,"
                " but reports, loaders and exports follow no link that leads out of the root; name a folder above links"
                " and files as source.root"
            )


def _a_file_of(folder: str) -> str | None:
    """One file of a folder, of which there may be many thousands."""
    try:
        with os.scandir(folder) as entries:
            return next((entry.path for entry in entries if not entry.name.startswith(".")), None)
    except OSError:  # which its clip will say
        return None


def _not_listed(error: OSError) -> None:
    warn_once(f"{error.filename}: cannot be listed ({error.strerror}); what lies in it is left out")


def walk(root: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` through links, folders in the order of their names, each once: a link may lead back. Those that cannot
    be listed are said."""
    seen: set[tuple[int, int]] = set()
    for folder, inner, files in os.walk(root, followlinks=True, onerror=_not_listed):
        status = os.stat(folder)
        inner.sort()
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield folder, inner, files


def folders_named(root: Path, name: str, *, beside: str | None = None) -> Iterator[Path]:
    """Folders of a name at or below `root`, each not looked into any further, nor folders of images.

    Args:
        beside: name of a folder that is not looked into.
    """
    if root.name == name:
        yield root
        return
    for folder, inner, files in walk(root):
        if len(files) > _MANY_FILES:
            inner.clear()
        inner[:] = [d for d in inner if not d.startswith(".") and d != beside]
        if name in inner:
            inner.remove(name)
            yield Path(folder, name)


def only_folder(root: Path, name: str, *, beside: str | None = None) -> Path | None:
    """The one folder of a name at or below `root`; None: there is none.

    Raises:
        ValueError: there are several.
    """
    found = list(folders_named(root, name, beside=beside))
    if len(found) > 1:
        raise ValueError(
            f"{root}: holds two folders {name}, {found[0]} and {found[1]}; name one of their trees as root"
        )
    return found[0] if found else None


class Once:
    """Names that must differ within a release."""

    def __init__(self, root: Path) -> None:
        self._root, self._seen = root, dict[str, Path]()

    def check(self, name: str, where: Path) -> None:
        """Raises ValueError if the name came by before, naming both places."""
        if name in self._seen:
            raise ValueError(
                f"{self._root}: two sequences are called {name}, {self._seen[name]} and {where}; name a folder with one"
                " of them as root, or move the other elsewhere"
            )
        self._seen[name] = where


def find_table(release: Release, *places: str) -> Path | None:
    """The named metadata file, else the first of its usual places (globs) that is there."""
    if release.metadata is not None:
        return release.metadata
    found = (path for place in places for path in sorted(release.root.glob(place)) if path.is_file())
    return next(found, None)


def rows_of(path: Path, *keys: str, encoding: str = "utf-8-sig") -> Iterator[dict[str, str]]:
    """Rows of a CSV, one at a time; all values are text.

    Args:
        keys: columns that must be there.
        encoding: the default takes a byte order mark as what it is.
    Raises:
        ValueError: unreadable, or without those columns.
    """
    # Captions pass the module's limit of 131,072 characters.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with path.open(encoding=encoding, newline="") as stream:
            rows = csv.DictReader(stream)
            missing = [key for key in keys if key not in (rows.fieldnames or ())]
            if missing:
                found = ", ".join(rows.fieldnames or ()) or "no row"
                raise ValueError(
                    f"{path}: expected a CSV with the column {missing[0]!r}, found {found} (source.metadata)"
                )
            for row in rows:
                yield {key: value or "" for key, value in row.items() if isinstance(key, str)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({error}) (source.metadata)") from None


def table_by(path: Path | None, key: str) -> dict[str, dict[str, str]]:
    """Rows of a small CSV by their key column; empty without a file. Raises as `rows_of`."""
    return {} if path is None else {row[key].strip(): row for row in rows_of(path, key)}


def probe(video: Path) -> tuple[float | None, float | None]:
    """Duration in seconds, from the first frame on, and frame rate of a video by its header and its first and last
    packets, where no table says them; None if unknown."""
    from av.error import FFmpegError

    from ...dataset.media.container import open_container
    from ...dataset.media.packets import shown_duration_s

    try:
        with open_container(video) as container:
            stream = container.streams.best("video")  # the one that is decoded
            if stream is not None and stream.time_base is not None:
                rate, duration_s = stream.average_rate, shown_duration_s(container, stream)
                if duration_s is not None:
                    return duration_s, None if rate is None else float(rate)
    except (FFmpegError, OSError):
        pass  # annotating the clip says what is wrong
    return None, None


def inside(root: Path, place: str) -> Path | None:
    """A path that a table or an archive names below the root; None where it would lead out of it."""
    return None if wrong_pointer(place) else root.joinpath(*PurePosixPath(place).parts)


class Folder:
    """Answers whether files are below a root, looking into each of its folders once, not at each file.

    A table of a million rows asks for millions of places, most of which are not there. Names of the folders asked for
    last are kept.
    """

    _KEPT = 16

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._names: dict[str, frozenset[str]] = {}

    def has(self, place: str) -> bool:
        """Whether a file, or a folder, is there; `place` must not lead out of the root."""
        folder, _, name = place.rpartition("/")
        names = self._names.pop(folder, None)
        if names is None:
            try:
                names = frozenset(os.listdir(os.path.join(self._root, folder)))
            except OSError:
                names = frozenset()
            if len(self._names) >= self._KEPT:
                self._names.pop(next(iter(self._names)))
        self._names[folder] = names  # the last one asked for comes last
        return name in names


def positive(text: str | None) -> float | None:
    """A finite number above zero, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def rate_of(times_s: Sequence[float]) -> float | None:
    """Frames a second of frames at these times, of which two may be one by rounding; None where they run back, or say a
    rate that no camera has."""
    if len(times_s) < 2 or times_s[0] == times_s[-1] or not all(a <= b for a, b in pairwise(times_s)):
        return None
    rate = (len(times_s) - 1) / (times_s[-1] - times_s[0])
    return rate if LEAST_FPS <= rate <= MOST_FPS else None


_LONGEST = MAX_NAME_LENGTH - len("_s000000")


def clean(name: str) -> str:
    """A clip id of a name that is unique in its release: other characters become `_`; the end of a long one becomes a
    hash of it."""
    cleaned = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    if len(cleaned) <= _LONGEST:
        return cleaned
    return f"{cleaned[: _LONGEST - 11]}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:10]}"


class PassedOver:
    """Entries of a set that make no sense: they cannot become clips with a reason, so they are told of together.

    Args:
        where: table or folder that holds them.
        what: what they are, in the plural.
    """

    def __init__(self, where: Path, what: str) -> None:
        self._where, self._what = where, what
        self._count = 0
        self._example = ""

    def add(self, example: str) -> None:
        """One more."""
        self._count += 1
        self._example = self._example or example

    def say(self) -> None:
        """Tell of them, if there are any."""
        if self._count:
            log.warning(
                "%s: %d %s make no sense, the first is %.200s; they are left out",
                self._where,
                self._count,
                self._what,
                self._example,
            )


def say_absent(release: Release, *, listed: int, absent: int, table: Path) -> None:
    """Tell that a table lists media that are not here; why is in the ledger of what was fetched."""
    if absent:
        log.warning(
            "%s lists %d clips, of %d no media lie below %s; they are left out",
            table,
            listed,
            absent,
            release.root,
        )
