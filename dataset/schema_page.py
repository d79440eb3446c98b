"""The reference of all columns and reasons, as a page and as tables."""

from __future__ import annotations

import math
import sys

from .reasons import reasons_markdown
from .schema import COLUMNS, SCHEMA_VERSION
from .text_table import markdown_table


def _range(bounds: tuple[float, float] | None) -> str:
    if bounds is None:
        return ""
    low, high = bounds
    return f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:.4g}"


def schema_markdown() -> str:
    """Reference of all columns as a Markdown table."""
    head = f"Schema version {SCHEMA_VERSION}. One row per clip; F = `num_frames`. A type that ends in `?` may be null."
    rows = []
    for c in COLUMNS:
        kind = str(c.type).replace("element: ", "").replace(" not null", "")
        if c.per_frame:
            kind += f" [{c.per_frame}F]" if c.per_frame > 1 else " [F]"
        rows.append((f"`{c.name}`", kind + "?" * c.nullable, c.unit, _range(c.bounds), c.meaning))
    header = ("column", "type", "unit", "range", "meaning")
    return f"{head}\n\n{markdown_table(header, rows, cells_are_markdown=True)}\n"


def reference_page() -> str:
    """Text of `SCHEMA.md`, which lies beside this module."""
    return (
        "# Columns of the dataset\n\n"
        "Generated from `dataset/schema.py`; write it anew with "
        "`python -m theodolite.dataset.schema_page > dataset/SCHEMA.md`.\n\n"
        "A dataset lies in one folder: `data/<source>/part-<shard>.parquet` (from the thousandth shard on "
        "`data/<source>/<thousands>/part-<shard>.parquet`), `dataset.json` (schema "
        "version and recipe hash), `README.md` (tells `datasets` which files are data) and, derived from the parts, "
        "`index/<source>.parquet` and `.arrow` (per-clip columns for "
        "queries, and for one clip by id; two files for each thousand parts). Units and meanings are also in the "
        "field metadata of every file; its file metadata holds `theodolite.schema_version` and "
        "`theodolite.recipe_hash`. Per-frame values are flat lists: "
        "`numpy.asarray(row.camera_to_world).reshape(-1, 3, 4)`; values by name are lists of `{name, value}`: "
        "`{x['name']: x['value'] for x in metrics}`. Readers keep columns they do not know and refuse "
        "a newer version.\n\n"
        "`datasets.load_dataset(DIR)`, `pandas.read_parquet(DIR + '/data')`, `pyarrow.parquet.read_table`, polars and "
        "DuckDB read it as it is. What they write, a filtered copy say, opens again with `theodolite.dataset.open(FILE "
        "or DIR)`, validates and exports, whatever the order and the width of its columns, as long as it kept those "
        "that may not be null.\n\n"
        "## Versions\n\n"
        "| version | change |\n| --- | --- |\n"
        "| 2 | `stage_wall_s`, `metrics` and `captions` are lists of `{name, value}`, maps before (`datasets` knows no "
        "maps). Parts lie in `data/<source>/`, in `data/source=<source>/` before, where readers took `source` for a "
        "key and a column at once. Pages carry checksums. |\n"
        "| 1 | Read as before, also mixed with parts of version 2; a run in such a folder is not continued. "
        "`theodolite subset OLD --where 'num_frames >= 0' --out NEW` writes it anew. |\n\n"
        "## Columns\n\n" + schema_markdown() + "\n# Reasons\n\n"
        "Codes in `reasons`, from `dataset/reasons.py`. *Judged*: the clip could be read, and what was measured on it "
        "says that no trustworthy cameras come of it; commands call it rejected. *Failed*: its files, what the index "
        "says of them, or the software has to be mended first. `verdict` is `rejected` for both.\n\n"
        + reasons_markdown()
    )


if __name__ == "__main__":
    sys.stdout.write(reference_page())
