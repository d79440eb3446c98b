"""Writing and finding part files. A part is the unit of commit: temporary name, flush to disk, rename; or in an object
store (`storage`), where objects are there whole or not at all, an entry of a log.

A dataset lies in one folder: `dataset.json` (schema version and recipe hash), `README.md` and
`data/<source>/part-<shard>.parquet`, from the thousandth shard on `data/<source>/<thousands>/part-<shard>.parquet`, so
that no folder holds many more files than that. Whatever process dies at whatever moment, a part is there whole or not
at all.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from .encoding import write_table
from .inputs import InputError, parse_json, read_text
from .names import NAME_RULE, is_name
from .parquet import read_schema
from .rows import Row, rows_to_table
from .schema import SCHEMA_VERSION, check_version
from .storage.listing import (
    THOUSANDS,
    Stamp,
    any_part,
    list_folder,
    list_folders,
    read_note,
    sorted_folders,
    stamp_without_file,
)
from .storage.log import Parts, committed_parts
from .storage.paths import StorePath, as_path

TEMPORARY = ".tmp-"
RUNS = f"{TEMPORARY}run-"
"""What names of runs' folders begin with."""
INDEX_FOLDER = "index"
"""Folder beside the data that holds what `index` derives from them."""
PARTS_PER_FOLDER = 1000
_ROW_GROUP_FRAMES = 12_288
"""Frames aimed at per row group: about 1 MB of cameras. Larger groups stream faster, smaller ones give one clip
sooner, and every group lengthens the footer that has to be read before either (see `write_table`)."""


DATA_FILES = "data/**/*.parquet"
_README = f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: {DATA_FILES}
---
# Camera dataset

One row a clip, written by theodolite. Columns with units: theodolite's dataset/SCHEMA.md, or the field metadata of the
files.

```python
import theodolite.dataset  # Row by row, checked, with (F, 4, 4) poses
clips = theodolite.dataset.open("THIS FOLDER")

import datasets  # or pandas.read_parquet("THIS FOLDER/data"), polars, DuckDB
clips = datasets.load_dataset("THIS FOLDER", split="train")
```
"""
"""The first lines tell `datasets` which files are data."""


def data_folder(out: str | Path) -> Path:
    """Folder that holds the partitions of a dataset."""
    return as_path(out) / "data"


def part_path(out: str | Path, *, source: str, shard_id: str) -> Path:
    """Where the part of a shard lies. Raises ValueError on names that `names` does not allow.

    Args:
        out: dataset folder, or a run's folder within. Parts of a run in an object store lie among the data at once,
            under a name that holds the run's.
        source: its name; `source=<source>` for a part beside those of schema version 1, and of their version.
    """
    for what, name in (("source", source.removeprefix("source=")), ("shard id", shard_id)):
        if not is_name(name):
            raise ValueError(f"{what} {name!r:.80}: use {NAME_RULE}")
    number = re.match(r"\d+", shard_id)
    thousands = int(number[0]) // PARTS_PER_FOLDER if number else 0
    out = as_path(out)
    if isinstance(out, StorePath) and out.name.startswith(RUNS):
        out, shard_id = out.parent, f"{shard_id}-{out.name.removeprefix(RUNS)}"
    folder = data_folder(out) / source
    return (folder / f"{thousands:06d}" if thousands else folder) / f"part-{shard_id}.parquet"


def shard_digest(clip_ids: Iterable[str]) -> str:
    """Ten characters that tell, in a part's name, which clips it is for."""
    return hashlib.sha256("\n".join(clip_ids).encode()).hexdigest()[:10]


def source_folder(part: Path) -> str:
    """Name of the folder below `data/` that holds a part."""
    return part.parent.parent.name if THOUSANDS.fullmatch(part.parent.name) else part.parent.name


def folder_name(part: Path) -> str:
    """Name of a part's folder as `part_folders` gives it."""
    return source_folder(part) + (f".{part.parent.name}" if THOUSANDS.fullmatch(part.parent.name) else "")


