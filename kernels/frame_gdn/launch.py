"""Launching the stages: allocation, launch parameters, and which kernels run.

Intermediate matrices have the dtype of the tokens; chains accumulate in float32 either way. The main branch
in bfloat16 has its four heavy stages a second time for Hopper GPUs (`hopper/`); everything else, and every
other device, takes the Triton kernels.
"""

# Triton's launch syntax, kernel[grid](...), is beyond the type checker.
# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false
# pyright: reportAttributeAccessIssue=false, reportReturnType=false

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from .tensors import (
    Chain,
    Ends,
    Inputs,
    ProductGradients,
    Products,
    Readout,
    ReadoutGradients,
    StepGradients,
)
from .triton import backward as gradients
from .triton import forward as kernels

INTERPRETED = triton.knobs.runtime.interpret

# (kernel, tokens in half precision): tile and launch parameters, chosen by measurement on an H200
# (benchmarks/kernels_bench.py --sweep); a name ending in _rays is for the camera branch.
LAUNCH: dict[tuple[str, bool], dict[str, int]] = {
    ("inverse_rms", True): {"BR": 2, "num_warps": 2},
    ("inverse_rms", False): {"BR": 8, "num_warps": 4},
    ("products", True): {"BS": 64, "SPLIT": 1, "num_warps": 8, "num_stages": 3},
    ("products", False): {"BS": 32, "SPLIT": 2, "num_warps": 8, "num_stages": 1},
    ("products_rays", True): {"BS": 32, "SPLIT": 1, "num_warps": 8, "num_stages": 1},
    ("readout_rays", True): {"BS": 64, "SPLITS": 1, "num_warps": 8, "num_stages": 3},
    ("readout_backward_query_rays", True): {"BS": 32, "num_warps": 4, "num_stages": 1},
    ("readout_backward_state_rays", True): {"BS": 64, "num_warps": 8, "num_stages": 1},
    ("products_backward_value_rays", True): {"BS": 64, "num_warps": 8, "num_stages": 1},
    ("products_backward_key_rays", True): {"BS": 32, "num_warps": 4, "num_stages": 1},
    ("scan", True): {"BR": 64, "STAGES": 3, "num_warps": 4},
    ("scan", False): {"BR": 16, "STAGES": 1, "num_warps": 8},
    ("readout", True): {"BS": 64, "SPLITS": 1, "num_warps": 4, "num_stages": 2},
    ("readout", False): {"BS": 32, "SPLITS": 1, "num_warps": 8, "num_stages": 1},
    ("readout_backward_query", True): {"BS": 32, "num_warps": 4, "num_stages": 3},
    ("readout_backward_query", False): {"BS": 32, "num_warps": 8, "num_stages": 1},
    ("readout_backward_state", True): {"BS": 32, "num_warps": 4, "num_stages": 3},
    ("readout_backward_state", False): {"BS": 32, "num_warps": 8, "num_stages": 1},
    ("products_backward_value", True): {"BS": 64, "num_warps": 8, "num_stages": 3},
    ("products_backward_value", False): {"BS": 32, "num_warps": 8, "num_stages": 1},
    ("products_backward_key", True): {"BS": 64, "num_warps": 4, "num_stages": 1},
    ("products_backward_key", False): {"BS": 32, "num_warps": 8, "num_stages": 1},
    ("combine", True): {"BR": 16, "num_warps": 4, "num_stages": 2},
    ("combine", False): {"BR": 16, "num_warps": 8, "num_stages": 1},
    ("finish_keys", True): {"BR": 16, "num_warps": 2},
    ("finish_keys", False): {"BR": 16, "num_warps": 4},
    ("remove_radial", True): {"BR": 8, "num_warps": 4},
    ("remove_radial", False): {"BR": 8, "num_warps": 4},
    ("settle_queries", True): {"BR": 32, "num_warps": 4},
    ("row_dot", True): {"BR": 4, "BC": 512, "num_warps": 4},
    ("row_dot", False): {"BR": 4, "BC": 512, "num_warps": 4},
}


