"""Tests marked `gpu` need a CUDA device: skipped without one, failed instead where REQUIRE_GPU=1 promised one."""

from __future__ import annotations

import importlib.util
import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each process has a core of its own; read when numpy and torch are first imported.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")


def _has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting or _has_gpu():
        return
    promised = os.environ.get("REQUIRE_GPU") == "1"
    for item in wanting:
        if promised:
            item.add_marker(pytest.mark.usefixtures("fail_without_gpu"))
        else:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def fail_without_gpu() -> None:
    pytest.fail("REQUIRE_GPU=1 but torch sees no CUDA device")
