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


@pytest.fixture(scope="session", autouse=True)
def patched_once_a_launch():
    """The interpreter puts its own functions into `triton.language` at every launch, and again at every call of one
    jitted function by another, by looking through all of it: a third of the time. Once a launch is enough."""
    if HAS_GPU or not HAS_TRITON:
        yield
        return
    from triton.runtime import interpreter

    module: Any = interpreter
    patch, done = module._patch_lang, set()

    def once(function: Any) -> Any:
        seen = {id(value) for value in function.__globals__.values() if value in (module.tl, module.tl.core)}
        if seen <= done:
            return None  # nothing is asked of it after a call from within a kernel
        first = not done
        done.update(seen)
        scope = patch(function)
        if first:  # of the launch, which ends with this scope
            restore = scope.restore
            scope.restore = lambda: (done.clear(), restore())
        return scope

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(module, "_patch_lang", once)
        yield


@pytest.fixture(autouse=True)
def nan_filled_memory():
    """Fresh memory holds NaN, so that a kernel that forgets to write is caught."""
    switch: Any = torch.utils.deterministic  # its attributes are made as they are asked for
    before = torch.get_deterministic_debug_mode(), switch.fill_uninitialized_memory
    # `torch.use_deterministic_algorithms`, which is the same, imports torch's compiler for a second.
    torch.set_deterministic_debug_mode("warn")
    switch.fill_uninitialized_memory = True
    yield
    torch.set_deterministic_debug_mode(before[0])
    switch.fill_uninitialized_memory = before[1]
