"""The kernels for Hopper alone, compiled for sm_90 without a GPU."""

from __future__ import annotations

from theodolite.kernels.frame_gdn.hopper import forward as hopper
from theodolite.kernels.frame_gdn.hopper.backward import products_backward, readout_backward
from triton.backends.compiler import GPUTarget
from triton.compiler import compile as compile_kernel
from triton.experimental.gluon._runtime import GluonASTSource

HEAD_SIZE = 112


def descriptor(*block: int, kind: str = "bf16") -> str:
    """Type of a host tensor descriptor, as a launch spells it."""
    layout = (
        f"NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank={len(block)}, transposed=False, "
        "fp4_padded=False, cga_layout=[])"
    )
    return f"tensordesc<{kind}[{', '.join(map(str, block))}],{layout}>"


def compiled(kernel, tile: int, warps: int, **constants) -> dict:
    """A kernel for tiles of so many tokens; its pointers are told by their names."""
    tokens = ("k_desc", "v_desc", "q_desc", "out_desc", "dout_desc", "dq_desc", "dk_desc", "dv_desc")
    types = {name: descriptor(1, tile, 1, 128) for name in tokens}
    types["tab_desc"] = descriptor(1, tile, 128, kind="fp16")
    rows = 64 if kernel is hopper.scan else 128
    types |= {
        n: descriptor(1, 128, 128) for n in ("p_desc", "pz_desc", "ds_desc", "dp_desc", "dpz_desc", "du_desc")
    }
    types |= {n: descriptor(1, rows, 128) for n in ("u_desc", "forward_desc", "reverse_desc")}
    types |= {n: "*bf16" for n in ("s_ptr", "r_ptr", "beta_ptr", "dbeta_ptr")}
    types |= {n: "i32" for n in ("T", "S", "H", "count")} | {n: "fp32" for n in ("eps", "key_scale")}
    constants = {"D": HEAD_SIZE, **constants}
    signature, values = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            values[(i,)] = constants[name]
        else:
            signature[name] = types.get(name, "*fp32")
    source = GluonASTSource(kernel, signature, values)
    done = compile_kernel(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    wanted = ("wgmma.mma_async", "cp.async.bulk.tensor")
    return {
        "shared": done.metadata.shared,
        "instructions": [word for word in wanted if word in done.asm["ptx"]],
    }


def compile_all() -> dict[str, dict]:
    """What each needs."""
    none = {n: None for n in ("init_ptr", "init_reverse_ptr", "init_z_ptr", "init_z_reverse_ptr")}
    start = {"HAS_INIT": False, "HAS_INIT_REVERSE": False, **none}
    return {
        "products": compiled(hopper.products, 32, 8, BS=32, STAGES=3),
        "scan": compiled(hopper.scan, 64, 4, BACKWARD=True, BOTH=True, STAGES=3, **start),
        "readout": compiled(hopper.readout, 64, 4, BOTH=True, BS=64),
        "readout_backward": compiled(readout_backward, 64, 8, BOTH=True, STAGES=2),
        "products_backward": compiled(products_backward, 64, 8, STAGES=2),
    }
