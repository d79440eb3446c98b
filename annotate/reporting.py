"""Where each clip stands, for whoever watches the run: its stage, and how many of its frames are through.

Stages call `say` and know nothing of who listens; without a listener it costs a comparison.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Listener = Callable[[str, str], None]
"""Takes a clip's id and where it stands; an empty text: it is done."""

Item = TypeVar("Item")

MIN_INTERVAL_S = 1.0
"""Time between two counts within a stage."""

_listener: Listener | None = None
_lock = threading.Lock()


def listen(listener: Listener) -> None:
    """`listener` hears of all clips of this process from now on."""
    global _listener
    _listener = listener


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """`listener` hears of all clips of this process, from whatever thread, until the end."""
    global _listener
    with _lock:
        before, _listener = _listener, listener
    try:
        yield
    finally:
        with _lock:
            _listener = before


def say(clip_id: str, text: str) -> None:
    """Tell where a clip stands; never raises."""
    global _listener
    listener = _listener
    if listener is None:
        return
    try:
        listener(clip_id, text)
    # A scheduler that is gone must not cost the clip that is under way.
    except Exception:  # noqa: BLE001
        _listener = None


def counted(clip_id: str, stage: str, items: Iterable[Item], total: int, unit: str) -> Iterator[Item]:
    """The items as they are, told one by one, but not oftener than `MIN_INTERVAL_S`."""
    told = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if _listener is not None and time.monotonic() - told >= MIN_INTERVAL_S:
            told = time.monotonic()
            say(clip_id, f"{stage} {number}/{total} {unit}")
