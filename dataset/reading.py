"""Reading a dataset: lazily, with filters pushed down to Parquet, from a folder or from the Hugging Face
hub."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from .clip_rows import PLACE_COLUMNS
from .conform import check_types, common_schema, conform, file_version, is_declared, require_columns
from .counts import check_count
from .extra import ExtraColumns, open_extra
from .hub import hub_error
from .index import open_index
from .inputs import InputError, reading
from .outcomes import OUTCOME_COLUMNS, Tally, tally_of
from .parquet import WHAT, check_seal, check_sizes, open_parquet, scan_format
from .pieces import OPEN_AGAIN, Index, IndexReplaced, named_in
from .rows import Row, rows_from_arrays, rows_from_table
from .schema import COLUMN_BY_NAME, check_version, declared_type
from .storage.arrow import arrow_place, open_source
from .storage.paths import StorePath, as_path
from .store import DATA_FILES, dataset_files, only_parts, stamped_folders
from .where import parse_where

if TYPE_CHECKING:
    import pandas
    import pyarrow.dataset as pads


def is_hub_id(path: str | Path) -> bool:
    """Whether a path is no path but the name of a dataset on the hub: `owner/name`, and no folder `owner` here."""
    if isinstance(as_path(path), StorePath):
        return False
    local = Path(os.path.abspath(path))
    named = re.fullmatch(r"\w[\w.-]*/[\w.-]+", os.fspath(path)) is not None
    return named and not local.exists() and not local.parent.is_dir()


def open_dataset(path: str | Path) -> ClipDataset:
    """Dataset in a folder, in a single Parquet file, in an object store (`s3://bucket/run`), or on the Hugging Face hub
    under `owner/name`.

    A folder is the `--out` folder of a run, or any that holds Parquet files with our columns: what polars, DuckDB,
    pandas or `datasets` wrote after a filter is opened like the original. Nothing but names is read here, and
    the index if there is one (see `index`); file footers are read when they are first needed.

    Raises:
        ValueError: nothing there, a file that is not of this schema, or a newer schema version.
    """
    local = as_path(path)
    if not isinstance(local, StorePath):
        path, local = local, Path(os.path.abspath(local))  # stays right when the process changes its folder
    index = None
    if local.exists():
        filesystem: Any = arrow_place(local)[0]
        start = local.key if isinstance(local, StorePath) else str(local)
        if (local / "data").is_dir():
            folders = stamped_folders(local)
            files = [f"{start}/{name}" for _folder, stamps in folders for name, _size, _changed in stamps]
            index = open_index(local, folders) if files else None  # whose order is that of the files
        else:
            files = [arrow_place(file)[1] for file in dataset_files(local)]
    elif is_hub_id(path):
        path = os.fspath(path)
        from huggingface_hub import HfFileSystem

        hub = HfFileSystem()
        try:
            files = only_parts([str(p) for p in hub.glob(f"datasets/{path}/{DATA_FILES}")])
            if not files:
                hub.info(f"datasets/{path}")  # absent, or there without parts?
        except FileNotFoundError:
            raise ValueError(
                f"{path}: no folder here, and the hub has no such dataset or it holds no Parquet files below data/"
            ) from None
        except Exception as error:
            if (reason := hub_error(error)) is None:
                raise
            raise ValueError(
                f"{path}: no folder here, and no dataset on the hub could be read: {reason}"
            ) from error
        filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(hub))
    else:
        raise ValueError(
            f"{path}: no such folder; give the --out folder of a run, a Parquet file, or a hub id `owner/name`"
        )
    if not files:
        raise ValueError(f"{path}: holds no Parquet files below data/; did the run write any part?")
    clips = ClipDataset(path=str(path), files=tuple(files), filesystem=filesystem, index=index)
    if index is None:
        _ = clips.columns  # a damaged or foreign file is an error of opening, not of the first query
    return clips


def _fragment(file: str, filesystem: pafs.FileSystem) -> tuple[pads.ParquetFileFragment, pa.Schema]:
    """Fragment of one part, its footer read and judged, and its schema; pages are judged when they are to be read."""
    with reading(file, WHAT):
        if isinstance(filesystem, pafs.LocalFileSystem) and os.path.exists(file) and not os.path.isfile(file):
            raise InputError(f"{file}: is no file")  # a pipe would be waited for
        with filesystem.open_input_file(file) as source:
            check_seal(source, where=file)
            fragment = scan_format().make_fragment(file, filesystem)
            fragment.ensure_complete_metadata()
            check_sizes(source, fragment.metadata, where=file, pages=False)
        return fragment, fragment.physical_schema


def _arrow_dataset(files: Sequence[str], filesystem: pafs.FileSystem) -> pads.FileSystemDataset:
    found = _of_each(partial(_fragment, filesystem=filesystem), files, filesystem)
    checked: pa.Schema | None = None
    for file, (_fragment_of_it, schema) in zip(files, found, strict=True):
        if checked is None or not schema.equals(checked, check_metadata=True):
            file_version(schema, where=file)
            require_columns(schema, where=file)
            check_types(schema, where=file)
            checked = schema
    try:
        # Parts of an older or newer minor layout may have further columns: keep the union. What the files hold in
        # other types, the scanner casts to those of this schema.
        schema = common_schema([schema for _, schema in found])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{files[0]} and its neighbours disagree on column types: {error}") from error
    from pyarrow.dataset import FileSystemDataset

    return FileSystemDataset([fragment for fragment, _ in found], schema, scan_format(), filesystem)


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_WORTH_THREADS = 64
"""Local files from which on threads read their footers: of fewer they take more time than they save."""


def _of_each(
    read: Callable[[_Item], _Result], parts: Sequence[_Item], filesystem: pafs.FileSystem
) -> list[_Result]:
    """What is read of every part, in their order."""
    if len(parts) < _WORTH_THREADS and isinstance(filesystem, pafs.LocalFileSystem):
        return [read(part) for part in parts]
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(read, parts))


_Place = TypeVar("_Place")
_MAX_OPEN_PARTS = 64
"""Parts that `row` keeps open: files are limited (often to 1024 a process), and footers take memory."""


@dataclass(frozen=True)
class _Part:
    """An open part file."""

    path: str
    file: pq.ParquetFile
    source: pa.NativeFile
    looked_at: set[tuple[int, tuple[str, ...] | None]] = field(default_factory=set)

    @cached_property
    def names(self) -> frozenset[str]:
        """Its columns."""
        return self._layout[0]

    def read_row_group(self, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """A row group, in the declared types."""
        with reading(self.path, WHAT):
            wanted = group, None if columns is None else tuple(columns)
            if wanted not in self.looked_at:
                check_sizes(self.source, self.file.metadata, where=self.path, columns=columns, groups=[group])
                self.looked_at.add(wanted)
            table = self.file.read_row_group(group, columns=columns, use_threads=False)
            return table if self._layout[1] else conform(table)

    @cached_property
    def _layout(self) -> tuple[frozenset[str], bool]:
        """Columns, and whether all have the declared types. pyarrow computes the schema anew at every access, and the
        parts of a run have the same one."""
        encoded = (self.file.metadata.metadata or {}).get(b"ARROW:schema")
        if encoded is not None:
            return _layout_of_schema(encoded)
        schema = self.file.schema_arrow
        return frozenset(schema.names), is_declared(schema)


@lru_cache(maxsize=16)
def _layout_of_schema(encoded: bytes) -> tuple[frozenset[str], bool]:
    """Names in the Arrow schema that pyarrow stores with a file, and whether they have the declared types."""
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(encoded)))
    return frozenset(schema.names), is_declared(schema)


@dataclass(frozen=True)
class ClipDataset:
    """Clips of a dataset, nothing loaded until asked for.

    Attributes:
        path: what was opened. files: its parts, sorted.
        filter: condition on columns that applies to every method, except `row`.
        index: what `index.open_index` found, or None: then everything comes from the parts themselves.
    """

    path: str
    files: tuple[str, ...] = field(repr=False)
    filesystem: pafs.FileSystem = field(repr=False)
    filter: pads.Expression | None = None
    index: Index | None = field(default=None, repr=False)

    @property
    def arrow(self) -> pads.FileSystemDataset:
        """The underlying `pyarrow.dataset.Dataset`, for everything not wrapped here.

        Raises:
            InputError: a part whose pages unfold too far. Of parts in a store the footers alone are judged.
        """
        if not self._in_store:
            self._look_at(None)
        return self._parts

    @cached_property
    def _parts(self) -> pads.FileSystemDataset:
        """The same before anything is known of its pages: whoever reads some has `_look_at` judge them first."""
        return _arrow_dataset(self.files, self.filesystem)

    @property
    def columns(self) -> list[str]:
        """Names of all columns, unknown ones included."""
        return self._parts.schema.names

    def where(self, condition: pads.Expression | str) -> ClipDataset:
        """The clips that also satisfy `condition`: `pyarrow.compute.field("verdict") == "accepted"`, or as text (see
        `where`) `"verdict = 'accepted'"`.

        Raises:
            ValueError: a text that is no condition on these columns.
        """
        if isinstance(condition, str):
            condition = parse_where(condition, self._parts.schema)
        both = condition if self.filter is None else self.filter & condition
        narrowed = replace(self, filter=both)
        for name in (
            "_parts",
            "_looked_at",
            "_places",
            "_open_parts",
            "_stamps",
            "_numbers",
            "_extra",
        ):  # what was read for this one serves that one too
            if name in self.__dict__:
                narrowed.__dict__[name] = self.__dict__[name]
        return narrowed

    def __len__(self) -> int:
        if self.index is not None and self.filter is None:
            return self.index.num_rows
        table = self._indexed(["clip_id"])
        if table is not None:
            return table.num_rows
        with self._gone_is_said():
            self._look_at([])
            return self._parts.count_rows(filter=self.filter)

    def to_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Arrow table of the chosen columns (all if None), in part order."""
        table = None if columns is None else self._indexed(columns)
        if table is not None:
            return table
        with self._gone_is_said():
            self._look_at(columns)
            names = self._known(columns)
            table = self._parts.to_table(columns=self._stored(names), filter=self.filter)
            return table if names is None else self._complete(table, names)

    @contextmanager
    def _gone_is_said(self) -> Iterator[None]:
        """Of parts that another command has replaced meanwhile: `compact`, or a run that tries clips again.

        Raises:
            ValueError: a part is no more.
        """
        try:
            yield
        except (FileNotFoundError, InputError) as error:
            gone = next((file for file in self.files if file in str(error)), self.path)
            if isinstance(error, InputError) and (self._in_store or os.path.exists(gone)):
                raise
            raise ValueError(f"{gone}: is gone since the dataset was opened; {OPEN_AGAIN}") from None

    def _look_at(self, columns: Sequence[str] | None) -> None:
        """Judge the pages of what Arrow is going to read by itself; once, however often it is read."""
        if columns is not None:
            columns = [*columns, *named_in(self.filter, self._parts.schema)]
        wanted = None if columns is None else frozenset(columns)
        if any(known is None or (wanted is not None and wanted <= known) for known in self._looked_at):
            return

        def look(fragment: pads.ParquetFileFragment) -> None:
            path = fragment.path
            with (
                reading(path, WHAT),
                self._gone_is_said(),
                self.filesystem.open_input_file(path) as source,
            ):
                check_sizes(source, fragment.metadata, where=path, columns=columns)

        _of_each(look, list(self._parts.get_fragments()), self.filesystem)
        self._looked_at.append(wanted)

    @cached_property
    def _looked_at(self) -> list[frozenset[str] | None]:
        """Columns that were looked at together, for it is together that they may unfold too far; None: all."""
        return []

    def head(self, columns: Sequence[str], count: int) -> pa.Table:
        """As `to_table`, of the first `count` clips; no more is read than they need."""
        if self.index is not None and self.filter is None and set(columns) <= set(self.index.schema.names):
            return self.index.to_table(columns, most=count).slice(0, count)
        return self.to_table(columns).slice(0, count)

    def tally(self) -> Tally:
        """How its clips ended."""
        if self.index is not None and self.filter is None:
            return self.index.tally()
        return tally_of(self.to_table(OUTCOME_COLUMNS))

    def _indexed(self, columns: Sequence[str]) -> pa.Table | None:
        """Filtered columns from the index; None if there is none or it lacks one that columns or filter
        name."""
        if self.index is None or not set(columns) <= set(self.index.schema.names):
            return None
        try:
            return self.index.to_table(columns=list(columns), filter=self.filter)
        # The filter names a column that only the parts have, or is wrong: they will say. So they do where another
        # command has changed the dataset since.
        except (pa.ArrowInvalid, IndexReplaced):
            return None

    def to_pandas(self, columns: Sequence[str] | None = None) -> pandas.DataFrame:
        """pandas DataFrame; per-frame lists become one array per clip."""
        return self.to_table(columns).to_pandas()

    def batches(
        self, columns: Sequence[str] | None = None, *, batch_size: int = 64
    ) -> Iterator[pa.RecordBatch]:
        """Stream of non-empty record batches in part order; memory does not grow with the dataset."""
        check_count("batch_size", batch_size)
        names = self._known(columns)
        places = self._indexed(PLACE_COLUMNS) if self.filter is not None else None
        if self.filter is not None and places is None:
            with self._gone_is_said():
                self._look_at(columns)
                stream = self._parts.to_batches(
                    columns=self._stored(names),
                    filter=self.filter,
                    batch_size=batch_size,
                    batch_readahead=2,
                    fragment_readahead=1,
                )
                for batch in stream:
                    if batch.num_rows:
                        table = pa.Table.from_batches([batch])
                        yield from (table if names is None else self._complete(table, names)).to_batches()
            return
        for part, group, rows in self._groups(places):
            wanted = None if names is None else [name for name in names if name in part.names]
            table = part.read_row_group(group, columns=wanted)
            table = self._complete(table if rows is None else table.take(rows), names)
            yield from (batch for batch in table.to_batches(max_chunksize=batch_size) if batch.num_rows)

    def narrow_batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Few columns of all clips in part order, many clips a batch, from the index where it has them: for what looks
        at every clip and keeps little of it."""
        if self.filter is not None:
            yield from self.to_table(columns).to_batches()
        elif self.index is not None and set(columns) <= set(self.index.schema.names):
            yield from self.index.batches(columns)
        else:
            yield from self.batches(columns, batch_size=1 << 15)

    def _groups(self, places: pa.Table | None) -> Iterator[tuple[_Part, int, list[int] | None]]:
        """Row groups one after the other, all of them or those with wanted rows; one part is open at a
        time."""
        if places is None:
            for file in self.files:
                part = self._open_part(file)
                yield from ((part, group, None) for group in range(part.file.num_row_groups))
            return
        wanted: dict[int, dict[int, list[int]]] = {}
        for file, group, row in zip(*(places[c].to_pylist() for c in PLACE_COLUMNS), strict=True):
            wanted.setdefault(file, {}).setdefault(group, []).append(row)
        for file, groups in wanted.items():
            part = self._open_part(self.files[file])
            yield from ((part, group, rows) for group, rows in groups.items())

    def _complete(self, table: pa.Table, names: list[str] | None) -> pa.Table:
        """The table with columns that only other parts have, or earlier versions of none, as nulls, in the order asked
        for."""
        known = names if names is not None else self.columns if "_parts" in self.__dict__ else None
        found = table.schema.names
        if known is None or found == known:
            return table
        present = set(found)
        for name in known:
            if name not in present:
                stored = name in self._parts.schema.names
                field = (
                    self._parts.schema.field(name)
                    if stored
                    else pa.field(name, declared_type(COLUMN_BY_NAME[name]))
                )
                table = table.append_column(field, pa.nulls(table.num_rows, field.type))
        return table.select(known)

    def _stored(self, names: list[str] | None) -> list[str] | None:
        """Those of the columns that a part has."""
        return None if names is None else [name for name in names if name in self._parts.schema.names]

    def rows(self) -> Iterator[Row]:
        """Checked rows, one after the other, with captions and scores that were added later (see `extra`)."""
        extra = self._extra
        for batch in self.batches():
            found = rows_from_table(batch)
            yield from found if extra is None else map(extra.onto, found)

    def row(self, clip_id: str) -> Row:
        """One clip by id, with captions and scores that were added later (see `extra`). The first call reads the id
        column of the dataset, later ones only one row group: with an index its series of frames alone, the rest comes
        from the index.

        Raises:
            KeyError: no such clip.
            ValueError: its part was rewritten since the dataset was opened.
        """
        if self.index is not None:
            number = self._look_up(self._numbers, clip_id)
            values = self.index.read(number, self._open_source)
            if values is not None:
                return self._with_extra(rows_from_arrays(values, num_rows=1)[0])
        file, group, offset = self._look_up(self._places, clip_id)
        part = self._open_parts.pop(file, None) or self._open_part(self.files[file])
        self._open_parts[file] = part
        if len(self._open_parts) > _MAX_OPEN_PARTS:
            del self._open_parts[next(iter(self._open_parts))]
        table = part.read_row_group(group).slice(offset, 1)
        (row,) = rows_from_table(self._complete(table, None)) or [None]
        if row is None or row.clip_id != clip_id:
            raise ValueError(
                f"{self.files[file]}: was rewritten since the dataset was opened, clip {clip_id} is gone; {OPEN_AGAIN}"
            )
        return self._with_extra(row)

    def _with_extra(self, row: Row) -> Row:
        return row if self._extra is None else self._extra.onto(row)

    @cached_property
    def _extra(self) -> ExtraColumns | None:
        """Tables of further columns beside the data."""
        return open_extra(self.path)

    def _look_up(self, places: dict[str, _Place], clip_id: str) -> _Place:
        try:
            return places[clip_id]
        except KeyError:
            raise KeyError(f"{self.path}: no clip {clip_id!r} among {len(places)}") from None

    def _open_source(self, number: int) -> pa.NativeFile:
        """A part of the index, which must be the one that the index was made from. Checked once it is open: what is
        put in its place later does not change what this file reads."""
        file = self.files[number]
        try:
            source = self.filesystem.open_input_file(file) if self._in_store else pa.OSFile(file)
        except FileNotFoundError:
            raise ValueError(f"{file}: is gone since the dataset was opened; {OPEN_AGAIN}") from None
        self._check_stamp(file)
        return source

    @cached_property
    def _in_store(self) -> bool:
        return not isinstance(self.filesystem, pafs.LocalFileSystem)

    def _check_stamp(self, file: str) -> None:
        if self._in_store:  # where parts never change
            return
        try:
            stat = os.stat(file)
        except FileNotFoundError:
            raise ValueError(f"{file}: is gone since the dataset was opened; {OPEN_AGAIN}") from None
        if (stat.st_size, stat.st_mtime_ns) != self._stamps[file]:
            raise ValueError(f"{file}: was rewritten since the dataset was opened; {OPEN_AGAIN}")

    def _open_part(self, file: str) -> _Part:
        if self.index is not None:
            self._check_stamp(file)
        if not self._in_store and not os.path.isfile(file):
            raise ValueError(f"{file}: is gone since the dataset was opened; {OPEN_AGAIN}")
        source = self.filesystem.open_input_file(file) if self._in_store else open_source(file)
        part = open_parquet(file, source=source, columns=())
        metadata = part.metadata.metadata or {}
        if (
            b"theodolite.schema_version" in metadata
        ):  # a copy by another tool has none, and was looked at when opened
            check_version(metadata, where=file)
        return _Part(file, part, source)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was read meanwhile: open files do not travel to other processes."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def counts(self, *columns: str) -> dict[tuple[Any, ...], int]:
        """Number of clips for each combination of values, e.g. `counts("source", "verdict")`."""
        grouped = self.to_table(columns).group_by(list(columns)).aggregate([([], "count_all")])
        keys = zip(*(grouped[c].to_pylist() for c in columns), strict=True)
        return dict(sorted(zip(keys, grouped["count_all"].to_pylist(), strict=True), key=repr))

    def _known(self, columns: Sequence[str] | None) -> list[str] | None:
        if columns is None:
            return None
        if set(columns) <= COLUMN_BY_NAME.keys():
            return list(columns)
        unknown = [c for c in columns if c not in self.columns]
        if unknown:
            raise ValueError(
                f"{self.path}: no column {', '.join(unknown)}; there are: {', '.join(self.columns)}"
            )
        return list(columns)

    @cached_property
    def _stamps(self) -> dict[str, tuple[int, int]]:
        """What the parts were when the index was made."""
        return {} if self.index is None else dict(zip(self.files, self.index.stamps(), strict=True))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """clip id -> number of the clip in the index."""
        assert self.index is not None  # asked for only with an index
        ids = self.index.to_table(columns=["clip_id"])["clip_id"].to_pylist()
        return dict(zip(ids, range(len(ids)), strict=True))

    @cached_property
    def _open_parts(self) -> dict[int, _Part]:
        """Parts that `row` keeps open, by number; the one used last comes last."""
        return {}

    @cached_property
    def _places(self) -> dict[str, tuple[int, int, int]]:
        """clip id -> number of the part, row group in it, row in that."""
        if self.index is not None:
            table = self.index.to_table(columns=["clip_id", *PLACE_COLUMNS])
            names, *numbers = (table[c].to_pylist() for c in ("clip_id", *PLACE_COLUMNS))
            return dict(zip(names, zip(*numbers, strict=True), strict=True))

        def ids(fragment: pads.ParquetFileFragment) -> list[str]:
            with self._gone_is_said():
                return fragment.to_table(columns=["clip_id"], use_threads=False)["clip_id"].to_pylist()

        self._look_at(["clip_id"])
        places: dict[str, tuple[int, int, int]] = {}
        fragments: list[pads.ParquetFileFragment] = list(self._parts.get_fragments())
        with ThreadPoolExecutor(8) as pool:
            for f, names in enumerate(pool.map(ids, fragments)):
                start = 0
                for g, info in enumerate(fragments[f].row_groups):
                    for offset, name in enumerate(names[start : start + info.num_rows]):
                        places[name] = (f, g, offset)
                    start += info.num_rows
        return places
