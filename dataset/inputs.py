"""The boundary through which files of others come in: text, YAML, JSON, CSV, numpy arrays and archives.

Whatever is wrong with a file ends in one kind of error, `InputError`, which names the file (and where there is one the
line or the member of an archive) and says what was found. Sizes are judged by `limits` before they are allocated.
Readers of foreign formats are wrapped in `reader`: what their parsers raise, whatever it is, becomes that error.
"""

from __future__ import annotations

import csv
import functools
import inspect
import io
import json
import math
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn, ParamSpec, TypeVar, cast

import numpy as np
import yaml
from numpy.typing import NDArray

from .limits import (
    MAX_NESTING,
    MAX_SHOWN,
    MAX_TEXT_BYTES,
    MAX_UNFOLDED_NODES,
    MAX_UNFOLDING,
    MAX_ZIP_EXPANSION,
    MIB,
    REPEATING_BYTES,
    unfolds_too_far,
)
from .storage.paths import StoreError, as_path

_P = ParamSpec("_P")
_R = TypeVar("_R")


class InputError(ValueError):
    """A file that cannot be read as what it should be; the message names it and says what was found."""


# --- the boundary ---------------------------------------------------------------------------------


@contextmanager
def reading(path: str | Path, what: str, member: str | None = None) -> Iterator[None]:
    """What goes wrong inside becomes an `InputError` that names `path`, the member of it and what it should have been.

    Errors that name the file already pass as they are, and so does a store's that does not answer: it says nothing of
    the file.
    """
    where = f"{path}: {_shortened(member)}" if member else str(path)
    try:
        yield
    except StoreError:
        raise
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{where}: not a readable {what} ({error})") from error
    except ValueError as error:
        # Ours name the file, and say more than that it cannot be read; parsers have kinds of their own.
        ours = type(error) is ValueError or type(error).__module__.startswith(__name__.split(".")[0])
        if ours and str(path) in str(error):
            raise
        raise InputError(
            f"{where}: not a readable {what} ({_described(error)}{what_instead(path)})"
        ) from error
    # Parsers meet damaged input with whatever their code stumbles over: keys, types, recursion, memory. Anything that
    # they raise says one thing, that this is no such file; the cause stays attached.
    except Exception as error:
        raise InputError(
            f"{where}: not a readable {what} ({_described(error)}{what_instead(path)})"
        ) from error


def what_instead(path: str | Path) -> str:
    """What a local file is, by its first bytes, that should be another one, with a colon in front, for messages; empty
    if they do not tell."""
    try:
        if not Path(path).is_file():  # a pipe would be waited for
            return ""
        with Path(path).open("rb") as stream:
            start = stream.read(64)
    except (OSError, ValueError):
        return ""
    if not start:
        return ": it is empty"
    if start.startswith(b"version https://git-lfs"):
        return ": it is a Git LFS pointer, not the file itself (git lfs pull)"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return ": it is a web page"
    if not start.strip(b"\0"):
        return ": it begins with zeros, as a download that was cut off leaves them"
    return ""


def reader(what: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorator of functions whose first argument is the path of a foreign file: they run inside `reading`. Of a
    generator, every step does."""

    def decorate(read: Callable[_P, _R]) -> Callable[_P, _R]:
        if inspect.isgeneratorfunction(read):

            @functools.wraps(read)
            def stepwise(*args: _P.args, **kwargs: _P.kwargs) -> Any:
                with reading(_path_of(args, kwargs), what):
                    yield from read(*args, **kwargs)

            return cast(Callable[_P, _R], stepwise)

        @functools.wraps(read)
        def whole(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with reading(_path_of(args, kwargs), what):
                return read(*args, **kwargs)

        return whole

    return decorate


def _path_of(args: tuple[object, ...], kwargs: Mapping[str, object]) -> str:
    return str(args[0] if args else next(iter(kwargs.values()), "?"))


def _described(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return f"nested deeper than {MAX_NESTING} levels"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, KeyError):
        return f"{_shortened(str(error))} is missing"
    text = _shortened(" ".join(str(error).split()))
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


# --- text -----------------------------------------------------------------------------------------


def read_bytes(path: str | Path, *, most: int | None = None) -> bytes:
    """A whole regular file.

    Raises:
        InputError: no such file, no regular one (a pipe would be waited for), not readable, or larger than `most`.
    """
    path = as_path(path)
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such file" if not path.exists() else f"{path}: is no file")
        size = path.stat().st_size
        if most is not None and size > most:
            raise InputError(f"{path}: {size / MIB:.0f} MiB, at most {most // MIB} MiB are read")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError | StoreError):
            raise
        raise InputError(f"{path}: cannot be read ({_described(error)})") from None


def read_text(path: str | Path) -> str:
    """Text of a file, UTF-8 with or without a mark in front.

    Raises:
        InputError: missing, too large, or no such text.
    """
    try:
        return read_bytes(path, most=MAX_TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file (no UTF-8 text from byte {error.start} on)") from None


def parse_json(text: str | bytes, where: str | Path) -> Any:
    """Value of a JSON text.

    Raises:
        InputError: naming `where` and the line.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: not JSON ({error.msg}: line {error.lineno} column {error.colno})"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({_described(error)})") from None
    _check_nesting(value, where)
    return value