def part_folders(out: str | Path) -> Iterator[tuple[str, list[Path]]]:
    """Parts that `write_part` wrote, folder by folder in the order of the dataset; empty folders are left out. Those of
    schema version 1 lie in `source=<source>`.

    Yields:
        Name of the folder (`source`, or `source.thousands`), and its parts, sorted.
    """
    out = as_path(out)
    if isinstance(out, StorePath):
        found: dict[str, list[Path]] = {}
        for name in committed_parts(out):
            part = out / name
            found.setdefault(folder_name(part), []).append(part)
        yield from sorted(found.items())
        return
    for name, stamps in list_folders(out, stamped=False):
        yield name, [out / part for part, _size, _changed in stamps]


def stamped_folders(out: str | Path) -> list[tuple[str, list[Stamp]]]:
    """As `dataset_folders` of a folder, with the stamps of its files and nothing else of them."""
    out = as_path(out)
    if isinstance(out, StorePath):
        return [(name, part_stamps(out, parts)) for name, parts in dataset_folders(out)]
    refuse_above_datasets(out)
    found = list_folders(out, stamped=True)
    return found or [(name, part_stamps(out, files)) for name, files in dataset_folders(out)]


def stamps_of_folder(out: str | Path, name: str) -> list[Stamp]:
    """Stamps of the parts of one of these folders; none if it is no more."""
    out = as_path(out)
    if isinstance(out, StorePath):
        return part_stamps(out, dict(part_folders(out)).get(name, []))
    return list_folder(out, name)


def list_parts(out: str | Path) -> list[Path]:
    """Finished part files that `write_part` wrote, in the order of the dataset."""
    return [part for _name, parts in part_folders(out) for part in parts]


def has_parts(out: str | Path) -> bool:
    """Whether there is any part."""
    out = as_path(out)
    return bool(committed_parts(out)) if isinstance(out, StorePath) else any_part(out)


def dataset_files(path: str | Path) -> list[Path]:
    """Files of a dataset, sorted: its parts, and where it has none whatever Parquet files another tool has put there;
    `path` may be one such file. The index is none of them.

    This is the one answer for reading, validating, indexing, exporting and publishing: what lies beside parts and is
    none is part of nothing (see `foreign_files`).

    Raises:
        ValueError: the folder lies above whole datasets, which are opened one by one.
    """
    return [file for _name, files in dataset_folders(path) for file in files]


def dataset_folders(path: str | Path) -> list[tuple[str, list[Path]]]:
    """As `dataset_files`, by folders of parts (see `part_folders`); files of other tools are one folder of no name.

    Raises:
        ValueError: the folder lies above whole datasets, which are opened one by one.
    """
    path = as_path(path)
    if path.is_file():
        return [("", [path])]
    refuse_above_datasets(path)
    if folders := list(part_folders(path)):
        return folders
    files = _files_of_copies(path)
    return [("", files)] if files else []


def only_parts(files: Sequence[str]) -> list[str]:
    """As `dataset_files`, of names from elsewhere: the parts among them, or where there are none all."""
    pattern = rf"(.*/)?data/[^/]+/({THOUSANDS.pattern}/)?part-[^/]*\.parquet"
    return sorted([file for file in files if re.fullmatch(pattern, file)] or files)


def foreign_files(path: str | Path) -> list[Path]:
    """Parquet files that lie among the parts of a dataset but are none of them, sorted."""
    path = as_path(path)
    parts = set(list_parts(path))
    if parts and not isinstance(
        path, StorePath
    ):  # they go with the command that replaces them, or the next one
        parts |= {path / name for names in read_note(path).old.values() for name in names}
    return [file for file in _files_of_copies(path) if file not in parts] if parts else []


def _refuse(error: OSError) -> None:
    raise error


def _files_of_copies(path: Path) -> list[Path]:
    root = data_folder(path) if data_folder(path).is_dir() else path
    if isinstance(root, StorePath):
        names = root.objects()
        return [
            root / name for name in names if name.endswith(".parquet") and not re.search(r"(^|/)[._]", name)
        ]
    found: list[Path] = []
    seen: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True, onerror=_refuse):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above
            below.clear()
            continue
        seen.add(real)
        below[:] = [  # a dataset within is another one
            name
            for name in below
            if not name.startswith((".", "_"))
            and not Path(folder, name, "dataset.json").is_file()
            and Path(folder, name) != path / INDEX_FOLDER
        ]
        found += [
            Path(folder, name)
            for name in names
            if name.endswith(".parquet") and not name.startswith((".", "_", "index.parquet"))
        ]
    return sorted(found)


