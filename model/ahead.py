"""An iterator that works ahead: while one of its items is used, a thread makes the next."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
_POLL_S = 0.1
"""How often a thread that has an item to give looks whether anybody still wants it."""


class Ahead(Generic[T]):
    """Items of another iterator, made in a thread of its own, one ahead.

    What the other iterator raises is raised here, after the items before it. `close` ends both; it waits for the item
    that is being made.

    Args:
        items: is run, and closed, in the thread alone.
    """

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=1)
        self._ended = False
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Ahead[T]:
        return self

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        item, error = self._made.get()
        if error is not None:
            self._ended = True
            self._thread.join()
            raise error
        return cast(T, item)

    def close(self) -> None:
        """End the thread; items that nobody took are lost."""
        self._ended = True
        self._unwanted.set()
        self._thread.join()

    def _work(self) -> None:
        end: BaseException = StopIteration()
        try:
            for item in self._items:
                if not self._give((item, None)):
                    break
        except BaseException as error:  # noqa: BLE001  (whatever it is, it is raised where the items are used)
            end = error
        finally:
            close: Any = getattr(self._items, "close", None)
            if close is not None:
                close()
        self._give((None, end))

    def _give(self, made: tuple[T | None, BaseException | None]) -> bool:
        """Hand over; False where nobody wants it any more."""
        while not self._unwanted.is_set():
            try:
                self._made.put(made, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False