def _block(d: int) -> int:
    return max(16, triton.next_power_of_2(d))


def _launch(name: str, half: bool, rays: bool = False) -> dict[str, int]:
    chosen = dict(LAUNCH.get((name + "_rays" * rays, half), LAUNCH[name, half]))
    if INTERPRETED:
        chosen |= {key: min(chosen[key], 16) for key in ("BS", "BC") if key in chosen}
        chosen["num_stages"] = 1
    return chosen


def _matrix_dtype(x: Inputs) -> torch.dtype:
    return torch.bfloat16 if x.half else torch.float32


def _strides(x: Tensor) -> tuple[int, int, int, int]:
    return x.stride(0), x.stride(1), x.stride(2), x.stride(3)


def _tokens(x: Tensor, tile: int) -> Any:
    """Descriptor of (B, T, S, H, D) for tiles of one frame and head; rows and channels beyond are zero."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    b, t, s, h, d = x.shape
    uniform = b == 1 or x.stride(0) == t * x.stride(1)
    if not uniform or x.data_ptr() % 16 or any(step % 8 for step in x.stride()[1:4]):
        x = x.contiguous()
    strides = [*x.stride()[1:4], 1]
    return TensorDescriptor(x, [b * t, s, h, d], strides, [1, tile, 1, 128], NVMMASharedLayout(128, 16, 4))


def _rope_table(x: Inputs, tile: int) -> Any:
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    assert x.rope is not None
    return TensorDescriptor(
        x.rope, list(x.rope.shape), list(x.rope.stride()), [1, tile, 128], NVMMASharedLayout(128, 16, 3)
    )


def _matrices(x: Tensor, rows: int = 128) -> Any:
    """Descriptor of (..., D, D), one matrix or some of its rows at a time."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    d = x.shape[-1]
    count = x.numel() // (d * d)
    return TensorDescriptor(x, [count, d, d], [d * d, d, 1], [1, rows, 128], NVMMASharedLayout(128, 16, 3))


def inverse_rms(tokens: Tensor, norm_eps: float) -> Tensor:
    """(B, T, S) float32 inverse RMS over heads and channels of (B, T, S, H, D)."""
    b, t, s, h, d = tokens.shape
    out = torch.empty(b, t, s, dtype=torch.float32, device=tokens.device)
    options = _launch("inverse_rms", tokens.dtype != torch.float32)
    grid = (triton.cdiv(b * t * s, options["BR"]),)
    kernels.inverse_rms[grid](
        tokens, out, *_strides(tokens), t, s, h, b * t * s, norm_eps, D=d, BD=_block(d), **options
    )
    return out


def compute_products(x: Inputs) -> Products:
    """Transitions and updates of every frame, and the norms of the keys."""
    b, t, s, h, d = x.sizes
    dtype, device = _matrix_dtype(x), x.k.device
    k_inv = None if x.k_weight is None else inverse_rms(x.k, x.norm_eps)
    p = torch.empty(b, t, h, d, d, dtype=dtype, device=device)
    u = torch.empty(b, t, h, d, d, dtype=dtype, device=device)
    pz = torch.empty_like(p) if x.normalise else None
    uz = torch.empty(b, t, h, d, dtype=torch.float32, device=device) if x.normalise else None
    stretch = torch.empty(b, t, h, dtype=torch.float32, device=device) if x.turning == 2 else None
    if x.hopper:
        from .hopper import forward as hopper

        assert pz is not None
        programs = min(b * t * h, torch.cuda.get_device_properties(device).multi_processor_count)
        hopper.products[(programs,)](
            _tokens(x.k, 32), _tokens(x.v, 32), _rope_table(x, 32), _matrices(p), _matrices(u), _matrices(pz),
            x.beta, k_inv, x.k_weight, uz, t, s, h, b * t * h, x.key_scale, D=d, BS=32, STAGES=3, num_warps=8,
        )  # fmt: skip
        return Products(p, u, pz, uz, stretch, k_inv)
    options = _launch("products", x.half, x.rays is not None)
    split = options["SPLIT"]
    kernels.products[(b * t * h * (split + x.normalise if split else 1),)](
        x.k, x.v, x.beta, k_inv, x.k_weight, x.rope, x.rays,
        p, u, pz, uz, stretch,
        *_strides(x.k), *_strides(x.v), t, s, h, x.key_scale,
        D=d, NORM=x.k_weight is not None, ROPE=x.turning, DEN=x.normalise,
        HALF=x.half, BD=_block(d), **options,
    )  # fmt: skip
    return Products(p, u, pz, uz, stretch, k_inv)


