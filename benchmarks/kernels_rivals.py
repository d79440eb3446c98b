"""The frame-wise Gated DeltaNet and its neighbours beside kernels of others (`kernels_bench.py --table`)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from cases import (
    Case,
    in_float64,
    make_case,
    relative,
    run,
)
from kernels_cases import FRAMES, HEAD_SIZE, HEADS, HEIGHT, WIDTH, Table, both_ways, full_size, token_bytes
from theodolite.kernels.attention import AttentionBackend
from theodolite.kernels.flash4 import flash4_refusal


def table_rivals(table: Table) -> None:
    """Frame-wise Gated DeltaNet of others. Long: a rival after the other, each called in its own way."""
    import oracle

    square = 2 * 880 * HEAD_SIZE**2 * FRAMES * HEADS
    size = 0.477  # GB that the tokens of a case take
    if oracle.available():
        from diffusion.model.ops.fused_gdn import fused_bigdn_forward_with_grad, fused_qk_inv_rms
        from diffusion.model.ops.fused_gdn_chunkwise import fused_bigdn_bidi_chunkwise
        from diffusion.model.ops.fused_gdn_chunkwise_bwd import fused_bigdn_chunkwise_autograd

        case = full_size("main")
        size = token_bytes(case) / 1e9
        qkv = oracle.packed(case).detach().requires_grad_()
        assert case.rope is not None
        assert case.q_weight is not None
        assert case.k_weight is not None
        cos, sin = oracle.tables(case.rope)
        beta = case.beta.detach().permute(0, 3, 1, 2).float().contiguous().requires_grad_()
        decay = case.decay.detach().transpose(1, 2).contiguous().requires_grad_()
        weights = [w.detach().float().requires_grad_() for w in (case.q_weight, case.k_weight)]
        scale = case.options["key_scale"]

        def forward() -> torch.Tensor:
            q_inv, k_inv = fused_qk_inv_rms(qkv.detach(), 1e-5)
            return fused_bigdn_bidi_chunkwise(
                qkv,
                q_inv,
                k_inv,
                *weights,
                cos,
                sin,
                beta,
                decay,
                FRAMES,
                HEIGHT * WIDTH,
                k_scale=scale,
                eps=1e-8,
            )

        with torch.no_grad():
            table.row("NVlabs/Sana main, both directions, forward with norms", forward, 4 * size, 4 * square)
        for name, function in (
            ("chunkwise (unused by its blocks)", fused_bigdn_chunkwise_autograd),
            ("as released", fused_bigdn_forward_with_grad),
        ):

            def call(function: Callable[..., torch.Tensor] = function) -> torch.Tensor:
                return function(qkv, beta, decay, *weights, cos, sin, FRAMES, HEIGHT * WIDTH, k_scale=scale)

            try:
                step = both_ways(call, [qkv, beta, decay, *weights])
            except Exception as error:  # noqa: BLE001  a rival that does not run is part of the table
                print(f"NVlabs/Sana main, {name}: {type(error).__name__} {str(error)[:80]}")
                continue
            table.row(f"NVlabs/Sana main, {name}, forward + backward", step, 11 * size, 13 * square, 3)
        del qkv
        camera = full_size("camera")
        with torch.no_grad():
            table.row(
                "NVlabs/Sana camera, preparation + both scans + output, forward",
                lambda: oracle.camera_branch(camera, fused=True), 4 * size, 3 * square, 3,
            )  # fmt: skip
        tensors = [camera.q, camera.k, camera.v, camera.beta, camera.decay]
        try:
            step = both_ways(lambda: oracle.camera_branch(camera, fused=True, training=True), tensors)
            table.row("NVlabs/Sana camera, as trained, forward + backward", step, 11 * size, 11 * square, 2)
        except Exception as error:  # noqa: BLE001  a rival that does not run is part of the table
            print(f"NVlabs/Sana camera, backward: {type(error).__name__} {str(error)[:80]}")
        with torch.no_grad():
            small = make_case(branch="main", height=HEIGHT, width=WIDTH, heads=4, head_size=HEAD_SIZE,
                              dtype=torch.bfloat16, device="cuda")  # fmt: skip
            twin = run(in_float64(small), "reference").out
            for name, out in (
                ("ours", run(small, "triton").out),
                ("theirs", oracle.main_branch(small, precision=0)),
            ):
                print(f"  bf16 main forward against float64, {name}: {relative(out, twin):.2e}")
        gradients_of_both(small, fused_bigdn_chunkwise_autograd)
    try:
        from fla.ops.gated_delta_rule.chunk import chunk_gated_delta_rule
    except ImportError:
        print("flash-linear-attention: not importable here")
    else:
        n = FRAMES * HEIGHT * WIDTH
        q, k, v = (
            torch.randn(1, n, HEADS, HEAD_SIZE, device="cuda", dtype=torch.bfloat16).requires_grad_()
            for _ in range(3)
        )
        g = -0.01 * torch.rand(1, n, HEADS, device="cuda")
        b = torch.rand(1, n, HEADS, device="cuda").to(torch.bfloat16)

        def fla() -> torch.Tensor:
            return chunk_gated_delta_rule(q, k, v, g, b, use_qk_l2norm_in_kernel=True)[0]

        with torch.no_grad():
            table.row("fla chunk_gated_delta_rule, one direction, forward", fla, 4 * size, 0)
        try:
            table.row(
                "fla chunk_gated_delta_rule, forward + backward", both_ways(fla, [q, k, v]), 11 * size, 0, 3
            )
        except Exception as error:  # noqa: BLE001  a rival that does not run is part of the table
            print(f"fla backward: {type(error).__name__} {str(error)[:80]}")


def gradients_of_both(case: Case, rival: Callable[..., torch.Tensor]) -> None:
    """Relative error of dq, dk, dv in bfloat16 against float64, ours and theirs."""
    import oracle

    twin = in_float64(case)
    exact = run(twin, "reference").out
    seed = torch.randn_like(exact)
    truth = torch.autograd.grad(exact, [twin.q, twin.k, twin.v, twin.beta, twin.decay], seed)
    ours = torch.autograd.grad(
        run(case, "triton").out, [case.q, case.k, case.v, case.beta, case.decay], seed.to(torch.bfloat16)
    )
    qkv = oracle.packed(case).detach().requires_grad_()
    beta = case.beta.detach().permute(0, 3, 1, 2).float().contiguous().requires_grad_()
    decay = case.decay.detach().transpose(1, 2).contiguous().requires_grad_()
    frames, tokens = case.k.shape[1:3]
    assert case.rope is not None
    assert case.q_weight is not None
    assert case.k_weight is not None
    out = rival(
        qkv, beta, decay, case.q_weight.detach(), case.k_weight.detach(), *oracle.tables(case.rope), frames, tokens,
        k_scale=case.options["key_scale"], eps=1e-8,
    )  # fmt: skip
    dqkv, dbeta, ddecay = torch.autograd.grad(
        out, [qkv, beta, decay], seed.flatten(1, 2).to(out.dtype).view_as(out)
    )
    theirs = [dqkv[:, :, i].unflatten(1, (frames, tokens)) for i in range(3)]
    theirs += [dbeta.permute(0, 2, 3, 1), ddecay.transpose(1, 2)]
    for name, o, r, e in zip(("dq", "dk", "dv", "dbeta", "ddecay"), ours, theirs, truth, strict=True):
        print(f"  bf16 {name:6} against float64: ours {relative(o, e):.2e}, theirs {relative(r, e):.2e}")


def table_neighbours(table: Table) -> None:
    """The operators around it. Long: an operator after the other, each called in its own way."""
    from theodolite.kernels import frame_attention, output_gate, short_conv

    shape = (1, FRAMES, HEIGHT * WIDTH, HEADS * HEAD_SIZE)
    x, y, z = (torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    weight = torch.randn(shape[-1], 1, 4, device="cuda", dtype=torch.bfloat16).requires_grad_()
    size = x.numel() * 2 / 1e9
    with torch.no_grad():
        table.row("short convolution, forward", lambda: short_conv(x, weight), 2 * size, 0)
        table.row("output gate, forward", lambda: output_gate(x, y, z), 4 * size, 0)
    table.row(
        "short convolution, forward + backward",
        both_ways(lambda: short_conv(x, weight), [x, weight]),
        5 * size,
        0,
    )
    table.row(
        "output gate, forward + backward", both_ways(lambda: output_gate(x, y, z), [x, y, z]), 10 * size, 0
    )
    frames = 43
    q, k, v = (
        torch.randn(1, HEADS, frames, HEIGHT * WIDTH, HEAD_SIZE, device="cuda", dtype=torch.bfloat16)
        for _ in range(3)
    )
    tokens = frames * HEIGHT * WIDTH
    full = 4.0 * tokens**2 * HEAD_SIZE * HEADS
    starts = (0, *range(4, frames, 3))
    seen = [(end - first) * end for first, end in itertools.pairwise([*starts, frames])]
    causal = full * sum(seen) / frames**2
    moved = 4 * q.numel() * 2 / 1e9
    backends: list[AttentionBackend] = ["cudnn", "flash"]
    if flash4_refusal("cuda", torch.bfloat16, HEAD_SIZE) is None:
        backends.append("flash4")
    for backend in backends:
        kinds: list[tuple[str, float, dict[str, Any]]] = [
            ("all frames", full, {}),
            ("chunk-causal by chunks", causal, {"chunk_starts": starts}),
            (
                "window 2 + sink by chunks",
                0.0,
                {"chunk_starts": starts, "window_chunks": 2, "sink_chunks": 1},
            ),
        ]
        for name, flop, kw in kinds:
            table.row(
                f"softmax, {frames} frames, {name}, {backend}",
                lambda b=backend, kw=kw: frame_attention(q, k, v, backend=b, **kw), moved, flop, 3,
            )  # fmt: skip
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    chunk = torch.zeros(tokens, dtype=torch.int32, device="cuda")
    for start in starts[1:]:
        chunk[start * HEIGHT * WIDTH :] += 1

    def visible(b, h, i, j):
        return chunk[j] <= chunk[i]

    mask = create_block_mask(visible, None, None, tokens, tokens, device="cuda")
    compiled = torch.compile(flex_attention)
    flat = [x.flatten(2, 3) for x in (q, k, v)]
    table.row(
        f"softmax, {frames} frames, chunk-causal, FlexAttention",
        lambda: compiled(flat[0], flat[1], flat[2], block_mask=mask),
        moved,
        causal,
        3,
    )
    shape = (1, HEADS, FRAMES, HEIGHT * WIDTH, HEAD_SIZE)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    flop = full * (FRAMES / frames) ** 2
    with torch.no_grad():
        table.row(
            "SDPA (cuDNN), full attention, forward",
            lambda: frame_attention(q, k, v, backend="cudnn"),
            4 * size,
            flop,
            2,
        )
    table.row(
        "SDPA (cuDNN), full attention, forward + backward",
        both_ways(lambda: frame_attention(q, k, v, backend="cudnn"), [q, k, v]), 11 * size, 3.5 * flop, 1,
    )  # fmt: skip
