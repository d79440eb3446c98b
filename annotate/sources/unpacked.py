"""What unpacking left behind beside the tree: one file an archive, with a line for every member that is not usable."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from ...dataset.reasons import REASONS, ReasonCode

log = logging.getLogger(__name__)

LEDGERS = ".unpacked"
"""Folder below a release's root."""


def read_problems(root: Path) -> dict[str, tuple[ReasonCode, str]]:
    """Path below the root -> reason and detail of a member that could not be unpacked."""
    found: dict[str, tuple[ReasonCode, str]] = {}
    for path in sorted((root / LEDGERS).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if (reason := entry.get("reason")) in REASONS and entry.get("place"):
                found[entry["place"]] = (reason, entry.get("detail", ""))
    return found
