"""The Hopper kernels compile for their GPU with the installed Triton, wherever the tests run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.triton

SHARED_MEMORY = 227 * 1024
"""Bytes that a program may have on an H100 or H200."""


@pytest.mark.slow
def test_kernels_compile_and_fit() -> None:
    """In a process of its own: this one may run Triton's interpreter, which turns compilation off."""
    script = Path(__file__).with_name("compile_hopper.py")
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert set(found) == {"products", "scan", "readout", "readout_backward", "products_backward"}
    for name, kernel in found.items():
        assert kernel["shared"] <= SHARED_MEMORY, name
        assert "wgmma.mma_async" in kernel["instructions"], name
        assert "cp.async.bulk.tensor" in kernel["instructions"], name
