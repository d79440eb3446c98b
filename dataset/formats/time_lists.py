"""Lists of files by time, as TUM RGB-D and ETH3D SLAM have them: `rgb.txt`, `depth.txt`; `time path` a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..arrays import F64
from ..inputs import InputError, read_text, reader
from ..names import wrong_pointer


@dataclass(frozen=True, kw_only=True)
class TimeList:
    """Files and when they are of.

    Attributes:
        time_s: (N,) seconds, strictly increasing.
        names: (N,) paths relative to the list's folder.
    """

    time_s: F64
    names: tuple[str, ...]


@reader("list of files by time")
def read_time_list(path: str | Path) -> TimeList:
    """A list of files by time; `#` begins a comment.

    Raises:
        InputError: naming file and line: no time and path, a path that leads elsewhere, times that do not increase, or
            nothing listed.
    """
    path = Path(path)
    times: list[float] = []
    names: list[str] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        try:
            time = float(words[0])
        except ValueError:
            time = float("nan")
        if len(words) != 2 or not np.isfinite(time):
            raise InputError(f"{path}:{number}: expected `time path`, found {line[:80]!r}")
        if why := wrong_pointer(words[1]):
            raise InputError(f"{path}:{number}: {words[1][:80]!r} {why}")
        if times and time <= times[-1]:
            raise InputError(f"{path}:{number}: time {time:.6f} does not come after {times[-1]:.6f}")
        times.append(time)
        names.append(words[1])
    if not names:
        raise InputError(f"{path}: lists no file")
    return TimeList(time_s=np.array(times), names=tuple(names))
