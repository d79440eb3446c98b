"""Sources mixed by weight: shares, epochs, and that a sample's window follows from its number alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from theodolite.dataset.encoded import Window
from theodolite.dataset.loading import epoch_order
from theodolite.train.order import sample_order


def windows(**counts: int) -> list[Window]:
    return [
        Window(
            id=f"{source}_{i}",
            clip_id=f"{source}_{i}",
            first_frame=0,
            num_frames=9,
            caption="",
            cameras=True,
            data_licence="CC0-1.0",
            source=source,
        )
        for source, count in counts.items()
        for i in range(count)
    ]


def test_without_weights_the_order_is_one_permutation_after_another() -> None:
    order = sample_order(windows(a=5, b=3), seed=7, weights=None)
    expected = [*epoch_order(8, seed=7, epoch=0), *epoch_order(8, seed=7, epoch=1)]
    assert [order.position(g) for g in range(16)] == expected
    assert sorted({order.position(3, attempt) for attempt in range(8)}) == list(range(8))


def test_every_source_has_its_share_after_any_number_of_samples() -> None:
    found = windows(a=50, b=7, c=3)
    weights = {"a": 6.0, "b": 3.0, "c": 1.0}
    order = sample_order(found, seed=1, weights=weights)
    seen = [found[order.position(g)].source for g in range(10_000)]
    for n in (10, 100, 1000, 4096, 10_000):
        counts = Counter(seen[:n])
        for name, weight in weights.items():
            assert abs(counts[name] - n * weight / 10) < 1.5 + n / 4096, (n, name)


def test_a_source_goes_through_its_windows_before_it_repeats() -> None:
    found = windows(a=50, b=7)
    order = sample_order(found, seed=1, weights={"a": 1.0, "b": 1.0})
    of_b = [p for g in range(200) if found[p := order.position(g)].source == "b"]
    for epoch in np.array_split(of_b[:98], 14):
        assert len(set(epoch.tolist())) == 7
    assert len({tuple(of_b[i : i + 7]) for i in range(0, 98, 7)}) > 10
    assert [order.position(g) for g in (5000, 77)] == [
        sample_order(found, seed=1, weights={"b": 0.5, "a": 0.5}).position(g) for g in (5000, 77)
    ]
    assert found[order.position(1, 3)].source == found[order.position(1)].source


def test_small_weights_are_not_lost_and_none_leaves_a_source_out() -> None:
    found = windows(a=3, b=3, c=3)
    order = sample_order(found, seed=1, weights={"a": 1e9, "b": 1.0, "c": 0.0})
    counts = Counter(found[order.position(g)].source for g in range(4096))
    assert counts == {"a": 4095, "b": 1}


def test_weights_and_windows_name_the_same_sources() -> None:
    with pytest.raises(ValueError, match=r"no weight for b; no windows of x"):
        sample_order(windows(a=1, b=1), seed=0, weights={"a": 1, "x": 1})
    with pytest.raises(ValueError, match="encode again"):
        sample_order([windows(a=1)[0].model_copy(update={"source": ""})], seed=0, weights={"a": 1})
