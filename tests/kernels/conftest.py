"""Set-up of the kernel tests: without a GPU the kernels run in Triton's interpreter, on the CPU."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
HAS_TRITON = importlib.util.find_spec("triton") is not None
if not HAS_GPU and HAS_TRITON:
    # Read when Triton is first imported, so it must be set before any test module imports it.
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Only tests of the kernels themselves need Triton; those of the references run everywhere."""
    if not HAS_TRITON:
        for item in items:
            if item.get_closest_marker("triton"):
                item.add_marker(pytest.mark.skip(reason="pip install theodolite[kernels]"))


@pytest.fixture
def device() -> torch.device:
    """The GPU if there is one; else the CPU, where the kernels are interpreted."""
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture(autouse=True)
def nan_filled_memory():
    """Fresh memory holds NaN, so that a kernel that forgets to write is caught."""
    switch: Any = torch.utils.deterministic  # its attributes are made as they are asked for
    before = torch.are_deterministic_algorithms_enabled(), switch.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    switch.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    switch.fill_uninitialized_memory = before[1]
