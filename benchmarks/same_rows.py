"""Do clips still get the rows that they got before? For changes that must not change behaviour.

    python benchmarks/same_rows.py --out before.parquet                          # at the old commit
    python benchmarks/same_rows.py --out after.parquet --against before.parquet  # at the new one

Annotates the clips of `same_clips.py` by the function that the command runs, with one thread, and writes their rows.
`--against` compares them value by value, bit by bit, and prints a line a clip with the first difference; the exit code
is 1 if there is any. Apart are times, the package's version and the recipe's hash (`APART`). A change that renames
something on purpose says so: `--renamed old=new`, for columns, keys of metrics, gates and reasons alike. `--apart
reason_details` leaves sentences out, `--apart metrics.luma_low` a value by name. `--compare FILE` compares rows that
are there already, `--only NAME` annotates those runs alone. About three minutes of one core.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

APART = frozenset(
    {"annotate_wall_s", "stage_wall_s", "package_version", "schema_version", "recipe_hash"},
)
"""Columns that say when and by what a row was made."""
WORK = "/work-folder"
"""Stands in sentences for the folder in which the clips were made."""


# --- comparison ---------------------------------------------------------------------------------


def differences(before: Any, after: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Places where two values of a row differ, `at` the path to them; NaN equals NaN, 0.0 does not equal -0.0."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(k for k in after if k not in before)]:
            yield from differences(before.get(key), after.get(key), f"{at}.{key}" if at else str(key))
    elif isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            yield f"{at}: length", len(before), len(after)
        for i, (a, b) in enumerate(zip(before, after, strict=False)):
            yield from differences(a, b, f"{at}[{i}]")
    elif isinstance(before, float) and isinstance(after, float):
        if not _same_number(before, after):
            yield at, before, after
    elif type(before) is not type(after) or before != after:
        yield at, before, after


def _same_number(a: float, b: float) -> bool:
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b and math.copysign(1, a) == math.copysign(1, b)


def rows_by_clip(table: pa.Table, renamed: Mapping[str, str], apart: frozenset[str]) -> dict[str, Any]:
    """Rows as plain values by source and clip id; lists of named values become mappings, whose order does not count."""
    rows = {}
    for row in table.to_pylist():
        name = f"{row['source']}/{row['clip_id']}"
        if name in rows:
            raise ValueError(f"clip {name} is there twice")
        values = {k: v for k, v in row.items() if k not in APART | apart}
        rows[name] = _plain(values, renamed)
    return rows


def _plain(value: Any, renamed: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return renamed.get(value, value)
    if isinstance(value, dict):
        return {renamed.get(k, k): _plain(v, renamed) for k, v in value.items()}
    if not isinstance(value, list):
        return value
    if value and all(isinstance(v, dict) and set(v) == {"name", "value"} for v in value):
        return {renamed.get(v["name"], v["name"]): _plain(v["value"], renamed) for v in value}
    return [_plain(v, renamed) for v in value]


def compare(
    before: pa.Table,
    after: pa.Table,
    *,
    renamed: Mapping[str, str] | None = None,
    apart: frozenset[str] = frozenset(),
) -> tuple[str, bool]:
    """A table with a line for each clip, and whether all rows are the same.

    Args:
        renamed: names in `before`, and what they are called in `after`.
        apart: further columns that are not compared, and values by name (`metrics.luma_low`).
    """
    old, new = rows_by_clip(before, renamed or {}, apart), rows_by_clip(after, {}, apart)
    lines = [f"{'clip':32s}{'verdict':30s}{'frames':>6s}  first difference"]
    same = True
    for clip in [*old, *(c for c in new if c not in old)]:
        row = old.get(clip) or new[clip]
        verdict = ", ".join(row["reasons"] or [row["verdict"]])
        if clip in old and clip in new:
            found = [found for found in differences(old[clip], new[clip]) if found[0] not in apart]
            told = f"{_told(found[0])} ({len(found)} in all)" if found else "none"
        else:
            found, told = [clip], "not there before" if clip in new else "not there any more"
        same &= not found
        lines.append(f"{clip:32.32s}{verdict:30.30s}{row['num_frames']:6d}  {told}")
    return "\n".join([*lines, f"{len(old)} clips before, {len(new)} after: {_verdict(same)}"]), same


def _told(difference: tuple[str, Any, Any]) -> str:
    at, before, after = difference
    return f"{at}: {before!r:.100} -> {after!r:.100}"


def _verdict(same: bool) -> str:
    return "every value is the same" if same else "NOT THE SAME"


# --- rows ---------------------------------------------------------------------------------------


def make_rows(work: Path, only: Sequence[str] = ()) -> pa.Table:
    """Rows of the clips in `same_clips.py`, made in `work`, by source and clip id."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    sys.path.insert(0, str(Path(__file__).parent))
    import same_clips
    from theodolite.dataset.rows import rows_to_table

    tables = []
    for run in same_clips.runs(work):
        if not only or run.name in only:
            start = time.process_time()
            out = same_clips.annotate_run(run, work)
            tables += [pq.ParquetFile(path).read() for path in sorted((out / "data").rglob("*.parquet"))]
            print(f"{run.name}: {time.process_time() - start:.0f} s", file=sys.stderr, flush=True)
    if not only or "simulated" in only:
        start = time.process_time()
        tables.append(rows_to_table(same_clips.simulated_rows(work)))
        print(f"simulated: {time.process_time() - start:.0f} s", file=sys.stderr, flush=True)
    table = pa.concat_tables([t.replace_schema_metadata(None) for t in tables], promote_options="permissive")
    return _anywhere(table.sort_by([("source", "ascending"), ("clip_id", "ascending")]), work)


def _anywhere(table: pa.Table, work: Path) -> pa.Table:
    """The same rows with the name of the work folder taken out of their sentences."""

    def out(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace(str(work), WORK)
        return [out(v) for v in value] if isinstance(value, list) else value

    for name in ("reason_details", "decode_notes", "media", "error"):
        column = table.schema.get_field_index(name)
        values = [out(value) for value in table[name].to_pylist()]
        table = table.set_column(
            column, table.schema.field(name), pa.array(values, table.schema.field(name).type)
        )
    return table


def _with_one_thread() -> None:
    """Start anew where libraries would take more threads, which round in another order; they ask when imported."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    if not one.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | one)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="Parquet file for the rows")
    parser.add_argument("--compare", type=Path, help="rows that are there already, instead of making them")
    parser.add_argument("--against", type=Path, help="rows to compare with")
    parser.add_argument("--renamed", action="append", default=[], metavar="OLD=NEW")
    parser.add_argument("--apart", action="append", default=[], metavar="COLUMN")
    parser.add_argument("--only", action="append", default=[], metavar="RUN")
    arguments = parser.parse_args()
    if not arguments.compare:
        _with_one_thread()
    if arguments.compare:
        rows = pq.read_table(arguments.compare)
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = make_rows(Path(folder).resolve(), arguments.only)
        broken = [f"{r['clip_id']}: {r['error']}" for r in rows.to_pylist() if r["error"]]
        if broken:
            print("\n".join(["internal errors:", *broken]), file=sys.stderr)
    if arguments.out:
        pq.write_table(rows, arguments.out)
    if not arguments.against:
        return 0
    before = pq.read_table(arguments.against)
    if arguments.only:
        made = set(rows["source"].to_pylist())
        before = before.filter(pa.array([name in made for name in before["source"].to_pylist()]))
    table, same = compare(
        before,
        rows,
        renamed=dict(pair.split("=", 1) for pair in arguments.renamed),
        apart=frozenset(arguments.apart),
    )
    print(table)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
