"""The lane of the networks: clips that began first go first, errors reach who waits, what is cancelled never runs."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from theodolite.annotate.anchors import upload
from theodolite.annotate.lane import Lane, lane, next_turn, taken_over, uploading


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


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_images_that_are_uploaded_beside_a_busy_network_reach_it_whole(name: str) -> None:
    """On a GPU two streams share the memory: a block that is freed in one must not be written while the other reads."""
    device = torch.device(name)
    frames = np.random.default_rng(0).integers(0, 256, (64, 96, 160, 3), np.uint8)
    expected = torch.stack([upload(f, torch.device("cpu"), (42, 70)) for f in frames])
    side = 4096 if device.type == "cuda" else 64
    heavy = torch.randn(side, side, device=device) / side**0.5

    def network(images: torch.Tensor) -> torch.Tensor:
        images = taken_over(images)
        work = heavy
        for _ in range(20):
            work = heavy @ work
        late = images.float() + 0 * work[0, 0]  # read only when the work before it is done
        return late.cpu()

    waiting, window = [], []
    for number, frame in enumerate(frames):
        with uploading(device):
            window.append(upload(frame, device, (42, 70)))
        if len(window) == 4:
            with uploading(device, wait=True):
                images = torch.stack(window)
            window = []
            waiting.append(lane(name).submit(number, lambda images=images: network(images)))
            del images
    seen = torch.cat([future.result(timeout=60) for future in waiting])
    # Sums in another order may round a pixel the other way.
    assert float((seen - expected.float()).abs().max()) <= (1 if device.type == "cuda" else 0)
