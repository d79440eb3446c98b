"""Paths of object stores, `s3://bucket/run`, that answer what is asked of paths of a dataset as those of files do.

Nothing here but names is known of a store: fsspec's client for it does the work, an extra of this package that is
imported when the first object is asked for. Whoever takes the folder of a dataset makes a path of it with `as_path`.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import re
import stat
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..random_access import RandomAccess

_CLIENTS = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "az": ("adlfs", "az"), "memory": ("fsspec", "")}
"""Schemes, the package that speaks to such a store, and the extra of ours that brings it. `memory` is fsspec's store
within a process, for tests."""
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):(/{1,2})(.*)", re.DOTALL)
_ATTEMPTS = 6
"""Of a request of ours, beside those that the client makes on its own."""
_FIRST_PAUSE_S = 0.2
_LEAST_READ = 1 << 16
"""Bytes that are asked for at least: a request takes as long as reading a megabyte."""


class StoreError(OSError):
    """An object store does not answer, or refuses."""


def as_path(path: str | Path) -> Path:
    """Path of a folder or file here, or of an object store (`s3://`, `gs://`, `az://`).

    Raises:
        ValueError: an address of another kind.
    """
    if isinstance(path, StorePath):
        return path
    found = _SCHEME.fullmatch(os.fspath(path))
    if found is None or (found[1] not in _CLIENTS and len(found[2]) < 2):
        return Path(path)
    if found[1] == "hf":
        return Path(found[3].removeprefix("datasets/"))
    if found[1] not in _CLIENTS:
        known = ", ".join(f"{scheme}://" for scheme in _CLIENTS if scheme != "memory")
        raise ValueError(
            f"{path}: no such kind of storage is known; there are folders, {known} and hf:// to read"
        )
    if not found[3].strip("/"):
        raise ValueError(f"{path}: names no bucket; give {found[1]}://BUCKET/FOLDER")
    return StorePath(f"{found[1]}:/{found[3]}")


def as_output(path: str | Path) -> Path:
    """As `as_path`, of a folder that is written to.

    Raises:
        ValueError: the hub, to which datasets are published.
    """
    if re.match(r"hf:/", os.fspath(path)):
        raise ValueError(
            f"{path}: a run does not write to the hub, where each commit is a revision of all: write to a folder or an"
            " object store, and upload it with `theodolite publish`"
        )
    return as_path(path)


@functools.lru_cache(maxsize=16)
def store_client(scheme: str, process: int) -> Any:
    """fsspec's client of a kind of store; its options come from its own configuration and environment.

    Args:
        process: number of this process: none is shared with one that was forked.
    """
    import fsspec
    from fsspec.config import conf

    options: dict[str, Any] = {} if scheme == "memory" else {"use_listings_cache": False}
    configured = conf.get(scheme, {})
    if scheme == "s3" and "config_kwargs" not in configured:
        options["config_kwargs"] = {
            "retries": {"mode": "standard", "max_attempts": 3},
            "connect_timeout": 10,
            "read_timeout": 60,
        }
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        package, extra = _CLIENTS[scheme]
        raise ImportError(
            f"{scheme}:// needs the package {package}, which is not installed: pip install theodolite[{extra}]",
            name=package,
        ) from error


@contextmanager
def _asked(path: object) -> Iterator[None]:
    """What a store's client raises becomes a `StoreError` that names the path; but for what says that an object is
    there or is not.

    Raises:
        FileNotFoundError, FileExistsError: as they are.
        StoreError: anything else.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError, StoreError):
        raise
    except ImportError:
        raise
    # Clients raise errors of their own, of their protocol's and of their network's library.
    except Exception as error:
        kind = type(error).__name__
        said = (str(error).strip() or kind).splitlines()[0]
        number = getattr(error, "errno", None) or errno.EIO
        if "Credential" in kind or "DefaultCredentials" in kind:
            number, said = errno.EACCES, f"no credentials for this store were found ({said})"
        elif isinstance(error, PermissionError):
            number, said = errno.EACCES, f"the store refuses access ({said})"
        elif not isinstance(error, OSError):
            said = f"{kind}: {said}"
        raise StoreError(number, said, str(path)) from error


