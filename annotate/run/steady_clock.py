"""A clock for dask that nobody sets.

dask and tornado, on which it runs, tell how long something has lasted, and when a message is to be sent, by the time of
day. Where that is put back by an hour (time servers do it, and machines that wake up), messages that were to be sent
within two milliseconds are sent after an hour, workers and scheduler hear nothing of each other, and the run stands
still. Put forth, it makes all workers look dead.
"""

from __future__ import annotations

import sys
import time

_BEGAN = time.time() - time.monotonic()


def steady() -> float:
    """The time of day, in seconds since 1970, as it was when this process began, and since then as long as has gone
    by."""
    return _BEGAN + time.monotonic()


def use_steady_clock() -> None:
    """Have dask and tornado go by it in this process; their modules took the time of day by name when they were
    imported. Before any of their objects is made that remembers a time."""
    import distributed  # noqa: F401 - so that its modules are there
    from tornado.ioloop import IOLoop

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "distributed" and getattr(module, "time", None) is time.time:
            vars(module)["time"] = steady
    IOLoop.time = lambda self: steady()
