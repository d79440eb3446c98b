"""Proof of every promise a dataset makes; each broken one is named with part, clip, rule and numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa

from .clip_set import ClipSet
from .conform import check_types, conform, file_version
from .index import PLACE_COLUMNS, open_index, rows_by_folder
from .inputs import InputError, reading
from .names import below
from .parquet import WHAT, open_parquet, read_table
from .processes import WORTH_PROCESSES, map_processes
from .row_checks import check_row, raw_rows
from .schema import COLUMNS, declared_type
from .storage.listing import NOTE
from .storage.paths import as_path
from .store import (
    TEMPORARY,
    data_folder,
    dataset_files,
    foreign_files,
    has_parts,
    part_stamps,
    read_marker,
    require_here,
    stamped_folders,
)


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One broken promise: file relative to the dataset, clip (None for a whole file), rule, and what was
    found."""

    part: str
    clip_id: str | None
    rule: str
    message: str

    @classmethod
    def of_file(cls, part: str, rule: str, message: str) -> Violation:
        """One of a whole file."""
        return cls(part=part, clip_id=None, rule=rule, message=message)

    def __str__(self) -> str:
        place = f"{self.part}: clip {self.clip_id}" if self.clip_id else self.part
        return f"{place}: {self.rule}: {self.message}"


def validate_dataset(path: str | Path, *, processes: int = 1) -> tuple[int, list[Violation]]:
    """Rows read and all violations of a dataset folder, or of one file: in file order, clips that occur twice at the
    end.

    A copy that another tool wrote (no schema version in its metadata) may have other types and lie anywhere; its rows
    keep all the rest of the promises.

    Args:
        processes: that share the work, if it is more than a few hundred parts.
    Raises:
        ValueError: nothing there, or no Parquet files.
    """
    require_here(path)
    out = as_path(path)
    parts = dataset_files(out)
    if not parts:
        raise ValueError(f"{out}: no part files, here or below data/; is this the --out folder of a run?")
    is_folder = out.is_dir()
    out = out if is_folder else out.parent
    found: list[Violation] = list(_check_folder(out)) if is_folder else []
    first_hash: tuple[str, str] | None = None
    if is_folder and (out / "dataset.json").is_file():
        try:
            first_hash = ("dataset.json", str(read_marker(out).get("recipe_hash")))
        except InputError as error:
            found.append(Violation.of_file("dataset.json", "marker_readable", str(error)))
    num_rows = 0
    doubles = _Doubles(out)
    some = [parts[start : start + _PARTS_A_TASK] for start in range(0, len(parts), _PARTS_A_TASK)]
    processes = processes if len(parts) >= WORTH_PROCESSES else 1
    for checked in map_processes(partial(_check_parts, out), some, processes=processes):
        for part in checked:
            if part.recipe_hash is not None:
                first_hash = first_hash or (part.name, part.recipe_hash)
                if part.recipe_hash != first_hash[1]:
                    message = (
                        f"written by recipe {part.recipe_hash}, but {first_hash[0]} says {first_hash[1]}"
                    )
                    found.append(Violation.of_file(part.name, "one_recipe", message))
            found += part.violations
            num_rows += part.num_rows
            doubles.see(part)
    return num_rows, found + doubles.violations()


_PARTS_A_TASK = 32


@dataclass(frozen=True)
class _Part:
    """What one part says of itself, and what is wrong with it."""

    name: str
    recipe_hash: str | None
    num_rows: int
    clip_ids: list[str]
    violations: list[Violation]