def _check_nesting(value: Any, where: str | Path) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_NESTING + 1):
        level = [
            inner
            for outer in level
            for inner in (
                outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ()
            )
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise InputError(f"{where}: nested deeper than {MAX_NESTING} levels")


def read_json(path: str | Path) -> dict[str, Any]:
    """Object of a JSON file.

    Raises:
        InputError: missing, not JSON, or no object.
    """
    content = parse_json(read_text(path), path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object with keys, found {type(content).__name__}")
    return content


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header, blanks after commas left out; every row has every column.

    Raises:
        InputError: missing, not text, a column twice, or a row (named by its line) of another length than the header.
    """
    table = csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    rows: list[dict[str, str]] = []
    try:
        names = [name.strip() for name in next(table, [])]
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise InputError(f"{path}:1: column {_shortened(twice[0])!r} occurs twice")
        for cells in table:
            if not cells:
                continue
            if len(cells) != len(names):
                raise InputError(
                    f"{path}:{table.line_num}: a row of {len(cells)} cells has another number of columns than the"
                    f" header, {len(names)}: {_shortened(str(cells))}"
                )
            rows.append(dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise InputError(f"{path}:{table.line_num}: not CSV ({error})") from None
    return rows


# --- YAML -----------------------------------------------------------------------------------------

_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """Values of JSON's kinds alone (a date stays the text that it is), and a note of keys that are given twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[str] = []
        self._depth = 0

    def descend_resolver(self, current_node: Any, current_index: Any) -> None:
        """Called for every node on the way in, by the parser in C too; builds of it that know no bound follow any depth
        until their stack ends, and the process with it."""
        self._depth += 1
        if self._depth > MAX_NESTING + 2:  # a little more than what is refused below in better words
            raise RecursionError
        super().descend_resolver(current_node, current_index)

    def ascend_resolver(self) -> None:
        self._depth -= 1
        super().ascend_resolver()

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a single value", key_node.start_mark
                )
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                self.twice.append(f"{key}: given twice (lines {seen[key]} and {line})")
            seen[key] = line
        return super().construct_mapping(node, deep=deep)


def _restrict(loader: Any) -> None:
    tags = {f"tag:yaml.org,2002:{kind}" for kind in _KINDS}
    known = _SafeLoader.yaml_constructors
    loader.yaml_constructors = {tag: make for tag, make in known.items() if tag is None or tag in tags}
    loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in _SafeLoader.yaml_implicit_resolvers.items()
    }


_restrict(_Loader)


def _construct_int(loader: Any, node: Any) -> int:
    """A number that can be shown: hexadecimal and sexagesimal ones know no end, and Python refuses to write them."""
    if len(node.value) > _MOST_DIGITS:
        problem = f"a number of {len(node.value)} digits"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return loader.construct_yaml_int(node)


_MOST_DIGITS = 1000
_Loader.yaml_constructors["tag:yaml.org,2002:int"] = _construct_int


