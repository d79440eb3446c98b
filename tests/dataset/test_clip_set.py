"""Sets of clip ids in sixteen bytes each."""

import numpy as np
from theodolite.dataset import clip_set
from theodolite.dataset.clip_set import ClipSet


def test_as_a_set_of_python_does(monkeypatch):
    monkeypatch.setattr(clip_set, "_LOOSE", 16)
    rng = np.random.default_rng(0)
    ids = [f"clip_{i}" for i in rng.integers(0, 600, 1000)]
    have: set[str] = set()
    ours = ClipSet()
    for start in range(0, len(ids), 37):
        asked = [f"clip_{i}" for i in rng.integers(0, 600, 20)]
        assert ours.has(asked) == [clip_id in have for clip_id in asked]
        ours.update(ids[start : start + 37])
        have.update(ids[start : start + 37])
    assert ("clip_1" in ours, "clip_600" in ours) == ("clip_1" in have, False)
    held = [*ours._runs, clip_set._halves(np.array(list(ours._loose), "S16"))]
    assert len({pair for halves in held for pair in zip(*(h.tolist() for h in halves), strict=True)}) == len(
        have
    )
    assert len(ours._runs) <= 8
    assert ClipSet().has([]) == []


def test_digests_that_end_in_zero_bytes(monkeypatch):
    """numpy cuts them off when it gives them back."""
    monkeypatch.setattr(clip_set, "_digest", lambda clip_id: clip_id.encode().ljust(16, b"\0"))
    monkeypatch.setattr(clip_set, "_LOOSE", 2)
    assert ClipSet(["a", "b", "c", "d"]).has(["a", "d", "e", ""]) == [True, True, False, False]


def test_digests_that_share_their_first_half(monkeypatch):
    monkeypatch.setattr(clip_set, "_digest", lambda clip_id: b"12345678" + clip_id.encode().rjust(8, b"\0"))
    monkeypatch.setattr(clip_set, "_LOOSE", 4)
    ours = ClipSet(f"{i}" for i in range(0, 40, 2))
    assert ours._runs
    assert ours.has([f"{i}" for i in range(42)]) == [i % 2 == 0 and i < 40 for i in range(42)]
