"""The Triton kernels of a block and around e4m3, compiled for sm_90 without a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import triton
from theodolite.kernels.block_ops import triton_kernels as block
from theodolite.kernels.fp8 import triton_kernels as fp8
from theodolite.kernels.head_rotation import triton_kernels as rotation
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

HEADS, SIZE = 20, 112
_E4M3 = ("values_ptr",)
_FLOAT32 = ("part_ptr", "mean_ptr", "most_ptr", "scale_ptr", "matrix_ptr")
_SIXTEEN = ("cos_ptr", "sin_ptr")


def compiled(kernel, warps: int, types: dict[str, str] | None = None, **constants) -> int:
    """Bytes that a thread spills, of a kernel for full-size heads."""
    signature, values = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            values[(i,)] = constants[name]
        elif types and name in types:
            signature[name] = types[name]
        elif name.endswith("_ptr"):
            kind = "fp32" if name in _FLOAT32 else "fp16" if name in _SIXTEEN else "bf16"
            signature[name] = f"*{kind}"
        else:
            signature[name] = "fp32" if name in ("eps", "direction") else "i32"
    source = ASTSource(kernel, signature, values)
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    return _spilled(done.asm["cubin"])


def _spilled(cubin: bytes) -> int:
    """Local memory of a compiled kernel, from the compiler's own tool."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True)
    found = re.search(r"STACK:(\d+)", done.stdout + done.stderr)
    assert found, done.stdout + done.stderr
    return int(found.group(1))


SOME = (
    "gate_rows",
    "gated_add_backward",
    "glu_conv backward",
    "statistics",
    "norm_rotate_backward with rays",
    "rotate_heads True",
)


def compile_all(which: str) -> dict[str, int]:
    """Bytes that a thread spills; of `all`, or of `some`: those with the most numbers at hand, one of every kind.

    Long: a table of all kernels.
    """
    row: dict[str, Any] = {"BLOCK": 4096}
    conv: dict[str, Any] = {"CHANNELS": 128}
    head: dict[str, Any] = {"SIZE": SIZE, "PADDED": 128}
    found = {
        "modulated_norm": partial(compiled, block.modulated_norm, 4, ROWS=8, HAS_ADDED=True, **row),
        "modulated_norm_rows": partial(
            compiled,
            fp8.modulated_norm_rows,
            4,
            {"out_ptr": "*fp8e4nv", "scale_ptr": "*bf16", "row_scale_ptr": "*fp32"},
            ROWS=8,
            HAS_ADDED=True,
            KEEP=True,
            ROUND=False,
            **row,
        ),
        "gated_add_rows": partial(
            compiled,
            fp8.gated_add_rows,
            4,
            {"out_ptr": "*fp8e4nv", "row_scale_ptr": "*fp32"},
            HAS_EXTRA=True,
            ROUND=False,
            **row,
        ),
        "gate_rows": partial(
            compiled, fp8.gate_rows, 4, {"out_ptr": "*fp8e4nv"}, HAS_CAMERA=True, ROUND=False, **row
        ),
        "modulated_norm_backward": partial(compiled, block.modulated_norm_backward, 4, ROWS=64, **row),
        "gated_add": partial(compiled, block.gated_add, 4, HAS_EXTRA=True, **row),
        "gated_add_backward": partial(compiled, block.gated_add_backward, 4, ROWS=64, **row),
        "gated_shift_add": partial(compiled, block.gated_shift_add, 4, HAS_FIRST=True, HAS_INNER=True, **row),
        "glu_conv": partial(compiled, block.glu_conv, 2, FAST=True, BACKWARD=False, dout_ptr=None, **conv),
        "glu_conv backward": partial(compiled, block.glu_conv, 2, FAST=True, BACKWARD=True, **conv),
        "glu_conv_dx": partial(compiled, block.glu_conv_dx, 2, **conv),
        "glu_conv_dtaps": partial(compiled, block.glu_conv_dtaps, 2, FRAMES=8, **conv),
        "statistics": partial(compiled, fp8.statistics, 4, TOKENS=64, ROUNDS=8, **head),
        "finish": partial(compiled, fp8.finish, 4, CENTRE=True, TILES=16, **head),
        "round_and_pad": partial(
            compiled, fp8.round_and_pad, 4, {"out_ptr": "*fp8e4nv"}, TOKENS=64, ROUND=False, **head
        ),
        "crop_and_scale": partial(compiled, fp8.crop_and_scale, 4, {"x_ptr": "*fp8e4nv"}, TOKENS=64, **head),
        "round_rows": partial(compiled, fp8.round_rows, 4, {"out_ptr": "*fp8e4nv"}, ROUND=False, **row),
    }
    for rays in (False, True):
        sizes = {"HEADS": HEADS, "SIZE": SIZE, "BH": 32, "BP": 32 if rays else 64, "HAS_MATRIX": rays}
        none = {} if rays else {"matrix_ptr": None}
        name = "with rays" if rays else "whole heads"
        found[f"norm_rotate {name}"] = partial(
            compiled, block.norm_rotate, 4, HAS_WEIGHT=True, **sizes, **none
        )
        found[f"norm_rotate_backward {name}"] = partial(
            compiled, block.norm_rotate_backward, 4, HAS_WEIGHT=True, ROWS=32, **sizes, **none
        )
    sizes = {"HEADS": 32, "HALF": 64, "BH": 32, "BP": 64}
    floats = {"cos_ptr": "*fp32", "sin_ptr": "*fp32"}
    for norm in (False, True):
        none = {} if norm else {"weight_ptr": None}
        found[f"rotate_heads {norm}"] = partial(
            compiled, rotation.rotate_heads, 8, floats, HAS_WEIGHT=norm, **sizes, **none
        )
    return {name: found[name]() for name in (SOME if which == "some" else found)}
