"""What was fetched, what is gone and why: one line an event, only ever appended.

A file that lies at its place in its full size is there, whatever the ledger says; the ledger knows those that were
dropped after use, and those that cannot be had. A line that was cut off by a crash is passed over.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

FetchReason = Literal[
    "gone",
    "private",
    "geo_blocked",
    "no_access",
    "rate_limited",
    "unreachable",
    "size_mismatch",
    "digest_mismatch",
    "no_room",
    "refused",
]
PERMANENT: frozenset[FetchReason] = frozenset({"gone", "private", "geo_blocked", "no_access"})
"""Reasons that another try will not change; the others are tried again by the next run."""
MEANINGS: dict[FetchReason, str] = {
    "gone": "Removed, or never there (404, 410).",
    "private": "Its owner shows it to nobody, or to members only.",
    "geo_blocked": "Not shown in this country.",
    "no_access": "Access was refused (401, 403): ask its owner for it on the hub, and log in with a token of yours.",
    "rate_limited": "The server asks to come back later (429); run the same command again.",
    "unreachable": "The connection broke off or stalled at every try; run the same command again.",
    "size_mismatch": "What came has another size than what is listed.",
    "digest_mismatch": "What came has another SHA-256 than what is listed, twice.",
    "no_room": "It would pass the budget, or the disk has no room for it.",
    "refused": "The server answered with an error, or yt-dlp found no video.",
}
assert set(MEANINGS) == set(get_args(FetchReason))


class FetchError(Exception):
    """A file cannot be had.

    Args:
        reason: for the ledger.
        detail: one sentence with what was found.
    """

    def __init__(self, reason: FetchReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: FetchReason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is last known of one file.

    Attributes:
        place: where it goes below the root; its identity.
        url: where it came from, without what is secret.
        state: `done`: it was here whole; `dropped`: and has been deleted after use; `failed`.
        size: bytes, of a file that was here.
    """

    place: str
    url: str
    state: Literal["done", "dropped", "failed"]
    size: int | None = None
    reason: FetchReason | None = None
    detail: str = ""


class Ledger:
    """The ledger of a root, `.fetched/ledger.jsonl`; threads may share it, two runs must not."""

    def __init__(self, root: Path) -> None:
        self.path = root / ".fetched" / "ledger.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        whole = True
        if self.path.is_file():
            content = self.path.read_bytes()
            whole = not content or content.endswith(b"\n")
            for line in content.splitlines():
                try:
                    entry = Entry(**json.loads(line))
                except (ValueError, TypeError):
                    continue
                self._entries[entry.place] = entry
        self._file = self.path.open("ab")
        if not whole:
            self._file.write(b"\n")  # what comes next must not go on after half a line

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._entries.values()))

    def get(self, place: str) -> Entry | None:
        """What is last known of the file that belongs there."""
        return self._entries.get(place)

    def add(self, entry: Entry) -> None:
        """Append, and flush to disk."""
        with self._lock:
            self._file.write(json.dumps(asdict(entry)).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._entries[entry.place] = entry

    def close(self) -> None:
        """Close the file."""
        self._file.close()
