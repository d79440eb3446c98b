"""Whether a checkpoint's files hold what was written into them.

Tensors lie in archives of `torch.save`, one each, which hold a CRC-32 of every record; torch writes them and never
looks at them. So sealing tensors costs nothing at saving, and checkpoints of earlier versions can be held to them as
well. Digests of the other two files lie in `progress.json`, which is written last.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SEAL = "seal"
"""Key of `progress.json`: digests of `.metadata`, and of all that `progress.json` says beside."""
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)
"""What reading an archive with a wrong bit may raise."""
GO_BACK = "without that folder --resume goes on from the checkpoint before it"


def sealed(progress: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What goes into a checkpoint's `progress.json`, with digests; after its tensors were written."""
    progress = json.loads(json.dumps(progress))
    return {**progress, SEAL: {"metadata": _of_metadata(folder), "progress": _of_progress(progress)}}


def check_progress(path: Path, progress: Mapping[str, Any]) -> None:
    """Hold what `progress.json` says to its digest, where it has one.

    Raises:
        ValueError: it differs; names the file.
    """
    seal = progress.get(SEAL)
    if seal is not None and (not isinstance(seal, dict) or seal.get("progress") != _of_progress(progress)):
        raise ValueError(f"{path}: is damaged (it differs from its digest); {GO_BACK}")


def check_metadata(folder: Path, progress: Mapping[str, Any]) -> None:
    """Hold `.metadata`, which says where tensors lie, to its digest, where there is one.

    Raises:
        ValueError: it differs; names the file.
    """
    seal = progress.get(SEAL)
    if seal is not None and seal.get("metadata") != _of_metadata(folder):
        raise ValueError(f"{folder / '.metadata'}: is damaged (it differs from its digest); {GO_BACK}")


def damaged_tensors(folder: Path, places: Mapping[Any, Any], *, part: int = 0, parts: int = 1) -> list[str]:
    """Tensors whose bytes are not those that were written, as `FILE: tensor NAME`.

    Args:
        places: `storage_data` of a checkpoint's metadata: file, offset and length of every piece by its index.
        part, parts: look at every so-manieth file alone: ranks share them.
    """
    by_file: dict[str, list[tuple[str, int, int]]] = {}
    for index, place in places.items():
        by_file.setdefault(place.relative_path, []).append((index.fqn, place.offset, place.length))
    mine = sorted(by_file)[part::parts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: _damaged_in(folder / name, by_file[name]), mine))
    return [line for lines in found for line in lines]


def _damaged_in(file: Path, pieces: Iterable[tuple[str, int, int]]) -> list[str]:
    found = []
    try:
        with file.open("rb") as stream:
            for name, offset, length in sorted(pieces, key=lambda piece: piece[1]):
                stream.seek(offset)
                if not _is_whole(stream.read(length)):
                    found.append(f"{file}: tensor {name}")
    except OSError as error:
        found.append(f"{file}: cannot be read ({error.strerror})")
    return found


def _is_whole(archive: bytes) -> bool:
    """Whether an archive is one, and every record in it has its CRC-32."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            return opened.testzip() is None
    except _DAMAGED:
        return False


def _of_metadata(folder: Path) -> str:
    path = folder / ".metadata"
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except FileNotFoundError:
        return ""


def _of_progress(progress: Mapping[str, Any]) -> str:
    """By what JSON gives back, whatever it was written from."""
    content = json.dumps({k: v for k, v in progress.items() if k != SEAL}, sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
