"""Kernels of the world model against their twins, and outputs in low precision (`model_speed.py --check`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from model_sizes import PRECISIONS, Size, attempt, random_inputs, random_model, relative
from theodolite.kernels import gated_add, gated_shift_add, glu_conv, modulated_norm, norm_rotate, rope_tables
from theodolite.kernels.attention import frame_attention
from theodolite.kernels.fp8 import attention as fp8
from theodolite.kernels.fp8.product import round_rows, scaled_product
from theodolite.kernels.fp8.reference import (
    fp8_attention_reference,
    round_heads_reference,
    round_rows_reference,
    scaled_product_reference,
)
from theodolite.model.precision import ALL_SCOPES, set_precision


def check_rounding(size: Size) -> Iterator[tuple[str, float, float]]:
    """(what, found, allowed) for every kernel around products in e4m3."""
    heads, tokens, channels = (3, 1500, 112) if size.device == "cuda" else (2, 70, 24)
    triton = True
    x = (torch.randn(tokens, heads, channels, device=size.device) + 1).to(size.dtype).transpose(0, 1)
    for centre in (False, True):
        for per_head in (False, True):
            found = fp8.round_heads(x, centre=centre, per_head=per_head, triton=triton)
            exact = round_heads_reference(x, centre=centre, per_head=per_head)
            yield (
                f"round_heads centre={centre} per_head={per_head}",
                relative(found.values[..., :channels].float(), exact.values.float()),
                2e-3,
            )
            assert not found.values[..., channels:].float().any(), "padding is not zero"
    found = fp8.round_heads(x, centre=True, per_head=True, triton=triton)
    back = (
        torch.full((tokens, heads, channels), float("nan"), device=size.device).to(size.dtype).transpose(0, 1)
    )
    fp8.scale_back(found.values, found, found, found, out=back, triton=triton)
    plain = found.values[..., :channels].float() / found.scale[:, None, None]
    plain += found.mean[:, None, :channels]
    yield "scale_back", relative(back, plain), 4e-3
    rows = torch.randn(tokens, 96, device=size.device).to(size.dtype) * torch.linspace(
        0.01, 9, 96, device=size.device
    )
    found, exact = round_rows(rows, backend="triton"), round_rows_reference(rows)
    yield "round_rows", relative(found.values.float(), exact.values.float()), 1e-5
    weight = round_rows(torch.randn(64, 96, device=size.device))
    bias = torch.randn(64, device=size.device)
    product = scaled_product(found, weight, bias)
    yield "scaled_product", relative(product, scaled_product_reference(found, weight, bias)), 6e-3


def check_attention(size: Size) -> Iterator[tuple[str, float, float]]:
    """Attention in e4m3: library against twin, and against exact attention on inputs of several kinds."""
    heads, tokens, channels = (3, 2112, 112) if size.device == "cuda" else (2, 64, 24)

    def three(sharp: float, shift: float) -> list[torch.Tensor]:
        q, k, v = (torch.randn(heads, tokens, channels, device=size.device) for _ in range(3))
        return [(sharp * q).to(size.dtype), (k + shift).to(size.dtype), (v + shift).to(size.dtype)]

    for name, sharp, shift in (("random", 1.0, 0.0), ("shifted", 1.0, 2.0), ("sharp", 6.0, 0.0)):
        q, k, v = three(sharp, shift)
        found = fp8.fp8_attention(q[None], k[None], v[None])[0]
        twin = fp8_attention_reference(q.float(), k.float(), v.float())
        exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
        # Both round softmax weights, but against different maxima: each is off by the error printed, in its own way.
        yield f"fp8_attention {name}: kernel against twin", relative(found, twin), 5e-2
        spread = exact - v.double().mean(dim=1, keepdim=True)
        off = float((found.double() - exact).norm())
        print(
            f"    {name}: error {off / float(exact.norm()):.2e} of the output, "
            f"{off / float(spread.norm()):.2e} of what differs from the mean value; twin {relative(twin, exact):.2e}"
        )
    q, k, v = three(1.0, 0.0)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    for number in (1.0, 16.0, 256.0, 448.0):
        kept, fp8.WEIGHT_SCALE = fp8.WEIGHT_SCALE, number
        fp8._plan.cache_clear()
        found = fp8.fp8_attention(q[None], k[None], v[None])[0]
        print(f"    random, weights times {number:.0f} before rounding: error {relative(found, exact):.2e}")
        fp8.WEIGHT_SCALE = kept
    fp8._plan.cache_clear()
    frames = 8 if size.device == "cuda" else 4
    q, k, v = (x.unflatten(1, (frames, -1))[None] for x in three(1.0, 0.0))
    choices: list[dict[str, Any]] = [
        {"chunk_starts": (0, 2, 3)},
        {"chunk_starts": (0, 1, 2, 3), "window_chunks": 1, "sink_chunks": 1},
    ]
    for options in choices:
        found = frame_attention(q, k, v, precision="fp8", **options)
        exact = frame_attention(q.float(), k.float(), v.float(), backend="reference", **options)
        yield f"fp8 frame_attention {options}", relative(found, exact), 8e-2


def block_operators(size: Size, frames: int) -> dict[str, tuple[Callable, list[torch.Tensor], dict]]:
    """Name: operator of a block, its differentiable inputs, its options."""
    s, c, hidden = size.tokens, size.config.width, size.config.ffn_width

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=size.device).to(size.dtype).requires_grad_()

    def rope(half: bool) -> torch.Tensor:
        found = rope_tables(frames, size.height, size.width, size.config.head_size, half=half)
        return found.to(size.device, torch.float32)

    matrix = torch.randn(1, frames, s, 4, 4, device=size.device)
    heads = size.config.heads
    tokens, row = (1, frames, s, c), (1, frames, c)
    return {
        "modulated_norm": (modulated_norm, [randn(*tokens), randn(*row), randn(*row)], {}),
        "gated_add": (gated_add, [randn(*tokens), randn(*tokens), randn(*row), randn(*tokens)], {}),
        "glu_conv": (
            glu_conv,
            [randn(1, frames, s, 2 * hidden), randn(2 * hidden, 1, 3, 3), randn(2 * hidden)],
            {"height": size.height, "width": size.width},
        ),
        "norm_rotate": (norm_rotate, [randn(*tokens), randn(c)], {"heads": heads, "rope": rope(False)}),
        "norm_rotate rays": (
            norm_rotate,
            [randn(*tokens), randn(c)],
            {"heads": heads, "rope": rope(True), "matrix": matrix},
        ),
    }


def check_blocks(size: Size) -> Iterator[tuple[str, float, float]]:
    """Outputs and gradients of the block's kernels against their twins in float32."""
    allowed = 1e-2 if size.dtype == torch.bfloat16 else 1e-5
    for name, (operator, inputs, options) in block_operators(size, 2).items():
        with torch.enable_grad():
            wide = [x.detach().float().requires_grad_() for x in inputs]
            fast = operator(*inputs, backend="triton", **options)
            exact = operator(*wide, backend="reference", **options)
            seed = torch.randn_like(fast)
            found = torch.autograd.grad(fast, inputs, seed)
            truth = torch.autograd.grad(exact, wide, seed.float())
        yield f"{name} forward", relative(fast, exact), allowed
        worst = max(relative(a, b) for a, b in zip(found, truth, strict=True))
        yield f"{name} backward", worst, allowed
    x, y, z, gate = (
        torch.randn(1, 3, size.tokens, n * size.config.width, device=size.device).to(size.dtype)
        for n in (1, 1, 3, 1)
    )
    exact = gated_shift_add(*(t.float() for t in (x, y, z, gate[:, :, 0])), backend="reference")
    yield (
        "gated_shift_add",
        relative(gated_shift_add(x, y, z, gate[:, :, 0], backend="triton"), exact),
        allowed,
    )


