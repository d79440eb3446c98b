"""Columns that are added to a finished dataset without writing its rows anew: captions and scores by clip.

A table of them lies in `extra/<name>/` beside the data: `table.json` (what kind, and what made it) and
`part-<number>.parquet` with `clip_id`, the values, and `problem` where a clip could not be done. A part is there whole
or not at all, and a clip in several parts counts as the last one says: a run that is killed goes on with the clips that
are in none. In an object store a part is put only if none of its number is there. Rows take the values up when they
are read (`ClipDataset.rows` and `row`): a caption under the table's name, scores among the metrics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as _compute

from .inputs import InputError, parse_json, read_text
from .names import check_name
from .parquet import read_table, sealed
from .rows import Row
from .storage.paths import StorePath, as_path
from .store import TEMPORARY, write_atomically

pc: Any = _compute  # its functions are made at import, where no type checker sees them

Kind = Literal["captions", "scores"]
FORMAT = "theodolite extra columns"
VERSION = 1
FOLDER = "extra"
ROWS_PER_PART = 100_000
"""Rows of a part once small ones are joined."""
_JOINED_FROM = 16
"""Parts with fewer rows than that, from which on they are joined."""


@dataclass(frozen=True)
class ExtraTable:
    """One table of further columns.

    Attributes:
        folder: `extra/<name>` of a dataset.
        kind: what its values are: texts in `caption`, or numbers by the names of metrics.
        settings: what made them; all parts are of the same.
    """

    folder: Path
    kind: Kind
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the table, and of its captions."""
        return self.folder.name

    def parts(self) -> list[Path]:
        """Finished parts, oldest first."""
        return sorted(self.folder.glob("part-*.parquet"))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """One row a clip: what the last part that has the clip says.

        Raises:
            InputError: a part is damaged; says that the same command makes its clips again.
        """
        tables = []
        for part in self.parts():
            try:
                tables.append(read_table(part, columns))
            except InputError as error:
                raise InputError(
                    f"{error}; remove it, and the command that made it makes its clips again"
                ) from None
        if not tables:
            return pa.table({"clip_id": pa.array([], pa.string())})
        table = pa.concat_tables(tables, promote_options="permissive").combine_chunks()
        return table.take(_last_of_each(table["clip_id"]))

    def done(self, *, problems: bool = True) -> set[str]:
        """Clips that are in a part; without `problems` only those that have values."""
        table = self.read(["clip_id", "problem"])
        if not problems and "problem" in table.column_names:
            table = table.filter(pc.is_null(table["problem"]))
        return set(table["clip_id"].to_pylist())

    def write(self, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Write some clips as the next part; all have the same keys, `clip_id` and `problem` among them."""
        return self._write(pa.table({key: _column(key, [row[key] for row in rows]) for key in rows[0]}))

    def _write(self, table: pa.Table) -> Path:
        content = memoryview(sealed(table, compression="zstd", row_group_size=1 << 16))
        while True:
            number = 1 + max((int(part.stem.partition("-")[2]) for part in self.parts()), default=-1)
            path = self.folder / f"part-{number:08d}.parquet"
            if not isinstance(path, StorePath):
                write_atomically(path, content)
                return path
            if path.create(content):
                return path

    def join_parts(self) -> None:
        """Make few parts of many small ones; whatever dies in between, no clip is lost or counts twice."""
        parts, small = self.parts(), []
        # The last ones alone, so that their order among all stays.
        while parts and read_table(parts[-1], ["clip_id"]).num_rows < ROWS_PER_PART:
            small.insert(0, parts.pop())
        if len(small) < _JOINED_FROM:
            return
        table = pa.concat_tables([read_table(part) for part in small], promote_options="permissive")
        table = table.combine_chunks()
        table = table.take(_last_of_each(table["clip_id"]))
        for start in range(0, table.num_rows, ROWS_PER_PART):
            self._write(table.slice(start, ROWS_PER_PART))
        for part in small:
            part.unlink()


def _column(key: str, values: list[Any]) -> pa.Array:
    if key in ("clip_id", "problem"):
        return pa.array(values, pa.string())
    return pa.array(values)  # of type null where none has a value, which goes with any other


def _last_of_each(ids: pa.ChunkedArray) -> pa.Array:
    """Positions of the last entry of every id, in order."""
    codes = np.asarray(ids.combine_chunks().dictionary_encode().indices)
    last = np.zeros(int(codes.max(initial=-1)) + 1, np.int64)
    last[codes] = np.arange(len(codes))  # of equal ones the last assignment stays
    return pa.array(np.sort(last))


def begin_table(dataset: str | Path, name: str, kind: Kind, settings: Mapping[str, Any]) -> ExtraTable:
    """Make a table, or go on with the one that was made by the same settings.

    Raises:
        ValueError: no dataset folder, a name that is none, or a table of other settings; names every difference.
    """
    folder = as_path(dataset) / FOLDER / check_name(name, "the table's name")
    if not (as_path(dataset) / "data").is_dir():
        raise ValueError(f"{dataset}: no folder of a dataset with parts; further columns lie beside them")
    wanted = {"format": FORMAT, "version": VERSION, "kind": kind, "settings": dict(settings)}
    if (folder / "table.json").is_file():
        found = open_table(folder)
        if found.kind != kind:
            raise ValueError(f"{folder}: holds {found.kind}, not {kind}; choose another --name")
        now = json.loads(json.dumps(dict(settings)))
        differences = [
            f"{key}: {found.settings.get(key)!r} there, {now.get(key)!r} now"
            for key in sorted({*found.settings, *now})
            if found.settings.get(key) != now.get(key)
        ]
        if differences:
            raise ValueError(
                f"{folder}: was made otherwise ({'; '.join(differences)}); choose another --name, or remove the folder"
            )
        if not isinstance(folder, StorePath):  # where those are signs of life
            for stale in folder.glob(f"{TEMPORARY}*"):
                stale.unlink()
        return found
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "table.json", (json.dumps(wanted, indent=1) + "\n").encode())
    return ExtraTable(folder, kind, settings)


def open_table(folder: Path) -> ExtraTable:
    """A table that is there.

    Raises:
        InputError: its `table.json` is none.
    """
    marker = folder / "table.json"
    content = parse_json(read_text(marker), marker)
    known = (
        isinstance(content, dict) and content.get("format") == FORMAT and content.get("version") == VERSION
    )
    if (
        not known
        or content.get("kind") not in get_args(Kind)
        or not isinstance(content.get("settings"), dict)
    ):
        raise InputError(f"{marker}: is no {FORMAT!r} of version {VERSION}")
    return ExtraTable(folder, content["kind"], content["settings"])


def extra_tables(dataset: str | Path) -> list[ExtraTable]:
    """All tables of a dataset, sorted by name; none for what is no folder here."""
    root = as_path(dataset) / FOLDER
    if not root.is_dir():
        return []
    return [open_table(folder) for folder in sorted(root.iterdir()) if (folder / "table.json").is_file()]


def extra_scores(dataset: str | Path) -> list[pa.Table]:
    """Every table of scores: `clip_id` and numbers by the names of metrics."""
    found = []
    for table in extra_tables(dataset):
        if table.kind == "scores":
            values = table.read()
            names = [f.name for f in values.schema if pa.types.is_floating(f.type)]
            found.append(values.select(["clip_id", *names]))
    return found


@dataclass(frozen=True)
class ExtraColumns:
    """All tables of a dataset, as rows take them up."""

    tables: tuple[ExtraTable, ...]

    def onto(self, row: Row) -> Row:
        """The row with its further captions and metrics; the same row where it has none."""
        captions = {t.name: text for t, values in self._captions if (text := values.get(row.clip_id))}
        metrics = {k: v for values in self._scores for k, v in values.get(row.clip_id, {}).items()}
        if not captions and not metrics:
            return row
        return replace(
            row,
            captions={**(row.captions or {}), **captions} or None,
            metrics={**(row.metrics or {}), **metrics} or None,
        )

    @cached_property
    def _captions(self) -> list[tuple[ExtraTable, _Texts]]:
        return [(t, _Texts(t.read(["clip_id", "caption"]))) for t in self.tables if t.kind == "captions"]

    @cached_property
    def _scores(self) -> list[dict[str, dict[str, float]]]:
        found = []
        for table in (t for t in self.tables if t.kind == "scores"):
            values = table.read()
            names = [f.name for f in values.schema if pa.types.is_floating(f.type)]
            found.append(
                {
                    row["clip_id"]: {n: row[n] for n in names if row[n] is not None}
                    for row in values.select(["clip_id", *names]).to_pylist()
                }
            )
        return found


class _Texts:
    """Captions by clip, as they lie in the file: not a Python text each."""

    def __init__(self, table: pa.Table) -> None:
        self._at = {clip_id: i for i, clip_id in enumerate(table["clip_id"].to_pylist())}
        self._texts = table["caption"] if "caption" in table.column_names else None

    def get(self, clip_id: str) -> str | None:
        place = self._at.get(clip_id)
        return None if place is None or self._texts is None else self._texts[place].as_py()


def open_extra(dataset: str) -> ExtraColumns | None:
    """Tables beside a dataset; None without any."""
    tables = extra_tables(dataset)
    return ExtraColumns(tuple(tables)) if tables else None
