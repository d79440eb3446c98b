"""`index.parquet`: all per-clip columns of a dataset in one small file, and where each clip lies.

Counting or selecting among 213k clips would otherwise read the footers of hundreds of parts. The index is derived: it
can be deleted at any time, says nothing that the parts do not say, and is ignored as soon as the parts are not those
that it was made from, each with the size and the time of change that it had then.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from .schema import COLUMN_BY_NAME, SCHEMA_VERSION, check_version
from .store import list_parts, write_atomically

PLACE_COLUMNS = ("index_part", "index_row_group", "index_row")
"""Columns of the index beyond the dataset's own: number of the part in sorted order, row group in it, row in
that."""
_LEFT_OUT = ("scale_frame", "scale_value", "error", "stage_wall_s")
_NAME = "index.parquet"


def refresh_index(out: str | Path) -> Path | None:
    """Bring `<out>/index.parquet` up to date and return it; None if there are no parts yet.

    Raises:
        ValueError: a part that cannot be read.
    """
    out = Path(out)
    files = [str(part) for part in list_parts(out)]
    if not files:
        return None
    return write_index(out) if open_index(out, files) is None else out / _NAME


def write_index(out: str | Path) -> Path:
    """Write `<out>/index.parquet` for the parts that are there and return it.

    Raises:
        ValueError: no parts, or a part that cannot be read.
    """
    out = Path(out)
    parts = list_parts(out)
    if not parts:
        raise ValueError(f"{out}: no part files below data/source=*/; is this the --out folder of a run?")
    # Before reading: a part that changes meanwhile makes the index stale.
    stamps = [part_stamp(out, part) for part in parts]
    tables: list[pa.Table] = []
    for number, part in enumerate(parts):
        try:
            file = pq.ParquetFile(part)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{part}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
        check_version(file.schema_arrow.metadata, where=str(part))
        wanted = [name for name in file.schema_arrow.names if _is_indexed(name)]
        table = file.read(columns=wanted)
        groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        columns = (
            [number] * table.num_rows,
            [g for g, n in enumerate(groups) for _ in range(n)],
            [row for n in groups for row in range(n)],
        )
        for name, values in zip(PLACE_COLUMNS, columns, strict=True):
            table = table.append_column(
                pa.field(name, pa.int32(), nullable=False), pa.array(values, pa.int32())
            )
        tables.append(table)
    table = pa.concat_tables(tables, promote_options="permissive")
    metadata = {
        "theodolite.schema_version": str(SCHEMA_VERSION),
        "theodolite.parts": json.dumps(stamps),
    }
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd", row_group_size=1 << 20)
    write_atomically(out / _NAME, sink.getvalue().to_pybytes())
    return out / _NAME


def _is_indexed(name: str) -> bool:
    column = COLUMN_BY_NAME.get(name)
    return column is None or (not column.per_frame and name not in _LEFT_OUT)


def open_index(out: Path, files: list[str]) -> pads.FileSystemDataset | None:
    """The index of a dataset folder, or None if there is none or the parts are no longer those it was made
    from."""
    path = out / _NAME
    if not path.is_file():
        return None
    schema = pq.read_schema(path)
    version = (schema.metadata or {}).get(b"theodolite.schema_version")
    if version != str(SCHEMA_VERSION).encode():
        return None
    stamps = [part_stamp(out, Path(file)) for file in files]
    if json.loads((schema.metadata or {})[b"theodolite.parts"]) != [list(stamp) for stamp in stamps]:
        return None
    return pads.dataset(str(path), format="parquet")


def indexed_parts(index: pads.FileSystemDataset) -> set[tuple[str, int, int]]:
    """The parts that an opened index speaks of: path in the dataset, size, time of change in nanoseconds."""
    return {
        (name, size, changed)
        for name, size, changed in json.loads(index.schema.metadata[b"theodolite.parts"])
    }


def part_stamp(out: Path, part: Path) -> tuple[str, int, int]:
    """What tells a part from another one of the same name without reading it."""
    status = part.stat()
    return str(part.relative_to(out)), status.st_size, status.st_mtime_ns
