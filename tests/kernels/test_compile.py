"""Kernels compile for Hopper GPUs with the installed Triton, wherever the tests run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.triton]

SHARED_MEMORY = 227 * 1024
"""Bytes that a program may have on an H100 or H200."""


@pytest.fixture(scope="module")
def compiled(thorough: bool) -> dict[str, Any]:
    """In one process of its own: this one may run Triton's interpreter, which turns compilation off."""
    script = str(Path(__file__).with_name("compile_kernels.py"))
    done = subprocess.run(
        [sys.executable, script, "all" if thorough else "some"], capture_output=True, text=True, timeout=600,
        check=False, env={**os.environ, "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_kernels_for_hopper_alone_fit_and_use_its_instructions(compiled: dict[str, Any]) -> None:
    found = compiled["hopper"]
    assert set(found) == {"products", "scan", "readout", "readout_backward", "products_backward"}
    for name, kernel in found.items():
        assert kernel["shared"] <= SHARED_MEMORY, name
        assert "wgmma.mma_async" in kernel["instructions"], name
        assert "cp.async.bulk.tensor" in kernel["instructions"], name


def test_kernels_of_a_block_and_around_e4m3_hold_their_numbers_in_registers(
    compiled: dict[str, Any], thorough: bool
) -> None:
    """For heads and widths of the full-size network."""
    spilled = compiled["spilled"]
    assert len(spilled) >= (18 if thorough else 6)
    assert max(spilled.values()) <= 64
