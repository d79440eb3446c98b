"""How far a video is: bars with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ...model.generation import Progress

LINE_INTERVAL_S = 30.0
"""Between lines where stderr is no terminal; the first comes after a few seconds."""
_FIRST_LINE_S = 5.0


@contextmanager
def shown_progress(name: str, *, show: bool = True) -> Iterator[Progress]:
    """What hears of steps and shows them on stderr."""
    if not show:
        yield lambda _stage, _done, _total: None
    elif sys.stderr.isatty():
        with _bars(name) as hear:
            yield hear
    else:
        yield _lines(name)


@contextmanager
def _bars(name: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import (
        Progress as Bars,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def hear(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(f"{name}: {stage}", total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield hear


def _lines(name: str) -> Progress:
    start = time.monotonic()
    since: dict[str, float] = {}
    last = start - LINE_INTERVAL_S + _FIRST_LINE_S

    def hear(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        begun = since.setdefault(stage, now)
        if now - last < LINE_INTERVAL_S and done < total:
            return
        last = now
        left = (now - begun) / done * (total - done) if done and now > begun else None
        text = f"{name}: {stage} {done}/{total}"
        sys.stderr.write(
            text + (f", about {clock(left)} left\n" if left else f" after {clock(now - start)}\n")
        )
        sys.stderr.flush()

    return hear


def clock(seconds: float) -> str:
    """`45 s`, `3:20` or `1:02:03`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole or not seconds else f"{seconds:.1f} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