def parse_yaml(text: str, where: str | Path) -> tuple[Any, list[str]]:
    """Value of a YAML text of one document, and the keys that are given twice, each with its lines.

    Raises:
        InputError: naming `where` and the line: no YAML, tags of other kinds, nested too deep, or aliases that unfold
            into far more than was written.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, []
        _check_unfolded(node, where)
        return loader.construct_document(node), loader.twice
    except InputError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f" (line {mark.line + 1})"
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise InputError(f"{where}: {_shortened(problem)}{line}: this is not YAML") from None
    except yaml.YAMLError as error:
        raise InputError(f"{where}: {_shortened(' '.join(str(error).split()))}: this is not YAML") from None
    # Numbers that no machine holds, and nesting deeper than the parser.
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise InputError(f"{where}: {_described(error)}: this is not YAML that is read") from None
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(path: str | Path) -> tuple[Any, list[str]]:
    """As `parse_yaml`, of a file."""
    return parse_yaml(read_text(path), path)


def _check_unfolded(root: Any, where: str | Path) -> None:
    """Refuse trees that are too deep, hold themselves, or whose aliases unfold into too many values."""
    size: dict[int, int] = {}

    def unfold(node: Any, depth: int) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        known = size.get(id(node))
        line = node.start_mark.line + 1
        if known is not None:
            if known < 0:
                raise InputError(
                    f"{where}: a value that holds itself (line {line}): this is not YAML that is read"
                )
            return known
        if depth > MAX_NESTING:
            raise InputError(f"{where}: nested deeper than {MAX_NESTING} levels (line {line})")
        size[id(node)] = -1
        inner = (
            node.value if isinstance(node, yaml.SequenceNode) else [x for pair in node.value for x in pair]
        )
        total = 1 + sum(unfold(child, depth + 1) for child in inner)
        size[id(node)] = total
        return total

    unfolded = unfold(root, 0)
    if unfolded <= MAX_UNFOLDED_NODES:
        return
    written = len(size) + _num_scalars(root)
    if unfolded > MAX_UNFOLDING * written:
        raise InputError(
            f"{where}: its aliases unfold {written} values into {unfolded}, more than {MAX_UNFOLDED_NODES} and"
            f" more than {MAX_UNFOLDING} times as many; write them out"
        )


def _num_scalars(root: Any) -> int:
    seen: set[int] = set()
    waiting, count = [root], 0
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            count += 1
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
        else:
            waiting += [x for pair in node.value for x in pair]
    return count


# --- arrays ---------------------------------------------------------------------------------------


def read_npy(path: str | Path) -> NDArray[Any]:
    """Array of a `.npy` file of numbers or texts.

    Raises:
        InputError: no such file or array, or a header that promises more than the file holds.
    """
    path = Path(path)
    with reading(path, "numpy file"):
        if not path.is_file():
            raise InputError(f"{path}: No such file or directory")
        with path.open("rb") as stream:
            return _array(stream, path.stat().st_size)


def parse_npy(content: bytes, where: str | Path, member: str | None = None) -> NDArray[Any]:
    """As `read_npy`, of bytes from somewhere."""
    with reading(where, "numpy file", member):
        return _array(io.BytesIO(content), len(content))


def _array(stream: IO[bytes], size: int) -> NDArray[Any]:
    """Array of a stream of `size` bytes, whose header is judged before anything is allocated for it."""
    form = np.lib.format
    version = form.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise InputError(f"numpy format {version[0]}.{version[1]} is not known")
    length = int.from_bytes(stream.read(2 if version == (1, 0) else 4), "little")
    if length > 10_000:
        raise InputError(f"a numpy header of {length} bytes")
    stream.seek(6 + 2)
    header = form.read_array_header_1_0 if version == (1, 0) else form.read_array_header_2_0
    shape, _fortran, dtype = header(stream)
    if dtype.hasobject or dtype.kind not in "biufSU" or not dtype.itemsize:
        raise InputError(f"holds {dtype} values; real numbers are expected")
    promised = math.prod(shape) * dtype.itemsize
    held = size - stream.tell()
    if any(n < 0 for n in shape) or promised > held:
        raise InputError(
            f"its header promises {'x'.join(map(str, shape))} values of {dtype}, {promised} bytes, and {held} are there"
        )
    stream.seek(0)
    return form.read_array(stream, allow_pickle=False)


class Archive:
    """A zip (or `.npz`) whose members are read one by one, each judged before it is unfolded; a context manager.

    Args:
        path: file to open.
    Raises:
        InputError: on entering and reading: no zip, encrypted or packed in an unknown way, damaged, or unfolding too
            far.
    """

    def __init__(self, path: str | Path, what: str = "zip archive") -> None:
        self.path, self.what = Path(path), what
        self._unfolded, self._seen = 0, set[str]()

    def __enter__(self) -> Archive:
        with reading(self.path, self.what):
            if not self.path.is_file():
                raise InputError(f"{self.path}: No such file or directory")
            self._size = self.path.stat().st_size
            self._zip = zipfile.ZipFile(self.path)
            self.names = self._zip.namelist()
        return self

    def __exit__(self, *error: object) -> None:
        self._zip.close()

    def _info(self, name: str) -> zipfile.ZipInfo:
        info = self._zip.getinfo(name)
        # One at a time is in memory. All together they are a matter of time.
        if why := unfolds_too_far(info.file_size, self._size):
            raise InputError(why)
        if name not in self._seen:
            self._seen.add(name)
            self._unfolded += info.file_size
        if self._unfolded > max(REPEATING_BYTES, MAX_ZIP_EXPANSION * self._size):
            raise InputError(
                f"its members unfold into more than {self._unfolded / MIB:.0f} MiB, further than zips do"
            )
        return info

    def read(self, name: str) -> bytes:
        """Content of a member."""
        with reading(self.path, self.what, name):
            return self._zip.read(self._info(name))

    @property
    def arrays(self) -> list[str]:
        """Names of the arrays of an `.npz`."""
        return [name.removesuffix(".npy") for name in self.names]

    def array(self, name: str) -> NDArray[Any]:
        """Array of an `.npz` by name."""
        with reading(self.path, self.what, name):
            found = f"{name}.npy" if f"{name}.npy" in self.names else name
            if found not in self.names:
                raise InputError(f"holds no array {name!r} among {_shortened(str(sorted(self.arrays)))}")
            info = self._info(found)
            with self._zip.open(info) as stream:
                return _array(stream, info.file_size)


def read_npz(path: str | Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Arrays of an `.npz` by name.

    Raises:
        InputError: no such archive, one of the names is missing, or it unfolds too far.
    """
    with Archive(path, "numpy archive") as archive:
        missing = [name for name in names if name not in archive.arrays and name not in archive.names]
        if missing:
            raise InputError(
                f"{path}: not a readable archive with {' and '.join(names)} ({', '.join(missing)} missing among"
                f" {_shortened(str(sorted(archive.arrays)))})"
            )
        return {name: archive.array(name) for name in names}


