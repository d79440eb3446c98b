"""Speed and accuracy of the frame-wise GDN kernels on a GPU, at the size of a 720p minute.

    python tests/benchmarks/kernels_bench.py --check --table
    python tests/benchmarks/kernels_bench.py --sweep           launch parameters, stage by stage

Times are medians of CUDA events after warm-up. Bytes are the least that a variant must move: each of its
large inputs read once, each output written once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

from cases import GRADIENTS, Case, errors_against_twin, make_case, random_poses
from theodolite.kernels.frame_gdn import launch
from theodolite.kernels.frame_gdn.reference import rope_tables, world_to_ray

HEADS, HEAD_SIZE, HEIGHT, WIDTH, FRAMES = 20, 112, 22, 40, 121


def milliseconds(function: Callable[[], object], repeats: int = 10) -> float:
    """Median time of a call."""
    for _ in range(2):
        function()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
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


def prepared(case: Case) -> launch.Inputs:
    """The launch layer's view of a case."""
    keep = torch.ones(case.k.shape[1], device=case.k.device) if case.options["bidirectional"] else None
    detached = {n: None if getattr(case, n) is None else getattr(case, n).detach() for n in GRADIENTS}
    return launch.make_inputs(
        *(detached[n] for n in GRADIENTS[:7]),
        case.rope,
        case.rays,
        keep,
        case.options["normalise"],
        case.options["key_scale"],
        1e-5,
        1e-8,
    )


SWEEP: dict[str, dict[str, list[int]]] = {
    "inverse_rms": {"BR": [4, 8, 16], "num_warps": [4, 8]},
    "products": {"BS": [32, 64, 128], "SPLIT": [0, 1, 2], "num_warps": [4, 8, 16], "num_stages": [1, 2, 3]},
    "scan": {"BR": [16, 32, 64], "STAGES": [2, 3, 4], "num_warps": [4, 8]},
    "readout": {"BS": [64, 128], "SPLITS": [1, 2], "num_warps": [4, 8], "num_stages": [2, 3]},
    "readout_backward_query": {"BS": [32, 64], "num_warps": [4, 8], "num_stages": [1, 2, 3]},
    "readout_backward_state": {"BS": [32, 64], "num_warps": [4, 8], "num_stages": [1, 2, 3]},
    "combine": {"num_warps": [4, 8, 16], "num_stages": [1]},
    "products_backward_value": {"BS": [32, 64, 128], "num_warps": [4, 8], "num_stages": [1, 2, 3]},
    "products_backward_key": {"BS": [32, 64], "num_warps": [4, 8], "num_stages": [1, 2, 3]},
    "finish_keys": {"BR": [8, 16, 32], "num_warps": [4, 8]},
}


def resources(name: str) -> str:
    """Registers and spills of the variant compiled last."""
    compiled = list(getattr(launch.kernels, name).device_caches[0][0].values())[-1]
    return f"regs {compiled.n_regs} spills {compiled.n_spills} shared {compiled.metadata.shared // 1024} KiB"


def sweep(branch: str, names: list[str], seconds: float, grid: dict[str, list[int]] | None) -> None:
    """Time every stage under each combination of launch parameters; the fastest first."""
    x = prepared(full_size(branch))
    products = launch.compute_products(x)
    none = launch.Ends()
    states = launch.compute_states(x, products, none)
    out = launch.compute_readout(x, products, states)
    dout = torch.randn_like(out)
    read = launch.readout_backward(x, products, states, out, dout)
    zeros = launch.Ends(*(None if e is None else torch.zeros_like(e) for e in vars(states.ends).values()))
    grads = launch.states_backward(x, products, read.dkv, read.dz, zeros)
    steps = launch.combine(x, products, states, none, grads)
    stages: dict[str, Callable[[], object]] = {
        "inverse_rms": lambda: launch.inverse_rms(x.q, 1e-5),
        "products": lambda: launch.compute_products(x),
        "scan": lambda: launch.compute_states(x, products, none),
        "readout": lambda: launch.compute_readout(x, products, states),
        "readout_backward_query": lambda: launch.readout_backward(x, products, states, out, dout),
        "readout_backward_state": lambda: launch.readout_backward(x, products, states, out, dout),
        "scan_backward": lambda: launch.states_backward(x, products, read.dkv, read.dz, zeros),
        "combine": lambda: launch.combine(x, products, states, none, grads),
        "products_backward_value": lambda: launch.products_backward(x, products, states, none, grads, steps),
        "finish_keys": lambda: launch.products_backward(x, products, states, none, grads, steps),
        "products_backward_key": lambda: launch.products_backward(x, products, states, none, grads, steps),
    }
    for name in names:
        stage = stages[name]
        key = "scan" if name.startswith("scan") else name
        before = launch.LAUNCH[key, True]
        results = [(milliseconds(stage), "as it is " + str(before))]
        start = time.time()
        options = grid or SWEEP[key]
        for values in itertools.product(*options.values()):
            if time.time() - start > seconds:
                results.append((float("inf"), "out of time"))
                break
            chosen = dict(zip(options, values, strict=True))
            launch.LAUNCH[key, True] = before | chosen
            try:
                results.append((milliseconds(stage, 5), f"{chosen} {resources(key)}"))
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", nargs="?", const="0/1", help="accuracy of all variants at odd sizes; part i/n"
    )
    parser.add_argument("--sweep", nargs="*", help="stages to sweep; none: all")
    parser.add_argument("--grid", type=json.loads, help='launch parameters to combine, {"BS": [32, 64]}')
    parser.add_argument("--branch", default="main")
    parser.add_argument("--seconds", type=float, default=60, help="at most so long for a stage of the sweep")
    args = parser.parse_args()
    print(torch.cuda.get_device_name(), torch.__version__)
    if args.check is not None:
        part, parts = (int(x) for x in args.check.split("/"))
        check(part, parts)
    if args.sweep is not None:
        sweep(args.branch, args.sweep or [*SWEEP], args.seconds, args.grid)


if __name__ == "__main__":
    main()
