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
from theodolite.kernels.frame_gdn.arguments import ScanOptions, Tokens
from theodolite.kernels.frame_gdn.tensors import Ends, Inputs, make_inputs
from theodolite.kernels.frame_gdn.triton import backward as triton_backward
from theodolite.kernels.frame_gdn.triton import forward as triton_forward

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/kernels"))

from cases import (
    GRADIENTS,
    Case,
    errors_against_twin,
    make_case,
    relative,
    run,
)
from kernels_cases import FRAMES, HEAD_SIZE, HEADS, Table, both_ways, full_size, milliseconds, token_bytes
from kernels_rivals import table_neighbours, table_rivals
from theodolite.kernels.frame_gdn import launch


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
