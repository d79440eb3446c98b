"""Reading and judging datasets of many clips: processor time and memory as the number of rows grows.

    python benchmarks/filter_scale.py --parts 213 2000

Parts of a thousand rows with twelve metrics and no cameras; each measurement is a process of its own, so
that its memory is its own. Rows are written by pyarrow from one part with other ids and numbers: making them is not
what is measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from theodolite.dataset.index import refresh_index
from theodolite.dataset.reading import open_dataset
from theodolite.dataset.report.inspect import inspect_text
from theodolite.dataset.rows import Row
from theodolite.dataset.store import part_path, prepare_output, write_part
from theodolite.dataset.text_table import text_table
from theodolite.recipes.commands.datasets import filter_

HASH, ROWS = "0" * 16, 1000
NAMES = ("vmaf_motion", "flow_px", "saturation", "num_cuts", "dover", *(f"n{i}" for i in range(7)))
_SIZES = np.array([1, 1, 1, 0.025, 0.01, *[1] * 7])


def numbered(number: int, rng: np.random.Generator) -> Row:
    """A rejected row, which may lack cameras."""
    return Row(
        clip_id=f"c{number}",
        source="miradata",
        original_id=str(number),
        media_kind="video",
        media=f"{number}.mp4",
        mode="estimate",
        data_licence="research-only",
        data_redistributable=False,
        stand_in=False,
        recipe_hash=HASH,
        package_version="0",
        verdict="rejected",
        reasons=("too_short",),
        reason_details=("by the benchmark",),
        metrics=dict(zip(NAMES, _SIZES * rng.uniform(0, 100, len(NAMES)), strict=True)),
    )


def write(root: Path, parts: int) -> None:
    """A dataset of `parts` thousand rows called accepted, since thresholds look at nothing else of them."""
    rng = np.random.default_rng(0)
    prepare_output(root, recipe_hash=HASH)
    first = write_part(root, [numbered(i, rng) for i in range(ROWS)], shard_id="000000-x", recipe_hash=HASH)
    table = pq.ParquetFile(first).read()
    for number in range(parts):
        changed = {
            "clip_id": pa.array([f"c{number:06d}_{i:03d}" for i in range(ROWS)]),
            "verdict": pa.array(["accepted"] * ROWS),
            "metrics": pa.array(
                [
                    list(zip(NAMES, values, strict=True))
                    for values in _SIZES * rng.uniform(0, 100, (ROWS, len(NAMES)))
                ],
                table.schema.field("metrics").type,
            ),
        }
        for name, column in changed.items():
            at = table.schema.get_field_index(name)
            table = table.set_column(at, table.schema.field(name), column.cast(table.schema.field(name).type))
        path = part_path(root, source="miradata", shard_id=f"{number:06d}-x")
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, compression="zstd")


def judge(root: Path, *changes: str) -> str:
    """`theodolite filter` with the thresholds of MiraData, some of them changed."""
    out = root.parent / "kept.parquet"
    out.unlink(missing_ok=True)
    text, code = filter_(root, ["corpus/miradata"], list(changes), out=out)
    assert code == 0, text
    return text.splitlines()[0]


def ids(root: Path) -> str:
    """Ids of the accepted rows, in one table."""
    found = open_dataset(root).where("verdict = 'accepted'").to_table(["clip_id"])
    return f"{len(found):,} ids"


def iterate(root: Path) -> str:
    """Every column of every row once, in batches."""
    return f"{sum(len(table) for table in open_dataset(root).batches()):,} rows"


STEPS: dict[str, Callable[[Path], str]] = {
    "filter, no index": judge,
    "index from nothing": lambda root: f"{refresh_index(root)}",
    "filter": judge,
    "filter, other thresholds": lambda root: judge(root, "filters.flow_px=[10, 60]"),
    "inspect": lambda root: inspect_text(root).splitlines()[0],
    "ids of the accepted": ids,
    "all columns, in batches": iterate,
}


def measure(step: str, root: Path) -> None:
    """One step in this process: processor seconds, largest memory and what it said, as JSON."""
    said = STEPS[step](root)
    used = resource.getrusage(resource.RUSAGE_SELF)
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime + child.ru_utime + child.ru_stime
    print(json.dumps({"cpu_s": seconds, "mb": used.ru_maxrss / 1024, "said": said[:100]}))


def main() -> None:
    """Write, measure each step, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", type=int, nargs="+", default=[213, 2000])
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--folder", type=Path, help="where datasets are written, and kept")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(args.measure, args.folder)
    found: dict[str, list[str]] = {step: [] for step in args.steps}
    with tempfile.TemporaryDirectory() as name:
        for parts in args.parts:
            root = (args.folder or Path(name)) / f"parts{parts}" / "dataset"
            if not root.exists():
                start = time.process_time()
                root.parent.mkdir(parents=True, exist_ok=True)
                write(root, parts)
                print(f"{parts},000 rows written in {time.process_time() - start:.0f} s", flush=True)
            for step in args.steps:
                command = [sys.executable, __file__, "--measure", step, "--folder", str(root)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{step}: {done.stderr[-2000:]}")
                values = json.loads(done.stdout.splitlines()[-1])
                print(f"{parts},000: {step}: {values}", flush=True)
                found[step].append(f"{values['cpu_s']:.1f} s, {values['mb']:.0f} MB")
    print(text_table(("step", *(f"{p},000 rows" for p in args.parts)), [(s, *v) for s, v in found.items()]))
    return None


if __name__ == "__main__":
    main()
