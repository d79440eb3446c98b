"""What a run says of itself while it works: a bar on a terminal, elsewhere a line a minute."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..reporting import Listener
from .plan import Plan
from .tally import Tally

LINE_INTERVAL_S = 60.0
"""Time between progress lines where stderr is no terminal."""
FIRST_LINE_S = 10.0
"""... and to the first one."""
MAX_SHOWN = 3
"""Clips under way that progress names."""


def progress_line(plan: Plan, tally: Tally, elapsed_s: float) -> str:
    """One line: done, rejected by reason, failed, clips/h, time left."""
    to_do = plan.num_clips - plan.num_clips_done
    per_hour = 3600 * tally.done / elapsed_s if elapsed_s > 0 else 0.0
    if not plan.listed:  # a source so large that its end is not known yet
        return f"{tally.done} clips, of more than {to_do}: {tally}; {per_hour:.0f} clips/h"
    share = 100 * tally.done / to_do if to_do else 100
    line = f"{tally.done}/{to_do} clips ({share:.0f} %): {tally}"
    if per_hour:
        left_s = round((to_do - tally.done) / per_hour * 3600)
        line += f"; {per_hour:.0f} clips/h, {left_s // 3600}:{left_s // 60 % 60:02d}:{left_s % 60:02d} left"
    return line


class _Standing:
    """Where the clips stand that are under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of: dict[str, str] = {}

    def hear(self, clip_id: str, text: str) -> None:
        with self._lock:
            self._of.pop(clip_id, None)
            if text:
                self._of[clip_id] = text  # the last that was heard of comes last

    def __str__(self) -> str:
        with self._lock:
            shown = list(self._of.items())[-MAX_SHOWN:]
            more = len(self._of) - len(shown)
        parts = [f"{clip_id}: {text}" for clip_id, text in shown]
        return ", ".join(parts + ([f"{more} more"] if more else []))


@contextmanager
def progress(plan: Plan, tally: Tally, show: bool) -> Iterator[tuple[Callable[[], None], Listener]]:
    """What shows that clips are done, and what hears where the others stand."""
    start = time.monotonic()
    if not show:
        yield lambda: None, lambda _clip_id, _text: None
        return
    standing = _Standing()

    def line() -> str:
        now = str(standing)
        return progress_line(plan, tally, time.monotonic() - start) + (f"; now {now}" if now else "")

    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        with Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        ) as bar:
            task = bar.add_task(progress_line(plan, tally, 0.0), total=None)

            def update() -> None:
                total = plan.num_clips - plan.num_clips_done if plan.listed else None
                bar.update(task, completed=tally.done, total=total, description=line())

            def hear(clip_id: str, text: str) -> None:
                standing.hear(clip_id, text)
                update()

            yield update, hear
        return
    stop = threading.Event()

    def lines() -> None:
        wait_s = min(FIRST_LINE_S, LINE_INTERVAL_S)
        while not stop.wait(wait_s):
            sys.stderr.write(line() + "\n")
            sys.stderr.flush()
            wait_s = LINE_INTERVAL_S

    thread = threading.Thread(target=lines, daemon=True)
    thread.start()
    try:
        yield lambda: None, standing.hear
    finally:
        stop.set()
        thread.join()
        sys.stderr.write(progress_line(plan, tally, time.monotonic() - start) + "\n")
        sys.stderr.flush()
