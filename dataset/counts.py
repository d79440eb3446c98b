"""Counts that a caller gives, looked at where they are given: later they end in an error that names somebody else's
argument, or `True` is taken for one."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_count(name: str, value: Any, *, least: int = 1, none: str = "") -> None:
    """Refuse what is no whole number, or below `least`.

    Args:
        name: of the argument.
        none: what None means; empty: it is refused as well.
    Raises:
        ValueError: it is neither.
    """
    if value is None and none:
        return
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        also = f", or None for {none}" if none else ""
        raise ValueError(f"{name} is {value!r:.60}, expected a whole number, at least {least}{also}")
