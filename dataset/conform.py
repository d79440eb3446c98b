"""Columns as this version declares them, whoever wrote the file.

Parts of schema version 1 hold maps where version 2 has lists of `{name, value}`. Copies that polars, DuckDB, pandas or
`datasets` wrote (a filtered subset, say) have columns in another order, wider types (`large_string`, lists of float64)
and none of our metadata. Both are cast to what `schema` declares, column by column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import pyarrow as pa

from .schema import COLUMN_BY_NAME, COLUMNS, SCHEMA_VERSION, arrow_schema, check_version

PANDAS_INDEX = "__index_level_"
"""Begins the names of columns in which pandas keeps its own numbering of rows: no column of a dataset."""
_Table = TypeVar("_Table", pa.Table, pa.RecordBatch)


def file_version(schema: pa.Schema, *, where: str) -> int | None:
    """Schema version of a file of ours, or None for a copy that another tool has written.

    Raises:
        ValueError: a newer version than this reader knows, or neither a file of ours nor a whole copy of one.
    """
    if b"theodolite.schema_version" in (schema.metadata or {}):
        return check_version(schema.metadata, where=where)
    what = "not a theodolite dataset file (no schema version in its metadata), nor a whole copy of one"
    require_columns(schema, where=f"{where}: {what}")
    return None


def require_columns(schema: pa.Schema, *, where: str) -> None:
    """Refuse a file without all columns that are never null: some tools keep our metadata where they leave out columns
    (pyarrow, in copies that are partitioned by one).

    Raises:
        ValueError: naming them, and how a copy keeps them.
    """
    missing = [c.name for c in COLUMNS if not c.nullable and c.name not in schema.names]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        folders = [name for name in missing if f"/{name}=" in where.replace("\\", "/")]
        hint = "a copy keeps all columns (`select *`)"
        if folders:
            hint = (
                f"a copy that is partitioned by {', '.join(folders)} has it in the names of folders alone: write it "
                "without partitions, or keep the column (DuckDB: `write_partition_columns true`)"
            )
        raise ValueError(f"{where}: it lacks the columns {', '.join(missing[:5])}{more}; {hint}")


def is_declared(schema: pa.Schema) -> bool:
    """Whether all declared columns of a file have the declared types."""
    return all(f.type == COLUMN_BY_NAME[f.name].type for f in schema if f.name in COLUMN_BY_NAME)


def check_types(schema: pa.Schema, *, where: str) -> None:
    """Refuse columns whose types cannot be brought to the declared ones.

    Raises:
        ValueError: naming file, column and both types.
    """
    names = schema.names
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{where}: column {twice} occurs twice")
    for found in schema:
        column = COLUMN_BY_NAME.get(found.name)
        if column is None or found.type == column.type:
            continue
        try:
            if _has_views(found.type):  # pyarrow 26 casts list views to empty lists
                raise pa.ArrowNotImplementedError("list views are not read")
            pa.array([], found.type).cast(column.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
            raise ValueError(
                f"{where}: column {found.name} has type {found.type}, which is not read as {column.type}"
            ) from None


def _has_views(kind: pa.DataType) -> bool:
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return True
    return any(_has_views(kind.field(i).type) for i in range(kind.num_fields))


def distinct(schemas: Iterable[pa.Schema]) -> list[pa.Schema]:
    """Schemas without most repetitions, metadata included: the parts of a run have one."""
    found: list[pa.Schema] = []
    for schema in schemas:
        if not any(schema.equals(known, check_metadata=True) for known in found[-8:]):
            found.append(schema)
    return found


def common_schema(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Schema of a dataset: the declared columns that any file has, as declared, then the others.

    Raises:
        pyarrow.ArrowInvalid, pyarrow.ArrowTypeError: files disagree on the type of a column that is not declared.
    """
    schemas = distinct(schemas)
    present = {name for schema in schemas for name in schema.names}
    declared = arrow_schema()
    unknown = pa.unify_schemas(
        [
            pa.schema(
                [f for f in schema if f.name not in COLUMN_BY_NAME and not f.name.startswith(PANDAS_INDEX)]
            )
            for schema in schemas
        ],
        promote_options="permissive",
    )
    metadata = {**(schemas[0].metadata or {}), b"theodolite.schema_version": str(SCHEMA_VERSION).encode()}
    # Rows of a copy may lack what must not be null: whoever reads them says so, clip by clip.
    fields = [declared.field(name) for name in declared.names if name in present]
    return pa.schema([*fields, *unknown], metadata=metadata)


def conform(table: _Table) -> _Table:
    """The table with declared columns cast to their declared types; the same one if they have them.

    Raises:
        ValueError: a column that cannot be cast.
    """
    if is_declared(table.schema):
        return table
    check_types(table.schema, where="table")
    arrays, fields = [], []
    for found, array in zip(table.schema, table.columns, strict=True):
        column = COLUMN_BY_NAME.get(found.name)
        if column is not None and found.type != column.type:
            try:
                array = array.cast(column.type)
            except pa.ArrowInvalid as error:
                raise ValueError(f"column {found.name} ({found.type}): {error}") from None
            found = pa.field(found.name, column.type, metadata=found.metadata)
        arrays.append(array)
        fields.append(found)
    return type(table).from_arrays(arrays, schema=pa.schema(fields, metadata=table.schema.metadata))
