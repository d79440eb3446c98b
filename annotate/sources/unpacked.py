"""What unpacking left behind beside the tree: one file an archive, with a line for every member that is not usable."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ...dataset.inputs import InputError, read_text
from ...dataset.names import wrong_pointer
from ...dataset.reasons import REASONS, ReasonCode

log = logging.getLogger(__name__)

LEDGERS = ".unpacked"
"""Folder below a release's root."""


def read_problems(root: Path) -> dict[str, tuple[ReasonCode, str]]:
    """Path below the root -> reason and detail of a member that could not be unpacked. What is none of our lines is
    told and passed over: it only says why files are missing."""
    found: dict[str, tuple[ReasonCode, str]] = {}
    for path in sorted((root / LEDGERS).glob("*.jsonl")):
        try:
            entries = [json.loads(line) for line in read_text(path).splitlines()]
        except (InputError, ValueError, RecursionError) as error:
            log.warning("%s: no record of unpacking (%s); unpack the archive again", path, error)
            continue
        for entry in entries:
            if _is_problem(entry):
                found[entry["place"]] = (entry["reason"], str(entry.get("detail", "")))
    return found


def _is_problem(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.get("reason") not in REASONS:
        return False
    place = entry.get("place")
    return isinstance(place, str) and not wrong_pointer(place)
