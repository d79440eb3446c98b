"""Speed and accuracy of the frame-wise GDN kernels on a GPU, at the size of a 720p minute.

    python benchmarks/kernels_bench.py --check --table
    python benchmarks/kernels_bench.py --sweep           launch parameters, stage by stage

Times are medians of CUDA events after warm-up, with launches queued ahead. Bytes are the least that a variant
must move: each of its large inputs read once, each output written once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from theodolite.kernels.attention import AttentionBackend
from theodolite.kernels.frame_gdn.arguments import ScanOptions, Tokens
from theodolite.kernels.frame_gdn.tensors import Ends, Inputs, make_inputs
from theodolite.kernels.frame_gdn.triton import backward as triton_backward
from theodolite.kernels.frame_gdn.triton import forward as triton_forward

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/kernels"))

from cases import (
    GRADIENTS,
    Case,
    errors_against_twin,
    in_float64,
    make_case,
    random_poses,
    relative,
    run,
)
from theodolite.kernels.frame_gdn import launch
from theodolite.kernels.frame_gdn.reference import rope_tables, world_to_ray

HEADS, HEAD_SIZE, HEIGHT, WIDTH, FRAMES = 20, 112, 22, 40, 121


def milliseconds(function: Callable[[], object], repeats: int = 10, *, idle_cycles: int = 2_000_000) -> float:
    """Median time of a call on a GPU that is kept busy, as a network's other kernels keep it.

    While the GPU idles (2e6 cycles are a millisecond) the host runs ahead, so that its own time stays out.
    """
    for _ in range(2):
        function()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(idle_cycles)
        start.record()
        function()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return sorted(times)[len(times) // 2]


def full_size(branch: str, *, frames: int = FRAMES, **more) -> Case:
    """A case of real size in bfloat16; drawn on the GPU, since a minute of float64 noise is slow on a CPU."""
    case = make_case(
        frames=frames, height=2, width=2, heads=HEADS, head_size=HEAD_SIZE, branch=branch, dtype=torch.bfloat16,
        device="cuda", **more,
    )  # fmt: skip
    tokens = HEIGHT * WIDTH
    shape = (1, frames, tokens, HEADS, HEAD_SIZE)
    for name in "qkv":
        scale = (HEAD_SIZE * tokens) ** -0.5 if name == "k" and branch == "plain" else 1.0
        x = torch.randn(shape, device="cuda", dtype=torch.bfloat16) * scale
        setattr(case, name, x.requires_grad_())
    case.beta = torch.rand(shape[:-1], device="cuda").to(torch.bfloat16).requires_grad_()
    if case.rope is not None:
        half = branch == "camera"
        case.rope = rope_tables(frames, HEIGHT, WIDTH, HEAD_SIZE, half=half).to("cuda", torch.float16)
    if case.rays is not None:
        generator = torch.Generator().manual_seed(0)
        intrinsics = torch.tensor([WIDTH * 0.8, WIDTH * 0.8, WIDTH / 2, HEIGHT / 2]).expand(1, frames, 4)
        case.rays = world_to_ray(
            random_poses(1, frames, generator).float().cuda(), intrinsics.cuda(), HEIGHT, WIDTH
        )
    if branch != "plain":
        case.options["key_scale"] = (HEAD_SIZE * tokens) ** -0.5
    return case


def prepared(case: Case) -> Inputs:
    """The launch layer's view of a case."""
    keep = torch.ones(case.k.shape[1], device=case.k.device) if case.options["bidirectional"] else None
    detached = {n: None if getattr(case, n) is None else getattr(case, n).detach() for n in GRADIENTS}
    given: list[Any] = [detached[n] for n in GRADIENTS[:7]]
    tokens = Tokens(*given, rope=case.rope, rays=case.rays)
    options = {n: x for n, x in case.options.items() if n != "chunk_starts"}
    return make_inputs(tokens, ScanOptions(**options), keep)


