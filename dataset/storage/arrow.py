"""Files and objects as Arrow opens them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from .paths import ObjectReader, StorePath, as_path, store_client


class _Handler(pafs.FSSpecHandler):
    """Arrow's way to a store: reads by ranges as everything here does."""

    def __init__(self, scheme: str) -> None:
        super().__init__(store_client(scheme, os.getpid()))
        self._scheme = scheme

    def __reduce__(self) -> tuple[Any, ...]:
        return _Handler, (self._scheme,)

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(ObjectReader(StorePath(f"{self._scheme}:/{path}")), mode="r")

    open_input_stream = open_input_file


def arrow_place(path: str | Path) -> tuple[pafs.FileSystem, str]:
    """Arrow's file system that holds a path, and the path's name there."""
    path = as_path(path)
    if isinstance(path, StorePath):
        return pafs.PyFileSystem(_Handler(path.parts[0].rstrip(":"))), path.key
    return pafs.LocalFileSystem(), str(path)


def open_source(path: str | Path) -> pa.NativeFile:
    """A file or object, opened to read."""
    path = as_path(path)
    if isinstance(path, StorePath):
        return pa.PythonFile(ObjectReader(path), mode="r")
    return pa.OSFile(str(path))
