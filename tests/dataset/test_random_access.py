"""What is read like a file, without being one, answers as files do: objects of a store, archives in several parts."""

from __future__ import annotations

import os
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from theodolite.annotate.sources.archives import _Parts
from theodolite.dataset.storage.paths import as_path

CONTENT = np.random.default_rng(0).bytes(200_000)
"""More than is asked of a store at least."""


def in_parts(tmp_path: Path, content: bytes) -> Any:
    for name, piece in (("aa", content[:70_001]), ("ab", content[70_001:])):
        (tmp_path / f"a.zip.part_{name}").write_bytes(piece)
    return _Parts(tmp_path / "a.zip.part_aa")


def in_store(tmp_path: Path, content: bytes) -> Any:
    place = as_path(f"memory://{uuid.uuid4().hex}/object")
    place.write_bytes(content)
    return place.open("rb")


@pytest.fixture(params=[in_parts, in_store])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[bytes], Any]]:
    opened: list[IO[bytes]] = []

    def make(content: bytes) -> Any:
        opened.append(request.param(tmp_path, content))
        return opened[-1]

    yield make
    for stream in opened:
        stream.close()


def test_places_and_bytes_are_those_of_a_file(made: Callable[[bytes], Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    dice = np.random.default_rng(1)
    stream = made(CONTENT)
    with (tmp_path / "file").open("rb") as file:
        for _ in range(300):
            whence = int(dice.integers(3))
            reach = len(CONTENT) + 100
            offset = int(dice.integers(-reach, reach))
            size = int(dice.choice([0, 1, 22, 4096, 90_000]))
            found = []
            for one in (stream, file):
                try:
                    found.append((one.seek(offset, whence), one.read(size), one.tell()))
                except OSError:
                    found.append(("before the start", one.tell()))
            assert found[0] == found[1], (offset, whence, size)


def test_what_is_too_short_for_its_reader_is_no_archive(made: Callable[[bytes], Any]) -> None:
    """Readers look for an end record 22 bytes before the end; a place before the start gave other bytes."""
    stream = made(b"PK")
    with pytest.raises(OSError, match=os.strerror(22)):
        stream.seek(-22, os.SEEK_END)
    with pytest.raises(zipfile.BadZipFile):
        zipfile.ZipFile(stream)
