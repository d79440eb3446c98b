"""Every tracker, for tests of what all of them promise."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from theodolite.annotate.tracks.batched.tracker import BatchedTracker
from theodolite.annotate.tracks.opencv import OpenCVTracker
from theodolite.annotate.tracks.tracker import MakeTracker


@pytest.fixture(
    params=[
        "opencv",
        # Plain torch takes ten times as long as OpenCV on the processor.
        pytest.param("batched-cpu", marks=pytest.mark.slow),
        pytest.param("batched-cuda", marks=pytest.mark.gpu),
    ]
)
def tracker(request: pytest.FixtureRequest) -> MakeTracker:
    """Who follows the points."""
    if request.param == "opencv":
        return OpenCVTracker
    return partial(BatchedTracker, device=torch.device(request.param.removeprefix("batched-")))