SWEEP: dict[str, dict[str, list[int]]] = {
    "inverse_rms": {"BR": [4, 8, 16], "num_warps": [4, 8]},
    "products": {"BS": [32, 64, 128], "SPLIT": [0, 1, 2], "num_warps": [4, 8, 16], "num_stages": [1, 2, 3]},
    "scan": {"BR": [16, 32, 64], "STAGES": [2, 3, 4], "num_warps": [4, 8]},
    "readout": {"BS": [64, 128], "SPLITS": [1, 2], "num_warps": [4, 8], "num_stages": [2, 3]},
    "readout_backward_query": {"BS": [32, 64], "num_warps": [4, 8], "num_stages": [1, 2, 3]},
    "readout_backward_state": {"BS": [32, 64], "num_warps": [4, 8], "num_stages": [1, 2, 3]},
    "combine": {"BR": [16, 32, 64], "num_warps": [4, 8], "num_stages": [1, 2]},
    "products_backward_value": {"BS": [32, 64, 128], "num_warps": [4, 8], "num_stages": [1, 2, 3]},
    "products_backward_key": {"BS": [32, 64], "num_warps": [4, 8], "num_stages": [1, 2, 3]},
    "finish_keys": {"BR": [8, 16, 32], "num_warps": [4, 8]},
}


def resources(name: str) -> str:
    """Registers and spills of the variant compiled last."""
    kernel = getattr(triton_forward, name, None) or getattr(triton_backward, name)
    compiled = list(kernel.device_caches[0][0].values())[-1]
    return f"regs {compiled.n_regs} spills {compiled.n_spills} shared {compiled.metadata.shared // 1024} KiB"


def sweep(branch: str, names: list[str], seconds: float, grid: dict[str, list[int]] | None) -> None:
    """Time every stage under each combination of launch parameters; the fastest first."""
    x = prepared(full_size(branch))
    products = launch.compute_products(x)
    none = Ends()
    states = launch.compute_states(x, products, none)
    readout = launch.compute_readout(x, states)
    dout = torch.randn_like(readout.out)
    read = launch.readout_backward(x, states, readout, dout)
    zeros = Ends(*(None if e is None else torch.zeros_like(e) for e in vars(states.ends).values()))
    grads = launch.states_backward(x, products, read.dkv, read.dz, zeros)
    steps = launch.combine(x, products, states, none, grads)
    stages: dict[str, Callable[[], object]] = {
        "inverse_rms": lambda: launch.inverse_rms(x.q, 1e-5),
        "products": lambda: launch.compute_products(x),
        "scan": lambda: launch.compute_states(x, products, none),
        "readout": lambda: launch.compute_readout(x, states),
        "readout_backward_query": lambda: launch.readout_backward(x, states, readout, dout),
        "readout_backward_state": lambda: launch.readout_backward(x, states, readout, dout),
        "scan_backward": lambda: launch.states_backward(x, products, read.dkv, read.dz, zeros),
        "combine": lambda: launch.combine(x, products, states, none, grads),
        "products_backward_value": lambda: launch.products_backward(x, products, states, none, grads, steps),
        "finish_keys": lambda: launch.products_backward(x, products, states, none, grads, steps),
        "products_backward_key": lambda: launch.products_backward(x, products, states, none, grads, steps),
    }
    for name in names:
        stage = stages[name]
        key = "scan" if name.startswith("scan") else name
        if branch == "camera" and (key + "_rays", True) in launch.LAUNCH:
            key += "_rays"
        before = launch.LAUNCH[key, True]
        results = [(milliseconds(stage), "as it is " + str(before))]
        start = time.time()
        options = grid or SWEEP[key.removesuffix("_rays")]
        for values in itertools.product(*options.values()):
            if time.time() - start > seconds:
                results.append((float("inf"), "out of time"))
                break
            chosen = dict(zip(options, values, strict=True))
            launch.LAUNCH[key, True] = before | chosen
            try:
                results.append((milliseconds(stage, 5), f"{chosen} {resources(key.removesuffix('_rays'))}"))
            except Exception as error:  # noqa: BLE001  a variant that does not fit is part of the table
                results.append(
                    (float("inf"), f"{chosen}: {type(error).__name__} {str(error).splitlines()[0][:60]}")
                )
        results.sort(key=lambda r: r[0])
        launch.LAUNCH[key, True] = before
        print(f"== {branch} {name} (the whole stage, ms)")
        for ms, text in results[:9] + [r for r in results[9:] if r[0] == float("inf")][:3]:
            print(f"  {ms:8.3f}  {text}")
        sys.stdout.flush()