def _run_scan(
    x: Inputs,
    p: Tensor,
    u: Tensor | None,
    pz: Tensor | None,
    uz: Tensor | None,
    initial: Ends,
    *,
    backward: bool,
    store: bool,
) -> Chain:
    b, t, _, h, d = x.sizes
    device, dtype = p.device, _matrix_dtype(x)
    normalise = pz is not None

    def states(wanted: bool) -> Tensor | None:
        return torch.empty(b, t, h, d, d, dtype=dtype, device=device) if store and wanted else None

    def rows(wanted: bool) -> Tensor | None:
        return torch.empty(b, t, h, d, dtype=torch.float32, device=device) if store and wanted else None

    def end(wanted: bool, *tail: int) -> Tensor | None:
        return torch.empty(b, h, *tail, dtype=torch.float32, device=device) if wanted else None

    # The Hopper kernel stores in any case: its rows are written while the next product runs.
    store = store or (x.hopper and u is not None)
    kv, kv_reverse = states(True), states(x.both)
    z, z_reverse = rows(normalise), rows(normalise and x.both)
    ends = Ends(
        kv=end(True, d, d),
        z=end(normalise, d),
        kv_reverse=end(x.both, d, d),
        z_reverse=end(normalise and x.both, d),
    )
    if x.hopper and u is not None:
        from .hopper import forward as hopper

        assert kv is not None
        assert pz is not None
        hopper.scan[(b * h, 3, 1 + x.both)](
            _matrices(p), _matrices(u, 64), _matrices(pz), uz, x.decay, x.keep,
            _matrices(kv, 64), None if kv_reverse is None else _matrices(kv_reverse, 64), z, z_reverse,
            initial.kv, initial.kv_reverse, initial.z, initial.z_reverse,
            ends.kv, ends.kv_reverse, ends.z, ends.z_reverse, t, h,
            D=d, BACKWARD=backward, HAS_INIT=initial.kv is not None,
            HAS_INIT_REVERSE=initial.kv_reverse is not None, BOTH=x.both, STAGES=3, num_warps=4,
        )  # fmt: skip
        return Chain(kv, kv_reverse, z, z_reverse, ends)
    options = _launch("scan", x.half)
    blocks = triton.cdiv(d, options["BR"])
    kernels.scan[(b * h, blocks + normalise, 1 + x.both)](
        p, u, pz, uz, x.decay, x.keep,
        kv, kv_reverse, z, z_reverse,
        initial.kv, initial.kv_reverse, initial.z, initial.z_reverse,
        ends.kv, ends.kv_reverse, ends.z, ends.z_reverse, t, h,
        D=d, NUM_ROW_BLOCKS=blocks, BD=_block(d), BACKWARD=backward, HAS_IN=u is not None,
        HAS_INIT=initial.kv is not None, HAS_INIT_REVERSE=initial.kv_reverse is not None,
        STORE=store, DEN=normalise, BOTH=x.both, HALF=x.half, **options,
    )  # fmt: skip
    return Chain(kv, kv_reverse, z, z_reverse, ends)


def compute_states(x: Inputs, products: Products, initial: Ends, *, store: bool = True) -> Chain:
    """Forward and (unless causal) reverse states of every frame; only their ends when not stored."""
    return _run_scan(
        x, products.p, products.u, products.pz, products.uz, initial, backward=False, store=store
    )