def prepare_output(out: str | Path, *, recipe_hash: str) -> None:
    """Make or check an output folder before a run; call once, before any worker writes.

    Creates the folder, removes temporaries that a killed run left behind, and refuses a folder that another
    recipe or schema version has written.

    Raises:
        ValueError: the folder belongs to another recipe, or is a file.
    """
    check_output(out, recipe_hash=recipe_hash)
    out = as_path(out)
    data_folder(out).mkdir(parents=True, exist_ok=True)
    clean_temporaries(out)
    marker = out / "dataset.json"
    if not _is_readable(out):
        wanted = {"schema_version": SCHEMA_VERSION, "recipe_hash": recipe_hash}
        write_atomically(marker, (json.dumps(wanted, indent=2) + "\n").encode())
    if not (out / "README.md").exists():
        write_atomically(out / "README.md", _README.encode())


def check_output(out: str | Path, *, recipe_hash: str) -> None:
    """Make sure that a run of this recipe may write into a folder, which may be absent; writes nothing.

    Raises:
        ValueError: the folder belongs to another recipe or schema version, holds other datasets, or is a file.
    """
    out = as_path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; --out must be a folder")
    _refuse_folders_as_parts(out)
    marker = out / "dataset.json"
    if not marker.is_file():
        if has_parts(out):
            raise ValueError(f"{out}: holds part files but no dataset.json; choose an empty folder")
        if below := datasets_below(out):
            raise ValueError(
                f"{out}: holds whole datasets ({_some(below)}); choose a folder beside them as --out"
            )
        return
    wanted = {"schema_version": SCHEMA_VERSION, "recipe_hash": recipe_hash}
    try:
        found = read_marker(out)
    except InputError:
        parts = list_parts(out)
        if not parts:
            raise
        _check_parts(out, parts, recipe_hash)  # cut or changed by hand; they say the same
        return
    if found.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{out}: holds schema version {found.get('schema_version')}, this version of theodolite writes "
            f"{SCHEMA_VERSION}; choose another --out, or go on with the version that began it. What is there stays "
            "readable: inspect, validate, evaluate, export and publish take it"
        )
    for key in wanted:
        if found.get(key) != wanted[key]:
            raise ValueError(
                f"{out}: was written with {key.replace('_', ' ')} {found.get(key)}, this run has {wanted[key]}; "
                "one dataset holds rows of one recipe: choose another --out, or run the recipe that made it "
                "(recipe.resolved.yaml beside it)"
            )


def _check_parts(out: Path, parts: Sequence[Path], recipe_hash: str) -> None:
    """Of a folder whose `dataset.json` cannot be read: all of its parts say that they are of this recipe.

    Raises:
        ValueError: one is of another, of another schema version, or unreadable.
    """
    for part in parts:
        version, of_part = part_metadata(part)
        if version != SCHEMA_VERSION or of_part != recipe_hash:
            raise ValueError(
                f"{out}: dataset.json is no JSON object, and {part.name} was written with schema version {version}"
                f" and recipe hash {of_part}, this run has {SCHEMA_VERSION} and {recipe_hash}; choose an empty folder"
            )


def _refuse_folders_as_parts(out: Path) -> None:
    """A folder by the name of a part would count as done; there are none in an object store."""
    if isinstance(out, StorePath):
        return
    for source in sorted_folders(data_folder(out)):
        for folder in (source, *sorted_folders(source)):
            if folder.name.startswith("part-"):
                raise ValueError(f"{folder}: is a folder where a part should be; move it away")
            if folder is not source and any(f.name.startswith("part-") for f in sorted_folders(folder)):
                raise ValueError(f"{folder}: holds a folder where a part should be; move it away")


def _is_readable(out: Path) -> bool:
    try:
        return bool(read_marker(out))
    except InputError:
        return False


def read_marker(out: str | Path) -> dict[str, object]:
    """Content of `dataset.json`.

    Raises:
        InputError: it is cut or no JSON object; says how it is made anew.
    """
    marker = as_path(out) / "dataset.json"
    try:
        found = parse_json(read_text(marker), marker)
        if isinstance(found, dict):
            return found
        problem = f"found {type(found).__name__}"
    except InputError as error:
        problem = str(error).removeprefix(f"{marker}: ")
    raise InputError(
        f"{marker}: is no JSON object ({problem}); it says which recipe made the dataset: a run of that recipe writes"
        " it anew"
    )