def finite_int(value: object, what: str, *, least: int = 0, most: int = 2**31 - 1) -> int:
    """A whole number of a foreign file. Raises InputError for anything else, or one out of bounds."""
    number = None
    if (isinstance(value, int | np.integer) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value) and value == int(value)
    ):
        number = int(value)
    if number is None or not least <= number <= most:
        raise InputError(
            f"{what} is {_shortened(repr(value))}, expected a whole number from {least} to {most}"
        )
    return number


class PlainTarInfo(tarfile.TarInfo):
    """Headers of a tar of strangers, by `tarfile.open(..., tarinfo=PlainTarInfo)`: names of a few pages, and no sparse
    files, whose maps are read before anybody could ask how long they are."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> PlainTarInfo:
        """Header from its block. Raises `tarfile.ReadError` for one that is followed by more than a name."""
        found = super().frombuf(buf, encoding, errors)
        if found.type in _TAR_NAMES and found.size > _MAX_TAR_NAME_BYTES:
            raise tarfile.ReadError(f"a name or header of {found.size} bytes")
        if found.type == tarfile.GNUTYPE_SPARSE:
            found._no_sparse()
        return found

    def _apply_pax_info(self, pax_headers: Mapping[str, str], *rest: str) -> None:
        if any(key.startswith("GNU.sparse.") for key in pax_headers):
            self._no_sparse()
        # a method of tarfile that its stubs leave out
        super()._apply_pax_info(pax_headers, *rest)  # pyright: ignore[reportAttributeAccessIssue]

    def _no_sparse(self, *_: Any) -> NoReturn:
        raise tarfile.ReadError("sparse files in a tar are not read; pack them whole")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _no_sparse


_TAR_NAMES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
_MAX_TAR_NAME_BYTES = 1 << 16
