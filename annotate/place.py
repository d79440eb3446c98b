"""Where the heavy work of a clip runs; the order of its stages (`pipeline.py`) knows nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from .networks.device import choose_device
from .sfm.processes import in_solver, num_gpus, shares, streamed
from .tracks.opencv import OpenCVTracker

if TYPE_CHECKING:
    from .config import AnnotateConfig
    from .tracks.tracker import MakeTracker

Result = TypeVar("Result")


def tracker_of(config: AnnotateConfig) -> MakeTracker:
    """Who follows points: what the recipe asks for; by `auto` a GPU only where networks have one anyway. It works in a
    clip's turn at the networks (`Place.networks`), beside them and before them.

    Raises:
        ValueError: the device is not there.
    """
    if config.tracks.tracker == "opencv" or (config.tracks.tracker == "auto" and not num_gpus(config)):
        return OpenCVTracker
    from .tracks.batched.tracker import BatchedTracker

    return partial(BatchedTracker, device=choose_device(config.geometry.device))


class Place(Protocol):
    """Turns at the networks, and somewhere to solve."""

    def networks(self) -> AbstractContextManager[None]:
        """Held while frames are shown to networks; entering it may wait for other clips."""
        ...

    def solve(self, work: Callable[..., Result], **arguments: object) -> Result:
        """`work(**arguments)`, which is arithmetic alone; waits for it.

        Raises:
            ClipRejection: as `work` does.
            MemoryError: a process that did it was ended from outside.
        """
        ...


class Here:
    """In this thread and at once: one clip alone."""

    def networks(self) -> AbstractContextManager[None]:
        """No waiting."""
        return nullcontext()

    def solve(self, work: Callable[..., Result], **arguments: object) -> Result:
        """See `Place`."""
        return in_solver(0, work, **arguments)


class Shared:
    """A worker with other clips under way, as `config.executor` shares it out."""

    def __init__(self, config: AnnotateConfig) -> None:
        self._config = config
        self._solvers = shares(config)[1]

    def networks(self) -> AbstractContextManager[None]:
        """Waits for one of the worker's places at the networks."""
        return streamed(self._config)

    def solve(self, work: Callable[..., Result], **arguments: object) -> Result:
        """In one of the worker's solver processes, if it has any."""
        return in_solver(self._solvers, work, **arguments)