def require_here(path: str | Path) -> None:
    """Raise ValueError where nothing lies: for what needs the files of a dataset themselves, and reads no hub."""
    if not as_path(path).exists():
        named = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", os.fspath(path)) is not None
        fetch = (
            f"; a dataset of the hub is fetched by: hf download {path} --repo-type dataset --local-dir DIR"
        )
        raise ValueError(f"{path}: no such folder or file here{fetch if named else ''}")


def refuse_above_datasets(path: str | Path) -> None:
    """Raise ValueError for a folder that lies above whole datasets, which are opened one by one."""
    if below := datasets_below(path):
        raise ValueError(f"{path}: lies above whole datasets ({_some(below)}); name one of them")


def datasets_below(path: str | Path) -> list[Path]:
    """Folders of whole datasets, one or two levels below a folder that is none itself; sorted."""
    path = as_path(path)
    if (path / "dataset.json").is_file() or not path.is_dir():
        return []
    return sorted(marker.parent for depth in ("*", "*/*") for marker in path.glob(f"{depth}/dataset.json"))


def _some(folders: Sequence[Path]) -> str:
    shown = ", ".join(folder.name for folder in folders[:5])
    return shown + (f" and {len(folders) - 5} more" if len(folders) > 5 else "")


def clean_temporaries(out: str | Path) -> int:
    """Remove temporaries of killed writers and return their number. Not while writers run. An object store has none."""
    out = as_path(out)
    if isinstance(out, StorePath):
        return 0
    sources = sorted_folders(data_folder(out))
    folders = [
        out,
        out / INDEX_FOLDER,
        *sources,
        *(f for source in sources for f in sorted_folders(source) if THOUSANDS.fullmatch(f.name)),
    ]
    stale = [path for folder in folders for path in _temporaries_in(folder)]
    for path in stale:
        path.unlink(missing_ok=True)
    return len(stale)


def _temporaries_in(folder: Path) -> list[Path]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in names if name.startswith(TEMPORARY) and not (folder / name).is_dir()]


