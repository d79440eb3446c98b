"""The lane of the networks: clips that began first go first, errors reach who waits, what is cancelled never runs."""

from __future__ import annotations

import threading

import pytest
from theodolite.annotate.networks.lane import Lane, lane, next_turn


def test_of_what_waits_the_clip_that_began_first_goes_first() -> None:
    of = Lane("test")
    gate, done = threading.Event(), []
    first, second = next_turn(), next_turn()
    assert first < second
    of.submit(second, gate.wait)  # the thread is busy; the rest waits
    waiting = [of.submit(turn, lambda turn=turn: done.append(turn)) for turn in (second, second, first)]
    gate.set()
    for future in waiting:
        future.result(timeout=10)
    assert done == [first, second, second]


def test_errors_and_cancelled_work() -> None:
    of = Lane("test")
    gate, ran = threading.Event(), []
    blocked = of.submit(0, gate.wait)
    cancelled = of.submit(0, lambda: ran.append(1))
    broken = of.submit(0, lambda: 1 // 0)
    assert cancelled.cancel()
    gate.set()
    with pytest.raises(ZeroDivisionError):
        broken.result(timeout=10)
    assert blocked.result() is True
    assert of.submit(0, lambda: "on").result(timeout=10) == "on"
    assert not ran


def test_one_lane_a_device() -> None:
    assert lane("cpu") is lane("cpu")
    assert lane("cpu") is not lane("cuda:0")