def check(part: int, parts: int) -> None:
    """Largest error against the float64 twin over variants and sizes, per dtype; every parts-th case."""
    counter = itertools.count()
    for dtype in (torch.float32, torch.bfloat16):
        for kw in (
            {"branch": "main", "frames": 3, "height": 22, "width": 40, "head_size": 112},
            {"branch": "main", "frames": 121, "height": 1, "width": 63, "head_size": 112, "initial": True},
            {
                "branch": "main",
                "frames": 2,
                "height": 1,
                "width": 881,
                "head_size": 112,
                "bidirectional": False,
            },
            {"branch": "main", "frames": 7, "height": 1, "width": 1, "head_size": 64, "chunk_starts": (0, 3)},
            {"branch": "camera", "frames": 3, "height": 22, "width": 40, "head_size": 112, "strided": True},
            {"branch": "camera", "frames": 20, "height": 5, "width": 7, "head_size": 112, "initial": True},
            {"branch": "plain", "frames": 5, "height": 3, "width": 21, "head_size": 40, "batch": 2},
        ):
            if next(counter) % parts != part:
                continue
            start = time.time()
            errors = errors_against_twin(make_case(dtype=dtype, device="cuda", **kw))
            worst = max(errors, key=lambda n: errors[n] if errors[n] == errors[n] else float("inf"))
            ok = errors[worst] < (1e-5 if dtype == torch.float32 else 1e-2)
            verdict = f"{'ok  ' if ok else 'FAIL'} {str(dtype)[6:]:9} {errors[worst]:.1e} {worst:10}"
            print(verdict, kw, f"{time.time() - start:.0f}s")
            if not ok or dtype == torch.bfloat16:
                print("     ", {n: f"{e:.1e}" for n, e in errors.items()})
            sys.stdout.flush()


def token_bytes(case: Case) -> int:
    """Size of one of q, k, v, out."""
    return case.v.numel() * case.v.element_size()


