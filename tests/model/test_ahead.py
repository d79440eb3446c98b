"""Items made ahead in a thread: order, errors, and an end at any time."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from theodolite.model.ahead import Ahead


def test_the_next_item_is_made_while_one_is_used() -> None:
    begun, where = threading.Event(), set()

    def items() -> Iterator[int]:
        where.add(threading.get_ident())
        yield 0
        begun.set()
        yield from range(1, 5)

    ahead = Ahead(items())
    assert next(ahead) == 0
    assert begun.wait(5)  # nobody has asked for the second
    assert list(ahead) == [1, 2, 3, 4]
    assert list(ahead) == []
    assert where != {threading.get_ident()}


@pytest.mark.parametrize("error", [ValueError("bad chunk"), KeyboardInterrupt()])
def test_errors_come_after_the_items_before_them(error: BaseException) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise error

    ahead = Ahead(items())
    assert next(ahead) == 1
    with pytest.raises(type(error)):
        next(ahead)
    assert list(ahead) == []


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_early_end_closes_what_is_run(taken: int) -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    before = threading.active_count()
    ahead = Ahead(items())
    for _ in range(taken):
        next(ahead)
    ahead.close()
    assert closed.is_set()
    assert threading.active_count() == before
    assert list(ahead) == []