def compute_transitions(x: Inputs, products: Products) -> Ends:
    """Product of all frames' transitions in both directions: kv and z (B, H, D, D) each."""
    b, _, _, h, d = x.sizes
    eye = torch.eye(d, dtype=torch.float32, device=products.p.device).expand(b, h, d, d).contiguous()
    start = Ends(kv=eye, kv_reverse=eye if x.both else None)
    kv = _run_scan(x, products.p, None, None, None, start, backward=False, store=False).ends
    if products.pz is None:
        return kv
    z = _run_scan(x, products.pz, None, None, None, start, backward=False, store=False).ends
    return replace(kv, z=z.kv, z_reverse=z.kv_reverse)


def _spread(x: Inputs, tile: int) -> int:
    """Programs a frame and head: a streaming chunk has few frames, so their tiles fill the device."""
    b, t, s, h, _ = x.sizes
    return 1 if INTERPRETED else min(triton.cdiv(s, tile), triton.cdiv(528, b * t * h))


def compute_readout(x: Inputs, states: Chain) -> Readout:
    """Output of every frame."""
    b, t, s, h, d = x.sizes
    out = torch.empty(b, t, s, h, d, dtype=x.v.dtype, device=x.v.device)
    if x.hopper:
        from .hopper import forward as hopper

        den, square = torch.empty(2, b, t, h, s, dtype=torch.float32, device=out.device)
        q_inv = torch.empty(b, t, s, dtype=torch.float32, device=out.device)
        hopper.readout[(b * t * h, _spread(x, 64))](
            _tokens(x.q, 64), _rope_table(x, 64), _tokens(out, 64),
            states.kv, states.kv_reverse, states.z, states.z_reverse, x.q_weight, den, square, t, s, h,
            D=d, BOTH=x.both, BS=64, num_warps=4,
        )  # fmt: skip
        options = _launch("settle_queries", True)
        gradients.settle_queries[(b * t, triton.cdiv(s, options["BR"]))](
            den, square, q_inv, out, s, h, x.norm_eps, x.eps,
            D=d, BD=_block(d), BH=triton.next_power_of_2(h), **options,
        )  # fmt: skip
        return Readout(out, q_inv)
    q_inv = None if x.q_weight is None else inverse_rms(x.q, x.norm_eps)
    options = _launch("readout", x.half, x.rays is not None)
    splits = max(options.pop("SPLITS"), _spread(x, options["BS"]))
    kernels.readout[(b * t * h, splits)](
        x.q, q_inv, x.q_weight, x.rope, x.rays,
        states.kv, states.kv_reverse, states.z, states.z_reverse, out,
        *_strides(x.q), t, s, h, x.eps,
        D=d, NORM=x.q_weight is not None, ROPE=x.turning, DEN=x.normalise, BOTH=x.both,
        HALF=x.half, BD=_block(d), **options,
    )  # fmt: skip
    return Readout(out, q_inv)


