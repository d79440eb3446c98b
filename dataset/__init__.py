"""Cameras, the Parquet contract, exports, metrics and reports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .reading import ClipDataset


def open(path: str | Path) -> ClipDataset:
    """Open a dataset: the `--out` of a run (a folder, or `s3://bucket/run`), or `owner/name` on the Hugging Face hub;
    see `reading`."""
    from .reading import open_dataset  # late: cameras alone must not load pyarrow

    return open_dataset(path)