class _Doubles:
    """Finds clips that occur twice, in little memory: where they were first is looked up only if there are any."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._seen = ClipSet()
        self._names: list[str] = []
        self._again: list[tuple[str, str]] = []

    def see(self, part: _Part) -> None:
        """Take in the clips of the next part."""
        in_part: set[str] = set()
        for clip_id, seen in zip(part.clip_ids, self._seen.has(part.clip_ids), strict=True):
            if seen or clip_id in in_part:
                self._again.append((part.name, clip_id))
            in_part.add(clip_id)
        self._seen.update(part.clip_ids)
        self._names.append(part.name)

    def violations(self) -> list[Violation]:
        """One for each clip that has occurred before."""
        wanted = {clip_id for _name, clip_id in self._again}
        first: dict[str, str] = {}
        for name in self._names if wanted else ():
            try:
                ids = read_table(self._out / name, ["clip_id"])["clip_id"].to_pylist()
            except InputError:
                continue
            for clip_id in wanted.intersection(ids):
                first.setdefault(clip_id, name)
        return [
            Violation(part=name, clip_id=clip_id, rule="clip_id_unique", message=f"also in {first[clip_id]}")
            for name, clip_id in self._again
        ]


def _check_parts(out: Path, parts: list[Path]) -> list[_Part]:
    return [_check_part(out, part) for part in parts]


def _check_part(out: Path, part: Path) -> _Part:
    name = str(part.relative_to(out))

    def broken(*violations: Violation) -> _Part:
        return _Part(name, None, 0, [], list(violations))

    try:
        with open_parquet(part, whole=True) as file, reading(part, WHAT):
            schema = file.schema_arrow
            version = file_version(schema, where=str(part))
            table = file.read(use_threads=False)
    except ValueError as error:
        return broken(Violation.of_file(name, "part_readable", str(error)))
    columns = list(_check_columns(name, table.schema, version))
    if columns:
        return broken(*columns)
    try:
        table = conform(table)
    except ValueError as error:
        return broken(Violation.of_file(name, "declared_columns", str(error)))
    recipe_hash = _recipe_hash(schema, table)
    found = [
        Violation(part=name, clip_id=clip_id, rule=rule, message=message)
        for batch in table.to_batches(max_chunksize=256)
        for clip_id, rule, message in _check_batch(batch, part, version, recipe_hash)
    ]
    ids = [str(clip_id) for clip_id in table["clip_id"].to_pylist()]
    return _Part(name, recipe_hash, table.num_rows, ids, found)


def _check_batch(
    batch: pa.RecordBatch, part: Path, version: int | None, recipe_hash: str | None
) -> Iterator[tuple[str, str, str]]:
    """Clip, rule and message of every broken promise."""
    values = dict(zip(batch.schema.names, batch.columns, strict=True))
    holed = [c.name for c in COLUMNS if not c.nullable and values[c.name].null_count]
    holed_lists = [
        c.name
        for c in COLUMNS
        if c.name in values
        and pa.types.is_list(c.type)
        and not pa.types.is_floating(c.type.value_type)  # there a null is read as NaN
        and values[c.name].values.null_count
    ]
    for i, row in enumerate(raw_rows(batch)):
        nulls = [name for name in holed if not values[name][i].is_valid]
        nulls += [f"values within {name}" for name in holed_lists if None in (values[name][i].as_py() or ())]
        problems = (
            [("not_null", f"{', '.join(nulls)} must not be null")]
            if nulls  # what follows needs them
            else check_row(row, part=part, version=version, recipe_hash=recipe_hash)
        )
        for rule, message in problems:
            yield str(row["clip_id"]), rule, message


def changed_media(path: str | Path, media_root: Path) -> list[str]:
    """Ids of clips whose media is younger than the part that holds their row, by the times of the files."""
    changed: list[str] = []
    for clip_id, media, written in _media(as_path(path)):
        try:
            status = below(media_root, media or "").stat()
        except (ValueError, OSError):  # elsewhere, or gone: nothing is known of it
            continue
        if status.st_mtime_ns > written:
            changed.append(clip_id)
    return changed


def _media(path: Path) -> Iterator[tuple[str, str | None, int]]:
    """Id, media pointer and time of writing in nanoseconds of every clip; parts that cannot be read are left out."""
    index = open_index(path, stamped_folders(path)) if path.is_dir() else None
    if index is not None:
        table = index.to_table(["clip_id", "media", PLACE_COLUMNS[0]])
        stamps = index.stamps()
        for clip_id, media, part in zip(*(column.to_pylist() for column in table.columns), strict=True):
            yield clip_id, media, stamps[part][1]
        return
    for part in dataset_files(path):
        try:
            table, written = read_table(part, ["clip_id", "media"]), part_stamps(path, [part])[0][2]
        except InputError:  # a violation of its own
            continue
        for clip_id, media in zip(*(column.to_pylist() for column in table.columns), strict=True):
            yield clip_id, media, written


def unknown_licences(path: str | Path) -> int:
    """Rows whose `data_licence` is `unknown`: allowed by the schema, and what publishing refuses."""
    path = as_path(path)
    tables = (
        rows_by_folder(path, ["data_licence"])
        if path.is_dir() and has_parts(path)
        else (read_table(part, ["data_licence"]) for part in dataset_files(path))
    )
    return sum(table["data_licence"].to_pylist().count("unknown") for table in tables)


def _check_folder(out: Path) -> Iterator[Violation]:
    for foreign in foreign_files(out):
        yield Violation(
            part=str(foreign.relative_to(out)),
            clip_id=None,
            rule="parts_only",
            message="lies among the parts but is none (data/<source>/part-<shard>.parquet), and is read by nobody here;"
            " other tools may read it: move it away",
        )
    temporaries = [*data_folder(out).rglob(f"{TEMPORARY}*"), *out.glob(f"{TEMPORARY}*"), *out.glob(NOTE)]
    for stale in sorted(temporaries):
        yield Violation(
            part=str(stale.relative_to(out)),
            clip_id=None,
            rule="no_temporaries",
            message="left by a killed run; the same command again removes it",
        )


def _recipe_hash(schema: pa.Schema, table: pa.Table) -> str | None:
    """That of the file, or of its rows if they are of one recipe and it is a copy without metadata of ours."""
    stated = (schema.metadata or {}).get(b"theodolite.recipe_hash")
    if stated is not None:
        return stated.decode()
    return table["recipe_hash"][0].as_py() if table.num_rows else None


def _check_columns(name: str, schema: pa.Schema, version: int | None) -> Iterator[Violation]:
    """Declared columns and their types; in a copy (version None) any that are read as those."""
    if version is None:
        try:
            check_types(schema, where=name)
        except ValueError as error:
            message = str(error).removeprefix(f"{name}: ")
            yield Violation(part=name, clip_id=None, rule="declared_columns", message=message)
        return
    for column in COLUMNS:
        expected = declared_type(column, version=version)
        if column.name not in schema.names:
            if column.nullable:
                continue
            message = f"column {column.name} is missing"
        elif schema.field(column.name).type != expected:
            message = f"column {column.name} has type {schema.field(column.name).type}, expected {expected}"
        else:
            continue
        yield Violation(part=name, clip_id=None, rule="declared_columns", message=message)