def readout_backward(x: Inputs, states: Chain, readout: Readout, dout: Tensor) -> ReadoutGradients:
    """Gradient of `compute_readout`."""
    b, t, s, h, d = x.sizes
    device = dout.device
    dout = dout.contiguous()
    q_inv = readout.q_inv
    norm = x.q_weight is not None
    dq = torch.empty(b, t, s, h, d, dtype=x.q.dtype, device=device)
    dkv = torch.empty(b, t, h, d, d, dtype=_matrix_dtype(x), device=device)
    dz = torch.empty(b, t, h, d, dtype=torch.float32, device=device) if x.normalise else None
    dweight = torch.empty(b, t, h, d, dtype=torch.float32, device=device) if norm else None
    part = radial = None
    if norm and x.normalise:
        part = torch.empty(b, t, h, s, dtype=torch.float32, device=device)
    elif norm:
        radial = torch.empty(b, t, s, dtype=torch.float32, device=device)
        options = _launch("row_dot", x.half)
        gradients.row_dot[(triton.cdiv(b * t * s, options["BR"]),)](
            readout.out, dout, radial, b * t * s, h * d, 1.0 / (h * d), **options
        )
    if x.hopper:
        from .hopper import backward as hopper

        hopper.readout_backward[(b * t * h,)](
            _tokens(x.q, 64), _tokens(dout, 64), _rope_table(x, 64), _tokens(dq, 64), _matrices(dkv),
            states.kv, states.kv_reverse, states.z, states.z_reverse, q_inv, x.q_weight,
            dz, dweight, part, t, s, h, x.eps, D=d, BOTH=x.both, STAGES=2, num_warps=8,
        )  # fmt: skip
    else:
        factor = torch.empty(b, t, h, s, dtype=torch.float32, device=device)
        gradients.readout_backward_query[(b * t * h,)](
            x.q, dout, q_inv, x.q_weight, x.rope, x.rays,
            states.kv, states.kv_reverse, states.z, states.z_reverse, radial,
            dq, dz, dweight, part, factor,
            *_strides(x.q), t, s, h, x.eps,
            D=d, NORM=norm, ROPE=x.turning, DEN=x.normalise, BOTH=x.both, HALF=x.half, BD=_block(d),
            **_launch("readout_backward_query", x.half, x.rays is not None),
        )  # fmt: skip
        gradients.readout_backward_state[(b * t * h,)](
            x.q, dout, factor, x.q_weight, x.rope, x.rays, dkv, *_strides(x.q), t, s, h,
            D=d, NORM=norm, ROPE=x.turning, HALF=x.half, BD=_block(d),
            **_launch("readout_backward_state", x.half, x.rays is not None),
        )  # fmt: skip
    if part is not None:
        assert q_inv is not None
        _remove_radial(dq, x.q, q_inv, part)
    return ReadoutGradients(dq, None if dweight is None else dweight.sum(dim=(0, 1)).flatten(), dkv, dz)


def _remove_radial(dx: Tensor, tokens: Tensor, inv: Tensor, part: Tensor) -> None:
    b, t, s, h, d = tokens.shape
    options = _launch("remove_radial", tokens.dtype != torch.float32)
    gradients.remove_radial[(triton.cdiv(b * t * s, options["BR"]),)](
        dx, tokens, inv, part, *_strides(tokens), t, s, h, b * t * s,
        D=d, BD=_block(d), BH=triton.next_power_of_2(h), **options,
    )  # fmt: skip


def states_backward(
    x: Inputs, products: Products, dkv: Tensor, dz: Tensor | None, dends: Ends, *, store: bool = True
) -> Chain:
    """Gradients that each frame's update receives, and (ends) those of the initial states.

    dkv, dz: gradients of what the frames read; dends: of the final states.
    """
    return _run_scan(x, products.p, dkv, products.pz, dz, dends, backward=True, store=store)


def combine(x: Inputs, products: Products, states: Chain, initial: Ends, grads: Chain) -> StepGradients:
    """Gradients of every frame's transition, update and decay from the states and their gradients."""
    b, t, _, h, d = x.sizes
    dp = torch.empty(b, t, h, d, d, dtype=_matrix_dtype(x), device=x.k.device)
    du = torch.empty_like(dp)
    ddecay = torch.empty(b, t, h, dtype=torch.float32, device=x.k.device)
    dstretch = torch.empty_like(ddecay) if x.turning == 2 else None
    dpz = torch.empty_like(dp) if x.hopper else None
    duz = torch.empty(b, t, h, d, dtype=torch.float32, device=x.k.device) if x.hopper else None
    gradients.combine[(b * t * h,)](
        products.p, products.u, products.pz, states.kv, initial.kv, grads.kv,
        states.kv_reverse, grads.kv_reverse,
        states.z, initial.z, grads.z, states.z_reverse, grads.z_reverse, x.decay, products.stretch,
        dp, du, ddecay, dstretch, dpz, duz, t, h,
        D=d, BD=_block(d), DEN=x.normalise, BOTH=x.both, HAS_INIT=initial.kv is not None, RAY=x.turning == 2,
        WHOLE_Z=x.hopper, HALF=x.half, **_launch("combine", x.half),
    )  # fmt: skip
    return StepGradients(dp, du, ddecay, dstretch, dpz, duz)