def check_outputs(size: Size, names: list[str]) -> None:
    """Output of a few frames by every precision, against float32 on the same bfloat16 weights."""
    small = replace(size, frames=min(size.frames, 9))
    inputs = random_inputs(small)
    model = random_model(small)
    torch.backends.cuda.matmul.allow_tf32 = False
    exact = random_model(small).float()
    wide = {k: v.float() if k in ("latents", "text") else v for k, v in inputs.items()}
    truth = exact(**wide)
    del exact
    plain = model(**inputs)
    print(f"{small.frames} frames: relative error of the output against float32 | against bf16")
    print(f"    bf16             {relative(plain, truth):.2e} |")
    for name in names:
        if name == "bf16":
            continue
        model = random_model(small)
        precision, attention = PRECISIONS[name]
        set_precision(model, precision, scopes=ALL_SCOPES, attention=attention)
        found = model(**inputs)
        print(f"    {name:16s} {relative(found, truth):.2e} | {relative(found, plain):.2e}")
    for scope in ALL_SCOPES:
        model = random_model(small)
        set_precision(model, "fp8", scopes=(scope,))
        print(f"    fp8, only {scope:10s} {relative(model(**inputs), truth):.2e}")
    for kept in ALL_SCOPES:
        model = random_model(small)
        set_precision(model, "fp8", scopes=[s for s in ALL_SCOPES if s != kept], attention="fp8")
        print(f"    fp8, all but {kept:10s} {relative(model(**inputs), truth):.2e}")


def check(size: Size, names: list[str]) -> None:
    failed = []

    def compare(checks: Iterator[tuple[str, float, float]]) -> None:
        for what, found, allowed in checks:
            good = found <= allowed
            print(f"    {'ok ' if good else 'OFF'} {what}: {found:.2e} (allowed {allowed:.0e})", flush=True)
            failed.extend([] if good else [what])

    for checks in (check_rounding, check_attention, check_blocks):
        if not attempt(checks.__name__, lambda checks=checks: compare(checks(size))):
            failed.append(checks.__name__)
    check_outputs(size, names)
    if failed:
        raise AssertionError(f"checks failed: {', '.join(failed)}")