def ceilings() -> tuple[float, float]:
    """Copy bandwidth in bytes/s (read + written) and bfloat16 matmul rate in FLOP/s."""
    x = torch.randn(2**31, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    copy = 2 * x.numel() * 2 / milliseconds(lambda: y.copy_(x)) * 1e3
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return copy, 2 * 8192**3 / milliseconds(lambda: a @ b) * 1e3


def both_ways(function: Callable[[], torch.Tensor], inputs: list[torch.Tensor]) -> Callable[[], object]:
    """Forward and backward of a function, with a fixed gradient of its output."""
    seed = torch.randn_like(function())
    return lambda: torch.autograd.grad(function(), inputs, seed)


class Table:
    """Prints a row at once, so that a run that is cut short has shown what it measured."""

    def __init__(self) -> None:
        self.copy, self.matmul = ceilings()
        print(f"copy {self.copy / 1e12:.2f} TB/s, bf16 matmul {self.matmul / 1e12:.0f} TFLOP/s")
        print(f"{'what':58} {'ms':>9} {'floor GB':>9} {'floor ms':>9} {'of copy':>8} {'of matmul':>9}")

    def row(
        self, what: str, function: Callable[[], object], gigabytes: float, flop: float, repeats: int = 10
    ) -> None:
        try:
            ms = milliseconds(function, repeats)
        except Exception as error:  # noqa: BLE001  a rival that does not run is part of the table
            print(f"{what:58} {type(error).__name__}: {str(error).splitlines()[0][:60]}")
            return
        floor = gigabytes * 1e9 / self.copy * 1e3
        share = flop / (ms * 1e-3) / self.matmul
        print(f"{what:58} {ms:9.3f} {gigabytes:9.2f} {floor:9.3f} {floor / ms:8.0%} {share:9.1%}")
        sys.stdout.flush()


def leaves(case: Case) -> list[torch.Tensor]:
    return [x for n in GRADIENTS if (x := getattr(case, n)) is not None]


def peak(function: Callable[[], object]) -> float:
    """Memory in GiB above what stood before the call and what it returns."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = function()
    held = torch.cuda.memory_allocated() - before
    del result
    return (torch.cuda.max_memory_allocated() - before - held) / 2**30


def table_ours(table: Table) -> None:
    square = 2 * 880 * HEAD_SIZE**2 * FRAMES * HEADS
    for branch, products in (("main", 4), ("camera", 3)):
        kinds: list[tuple[str, dict[str, Any]]] = [
            ("both directions", {}),
            ("chunk-causal", {"chunk_starts": (0, *range(4, FRAMES, 3))}),
            ("causal", {"bidirectional": False}),
        ]
        case = step = None
        for name, more in kinds:
            case = full_size(branch, **more)
            size = token_bytes(case) / 1e9
            with torch.no_grad():
                table.row(
                    f"{branch}, {name}, forward",
                    lambda c=case: run(c, "triton").out,
                    4 * size,
                    products * square,
                )
            step = both_ways(lambda c=case: run(c, "triton").out, leaves(case))
            table.row(f"{branch}, {name}, forward + backward", step, 11 * size, (2 * products + 5) * square)
        assert case is not None
        assert step is not None
        with torch.no_grad():
            print(
                f"  peak beside inputs and outputs: forward {peak(lambda c=case: run(c, 'triton').out):.2f} GiB",
                end="",
            )
        print(f", forward + backward {peak(step) - token_bytes(case) / 2**30:.2f} GiB")


def table_scaling() -> None:
    for frames in (11, 61, 121, 241, 481, 961):
        case = full_size("main", frames=frames)
        with torch.no_grad():
            forward = milliseconds(lambda c=case: run(c, "triton").out, 5)
        step = milliseconds(both_ways(lambda c=case: run(c, "triton").out, leaves(case)), 3)
        print(f"{frames:4} frames: forward {forward:8.3f} ms ({forward / frames * 1e3:6.2f} us a frame), "
              f"forward + backward {step:8.3f} ms ({step / frames * 1e3:6.2f} us a frame)")  # fmt: skip
    from theodolite.kernels import State, frame_gdn

    for history in (3, 3000):
        case = full_size("main", frames=3)
        size = (1, HEADS, HEAD_SIZE)
        state = State(torch.randn(*size, HEAD_SIZE, device="cuda"), torch.rand(size, device="cuda"))
        tensors = [getattr(case, n).detach() for n in ("q", "k", "v", "beta", "decay")]

        def chunk(state: State = state, case: Case = case, tensors: list[torch.Tensor] = tensors) -> State:
            tokens = Tokens(*tensors, q_weight=case.q_weight, k_weight=case.k_weight, rope=case.rope)
            return frame_gdn(tokens, ScanOptions(key_scale=case.options["key_scale"]), initial=state).final

        with torch.no_grad():
            for _ in range(history // 3):
                state = chunk(state)
            ms = milliseconds(lambda s=state, c=chunk: c(s))
        assert state.z is not None
        kib = (state.kv.numel() + state.z.numel()) * 4 / 1024
        print(f"streaming chunk of 3 frames after {history} frames: {ms:.3f} ms, state {kib:.0f} KiB")


def tree(c: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """States after every step from zero, by a prefix tree: c, h (steps, N, D, D), steps a power of two.

    Neighbours are joined (two products), the half as long sequence is solved, and the steps between take one
    product more: three products a step in all, in 2 log2(steps) rounds.
    """
    if c.shape[0] == 1:
        return h
    out = torch.empty_like(h)
    last = torch.baddbmm(h[1::2].flatten(0, 1), h[0::2].flatten(0, 1), c[1::2].flatten(0, 1)).view_as(h[1::2])
    out[1::2] = tree(c[0::2] @ c[1::2], last)
    out[0] = h[0]
    if c.shape[0] > 2:
        between = h[2::2]
        out[2::2] = torch.baddbmm(
            between.flatten(0, 1), out[1:-1:2].flatten(0, 1), c[2::2].flatten(0, 1)
        ).view_as(between)
    return out


def table_scan() -> None:
    """States of all frames of the main branch: the scan, and a prefix tree of batched products (cuBLAS)."""
    for frames in (121, 961):
        x = prepared(full_size("main", frames=frames))
        products = launch.compute_products(x)
        scan = milliseconds(lambda x=x, p=products: launch.compute_states(x, p, Ends()))
        assert products.u is not None
        steps = 1 << (frames - 1).bit_length()
        c = torch.zeros(steps, HEADS, HEAD_SIZE, HEAD_SIZE, device="cuda", dtype=torch.bfloat16)
        h = torch.zeros_like(c)
        eye = torch.eye(HEAD_SIZE, device="cuda")
        c[:frames] = (x.decay[0, :, :, None, None] * (eye - products.p[0].float())).to(torch.bfloat16)
        h[:frames] = products.u[0]
        states = launch.compute_states(x, products, Ends()).kv
        assert states is not None
        error = relative(tree(c, h)[:frames], states[0])
        ms = milliseconds(lambda c=c, h=h: tree(c, h), 5)
        print(f"{frames:4} frames: scan, both directions and normaliser {scan:.3f} ms; prefix tree, one direction "
              f"{ms:.3f} ms (differs by {error:.1e})")  # fmt: skip


def table_rivals(table: Table) -> None:
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


def profile() -> None:
    """GPU time of every kernel in one forward and backward."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    for branch in ("main", "camera"):
        case = full_size(branch)
        step = both_ways(lambda c=case: run(c, "triton").out, leaves(case))
        step()
        torch.cuda.synchronize()
        with record(activities=[ProfilerActivity.CUDA]) as trace:
            step()
            torch.cuda.synchronize()
        print(f"== {branch}, forward + backward, ms")
        for event in sorted(trace.key_averages(), key=lambda e: -e.device_time_total)[:16]:
            print(f"  {event.device_time_total / 1e3:8.3f} x{event.count:<3} {event.key[:90]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", nargs="?", const="0/1", help="accuracy of all variants at odd sizes; part i/n"
    )
    parser.add_argument("--table", nargs="*", help="ours, scan, scaling, rivals, neighbours; none: all")
    parser.add_argument("--profile", action="store_true", help="GPU time by kernel")
    parser.add_argument("--sweep", nargs="*", help="stages to sweep; none: all")
    parser.add_argument("--grid", type=json.loads, help='launch parameters to combine, {"BS": [32, 64]}')
    parser.add_argument("--branch", default="main")
    parser.add_argument("--seconds", type=float, default=60, help="at most so long for a stage of the sweep")
    args = parser.parse_args()
    print(torch.cuda.get_device_name(), torch.__version__)
    if args.check is not None:
        part, parts = (int(x) for x in args.check.split("/"))
        check(part, parts)
    if args.profile:
        profile()
    if args.table is not None:
        names = args.table or ["ours", "scan", "scaling", "rivals", "neighbours"]
        table = Table()
        if "ours" in names:
            table_ours(table)
        if "scan" in names:
            table_scan()
        if "scaling" in names:
            table_scaling()
        if "rivals" in names:
            table_rivals(table)
        if "neighbours" in names:
            table_neighbours(table)
    if args.sweep is not None:
        sweep(args.branch, args.sweep or [*SWEEP], args.seconds, args.grid)


if __name__ == "__main__":
    main()
