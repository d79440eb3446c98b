"""Digests of tensors in the files that hold them: a bit that a disk or a copy flipped is found where weights are read.

CRC-32 of each tensor's bytes, by name, in a safetensors file's metadata. It is no protection against intent.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

DIGESTS = "tensor_crc32"
"""Key of the metadata: JSON, eight hexadecimal digits by name."""


def crc32_of(tensor: Tensor) -> str:
    """Of a tensor's bytes as a file holds them: eight hexadecimal digits."""
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{zlib.crc32(content.numpy().data):08x}"


def digests_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Metadata under which tensors are sealed, by their names in the file."""
    with ThreadPoolExecutor(4) as pool:  # zlib lets go of the interpreter
        found = dict(zip(tensors, pool.map(crc32_of, tensors.values()), strict=True))
    return {DIGESTS: json.dumps(found, separators=(",", ":"))}


def check_digests(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> None:
    """Hold tensors to the digests that their file gives; one without any is taken as it is.

    Args:
        tensors: of the file, by their names there; all of them or some.
    Raises:
        ValueError: some differ, or the digests are damaged; names file and tensors.
    """
    text = (metadata or {}).get(DIGESTS)
    if text is None:
        return
    try:
        expected = json.loads(text)
        missing = tensors.keys() - expected.keys()
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: is damaged: its {DIGESTS} are no JSON of digests") from error
    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(tensors, pool.map(crc32_of, tensors.values()), strict=True))
    odd = sorted(missing | {name for name in tensors if found[name] != expected.get(name)})
    if odd:
        more = f" and {len(odd) - 4} more" if len(odd) > 4 else ""
        raise ValueError(
            f"{path}: is damaged: {', '.join(odd[:4])}{more} differ from the digests with which they were written"
        )
