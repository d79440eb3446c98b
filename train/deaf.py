"""Processes that SIGUSR1 must not reach.

Batch systems send it to every process of a job (`--signal=USR1@60`), and whoever has not asked for it ends: workers
that read clips, and the one that keeps account of shared memory, without which others report errors of their own.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


def hold_signal() -> set[signal.Signals] | None:
    """Keep SIGUSR1 back in this thread, and from processes that begin meanwhile for ever.

    Returns:
        signals that were kept back before; None: this system has no such thing.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    return {signal.Signals(number) for number in before}


def release_signal(before: set[signal.Signals] | None) -> None:
    """Undo `hold_signal`; one that came meanwhile is heard now."""
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes begun inside never hear SIGUSR1; this one does, afterwards."""
    before = hold_signal()
    try:
        yield
    finally:
        release_signal(before)
