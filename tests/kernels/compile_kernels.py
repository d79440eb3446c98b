"""Compile kernels for sm_90 without a GPU: `python compile_kernels.py all`, or `some`.

Prints as JSON what those for Hopper alone need, and the bytes that a thread of the others spills.
"""

from __future__ import annotations

import json
import sys

import compile_hopper
import compile_triton

if __name__ == "__main__":
    spilled = compile_triton.compile_all(sys.argv[1])
    print(json.dumps({"hopper": compile_hopper.compile_all(), "spilled": spilled}))
