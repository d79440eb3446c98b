"""Loops that are proposed: the right ones, and in memory that is not that of all pairs of keyframes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import torch
from theodolite.annotate.sfm.bundle.problem import State
from theodolite.annotate.sfm.loops import propose_loops
from theodolite.dataset.cameras.rotations import so3_exp


def laps(each: int, number: int) -> State:
    """Cameras that go about a circle of 2 m, looking outwards, `each` keyframes a lap."""
    turn = 2 * np.pi * np.arange(each * number) / each
    rotation = np.stack([so3_exp(np.array([0.0, -angle, 0.0])) for angle in turn])
    return State(
        rotation=torch.as_tensor(rotation),
        translation=torch.tensor([[0.0, 0.0, -2.0]], dtype=torch.float64).repeat(len(turn), 1),
        log_focal=torch.full((len(turn),), float(np.log(266.0)), dtype=torch.float64),
        lens=torch.zeros(5, dtype=torch.float64),
        points=torch.zeros(0, 3, dtype=torch.float64),
    )


def proposed(state: State, placed: np.ndarray | None = None) -> list[tuple[int, int]]:
    number = len(state.rotation)
    some = np.ones(number, bool) if placed is None else placed
    return propose_loops(state, some, np.full(number, 3.0), (320.0, 180.0), set(), 1)


def test_a_second_lap_meets_the_first_where_it_was():
    found = [(j, i) for j, i in proposed(laps(150, 2)) if i >= 150]
    assert len(found) > 40
    # The same view, or a neighbour of it.
    assert max(abs((i - j + 75) % 150 - 75) for j, i in found) <= 2


def test_keyframes_without_a_camera_meet_nothing():
    placed = np.arange(300) % 3 > 0
    assert all(placed[j] and placed[i] for j, i in proposed(laps(150, 2), placed))


def test_keyframes_are_compared_in_the_memory_of_a_row_of_pairs():
    state = laps(150, 4)
    tracemalloc.start()
    assert proposed(state)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A matrix of all pairs takes 3 MB, vectors between all pairs 9.
    assert peak < 1e6