class StorePath(type(Path())):  # what Path() makes: Path itself cannot be subclassed before Python 3.12
    """Path of an object, or of what its name would make a folder.

    Folders are what names of objects begin with: making one does nothing, and one without objects is not there.
    """

    __slots__ = ()

    def __str__(self) -> str:
        parts = self.parts
        if not parts or not parts[0].endswith(
            ":"
        ):  # relative to another, or what an absolute path was joined to
            return super().__str__()
        return f"{parts[0]}//{'/'.join(parts[1:])}"

    def __fspath__(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return StorePath, (f"{self.parts[0]}/{self.key}" if self.parts else ".",)

    @property
    def key(self) -> str:
        """The name by which the store's client knows it: `bucket/folder/name`."""
        return "/".join(self.parts[1:])

    @property
    def client(self) -> Any:
        """fsspec's client."""
        return store_client(self.parts[0].rstrip(":"), os.getpid())

    # ------------------------------------------------------------------ looking

    def _info(self) -> dict[str, Any] | None:
        with _asked(self):
            try:
                return self.client.info(self.key)
            except FileNotFoundError:
                return None

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self._info() is not None

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        info = self._info()
        return info is not None and info["type"] == "file"

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        info = self._info()
        return info is not None and info["type"] == "directory"

    def is_symlink(self) -> bool:
        return False

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size and time of change of an object.

        Raises:
            FileNotFoundError: there is none.
        """
        info = self._info()
        if info is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        kind = stat.S_IFREG if info["type"] == "file" else stat.S_IFDIR
        changed = int(_changed_ns(info) / 1e9)
        return os.stat_result((kind | 0o644, 0, 0, 1, 0, 0, info["size"] or 0, changed, changed, changed))

    def resolve(self, strict: bool = False) -> StorePath:
        return self

    def absolute(self) -> StorePath:
        return self

    def expanduser(self) -> StorePath:
        return self

    def iterdir(self) -> Generator[StorePath, None, None]:
        with _asked(self):
            found = self.client.ls(self.key, detail=False)
        yield from (self / name.rstrip("/").rsplit("/", 1)[-1] for name in sorted(found))

    def objects(self) -> dict[str, tuple[int, int]]:
        """Size and time of change in nanoseconds of all objects below, by their names relative to this one."""
        with _asked(self):
            try:
                found = self.client.find(self.key, detail=True)
            except FileNotFoundError:
                return {}
        start = len(self.key) + 1
        return {
            name.lstrip("/")[start:]: (info["size"], _changed_ns(info))
            for name, info in sorted(found.items())
            if len(name.lstrip("/")) > start
        }

    def glob(self, pattern: str, **_options: Any) -> Generator[StorePath, None, None]:
        """Objects and folders below that match, level by level."""
        first, _, rest = pattern.partition("/")
        try:
            inside = list(self.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return
        for path in inside:
            if fnmatchcase(path.name, first):
                yield from path.glob(rest) if rest else [path]

    def rglob(self, pattern: str, **_options: Any) -> Generator[StorePath, None, None]:
        """Objects below whose last name matches."""
        yield from (self / name for name in self.objects() if fnmatchcase(name.rsplit("/", 1)[-1], pattern))

    # ------------------------------------------------------------------ reading

    def read_bytes(self) -> bytes:
        with _asked(self):
            return self.client.cat_file(self.key)

    def read_text(
        self, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """To read alone: an object is written whole, by `write_bytes`."""
        if mode not in ("r", "rb", "rt"):
            raise io.UnsupportedOperation(f"{self}: objects are written whole (open mode {mode!r})")
        raw = io.BufferedReader(ObjectReader(self), _LEAST_READ)
        return raw if mode == "rb" else io.TextIOWrapper(raw, encoding=encoding or "utf-8")

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Content of objects below, asked for together.

        Raises:
            FileNotFoundError: one is not there.
        """
        if not names:
            return {}
        keys = {f"{self.key}/{name}": name for name in names}
        with _asked(self):
            found = self.client.cat(list(keys), recursive=False)
        if isinstance(found, bytes):  # of one
            return {names[0]: found}
        return {keys[key.lstrip("/")]: content for key, content in found.items()}

    # ------------------------------------------------------------------ writing

    def write_bytes(self, data: Any) -> int:
        """Put a whole object in place of what is there. Asked again while the store is busy."""
        content = bytes(data)
        _again(lambda: self.client.pipe_file(self.key, content), self)
        return len(content)

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        self.write_bytes(b"")

    def write_text(self, data: str, encoding: str | None = None, *_options: Any, **_named: Any) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def create(self, data: Any) -> bool:
        """Put a whole object, if none is there: of many who try, one succeeds.

        Answers get lost, and an attempt that seemed to fail may have been the one that succeeded: so what is there is
        compared.

        Returns:
            Whether this content is there now; else another one was there before.
        """

        content = bytes(data)

        def put() -> bool:
            try:
                self.client.pipe_file(self.key, content, mode="create")
            except FileExistsError:
                return self.client.cat_file(self.key) == content
            return True

        return _again(put, self)

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove an object, which need not be there."""

        def remove() -> None:
            try:
                self.client.rm_file(self.key)
            except FileNotFoundError:
                if not missing_ok:
                    raise

        _again(remove, self)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: what lies below makes a folder."""

    def replace(self, target: Any) -> Any:
        """Copy an object and remove it; not in one act."""
        target.write_bytes(self.read_bytes())
        self.unlink()
        return target

    rename = replace


def _again(act: Any, path: StorePath) -> Any:
    """Do a request that may be repeated until the store takes it.

    Raises:
        StoreError: it does not, after some attempts and seconds.
    """
    for attempt in range(_ATTEMPTS):
        try:
            with _asked(path):
                return act()
        except StoreError as error:
            if error.errno == errno.EACCES or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(_FIRST_PAUSE_S * 2**attempt)
    raise AssertionError


def _changed_ns(info: dict[str, Any]) -> int:
    for name in ("LastModified", "updated", "last_modified", "created"):
        found = info.get(name)
        if isinstance(found, datetime):
            return int(found.timestamp() * 1e9)
    return 0


class ObjectReader(RandomAccess):
    """An object, read by ranges."""

    def __init__(self, path: StorePath) -> None:
        super().__init__(path.stat().st_size)
        self._path = path
        self._start, self._held = 0, b""

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes: all that were asked for, or to the end."""
        end = self.size if size is None or size < 0 else min(self._at + size, self.size)
        if end <= self._at:
            return b""
        if not (self._start <= self._at and end <= self._start + len(self._held)):
            # A footer is read from its end, and then once more.
            first = max(0, min(self._at, self.size - _LEAST_READ))
            first = first if end == self.size or self._at - first < _LEAST_READ else self._at
            last = min(self.size, max(end, self._at + _LEAST_READ))
            with _asked(self._path):
                self._held = self._path.client.cat_file(self._path.key, start=first, end=last)
            self._start = first
            if len(self._held) != last - first:
                raise StoreError(
                    errno.EIO, "the store gave another number of bytes than asked for", str(self._path)
                )
        found = self._held[self._at - self._start : end - self._start]
        self._at = end
        return found

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)