def write_part(out: str | Path, rows: Sequence[Row], *, shard_id: str, recipe_hash: str) -> Path:
    """Write the rows of a shard as one part file, all or nothing; same rows give the same bytes.

    Args:
        rows: at least one; all of one source, all of this recipe, clip ids unique.
    Returns:
        Path of the part. An existing part of the same shard is replaced; in an object store it stays.
    Raises:
        ValueError: rows that do not belong together.
        FileExistsError: in an object store, another part of this shard is there.
        OSError: the disk is full or not writable; names the folder. No partial file remains.
    """
    content = encode_part(rows, shard_id=shard_id, recipe_hash=recipe_hash)
    path = part_path(out, source=rows[0].source, shard_id=shard_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    _put_part(path, content)
    return path


def encode_part(rows: Sequence[Row], *, shard_id: str, recipe_hash: str) -> memoryview:
    """What `write_part` writes.

    Raises:
        ValueError: rows that do not belong together.
    """
    if not rows:
        raise ValueError(f"shard {shard_id}: no rows to write")
    sources = {row.source for row in rows}
    if len(sources) > 1:
        raise ValueError(
            f"shard {shard_id}: rows of several sources ({', '.join(sorted(sources))}); one part holds one"
        )
    ids = [row.clip_id for row in rows]
    if len(set(ids)) != len(ids):
        twice = sorted({i for i in ids if ids.count(i) > 1})
        raise ValueError(f"shard {shard_id}: clip {twice[0]} occurs more than once")
    for row in rows:
        if row.recipe_hash != recipe_hash:
            raise ValueError(
                f"shard {shard_id}: clip {row.clip_id} was made by recipe {row.recipe_hash}, not {recipe_hash}"
            )
    table = rows_to_table(rows)
    metadata = dict(table.schema.metadata or {}) | {b"theodolite.recipe_hash": recipe_hash.encode()}
    return _encode(table.replace_schema_metadata(metadata))


def write_part_table(path: Path, table: pa.Table) -> None:
    """Write a table of rows as a part file, all or nothing; errors of the disk and store as `write_part`."""
    _put_part(path, _encode(table))


def _encode(table: pa.Table) -> memoryview:
    frames = max(1, sum(table["num_frames"].to_pylist()))
    per_group = max(1, _ROW_GROUP_FRAMES * table.num_rows // frames)
    sink = pa.BufferOutputStream()
    write_table(table, sink, row_group_size=per_group)
    return memoryview(sink.getvalue())


def _put_part(path: Path, content: memoryview) -> None:
    if not isinstance(path, StorePath):
        write_atomically(path, content)
    elif not path.create(content):
        raise FileExistsError(errno.EEXIST, "another part of this name is there already", str(path))


def write_dataset(out: str | Path, rows: Iterable[Row], *, rows_per_part: int = 1000) -> int:
    """Write rows, of one recipe and of any sources, as a dataset folder of its own; returns how many.

    At most `rows_per_part` rows of each source are in memory. Without any row nothing is written.

    Raises:
        ValueError: rows of several recipes, or a clip id that occurs twice.
    """
    first: Row | None = None
    seen: set[str] = set()
    pending: dict[str, list[Row]] = {}
    parts: dict[str, int] = {}

    def flush(source: str, recipe_hash: str) -> None:
        number = parts[source] = parts.get(source, -1) + 1
        write_part(out, pending.pop(source), shard_id=f"{number:06d}", recipe_hash=recipe_hash)

    for row in rows:
        if first is None:
            first = row
            prepare_output(out, recipe_hash=row.recipe_hash)
        if row.recipe_hash != first.recipe_hash:
            raise ValueError(
                f"clip {row.clip_id} was made by recipe {row.recipe_hash}, {first.clip_id} by {first.recipe_hash}; "
                "one dataset holds rows of one recipe: write them apart, each chosen by its recipe_hash"
            )
        if row.clip_id in seen:
            raise ValueError(f"clip {row.clip_id} occurs more than once")
        seen.add(row.clip_id)
        group = pending.setdefault(row.source, [])
        group.append(row)
        if len(group) == rows_per_part:
            flush(row.source, first.recipe_hash)
    for source in sorted(pending):
        assert first is not None
        flush(source, first.recipe_hash)
    return len(seen)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a whole file or nothing: temporary name beside it, flush to disk, rename, flush the folder. In an object
    store: put it.

    Raises:
        OSError: the disk is full (says what to do) or not writable, or the store does not take it.
    """
    if isinstance(path, StorePath):
        path.write_bytes(content)
        return
    temporary = path.parent / f"{TEMPORARY}{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"no space left to write {len(content) / 1e6:.1f} MB; free some and run the same command again, "
                "finished parts are kept",
                str(path),
            ) from error
        if error.filename is None:  # of a write, a file that may be no longer (ulimit -f), say
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Flush the rename itself; a folder cannot be opened for this everywhere (Windows), where rename is
    enough."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def part_stamps(out: str | Path, parts: Sequence[Path]) -> list[Stamp]:
    """Stamps of parts."""
    out = as_path(out)
    if isinstance(out, StorePath):
        known: Parts = committed_parts(out) if parts else {}
        names = [part.relative_to(out).as_posix() for part in parts]
        # A single file that was opened by its own name is in no log.
        return [(name, *known.get(name, (0, 0))) for name in names]
    return [_stamp(str(part.relative_to(out)), part) for part in parts]


def _stamp(name: str, part: Path) -> Stamp:
    try:
        status = part.stat()
    except OSError as error:
        if (stamp := stamp_without_file(name, part, error)) is None:
            raise
        return stamp
    return name, status.st_size, status.st_mtime_ns


def part_metadata(path: Path) -> tuple[int, str]:
    """Schema version and recipe hash of a part file. Raises ValueError for a file that is not ours or not
    Parquet."""
    schema = read_schema(path)
    version = check_version(schema.metadata, where=str(path))
    recipe_hash = (schema.metadata or {}).get(b"theodolite.recipe_hash")
    if recipe_hash is None:
        raise ValueError(f"{path}: no recipe hash in the file metadata")
    return version, recipe_hash.decode()
