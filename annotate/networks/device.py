"""On which device networks run: the one that was asked for, or this worker's own GPU."""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import logging
import os
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_worker_number = 0


def be_worker(number: int) -> None:
    """Make `auto` mean the GPU of this worker: number modulo the machine's GPUs. Before any network is loaded."""
    global _worker_number
    _worker_number = number


_held: list[int] = []
"""Open files whose locks say which numbers this process holds."""


@cache
def claim_worker_number() -> int:
    """The least number that no other worker of this user on this machine holds; kept until the process ends.

    Names that a cluster gives its workers say nothing of machines, and workers come and go. A lock of the system's
    own ends with its process, however that ends. Workers that see other GPUs count apart.
    """
    visible = re.sub(r"[^\w-]", "_", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))[:100]
    try:
        folder = Path(tempfile.gettempdir()) / f"theodolite-workers-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        for number in itertools.count():
            descriptor = os.open(folder / f"{visible}-{number}", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            _held.append(descriptor)
            return number
    except OSError as error:
        log.warning("workers of this machine cannot be counted (%s): several may share a GPU", error)
    return os.getpid()


def worker_number() -> int:
    """As `be_worker` was told; for processes that this one starts."""
    return _worker_number


def choose_device(
    device: str, asked: str = "--device, or annotate.geometry.device of a recipe"
) -> torch.device:
    """`auto`: this worker's CUDA device if there is one, else the CPU; anything else as torch names it.

    Args:
        asked: where it was asked for, for the message.
    Raises:
        ValueError: the device is unknown or not there.
    """
    import torch

    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", _worker_number % torch.cuda.device_count())
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} ({asked}): use auto, cpu, cuda or cuda:N")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r} ({asked}): this machine has no usable CUDA device; use auto or cpu"
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} ({asked}): this machine has {torch.cuda.device_count()} CUDA devices, the "
            f"last is cuda:{torch.cuda.device_count() - 1}"
        )
    return chosen


@cache
def waits_asleep() -> bool:
    """Make this process's threads sleep while they wait for a GPU; whether the driver agreed.

    By default they look again and again: a thread that waits for a network takes a whole core from decoders and
    solvers. Sleeping costs some ten microseconds a wait.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return False
    return count.value > 0 and not any(_set_flags(cuda, number) for number in range(count.value))


def _set_flags(cuda: ctypes.CDLL, number: int) -> int:
    """The driver's answer, 0 for yes; it keeps the flags for the context that is made of a device, and for one there
    is."""
    device = ctypes.c_int()
    if error := cuda.cuDeviceGet(ctypes.byref(device), number):
        return error
    # The headers give the plain name this one since CUDA 11, which may be called once there is a context.
    return cuda.cuDevicePrimaryCtxSetFlags_v2(device, ctypes.c_uint(_BLOCKING_SYNC))


_BLOCKING_SYNC = 4
"""CU_CTX_SCHED_BLOCKING_SYNC."""
