"""Equal to NVlabs/Sana's own operators on the same inputs, so that released weights behave the same."""

from __future__ import annotations

import pytest
import torch

from . import oracle
from .cases import make_case, relative, run

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        not oracle.available(), reason="set THEODOLITE_SANA to a checkout of NVlabs/Sana to compare with it"
    ),
]


@pytest.fixture(autouse=True)
def finite_fresh_memory():
    """Their kernels read memory that they never wrote (padding); give them ordinary memory."""
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  (not in its stubs)
    return


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_main_branch(backend, device: torch.device) -> None:
    case = make_case(frames=3, height=3, width=7, head_size=24, device=device)
    # Theirs takes tf32x1 or IEEE float32 products; 2 is IEEE.
    assert relative(run(case, backend).out, oracle.main_branch(case, precision=2)) < 1e-5


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_camera_branch(backend, device: torch.device) -> None:
    case = make_case(branch="camera", frames=3, height=3, width=7, head_size=24, device=device)
    assert relative(run(case, backend).out, oracle.camera_branch(case, fused=False)) < 1e-5


@pytest.mark.gpu
def test_at_the_real_frame_size_in_bfloat16(device: torch.device) -> None:
    """There theirs rounds as much as ours; both stay within 1e-2 of each other."""
    case = make_case(
        frames=3, height=22, width=40, head_size=112, heads=4, dtype=torch.bfloat16, device=device
    )
    assert relative(run(case, "triton").out, oracle.main_branch(case, precision=0)) < 1.5e-2