def products_backward(
    x: Inputs, products: Products, states: Chain, initial: Ends, grads: Chain, steps: StepGradients
) -> ProductGradients:
    """Gradients of keys, values and gates from those of the steps."""
    b, t, s, h, d = x.sizes
    device = x.k.device
    norm = x.k_weight is not None
    dk = torch.empty(b, t, s, h, d, dtype=x.k.dtype, device=device)
    dv = torch.empty(b, t, s, h, d, dtype=x.v.dtype, device=device)
    dbeta = torch.empty(b, t, h, s, dtype=x.beta.dtype, device=device)
    part = torch.empty(b, t, h, s, dtype=torch.float32, device=device) if norm or x.normalise else None
    if x.hopper:
        from .hopper import backward as hopper

        assert steps.dpz is not None
        assert part is not None
        assert products.k_inv is not None
        dweight = torch.empty(b, t, h, d, dtype=torch.float32, device=device)
        hopper.products_backward[(b * t * h,)](
            _tokens(x.k, 64), _tokens(x.v, 64), _rope_table(x, 64),
            _matrices(steps.dp), _matrices(steps.du), _matrices(steps.dpz), _tokens(dk, 64), _tokens(dv, 64),
            steps.duz, x.beta, products.k_inv, x.k_weight, dbeta, part, dweight, t, s, h, x.key_scale,
            D=d, STAGES=2, num_warps=8,
        )  # fmt: skip
        _remove_radial(dk, x.k, products.k_inv, part)
        dbeta = dbeta.transpose(2, 3).contiguous()
        return ProductGradients(dk, dv, dweight.sum(dim=(0, 1)).flatten(), dbeta, steps.ddecay)
    through = torch.empty(b, t, h, s, dtype=torch.float32, device=device)
    coefficient = torch.empty(4, b, t, h, s, dtype=torch.float32, device=device) if x.normalise else None
    rows = (states.z, initial.z, grads.z, states.z_reverse, grads.z_reverse)
    start = initial.kv is not None
    gradients.products_backward_value[(b * t * h,)](
        x.k, x.v, x.beta, products.k_inv, x.k_weight, x.rope, x.rays, steps.du, products.stretch,
        *rows, x.decay, dk, dv, through, part, coefficient,
        *_strides(x.k), *_strides(x.v), t, s, h, b * t * s, x.key_scale,
        D=d, NORM=norm, ROPE=x.turning, DEN=x.normalise, BOTH=x.both, HAS_INIT=start,
        HALF=x.half, BD=_block(d), **_launch("products_backward_value", x.half, x.rays is not None),
    )  # fmt: skip
    gradients.products_backward_key[(b * t * h,)](
        x.k, x.v, x.beta, products.k_inv, x.k_weight, x.rope, x.rays, steps.dp, steps.du,
        products.stretch, steps.dstretch, through, dk, dbeta, part,
        *_strides(x.k), *_strides(x.v), t, s, h, x.key_scale,
        D=d, NORM=norm, ROPE=x.turning, DEN=x.normalise, HALF=x.half, BD=_block(d),
        **_launch("products_backward_key", x.half, x.rays is not None),
    )  # fmt: skip
    options = _launch("finish_keys", x.half)
    tiles = triton.cdiv(s, options["BR"])
    dweight = torch.empty(b * t * tiles, h * d, dtype=torch.float32, device=device) if norm else None
    gradients.finish_keys[(b * t, tiles)](
        dk, x.k, products.k_inv, x.k_weight, part, coefficient, *rows, dweight,
        *_strides(x.k), t, s, h, b * t * s, x.key_scale,
        D=d, NORM=norm, DEN=x.normalise, BOTH=x.both, HAS_INIT=start,
        BD=_block(d), BH=triton.next_power_of_2(h), **options,
    )  # fmt: skip
    return ProductGradients(
        dk,
        dv,
        None if dweight is None else dweight.sum(dim=0),
        dbeta.transpose(2, 3).contiguous(),
        steps.ddecay,
    )
