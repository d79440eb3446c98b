"""Worker processes of data loaders: they start clean, do not run the main script again, and end with their parent."""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
import os
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any


def _worker_context(preload: str) -> Any:
    """Workers never fork from this process: threads and locks of Arrow and PyAV do not survive that.

    A fork server starts clean, imports the module that workers run once, and starts workers in milliseconds;
    elsewhere they are spawned.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return _SpawnContext()
    context = _ForkServerContext()
    context.set_forkserver_preload([preload])
    return context


def _start_without_main(start: Callable[[Any], Any], process: Any) -> Any:
    """Start a worker that does not run the main script again, as fork servers and spawned processes otherwise do: a
    training script would start its own workers anew in each of them unless `if __name__ == "__main__"` guards it.

    What a worker gets is ours and is imported by name. Where it refers to the script after all (a reader of latents
    that is defined there), the script is run again, and needs that guard.
    """
    main = sys.modules["__main__"]
    loads_from = process._args[1:2]  # second in torch's call
    if b"__main__" in pickle.dumps(loads_from):
        return start(process)
    hidden = {name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__}
    main.__spec__ = None
    try:
        return start(process)
    finally:
        main.__dict__.update(hidden)


class _SpawnProcess(multiprocessing.context.SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _start_without_main(multiprocessing.context.SpawnProcess._Popen, process_obj)


class _SpawnContext(multiprocessing.context.SpawnContext):
    Process = _SpawnProcess


if "forkserver" in multiprocessing.get_all_start_methods():

    class _ForkServerProcess(multiprocessing.context.ForkServerProcess):
        @staticmethod
        def _Popen(process_obj: Any) -> Any:
            return _start_without_main(multiprocessing.context.ForkServerProcess._Popen, process_obj)

    class _ForkServerContext(multiprocessing.context.ForkServerContext):
        Process = _ForkServerProcess


def _end_with_parent(_worker: int) -> None:
    """Make a DataLoader worker end when the training process is killed.

    torch watches the parent's process id, which in a worker is the fork server's; that one lives as long as its
    workers do, so without this a killed rank would leave all of them behind for ever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None  # workers are never the main process

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def worker_settings(num_workers: int, *, preload: str) -> dict[str, Any]:
    """Arguments of a DataLoader whose workers never fork from this process and end with it.

    Args:
        preload: name of the module that the workers run, imported once for all of them.
    """
    context = _worker_context(preload) if num_workers else None
    return dict(num_workers=num_workers, multiprocessing_context=context, worker_init_fn=_end_with_parent)
