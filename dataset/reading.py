"""Reading a dataset: lazily, with filters pushed down to Parquet, from a folder or from the Hugging Face
hub."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs
from numpy.typing import NDArray

from .rows import Row, rows_from_table
from .schema import check_version

if TYPE_CHECKING:
    import pandas


def open_dataset(path: str | Path) -> ClipDataset:
    """Dataset in a folder, or on the Hugging Face hub under `owner/name`. Only file footers are read here.

    Raises:
        ValueError: nothing there, a file that is not of this schema, or a newer schema version.
    """
    local = Path(path)
    if local.is_dir():
        root = local / "data" if (local / "data").is_dir() else local
        filesystem: Any = pafs.LocalFileSystem()
        files = sorted(str(p) for p in root.rglob("*.parquet") if not p.name.startswith((".", "_")))
    elif isinstance(path, str) and path.count("/") == 1 and not local.exists():
        from huggingface_hub import HfFileSystem

        hub = HfFileSystem()
        try:
            files = sorted(str(p) for p in hub.glob(f"datasets/{path}/data/**/*.parquet"))
        except OSError as error:
            raise ValueError(f"{path}: neither a folder nor a dataset on the hub ({error})") from error
        filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(hub))
    else:
        raise ValueError(f"{path}: no such folder; give the --out folder of a run or a hub id `owner/name`")
    if not files:
        raise ValueError(f"{path}: holds no Parquet files below data/; did the run write any part?")
    return ClipDataset(path=str(path), arrow=_arrow_dataset(files, filesystem))


def _arrow_dataset(files: Sequence[str], filesystem: pafs.FileSystem) -> pads.FileSystemDataset:
    parquet = pads.ParquetFileFormat()
    partitioning = pads.partitioning(pa.schema([("source", pa.string())]), flavor="hive")

    def load(file: str) -> pads.ParquetFileFragment:
        fragment = parquet.make_fragment(file, filesystem, partition_expression=partitioning.parse(file))
        try:
            fragment.ensure_complete_metadata()
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
        check_version(fragment.physical_schema.metadata, where=file)
        return fragment

    with ThreadPoolExecutor(8) as pool:
        fragments = list(pool.map(load, files))
    try:
        # Parts of an older or newer minor layout may have further columns: keep the union.
        schema = pa.unify_schemas([f.physical_schema for f in fragments], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{files[0]} and its neighbours disagree on column types: {error}") from error
    return pads.FileSystemDataset(fragments, schema, parquet, filesystem)


@dataclass(frozen=True)
class ClipDataset:
    """Clips of a dataset, nothing loaded until asked for.

    Attributes:
        path: what was opened.
        arrow: the underlying `pyarrow.dataset.Dataset`, for everything not wrapped here.
        filter: condition on columns that applies to every method, except `row`.
    """

    path: str
    arrow: pads.FileSystemDataset = field(repr=False)
    filter: pads.Expression | None = None

    @property
    def columns(self) -> list[str]:
        """Names of all columns, unknown ones included."""
        return self.arrow.schema.names

    def where(self, condition: pads.Expression) -> ClipDataset:
        """The clips that also satisfy `condition`, e.g. `pyarrow.compute.field("verdict") == "accepted"`."""
        both = condition if self.filter is None else self.filter & condition
        return ClipDataset(self.path, self.arrow, both)

    def __len__(self) -> int:
        return self.arrow.count_rows(filter=self.filter)

    def to_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Arrow table of the chosen columns (all if None), in part order."""
        return self.arrow.to_table(columns=self._known(columns), filter=self.filter)

    def to_pandas(self, columns: Sequence[str] | None = None) -> pandas.DataFrame:
        """pandas DataFrame; per-frame lists become one array per clip."""
        return self.to_table(columns).to_pandas()

    def batches(
        self, columns: Sequence[str] | None = None, *, batch_size: int = 64
    ) -> Iterator[pa.RecordBatch]:
        """Stream of record batches; memory does not grow with the dataset."""
        stream = self.arrow.to_batches(
            columns=self._known(columns),
            filter=self.filter,
            batch_size=batch_size,
            batch_readahead=4,
            fragment_readahead=1,
        )
        yield from (batch for batch in stream if batch.num_rows)

    def rows(self) -> Iterator[Row]:
        """Checked rows, one after the other."""
        for batch in self.batches():
            yield from rows_from_table(batch)

    def row(self, clip_id: str) -> Row:
        """One clip by id. The first call reads the id column of the dataset, later ones only one row group.

        Raises:
            KeyError: no such clip.
        """
        try:
            place = self._index[clip_id]
        except KeyError:
            raise KeyError(f"{self.path}: no clip {clip_id!r} among {len(self._index)}") from None
        fragment, group, offset = self._fragments[place[0]], place[1], place[2]
        table = fragment.subset(row_group_ids=[group]).to_table(schema=self.arrow.schema, use_threads=False)
        return rows_from_table(table.slice(offset, 1))[0]

    def counts(self, *columns: str) -> dict[tuple[Any, ...], int]:
        """Number of clips for each combination of values, e.g. `counts("source", "verdict")`."""
        grouped = self.to_table(columns).group_by(list(columns)).aggregate([([], "count_all")])
        keys = zip(*(grouped[c].to_pylist() for c in columns), strict=True)
        return dict(sorted(zip(keys, grouped["count_all"].to_pylist(), strict=True), key=repr))

    def _known(self, columns: Sequence[str] | None) -> list[str] | None:
        if columns is None:
            return None
        unknown = [c for c in columns if c not in self.columns]
        if unknown:
            raise ValueError(
                f"{self.path}: no column {', '.join(unknown)}; there are: {', '.join(self.columns)}"
            )
        return list(columns)

    @cached_property
    def _fragments(self) -> list[pads.ParquetFileFragment]:
        return list(self.arrow.get_fragments())

    @cached_property
    def _index(self) -> dict[str, tuple[int, int, int]]:
        """clip id -> fragment, row group in it, row in that."""

        def ids(fragment: pads.ParquetFileFragment) -> list[str]:
            return fragment.to_table(columns=["clip_id"], use_threads=False)["clip_id"].to_pylist()

        index: dict[str, tuple[int, int, int]] = {}
        with ThreadPoolExecutor(8) as pool:
            for f, names in enumerate(pool.map(ids, self._fragments)):
                start = 0
                for g, info in enumerate(self._fragments[f].row_groups):
                    for offset, name in enumerate(names[start : start + info.num_rows]):
                        index[name] = (f, g, offset)
                    start += info.num_rows
        return index


def poses_from_column(column: pa.Array | pa.ChunkedArray) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All poses of a `camera_to_world` column without a copy per clip.

    Returns:
        (N, 3, 4) float32 of all frames of all clips, and (clips + 1,) offsets into it.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    offsets = array.offsets.to_numpy().astype(np.int64)
    flat = array.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
    return flat.reshape(-1, 3, 4), (offsets - offsets[0]) // 12
